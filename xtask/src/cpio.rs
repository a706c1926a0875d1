//! Archives in the "newc" format, the one that the kernel unpacks as its first file system.
//!
//! Written here because the format is forty lines and `cpio` is not on a fresh machine. Not
//! compressed: the kernel would spend the time on decompressing that the tests want to see spent on
//! the hand-over. The kernel accepts several archives in a row, so large parts are made once and
//! small ones are put before them.

use std::io::{self, Read, Write};

/// Every name and every content starts at a multiple of this.
const ALIGNMENT: u64 = 4;
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// The kinds of entries that an initramfs of the lab has.
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMBOLIC_LINK: u32 = 0o120_000;

/// Writes an archive.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    sink: W,
    written_bytes: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub(crate) fn new(sink: W) -> Self {
        Self {
            sink,
            written_bytes: 0,
            inode: 0,
        }
    }

    /// Adds a directory, before what is in it.
    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.header(name, DIRECTORY | 0o755, 0)
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.content(name, SYMBOLIC_LINK | 0o777, target.as_bytes())
    }

    /// Adds a file, executable: nobody in an initramfs minds.
    pub(crate) fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.content(name, REGULAR | 0o755, content)
    }

    /// Adds a file of known size without holding it in memory.
    pub(crate) fn stream(
        &mut self,
        name: &str,
        size_bytes: u64,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        self.header_of_file(name, size_bytes)?;
        let copied = io::copy(&mut content.take(size_bytes), &mut self.sink)?;
        self.written_bytes += copied;
        if copied != size_bytes {
            return Err(io::Error::other(format!(
                "{name} ended after {copied} bytes"
            )));
        }
        self.pad()
    }

    /// Adds the header of a file whose content the caller brings.
    pub(crate) fn header_of_file(&mut self, name: &str, size_bytes: u64) -> io::Result<()> {
        self.header(name, REGULAR | 0o644, size_bytes)
    }

    /// Ends the archive and gives its size.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.inode = 0;
        self.header(TRAILER, 0, 0)?;
        self.sink.flush()?;
        Ok(self.written_bytes)
    }

    fn content(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.header(name, mode, content.len() as u64)?;
        self.write(content)?;
        self.pad()
    }

    fn header(&mut self, name: &str, mode: u32, size_bytes: u64) -> io::Result<()> {
        let size = u32::try_from(size_bytes)
            .map_err(|_| io::Error::other(format!("{name}: newc ends at 4 GB")))?;
        self.inode += 1;
        let name_size = name.len() + 1;
        // Owner, group, time and devices are zero: the same content gives the same bytes.
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}\
             {name_size:08x}{:08x}",
            self.inode, 0, 0, 1, 0, 0, 0, 0, 0, 0
        );
        self.write(header.as_bytes())?;
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written_bytes += bytes.len() as u64;
        self.sink.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        while !self.written_bytes.is_multiple_of(ALIGNMENT) {
            self.write(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of its own, from the kernel's buffer-format.rst.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let field = |index: usize| {
                let start = at + 6 + 8 * index;
                let digits = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            assert_eq!(bytes[at + 110 + name_size - 1], 0);
            let content = (at + 110 + name_size).next_multiple_of(4);
            let name = String::from_utf8(name.to_vec()).unwrap();
            if name == TRAILER {
                return entries;
            }
            entries.push((name, mode, bytes[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.directory("bin").unwrap();
        archive.file("bin/a", b"12345").unwrap();
        archive.link("bin/bc", "a").unwrap();
        archive.stream("pad", 3, &mut &b"xyzzy"[..]).unwrap();
        let size = archive.finish().unwrap();
        assert_eq!(size, bytes.len() as u64);
        assert_eq!(
            read(&bytes),
            [
                ("bin".to_owned(), 0o040_755, vec![]),
                ("bin/a".to_owned(), 0o100_755, b"12345".to_vec()),
                ("bin/bc".to_owned(), 0o120_777, b"a".to_vec()),
                ("pad".to_owned(), 0o100_644, b"xyz".to_vec()),
            ]
        );
    }

    #[test]
    fn a_short_stream_is_an_error() {
        let mut archive = Archive::new(Vec::new());
        assert!(archive.stream("pad", 9, &mut &b"xyz"[..]).is_err());
    }
}
