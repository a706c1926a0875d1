// The five functions that compiled Rust expects to find, and that this target's compiler_builtins
// does not have. In assembly because a loop in Rust can be compiled into a call to itself.
// AAPCS64; they clobber x3-x17, q0-q3, flags.

    .section .text.mem, "ax"

    .globl memcpy
    .type memcpy, %function
memcpy:                                 // x0 target, x1 source, x2 size -> x0
    mov     x3, x0                      // reads before it writes, upward: right for memmove down, too
1:  subs    x2, x2, #64
    b.lo    2f
    ldp     q0, q1, [x1], #32
    ldp     q2, q3, [x1], #32
    stp     q0, q1, [x3], #32
    stp     q2, q3, [x3], #32
    b       1b
2:  adds    x2, x2, #64
    b.eq    4f
3:  ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    subs    x2, x2, #1
    b.ne    3b
4:  ret
    .size memcpy, . - memcpy

    .globl memmove
    .type memmove, %function
memmove:
    sub     x4, x0, x1                  // as unsigned: below size only if target is inside source
    cmp     x4, x2
    b.hs    memcpy
    add     x3, x0, x2                  // the same from the ends, downward: what is written lies above
    add     x1, x1, x2                  // all that is still to be read, whatever the distance
1:  subs    x2, x2, #64
    b.lo    2f
    ldp     q0, q1, [x1, #-32]!
    ldp     q2, q3, [x1, #-32]!
    stp     q0, q1, [x3, #-32]!
    stp     q2, q3, [x3, #-32]!
    b       1b
2:  adds    x2, x2, #64
    b.eq    4f
3:  ldrb    w4, [x1, #-1]!
    strb    w4, [x3, #-1]!
    subs    x2, x2, #1
    b.ne    3b
4:  ret
    .size memmove, . - memmove

    .globl memset
    .type memset, %function
memset:                                 // x0 target, w1 byte, x2 size -> x0
    mov     x3, x0
    dup     v0.16b, w1
1:  subs    x2, x2, #64
    b.lo    2f
    stp     q0, q0, [x3], #32
    stp     q0, q0, [x3], #32
    b       1b
2:  adds    x2, x2, #64
    b.eq    4f
3:  strb    w1, [x3], #1
    subs    x2, x2, #1
    b.ne    3b
4:  ret
    .size memset, . - memset

    .globl memcmp
    .type memcmp, %function
    .globl bcmp
    .type bcmp, %function
memcmp:                                 // x0, x1, x2 size -> w0
bcmp:
    cbz     x2, 2f
1:  ldrb    w3, [x0], #1
    ldrb    w4, [x1], #1
    subs    w5, w3, w4
    b.ne    3f
    subs    x2, x2, #1
    b.ne    1b
2:  mov     w0, #0
    ret
3:  mov     w0, w5
    ret
    .size memcmp, . - memcmp
