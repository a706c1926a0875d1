//! The banner, `linux_banner` in the kernel's init/version-timestamp.c.
//!
//! It is the only place in the file that tells the version; there is no pointer to it. It lies 12 to
//! 20 MB into the file, so the search skips (Horspool) instead of looking at every byte.

use crate::MAX_BANNER_BYTES;

const START: &[u8] = b"Linux version ";

/// How far the search may move on when the window's last byte is the index: to its last place in
/// [`START`] but the end.
const SKIP: [usize; 256] = {
    let mut skip = [START.len(); 256];
    let mut index = 0;
    while index + 1 < START.len() {
        skip[START[index] as usize] = START.len() - 1 - index;
        index += 1;
    }
    skip
};

/// The first banner in `image`: `Linux version ` and a digit, up to a newline or NUL that follows within
/// [`MAX_BANNER_BYTES`], readable throughout.
pub(crate) fn find(image: &[u8]) -> Option<&str> {
    let mut at = 0;
    while let Some(window) = image.get(at..at + START.len()) {
        if window == START
            && let Some(banner) = read(&image[at..])
        {
            return Some(banner);
        }
        at += SKIP[usize::from(window[START.len() - 1])];
    }
    None
}

fn read(from_start: &[u8]) -> Option<&str> {
    // The kernel's own format strings ("Linux version %s") also begin like this.
    if !from_start.get(START.len())?.is_ascii_digit() {
        return None;
    }
    let bounded = &from_start[..from_start.len().min(MAX_BANNER_BYTES + 1)];
    let length = bounded.iter().position(|byte| matches!(byte, b'\n' | 0))?;
    let text = std::str::from_utf8(&bounded[..length]).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

/// `(major, minor)` out of `Linux version 6.12.107+deb13 ...`.
pub(crate) fn version(banner: &str) -> Option<(u32, u32)> {
    let mut numbers = banner
        .get(START.len()..)?
        .split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_is_found_anywhere() {
        for before in 0..40 {
            let mut image = vec![b'n'; before];
            image.extend_from_slice(b"Linux version %s\0Linux version 6.1.0-47-arm64 (x@y) #1\n\0");
            assert_eq!(find(&image), Some("Linux version 6.1.0-47-arm64 (x@y) #1"));
        }
    }

    #[test]
    fn what_is_no_banner_is_not_taken_for_one() {
        assert_eq!(find(b"Linux version "), None);
        assert_eq!(find(b"Linux version 6.1 without an end"), None);
        assert_eq!(find(b"Linux version 6.1 \x01\n"), None);
        let mut long = b"Linux version 6".to_vec();
        long.resize(MAX_BANNER_BYTES + 2, b'x');
        long.push(b'\n');
        assert_eq!(find(&long), None);
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("Linux version 7.3.4+deb13-arm64 (a)"), Some((7, 3)));
        assert_eq!(version("Linux version 6.12-rc1"), Some((6, 12)));
        assert_eq!(version("Linux version 99999999999.1"), None);
        assert_eq!(version("Linux version 6"), None);
    }
}
