//! The relocator's voice: where it writes to, and what it leaves behind.

use kleap_command::fuzzing;
use kleap_linux::consoles;
use kleap_relocator::abi::Uart;
use kleap_relocator::record::{self, LINE_MAX_BYTES, LINE_START, VALUES_START};

/// A file of pstore's. A record that is found is one wherever else it stands, and has what is relied on.
pub fn failure_record(data: &[u8]) {
    let Some(found) = record::parse(data) else {
        return;
    };
    assert!(found.line.len() <= LINE_MAX_BYTES && found.line.starts_with(LINE_START));
    assert!(!found.reason().contains('\n'));
    assert_eq!(found.value("version"), Some("1"));
    for name in ["phase", "class"] {
        assert!(found.value(name).is_some(), "{name}");
    }
    let values: Vec<String> = found
        .values()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let values = values.join(" ");
    let again = format!("\u{1}Oops#1\n{}\n{VALUES_START}{values}\n", found.line);
    let again = record::parse(again.as_bytes()).expect("it was one before");
    assert_eq!(again.line, found.line);
    assert!(again.values().eq(found.values()));
}

fn check(uart: Uart, said: &str) {
    assert!(uart.base() != 0);
    if let Uart::Ns16550 {
        reg_shift,
        width_bytes,
        base,
    } = uart
    {
        assert!(matches!((width_bytes, reg_shift), (1, 0) | (4, 2)));
        assert!(width_bytes == 1 || base.is_multiple_of(4));
    }
    let again = fuzzing::serial(said).expect("it was one before");
    assert_eq!(again, (uart, said.to_owned()));
}

/// `/proc/consoles`, `--serial` and the command line; the first byte says which.
pub fn console(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let text = &*String::from_utf8_lossy(rest);
    match kind % 3 {
        0 => {
            let names = consoles::names(text);
            assert!(names.len() <= text.lines().count());
            for name in names {
                // It becomes part of a path.
                assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()));
                assert!(text.contains(name));
            }
        }
        1 => {
            if let Some((uart, said)) = fuzzing::serial(text) {
                assert_eq!(said, text);
                check(uart, &said);
            }
        }
        _ => {
            for (uart, said) in fuzzing::serial_in_command_line(text) {
                assert!(text.contains(&said));
                check(uart, &said);
            }
        }
    }
}
