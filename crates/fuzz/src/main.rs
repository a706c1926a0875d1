//! Runs one input, as it is in a file, through one target: `kleap-fuzz TARGET FILE...`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(target) = words.next().as_deref().and_then(kleap_fuzz::find) else {
        eprintln!("usage: kleap-fuzz TARGET FILE...");
        for target in kleap_fuzz::TARGETS {
            eprintln!("  {:<20} {}", target.name, target.covers);
        }
        return ExitCode::FAILURE;
    };
    for path in words {
        match std::fs::read(&path) {
            Ok(input) => (target.run)(&input),
            Err(error) => {
                eprintln!("error: {path}: {error}");
                return ExitCode::FAILURE;
            }
        }
        println!("{}: {path}: passed", target.name);
    }
    ExitCode::SUCCESS
}
