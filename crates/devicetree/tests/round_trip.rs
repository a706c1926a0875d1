//! What is read and written again is the same, token for token, over our fixtures and over every tree
//! in a directory (a distribution's, say).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::path::Path;

use common::{CORPUS_VARIABLE, Contents, FIXTURES, contents, files_below, properties};
use kleap_devicetree::{HardwareError, NextBoot, TIMELINE_PROPERTY, Tree, find_property_value};
use kleap_memmap::{PhysAddr, PhysRange};

fn next_boot() -> NextBoot<'static> {
    NextBoot {
        bootargs: "console=ttyAMA0",
        initrd: Some(
            PhysRange::from_size(PhysAddr::new(0x4800_0000), 0x12_3456).expect("in range"),
        ),
        kaslr_seed: 0x0102_0304_0506_0708,
        rng_seed: &[0x5a; 128],
        timeline_bytes: 512,
        old_dtb: None,
        secure_boot: None,
        crash: None,
    }
}

/// Checks one tree.
fn check(name: &str, blob: &[u8]) {
    let tree = Tree::parse(blob).unwrap_or_else(|error| panic!("{name}: {error}"));
    let before = contents(blob);
    let written = tree
        .to_dtb()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(contents(&written), before, "{name}");

    // Preparing touches /chosen and the reservations and nothing else.
    let mut prepared = tree.clone();
    let report = prepared
        .prepare(&next_boot())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let after = prepared.to_dtb().expect("still small enough");
    let timeline = find_property_value(&after, "/chosen", TIMELINE_PROPERTY).expect(name);
    assert_eq!(timeline.len(), 512);
    assert!(timeline.start.is_multiple_of(4));
    assert!(after[timeline].iter().all(|byte| *byte == 0));
    let after = contents(&after);
    assert_eq!(outside_chosen(&after), outside_chosen(&before), "{name}");
    assert_eq!(after.boot_cpu, before.boot_cpu, "{name}");
    assert_eq!(
        after.reservations.len(),
        before.reservations.len() - report.removed_reservations.len() + 1
    );
    for (property, value) in properties(&before, "/chosen") {
        if property.starts_with("linux,uefi-") || property == "stdout-path" {
            assert!(properties(&after, "/chosen").contains(&(property, value)));
        }
    }
    // Doing it again gives the same.
    let mut again = Tree::parse(&prepared.to_dtb().expect("small")).expect("ours");
    let _ = again.prepare(&next_boot()).expect("again");
    assert_eq!(contents(&again.to_dtb().expect("small")), after, "{name}");
}

/// The tokens, without those between the beginning and the end of /chosen.
fn outside_chosen(contents: &Contents) -> Vec<common::Token> {
    use common::Token;
    let mut depth = 0;
    let mut inside = false;
    let mut kept = Vec::new();
    for token in &contents.tokens {
        match token {
            Token::Begin(name) => {
                depth += 1;
                inside |= depth == 2 && name == b"chosen";
            }
            Token::End => depth -= 1,
            Token::Property(..) => {}
        }
        if !inside {
            kept.push(token.clone());
        }
        if inside && depth == 1 {
            inside = false;
        }
    }
    kept
}

#[test]
fn fixtures_survive() {
    for (name, blob) in FIXTURES {
        check(name, blob);
    }
}

/// Another program reads in what we write what we meant.
#[test]
fn dtc_agrees() {
    for (name, blob) in FIXTURES {
        let mut tree = Tree::parse(blob).expect(name);
        let _ = tree.prepare(&next_boot()).expect(name);
        let written = tree.to_dtb().expect(name);
        let path = std::env::temp_dir().join(format!(
            "kleap-devicetree-{name}-{}.dtb",
            std::process::id()
        ));
        std::fs::write(&path, &written).expect("temporary file");
        let dtc = std::process::Command::new("dtc")
            .args(["-q", "-I", "dtb", "-O", "dtb"])
            .arg(&path)
            .output();
        std::fs::remove_file(&path).expect("temporary file");
        let Ok(dtc) = dtc else {
            println!("SKIPPED: no dtc to compare with");
            return;
        };
        assert!(
            dtc.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&dtc.stderr)
        );
        let mut theirs = contents(&dtc.stdout);
        // It writes the boot CPU of its own command line.
        theirs.boot_cpu = contents(&written).boot_cpu;
        assert_eq!(theirs, contents(&written), "{name}");
    }
}

/// Bytes behind the stated length are not part of the tree.
#[test]
fn padding_behind_the_tree_is_ignored() {
    for (_, blob) in FIXTURES {
        let padded = [blob, &[0xff; 100]].concat();
        assert_eq!(
            Tree::parse(&padded).expect("padded"),
            Tree::parse(blob).expect("plain")
        );
    }
}

#[test]
fn a_corpus_survives() {
    let Some(directory) = std::env::var_os(CORPUS_VARIABLE) else {
        println!("SKIPPED: set {CORPUS_VARIABLE} to a directory with .dtb files to run over them");
        return;
    };
    let files = files_below(Path::new(&directory));
    let [
        mut consoles,
        mut no_console,
        mut unusable,
        mut gic_v3,
        mut psci,
        mut reserved,
    ] = [0; 6];
    let mut problems = std::collections::BTreeMap::<String, usize>::new();
    for path in &files {
        let blob = std::fs::read(path).expect("file");
        let name = path.display().to_string();
        check(&name, &blob);
        let tree = Tree::parse(&blob).expect("checked above");
        match tree.console() {
            Ok(Some(_)) => consoles += 1,
            Ok(None) => no_console += 1,
            Err(error) => {
                unusable += 1;
                let kind = match error {
                    HardwareError::UnknownUart { compatible, .. } => {
                        format!(
                            "unknown UART {}",
                            compatible.last().cloned().unwrap_or_default()
                        )
                    }
                    other => format!("{other} ({name})"),
                };
                *problems.entry(kind).or_default() += 1;
            }
        }
        match tree.gic_v3_redistributors() {
            Ok(regions) if !regions.is_empty() => gic_v3 += 1,
            Ok(_) => {}
            Err(error) => *problems.entry(format!("{error} ({name})")).or_default() += 1,
        }
        psci += usize::from(tree.psci().is_some());
        if let Err(error) = tree.memory() {
            *problems
                .entry(format!("memory: {error} ({name})"))
                .or_default() += 1;
        }
        match tree.reserved_memory() {
            Ok(ranges) => reserved += usize::from(!ranges.is_empty()),
            Err(error) => *problems.entry(format!("{error} ({name})")).or_default() += 1,
        }
    }
    assert!(
        !files.is_empty(),
        "no .dtb file below {}",
        Path::new(&directory).display()
    );
    println!(
        "{} trees, all token-identical after a round trip",
        files.len()
    );
    println!("consoles: {consoles} usable, {no_console} none named, {unusable} not usable");
    println!("GICv3 redistributors: {gic_v3}; PSCI: {psci}; reserved memory: {reserved}");
    for (problem, count) in problems {
        println!("  {count} x {problem}");
    }
}
