//! What one kleap writes for another to read: the notes below `/dev/kleap`, the holder's argument.

use super::Draw;
use kleap_command::fuzzing;
use std::fmt::Write as _;

/// A note as `load` writes it, of a payload in one file and a half; `#` stands for a number.
const STATE: &str = r##"{"boot_id":"b","generation":#,"payload":"payload-1","files":[{"page_size_bytes":#,"pages":#},{"page_size_bytes":#,"pages":#}],"pinned_by":"io_uring","early":false,"hand_off":{"verbose":true,"on_failure":"off","serial":"pl011,mmio32,0x9000000"},"layout":{"unit_bytes":#,"image":{"target":[#,#],"parts":[{"address":#,"size_bytes":#,"file":#,"offset_bytes":#},{"address":#,"size_bytes":#,"file":#,"offset_bytes":#}],"room":[{"address":#,"size_bytes":#,"file":#,"offset_bytes":#}],"offset_bytes":#},"initrd":{"target":[#,#],"parts":[{"address":#,"size_bytes":#,"file":#,"offset_bytes":#}],"room":[],"offset_bytes":#},"device_tree":{"target":[#,#],"parts":[{"address":#,"size_bytes":#,"file":#,"offset_bytes":#}],"room":[],"offset_bytes":#},"stage":[#,#],"stage_parts":[{"address":#,"size_bytes":#,"file":#,"offset_bytes":#}],"spare":null},"strategy":"auto","verify":"sha256","kernel_path":"/k","kernel_banner":null,"image_size_bytes":#,"kernel_page_size_bytes":4096,"command_line":"c","image":{"size_bytes":#,"digests":[1,0,1,2]},"initrd_path":null,"initrd":{"size_bytes":#,"digests":[2,0,1,2]},"device_tree":{"size_bytes":#,"digests":[3,0,1,2]},"timeline_offset_bytes":#}"##;
const POOL: &str = r##"{"boot_id":"b","pools":[{"page_size_bytes":#,"before":#,"added":#},{"page_size_bytes":#,"before":#,"added":#}],"boost_factor":#,"high_fraction":#}"##;

/// A number as it could stand in a note: small ones, sizes of pages, addresses, and what is none of these.
fn plausible(draw: &mut Draw<'_>) -> u64 {
    match draw.below(4) {
        0 => u64::from(draw.byte() & 3),
        1 => 1 << draw.below(64),
        2 => u64::from(draw.byte()) << 21,
        _ => draw.number(),
    }
}

/// The template with the fuzzer's numbers.
fn filled(template: &str, draw: &mut Draw<'_>) -> String {
    let mut text = String::new();
    for part in template.split_inclusive('#') {
        text.push_str(part.trim_end_matches('#'));
        if part.ends_with('#') {
            let _ = write!(text, "{}", plausible(draw));
        }
    }
    text
}

/// The text as it is if it begins as one, else the template with numbers of the bytes.
fn note(data: &[u8], template: &str, read: fn(&[u8]) -> bool) {
    if data.first() == Some(&b'{') {
        read(data);
    } else {
        read(filled(template, &mut Draw::new(data)).as_bytes());
    }
}

/// `state.json`.
pub fn state(data: &[u8]) {
    note(data, STATE, fuzzing::state);
}

/// `pool.json`.
pub fn pool(data: &[u8]) {
    note(data, POOL, fuzzing::pool);
}

/// A word; what was understood, said again, is understood again.
pub fn hold_argument(data: &[u8]) {
    let word = String::from_utf8_lossy(data);
    let Some((page_size_bytes, pages, runs, path)) = fuzzing::hold_argument(&word) else {
        return;
    };
    assert!(
        runs.iter()
            .all(|run| run.start <= run.end && run.end <= pages)
    );
    let again = fuzzing::hold_word(page_size_bytes, pages, &runs, &path);
    let again = again.to_str().expect("of text comes text");
    assert_eq!(
        fuzzing::hold_argument(again),
        Some((page_size_bytes, pages, runs, path))
    );
}

/// The words after `kexec`, separated by NULs.
pub fn kexec_words(data: &[u8]) {
    fuzzing::kexec_words(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The template is a note that is accepted, so that the fuzzer is not kept at the door.
    #[test]
    fn the_templates_are_notes() {
        let sizes = [
            1,
            2 << 20,
            8,
            64 << 10,
            8,        // generation, files
            64 << 10, // unit
            0x4000_0000,
            0x4040_0000, // image
            0x4000_0000,
            2 << 20,
            0,
            0,
            0x4020_0000,
            1 << 20,
            0,
            2 << 20, //
            0x4030_0000,
            64 << 10,
            0,
            4 << 20,
            0, //
            0x5000_0000,
            0x5020_0000,
            0x5000_0000,
            64 << 10,
            1,
            0,
            0, // initrd
            0x5100_0000,
            0x5120_0000,
            0x5100_0000,
            64 << 10,
            1,
            64 << 10,
            0, // device tree
            0x5200_0000,
            0x5220_0000,
            0x5200_0000,
            64 << 10,
            1,
            128 << 10, // stage
            1 << 20,
            1000,
            1000,
            1000,
            8_u64,
        ];
        let mut sizes = sizes.into_iter();
        let mut text = String::new();
        for part in STATE.split_inclusive('#') {
            text.push_str(part.trim_end_matches('#'));
            if part.ends_with('#') {
                let _ = write!(text, "{}", sizes.next().expect("as many numbers"));
            }
        }
        assert_eq!(sizes.next(), None);
        assert!(fuzzing::state(text.as_bytes()), "{text}");
        assert!(fuzzing::pool(POOL.replace('#', "7").as_bytes()));
    }
}
