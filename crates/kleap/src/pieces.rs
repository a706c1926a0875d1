//! What kernel and initrd are made of: files, stretches of files, bytes in memory.
//!
//! A file that is taken as it is is not kept in memory: it would take as much of it as its place, just while
//! that is looked for, and in the middle of what is free. It is opened and looked at first, and read when the place is
//! there. What was checked the first time has a checksum, which must be right the second time.

use crate::error::Failure;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

pub(crate) fn input_error(path: &Path, what: impl ToString) -> Failure {
    Failure::Input {
        path: path.to_owned(),
        what: what.to_string(),
    }
}

/// Refuses what is no file: reading a FIFO or a terminal waits for somebody, and a device may have no end.
pub(crate) fn check_regular(path: &Path) -> Result<u64, Failure> {
    let metadata = std::fs::metadata(path).map_err(|error| input_error(path, error))?;
    if metadata.is_dir() {
        return Err(input_error(path, "is a directory, not a regular file"));
    }
    if !metadata.is_file() {
        return Err(input_error(path, "is not a regular file"));
    }
    Ok(metadata.len())
}

/// The reason alone: the path is said by the caller.
pub(crate) fn reason(error: &kleap_linux::Error) -> String {
    match error {
        kleap_linux::Error::File { action, source, .. } => format!("{action}: {source}"),
        kleap_linux::Error::Content { what, .. } => what.clone(),
        other => other.to_string(),
    }
}

/// Why a file that was given cannot be read. Too little memory is nothing that is wrong with the file.
pub(crate) fn read_error(path: &Path, error: kleap_linux::Error) -> Failure {
    match error.file_error_kind() {
        Some(ErrorKind::OutOfMemory) => error.into(),
        _ => input_error(path, reason(&error)),
    }
}

/// One stretch.
#[derive(Debug)]
enum Source {
    File {
        file: File,
        path: PathBuf,
        size_bytes: u64,
        /// The file is to end where the stretch does.
        is_to_end: bool,
        /// What CRC32 the stretch had when it was looked at.
        expected: Option<u32>,
    },
    Memory(Vec<u8>),
}

impl Source {
    fn size_bytes(&self) -> u64 {
        match self {
            Self::File { size_bytes, .. } => *size_bytes,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }
}

/// Stretches in a row, to be read once, from the beginning.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    sources: Vec<Source>,
    /// The stretch that is being read, and how much of it was.
    index: usize,
    read_bytes: u64,
    crc: crc32fast::Hasher,
}

impl Pieces {
    /// All of a file, whose size may not change any more.
    pub(crate) fn add_file(
        &mut self,
        path: &Path,
        size_bytes: u64,
        expected: Option<u32>,
    ) -> Result<(), Failure> {
        let file = File::open(path).map_err(|error| input_error(path, error))?;
        self.sources.push(Source::File {
            file,
            path: path.to_owned(),
            size_bytes,
            is_to_end: true,
            expected,
        });
        Ok(())
    }

    /// A stretch of a file that was looked at.
    pub(crate) fn add_stretch(
        &mut self,
        path: &Path,
        range: std::ops::Range<usize>,
        crc32: u32,
    ) -> Result<(), Failure> {
        let mut file = File::open(path).map_err(|error| input_error(path, error))?;
        file.seek(SeekFrom::Start(range.start as u64))
            .map_err(|error| input_error(path, error))?;
        self.sources.push(Source::File {
            file,
            path: path.to_owned(),
            size_bytes: range.len() as u64,
            is_to_end: false,
            expected: Some(crc32),
        });
        Ok(())
    }

    pub(crate) fn add_memory(&mut self, bytes: Vec<u8>) {
        self.sources.push(Source::Memory(bytes));
    }

    /// Adds zeros up to the next multiple of `alignment_bytes`.
    pub(crate) fn align(&mut self, alignment_bytes: u64) {
        let size_bytes = self.size_bytes();
        let padding = size_bytes.next_multiple_of(alignment_bytes) - size_bytes;
        if let Ok(padding) = usize::try_from(padding)
            && padding > 0
        {
            self.sources.push(Source::Memory(vec![0; padding]));
        }
    }

    /// Length of all of it.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.sources.iter().map(Source::size_bytes).sum()
    }

    /// How much of it is in no memory of ours yet.
    pub(crate) fn unread_bytes(&self) -> u64 {
        let unread = |source: &Source| match source {
            Source::File { size_bytes, .. } => *size_bytes,
            Source::Memory(_) => 0,
        };
        self.sources.iter().map(unread).sum()
    }

    /// The file, if it is one, and all of it.
    pub(crate) fn whole_file(&self) -> Option<&File> {
        match self.sources.as_slice() {
            [
                Source::File {
                    file,
                    is_to_end: true,
                    ..
                },
            ] => Some(file),
            _ => None,
        }
    }

    /// Fills `part` with what comes next.
    pub(crate) fn fill(&mut self, mut part: &mut [u8]) -> Result<(), Failure> {
        while !part.is_empty() {
            let Some(source) = self.sources.get_mut(self.index) else {
                // Sizes come from the sources, so there is nothing more to fill.
                part.fill(0);
                return Ok(());
            };
            let left = source.size_bytes().saturating_sub(self.read_bytes);
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(part.len());
            let (now, later) = part.split_at_mut(count);
            match source {
                Source::Memory(bytes) => {
                    let from = usize::try_from(self.read_bytes).unwrap_or(usize::MAX);
                    let bytes = bytes.get(from..).unwrap_or_default();
                    now.copy_from_slice(bytes.get(..count).unwrap_or_default());
                }
                Source::File {
                    file,
                    path,
                    expected,
                    ..
                } => {
                    file.read_exact(now).map_err(|error| match error.kind() {
                        std::io::ErrorKind::UnexpectedEof => {
                            input_error(path, "shrank while it was read")
                        }
                        _ => input_error(path, error),
                    })?;
                    if expected.is_some() {
                        self.crc.update(now);
                    }
                }
            }
            self.read_bytes += count as u64;
            part = later;
            if count as u64 == left {
                self.end_of_source()?;
            }
        }
        Ok(())
    }

    fn end_of_source(&mut self) -> Result<(), Failure> {
        let crc = std::mem::take(&mut self.crc).finalize();
        if let Some(Source::File {
            file,
            path,
            is_to_end,
            expected,
            ..
        }) = self.sources.get_mut(self.index)
        {
            if expected.is_some_and(|expected| expected != crc) {
                return Err(input_error(path, "changed while it was read"));
            }
            if *is_to_end {
                match file.read(&mut [0]) {
                    Ok(0) => {}
                    Ok(_) => return Err(input_error(path, "grew while it was read")),
                    Err(error) => return Err(input_error(path, error)),
                }
            }
        }
        self.index += 1;
        self.read_bytes = 0;
        Ok(())
    }

    /// All of it, in memory.
    pub(crate) fn take(mut self) -> Result<Vec<u8>, Failure> {
        if let [Source::Memory(bytes)] = self.sources.as_mut_slice() {
            return Ok(std::mem::take(bytes));
        }
        let size_bytes = self.size_bytes();
        let mut bytes = Vec::new();
        let room = usize::try_from(size_bytes).ok();
        if room.is_none_or(|room| bytes.try_reserve_exact(room).is_err()) {
            return Err(Failure::Memory {
                needed_bytes: size_bytes,
                available_bytes: crate::place::payload_room()?,
            });
        }
        bytes.resize(room.unwrap_or(0), 0);
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(name: &str, content: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kleap-pieces-{}-{name}", std::process::id()));
        File::create(&path).unwrap().write_all(content).unwrap();
        path
    }

    #[test]
    fn stretches_follow_each_other() {
        let path = file("follow", b"0123456789");
        let mut pieces = Pieces::default();
        pieces.add_file(&path, 10, None).unwrap();
        pieces.align(4);
        pieces
            .add_stretch(&path, 2..5, crc32fast::hash(b"234"))
            .unwrap();
        pieces.add_memory(b"memory".to_vec());
        assert_eq!(pieces.size_bytes(), 21);
        let mut read = Vec::new();
        for length in [1, 0, 9, 4, 7] {
            let mut part = vec![0xff; length];
            pieces.fill(&mut part).unwrap();
            read.extend(part);
        }
        assert_eq!(read, b"0123456789\0\x00234memory");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_changed_is_refused() {
        let path = file("changed", b"0123456789");
        let refusal = |add: &dyn Fn(&mut Pieces)| {
            let mut pieces = Pieces::default();
            add(&mut pieces);
            pieces.take().expect_err("refused").to_string()
        };
        let other = refusal(&|pieces| pieces.add_stretch(&path, 2..5, 0).unwrap());
        assert!(other.contains("changed while it was read"), "{other}");
        let longer = refusal(&|pieces| pieces.add_file(&path, 9, None).unwrap());
        assert!(longer.contains("grew while it was read"), "{longer}");
        let shorter = refusal(&|pieces| pieces.add_file(&path, 11, None).unwrap());
        assert!(shorter.contains("shrank while it was read"), "{shorter}");
        let mut pieces = Pieces::default();
        pieces
            .add_file(&path, 10, Some(crc32fast::hash(b"0123456789")))
            .unwrap();
        assert_eq!(pieces.take().unwrap(), b"0123456789");
        std::fs::remove_file(path).unwrap();
    }
}
