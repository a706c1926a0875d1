// Entry, exit and exception vectors of the relocator.
//
// Entered by the first kernel with the MMU off, at EL1, at EL2 without E2H, or at EL2 with E2H, with
// whatever the kernel left in every other register (it differs by version: SCTLR may still have
// pointer authentication on, TCR may have DS, HA and HD set, TCR2 may have PIE set). So every control
// register that matters is written whole, never changed bit by bit.
//
// Before the MMU is on: no stack, no store, no load but from the stage, which the first kernel has
// cleaned to the point of coherency; after it is off again: no load at all.
//
// What the MMU is turned on with (hand-off block, this program, the tables of the regime at hand) is
// compared with its CRC32C first. The code that compares is part of what is compared. Broken code cannot be
// trusted to find out that it is broken; but it is some hundred bytes of all that, and Rust looks at the
// program once more when the MMU is on. docs/decisions/0020-the-stage-is-verified-first.md
//
// With E2H set, the _EL1 names reach the _EL2 registers (Arm ARM D24.1, "redirection"), in the EL1
// layout. So there are two paths, not three: "two privileges" (EL1, and EL2 with E2H) and "one
// privilege" (EL2 without).
//
// Register use from entry to exit:
//   x19  counter at entry             x22  level: 1 EL1, 2 EL2, 3 EL2 with E2H
//   x20  the stage                    x23  counter when the MMU was on
//   x21  the hand-off block

    .section .head, "ax"
    .globl  _start
    .type   _start, %function
_start:
    // Vectors before all else, and once more below: until they are set, an exception goes where the first kernel
    // had its own, which with the MMU off is nowhere, for ever. Two copies, so that it takes more than one broken
    // instruction to get there (fault 334 of seed 11).
    msr     daifset, #0xf
    msr     tpidr_el0, xzr              // steps of `reset`, and what is noted for a failure
    msr     tpidrro_el0, xzr            // 1: the hand-off block was right
    adr     x4, vectors
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    1f
    msr     vbar_el2, x4                // with E2H, what VBAR_EL1 means as well (Arm ARM D24.1)
    b       2f
1:  msr     vbar_el1, x4
2:  isb                                 // the counter must not be read early
    mrs     x19, cntvct_el0
    msr     spsel, #1
    msr     tpidr_el0, xzr
    msr     tpidrro_el0, xzr
    adr     x20, _start
    add     x21, x20, #{HAND_OFF_OFFSET}

    mov     x22, #1
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    1f
    mov     x22, #2
    mrs     x0, hcr_el2
    tbz     x0, #34, 1f                 // HCR_EL2.E2H
    mov     x22, #3
1:
    // The instruction cache is turned on as well, or else every pass of a loop would be fetched from memory.
    adr     x4, vectors
    ic      iallu
    dsb     nsh
    isb
    cmp     x22, #2
    b.eq    1f
    ldr     x5, =0x30501800             // SCTLR_EL1: RES1 | I
    msr     vbar_el1, x4
    msr     sctlr_el1, x5
    b       2f
1:  ldr     x5, =0x30c51830             // SCTLR_EL2 without E2H: RES1 | I
    msr     vbar_el2, x4
    msr     sctlr_el2, x5
2:  isb

    // What `checksum` needs: x9 whether there is CRC32CX, x10 the polynomial of those who have not.
    mrs     x9, id_aa64isar0_el1
    ubfx    x9, x9, #16, #4             // CRC32
    ldr     x5, [x21, #{PORTABLE}]
    cmp     x5, #0
    csel    x9, x9, xzr, eq
    ldr     w10, =0x82f63b78            // Castagnoli, reflected

    // The hand-off block, before any of it is believed. Its size alone has to be, so it gets a limit: what is
    // read beyond the block then is the memory that follows.
    adr     x15, hand_off_line
    ldr     x2, [x21, #{SIZE_BYTES}]
    ldr     x4, [x21, #{CRC32C}]
    cmp     x2, #{HEADER_SIZE_BYTES}
    b.lo    say
    cmp     x2, #{HAND_OFF_MAX_BYTES}
    b.hi    say
    mov     x1, x21
    add     x5, x21, #({CRC32C} + 16)   // the digest itself counts as zero
    adr     x6, 3f
    b       checksum

3:  mov     x1, #1
    msr     tpidrro_el0, x1
    adr     x15, program_line
    ldr     x2, [x21, #{PROGRAM_SIZE_BYTES}]
    ldr     x4, [x21, #{PROGRAM_CRC32C}]
    mov     x1, x20
    mov     x5, xzr
    adr     x6, 4f
    b       checksum

    // The tables that will be used; those of the other kind of regime are no business of this machine.
4:  adr     x15, tables_line
    ldr     x1, [x21, #{TTBR_TWO_PRIVILEGES}]
    ldr     x2, [x21, #{TABLES_TWO_PRIVILEGES}]
    ldr     x4, [x21, #{TABLES_TWO_PRIVILEGES_CRC32C}]
    cmp     x22, #2
    b.ne    5f
    ldr     x1, [x21, #{TTBR_ONE_PRIVILEGE}]
    ldr     x2, [x21, #{TABLES_ONE_PRIVILEGE}]
    ldr     x4, [x21, #{TABLES_ONE_PRIVILEGE_CRC32C}]
5:  ldr     x3, [x21, #{TABLE_SIZE_BYTES}]
    mul     x2, x2, x3
    adr     x6, checked
    // falls through

// Compares the CRC32C of x2 bytes (a multiple of 16) at x1 with x4, and goes on at x6, or says the line at x15.
// The word at x5 - 16 counts as zero. One load for 16 bytes: with the MMU off each goes to memory.
// (A pair of 16-byte registers would be split in two again, and the kernel may have FP trapped.)
checksum:
    add     x2, x2, x1
    mov     w0, #-1
6:  cmp     x1, x2
    b.hs    9f
    ldp     x7, x8, [x1], #16
    cmp     x1, x5
    csel    x7, xzr, x7, eq
    cbz     x9, 7f
    .arch_extension crc
    crc32cx w0, w0, x7
    crc32cx w0, w0, x8
    b       6b
    // Without the instruction: bit by bit. A table would be slower, as long as it is read from memory.
7:  .irp    word, x7, x8
    eor     x0, x0, \word
    mov     x11, #64
8:  sbfx    x12, x0, #0, #1
    and     x12, x12, x10
    eor     x0, x12, x0, lsr #1
    subs    x11, x11, #1
    b.ne    8b
    .endr
    b       6b
9:  mvn     w0, w0
    cmp     x0, x4
    b.ne    say
    br      x6

checked:
    // The physical address size: what the CPU has, but no more than the tables were built for.
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf                // PARange
    ldr     x2, [x21, #{PHYSICAL_SIZE_MAX}]
    cmp     x1, x2
    csel    x1, x1, x2, lo
    ldr     x3, [x21, #{MAIR}]
    cmp     x22, #2
    b.eq    one_privilege

two_privileges:
    mov     x5, #(3 << 20)              // CPACR.FPEN (CPTR_EL2.FPEN with E2H): no trap
    msr     cpacr_el1, x5
    mrs     x5, S3_0_C0_C7_3            // ID_AA64MMFR3_EL1
    tst     x5, #0xf                    // TCRX
    b.eq    2f
    msr     S3_0_C2_C0_3, xzr           // TCR2_EL1: with PIE set, AP and XN would not mean what we mean
2:  ldr     x5, [x21, #{TCR_TWO_PRIVILEGES}]
    orr     x5, x5, x1, lsl #32         // IPS
    ldr     x6, [x21, #{TTBR_TWO_PRIVILEGES}]
    msr     mair_el1, x3
    msr     tcr_el1, x5
    msr     ttbr0_el1, x6
    isb
    tlbi    vmalle1                     // global entries of the first kernel are live
    cmp     x22, #3
    b.ne    3f
    tlbi    alle2
3:  ic      iallu
    dsb     nsh
    isb
    ldr     x5, =0x30d8180d             // RES1 | SPAN | WXN | I | SA | C | M
    msr     sctlr_el1, x5
    isb
    b       mmu_on

one_privilege:
    mov     x5, #0x33ff                 // CPTR_EL2: RES1, FP and SIMD not trapped
    msr     cptr_el2, x5
    mrs     x5, S3_0_C0_C7_3
    tst     x5, #0xf
    b.eq    4f
    msr     S3_4_C2_C0_3, xzr           // TCR2_EL2
4:  ldr     x5, [x21, #{TCR_ONE_PRIVILEGE}]
    orr     x5, x5, x1, lsl #16         // PS
    ldr     x6, [x21, #{TTBR_ONE_PRIVILEGE}]
    msr     mair_el2, x3
    msr     tcr_el2, x5
    msr     ttbr0_el2, x6
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    ldr     x5, =0x30cd183d             // RES1 | WXN | I | SA | C | M
    msr     sctlr_el2, x5
    isb

    .globl  mmu_on
mmu_on:
    mrs     x23, cntvct_el0
    ldr     x0, [x21, #{STACK_END}]
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x21
    mov     x1, x19
    mov     x2, x23
    mov     x3, x22
    bl      relocator_main              // returns if and only if the next kernel may be entered

    .globl  enter_kernel
enter_kernel:
    // Rust has kept x19 to x28 on its stack, which has no digest: what decides how the MMU is turned off is
    // asked again.
    adr     x20, _start
    add     x21, x20, #{HAND_OFF_OFFSET}
    mov     x22, #1
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    4f
    mov     x22, #2
    mrs     x0, hcr_el2
    tbz     x0, #34, 4f                 // HCR_EL2.E2H
    mov     x22, #3
4:  ldr     x24, [x21, #{KERNEL_ENTRY}]
    ldr     x25, [x21, #{DEVICE_TREE}]
    ldr     x5, =0x30500800             // SCTLR_EL1, MMU and caches off, as Linux itself leaves it
    ldr     x6, =0x30c50830             // SCTLR_EL2 without E2H, the same
    dsb     sy
    cmp     x22, #2
    b.eq    5f
    isb                                 // erratum Falkor E1041: before M is cleared
    msr     sctlr_el1, x5
    isb
    tlbi    vmalle1
    cmp     x22, #3
    b.ne    6f
    tlbi    alle2
    b       6f
5:  isb
    msr     sctlr_el2, x6
    isb
    tlbi    alle2
6:  ic      iallu
    dsb     nsh
    isb
    // booting.rst: x0 the device tree, x1 to x3 zero. The rest is not the next kernel's business.
    mov     x0, x25
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    br      x24
    .size   _start, . - _start
    .ltorg

// Sixteen vectors that all lead to one place; x0 says which it was.
    .balign 2048
    .globl  vectors
vectors:
    .set    index, 0
    .rept   16
    .balign 128
    mov     x0, #index
    b       exception
    .set    index, index + 1
    .endr

// A second exception while the first is being reported: nothing can be trusted, so no word more.
    .balign 2048
last_vectors:
    .rept   16
    .balign 128
    b       reset
    .endr

    .balign 2048
    .type   exception, %function
exception:
    adr     x9, last_vectors
    adr     x20, _start
    add     x21, x20, #{HAND_OFF_OFFSET}
    mrs     x10, CurrentEL
    cmp     x10, #(2 << 2)
    b.ne    1f
    mrs     x10, hcr_el2
    tbnz    x10, #34, 1f
    msr     vbar_el2, x9
    mrs     x1, esr_el2
    mrs     x2, elr_el2
    mrs     x3, far_el2
    mrs     x11, sctlr_el2
    b       2f
1:  msr     vbar_el1, x9
    mrs     x1, esr_el1
    mrs     x2, elr_el1
    mrs     x3, far_el1
    mrs     x11, sctlr_el1
2:  isb
    tbz     x11, #0, early              // the MMU is off: no Rust
    ldr     x9, [x21, #{STACK_END}]
    mov     sp, x9
    mov     x29, xzr
    mov     x30, xzr
    bl      relocator_exception
    b       reset

// The MMU is off: a fixed record, a fixed line, and the end.
early:
    adr     x15, early_line
say:
    mrs     x9, tpidrro_el0             // a damaged block does not say where a record may be written
    cbz     x9, 2f
    adr     x4, exception_record
    adr     x5, exception_record_end
    adr     x6, program_line
    cmp     x15, x6
    b.ne    1f
    adr     x4, program_record
    adr     x5, program_record_end
1:  adr     x6, tables_line
    cmp     x15, x6
    b.ne    1f
    adr     x4, tables_record
    adr     x5, tables_record_end
1:  bl      early_record
    // A damaged block may name a wrong UART: then either nobody reads the line, or there is an exception, whose
    // line goes the same way, and the second exception ends it.
2:  bl      print
    adr     x15, resetting
    mrs     x9, tpidrro_el0
    cbz     x9, 1f                      // nor how it is to end
    ldr     x9, [x21, #{ON_FAILURE}]
    cmp     x9, #{ON_FAILURE_OFF}
    adr     x10, powering_off
    csel    x15, x10, x15, eq
    cmp     x9, #{ON_FAILURE_HALT}
    adr     x10, halting
    csel    x15, x10, x15, eq
1:  bl      print
    b       reset

// The failure record at [x4, x5) of what is found with the MMU off (record.rs writes all others), if there is a
// place for it and it is the first. The first kernel may have left lines of that memory in the caches: out with
// them, before and, should one come back, after.
early_record:
    ldr     x1, [x21, #{RECORD}]
    ldr     x2, [x21, #{RECORD_SIZE_BYTES}]
    mrs     x3, tpidr_el0
    cbz     x1, 3f
    tbnz    x3, #{RECORD_WRITTEN_BIT}, 3f
    orr     x3, x3, #(1 << {RECORD_WRITTEN_BIT})
    msr     tpidr_el0, x3
    sub     x6, x5, x4
    cmp     x2, x6
    b.lo    3f
    mov     x7, xzr
1:  add     x8, x1, x7
    dc      civac, x8
    add     x7, x7, #8
    cmp     x7, x6
    b.lo    1b
    dsb     sy
    mov     x7, xzr
2:  ldr     x8, [x4, x7]
    str     x8, [x1, x7]
    add     x7, x7, #8
    cmp     x7, x6
    b.lo    2b
    dsb     sy
    mov     x7, xzr
4:  add     x8, x1, x7
    dc      civac, x8
    add     x7, x7, #8
    cmp     x7, x6
    b.lo    4b
    dsb     sy
3:  ret

// Writes the text at x15, up to its zero byte, to the console that the hand-off block names, and waits until
// the last bit has left. With the MMU on or off; without a stack. A byte that times out ends it.
// Uses x1, x2, x4 to x6, x9 to x15, x17.
print:
    ldr     x9, [x21, #{UART_KIND}]
    ldr     x12, [x21, #{UART_BASE}]
    cbz     x9, 9f
    mov     x14, #0x18                  // PL011: UARTFR, 32 bits; room if bit 5 (TXFF) is clear,
    mov     x13, #4                     // idle if bit 3 (BUSY) is
    mov     w5, wzr
    mov     w6, #(1 << 3)
    cmp     x9, #1
    b.eq    1f
    ldr     x13, [x21, #{UART_REG_SHIFT}]
    mov     x14, #5                     // 8250: LSR; room if bit 5 (THRE) is set, idle if bit 6 (TEMT) is
    lsl     x14, x14, x13
    ldr     x13, [x21, #{UART_WIDTH_BYTES}]
    mov     w5, #(3 << 5)
    mov     w6, #(1 << 6)
1:  mrs     x17, cntfrq_el0             // as deadline.rs has it
    ldr     x2, ={HIGHEST_HZ}
    sub     x4, x17, #1
    cmp     x4, x2
    b.lo    2f
    ldr     x17, ={FALLBACK_HZ}
2:  mov     x2, #{BYTES_PER_SECOND_LEAST}
    udiv    x17, x17, x2                // ticks that a byte may take
3:  ldrb    w1, [x15], #1
    mov     w4, #(1 << 5)
    cbnz    w1, 4f
    mov     w4, w6                      // no byte more: wait until it is idle
4:  isb
    mrs     x10, cntvct_el0
    mov     w11, #{POLLS_MAX}
5:  cmp     x13, #4
    b.eq    6f
    ldrb    w2, [x12, x14]
    b       7f
6:  ldr     w2, [x12, x14]
7:  eor     w2, w2, w5
    tst     w2, w4
    b.eq    8f
    isb
    mrs     x2, cntvct_el0
    sub     x2, x2, x10
    cmp     x2, x17
    b.hs    9f
    subs    w11, w11, #1                // the counter may stand still
    b.ne    5b
    b       9f
8:  cbz     w1, 9f
    cmp     x13, #4
    b.eq    10f
    strb    w1, [x12]
    b       3b
10: str     w1, [x12]
    b       3b
9:  ret

// The end of a hand-over that cannot go on. Steps, one after the other, because each may return, or be an
// exception, which leads back to this place (TPIDR_EL0 counts them):
//   0  PSCI SYSTEM_RESET by the conduit that the machine names
//   1  the same by the other one: undefined, or refused, where there is none
//   2  SYSTEM_OFF   3  the same by the other one
//   4  a word that it is over   5  wait
// With --on-failure off, SYSTEM_OFF comes before SYSTEM_RESET; with halt, or without PSCI, it begins with
// step 4. From EL2 only SMC: HVC would go to our own vectors.
// What a block that was not right says counts for nothing, but for which conduit is tried first.
    .globl  reset
    .type   reset, %function
reset:
    msr     daifset, #0xf
    adr     x20, _start
    add     x21, x20, #{HAND_OFF_OFFSET}
    adr     x9, last_vectors
    mov     x11, xzr                    // whether this is EL2
    mrs     x10, CurrentEL
    cmp     x10, #(2 << 2)
    b.ne    1f
    mov     x11, #1
    mrs     x10, hcr_el2
    tbnz    x10, #34, 1f
    msr     vbar_el2, x9
    b       2f
1:  msr     vbar_el1, x9
2:  isb
    mrs     x0, tpidr_el0
    and     x3, x0, #0xff
    add     x1, x0, #1
    cmp     x3, #5                      // it must not count on into the bits above
    csel    x1, x1, x0, lo
    msr     tpidr_el0, x1
    b.hs    7f
    ldr     x9, [x21, #{ON_FAILURE}]
    ldr     x10, [x21, #{PSCI_CONDUIT}]
    mrs     x4, tpidrro_el0
    cbnz    x4, 8f
    mov     x9, xzr                     // reset
    cmp     x10, #2
    cset    x10, eq
    add     x10, x10, #1
8:
    cmp     x9, #{ON_FAILURE_HALT}
    adr     x15, halted
    b.eq    6f
    adr     x15, no_psci
    cbz     x10, 6f
    adr     x15, not_ended
    cmp     x3, #4
    b.eq    6f
    lsr     x4, x3, #1                  // 0 for the first two steps
    cmp     x9, #{ON_FAILURE_OFF}
    cset    x5, eq
    eor     x4, x4, x5
    ldr     w0, =0x84000009             // SYSTEM_RESET
    ldr     w5, =0x84000008             // SYSTEM_OFF
    cmp     x4, #0
    csel    w0, w0, w5, eq
    and     x4, x3, #1                  // the other conduit
    cbnz    x11, 3f
    cmp     x10, #2
    cset    x5, eq
    eor     x4, x4, x5
    b       4f
3:  cbnz    x4, reset                   // at EL2 there is none
4:  mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    cbnz    x4, 5f
    smc     #0
    b       reset
5:  hvc     #0
    b       reset
6:  mov     x1, #5                      // whatever printing comes to, there is nothing after it
    msr     tpidr_el0, x1
    bl      print
7:  wfi
    b       7b
    .ltorg

early_line:
    .asciz  "\r\nkleap: hand-over stopped: exception before the MMU was on"
hand_off_line:
    .asciz  "kleap: hand-over stopped: hand-off block damaged before the MMU was on"
program_line:
    .asciz  "kleap: hand-over stopped: relocator damaged before the MMU was on"
tables_line:
    .asciz  "kleap: hand-over stopped: translation tables damaged before the MMU was on"
resetting:
    .asciz  "; resetting\r\n"
powering_off:
    .asciz  "; powering off\r\n"
halting:
    .asciz  "; halting\r\n"
halted:
    .asciz  "kleap: halted, as --on-failure asked for\r\n"
no_psci:
    .asciz  "kleap: no PSCI to reset this machine with: it stops here\r\n"
not_ended:
    .asciz  "kleap: PSCI has not ended this machine: it stops here\r\n"

// As record.rs writes them: the header of a zone of ramoops, then the text.
    .balign 8
exception_record:
    .word   {RECORD_SIGNATURE}
    .word   0
    .word   9f - 8f
8:  .ascii  "====0.000000-D\n"
    .ascii  "kleap: hand-over stopped: exception before the MMU was on\n"
    .ascii  "kleap-failure: version=1 phase=entry class=exception\n"
9:  .balign 8
exception_record_end:
    .balign 8
program_record:
    .word   {RECORD_SIGNATURE}
    .word   0
    .word   9f - 8f
8:  .ascii  "====0.000000-D\n"
    .ascii  "kleap: hand-over stopped: relocator damaged before the MMU was on\n"
    .ascii  "kleap-failure: version=1 phase=entry class=digest piece=relocator\n"
9:  .balign 8
program_record_end:
    .balign 8
tables_record:
    .word   {RECORD_SIGNATURE}
    .word   0
    .word   9f - 8f
8:  .ascii  "====0.000000-D\n"
    .ascii  "kleap: hand-over stopped: translation tables damaged before the MMU was on\n"
    .ascii  "kleap-failure: version=1 phase=entry class=digest piece=tables\n"
9:  .balign 8
tables_record_end:
