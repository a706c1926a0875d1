//! The file systems that the lab's machines start with.
//!
//! A machine's first initramfs holds the second kernel and the second initrd, and the second initrd
//! is itself an initramfs with the same `/init`. Both are written in one pass for each run and
//! removed after it. Rejected: keeping them for the next run. Both hold the command under test, so
//! each build of it would leave gigabytes behind, and writing one costs a second.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::cpio::Archive;

/// What busybox is called in a machine.
const APPLETS: &[&str] = &[
    "awk",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dd",
    "dmesg",
    "echo",
    "env",
    "expr",
    "fallocate",
    "false",
    "find",
    "free",
    "grep",
    "gzip",
    "gunzip",
    "head",
    "hexdump",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mount",
    "mv",
    "nproc",
    "od",
    "poweroff",
    "printf",
    "ps",
    "readlink",
    "reboot",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tail",
    "tee",
    "test",
    "time",
    "timeout",
    "touch",
    "tr",
    "true",
    "truncate",
    "umount",
    "uname",
    "uniq",
    "usleep",
    "wc",
    "xxd",
    "zcat",
    "su",
    "setpriv",
    "chown",
    "id",
    "mknod",
    "sysctl",
    "tac",
    "cmp",
    "unshare",
    "which",
    "insmod",
    "losetup",
];
/// The scripts inside a machine.
const INIT: &[u8] = include_bytes!("../guest-scripts/init.sh");
const FUNCTIONS: &[u8] = include_bytes!("../guest-scripts/functions.sh");
const SECOND: &[u8] = include_bytes!("../guest-scripts/second.sh");
const CAPTURE: &[u8] = include_bytes!("../guest-scripts/capture.sh");
const CHAIN: &[u8] = include_bytes!("../guest-scripts/chain.sh");
const SOAK: &[u8] = include_bytes!("../guest-scripts/soak.sh");
/// Starts the padding's generator; any value will do as long as it stays.
const PADDING_SEED: u64 = 0x6b6c_6561_7000_0001;
/// The file that makes the second initrd as large as wanted.
const PADDING_NAME: &str = "lab/padding";
/// Large enough that writing is not what a row waits for.
const BUFFER_BYTES: usize = 1 << 20;

/// The small part, the same in the first and in the second file system: programs and scripts. Read
/// once, so that a build during a long run does not mix versions.
#[derive(Debug, Clone)]
pub(crate) struct Base(Vec<u8>);

impl Base {
    /// From static busybox, the command under test, and the helper.
    pub(crate) fn new(busybox: &Path, kleap: &Path, guest: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        for name in ["bin", "dev", "lab", "lib", "proc", "run", "sys", "tmp"] {
            archive.directory(name)?;
        }
        archive.file("init", INIT)?;
        archive.file("lab/functions.sh", FUNCTIONS)?;
        archive.file("lab/second.sh", SECOND)?;
        archive.file("lab/capture.sh", CAPTURE)?;
        archive.file("lab/chain.sh", CHAIN)?;
        archive.file("lab/soak.sh", SOAK)?;
        for (name, path) in [
            ("bin/busybox", busybox),
            ("bin/kleap", kleap),
            ("bin/kleap-guest", guest),
        ] {
            let content =
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            archive.file(name, &content)?;
        }
        for applet in APPLETS {
            archive.link(&format!("bin/{applet}"), "busybox")?;
        }
        archive.finish()?;
        Ok(Self(bytes))
    }
}

/// What the first kernel is to hand over to.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    /// The second kernel.
    pub(crate) image: PathBuf,
    /// The second initrd is padded until it and the Image have this size together, or not at all
    /// where they are larger anyway.
    pub(crate) total_bytes: u64,
}

/// Where a machine finds it.
#[derive(Debug, Clone)]
pub(crate) enum PayloadPlace {
    /// In the initramfs, below `/payload`.
    Initramfs,
    /// On a disk that is made of this directory.
    Directory(PathBuf),
}

/// The second initrd as it was written.
#[derive(Debug, Clone)]
pub(crate) struct SecondInitrd {
    /// Its SHA-256, as hex digits.
    pub(crate) sha256: String,
    /// Its size.
    pub(crate) size_bytes: u64,
}

/// Files of one row, beside its script.
pub(crate) type ExtraFiles = Vec<(String, Vec<u8>)>;

/// Writes a second initrd without padding, for a format that holds it.
pub(crate) fn write_second(path: &Path, base: &Base) -> Result<SecondInitrd> {
    let Base(base) = base;
    let mut initrd =
        SecondInitrdReader::new(base, 0).context("cannot lay out the second initrd")?;
    let mut file =
        File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    io::copy(&mut initrd, &mut file).with_context(|| format!("cannot write {}", path.display()))?;
    let size_bytes = initrd.size_bytes;
    Ok(SecondInitrd {
        sha256: hex(&initrd.digest.finalize()),
        size_bytes,
    })
}

/// The SHA-256 of some bytes, as hex digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Writes the first initramfs. The script is made last, because it names the second initrd's digest.
pub(crate) fn write_first(
    path: &Path,
    base: &Base,
    payload: &Payload,
    place: &PayloadPlace,
    script: impl FnOnce(&SecondInitrd) -> Result<(String, ExtraFiles)>,
) -> Result<SecondInitrd> {
    let Base(base) = base;
    let mut image = File::open(&payload.image)
        .with_context(|| format!("cannot open {}", payload.image.display()))?;
    let image_bytes = image
        .metadata()
        .context("cannot examine the second kernel")?
        .len();
    let mut initrd = SecondInitrdReader::new(base, payload.total_bytes.saturating_sub(image_bytes))
        .context("cannot lay out the second initrd")?;
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut sink = BufWriter::with_capacity(BUFFER_BYTES, file);
    let mut write = || -> io::Result<()> {
        sink.write_all(base)?;
        let mut archive = Archive::new(&mut sink);
        archive.directory("payload")?;
        match place {
            PayloadPlace::Initramfs => {
                archive.stream("payload/Image", image_bytes, &mut image)?;
                archive.stream("payload/initrd", initrd.size_bytes, &mut initrd)?;
            }
            PayloadPlace::Directory(directory) => {
                fs::create_dir_all(directory)?;
                io::copy(&mut image, &mut File::create(directory.join("Image"))?)?;
                io::copy(&mut initrd, &mut File::create(directory.join("initrd"))?)?;
            }
        }
        archive.finish()?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    let size_bytes = initrd.size_bytes;
    let second = SecondInitrd {
        sha256: hex(&initrd.digest.finalize()),
        size_bytes,
    };
    let (script, extra_files) = script(&second)?;
    let mut write = || -> io::Result<()> {
        let mut archive = Archive::new(&mut sink);
        archive.file("lab/script.sh", script.as_bytes())?;
        for (name, content) in &extra_files {
            archive.file(name, content)?;
        }
        archive.finish()?;
        sink.flush()
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(second)
}

/// Writes the initramfs of every kernel of a chain: the base, and below `/chain` the kernels by name and the plan.
pub(crate) fn write_chain(
    path: &Path,
    base: &Base,
    kernels: &[(&str, &Path)],
    plan: Option<&str>,
) -> Result<SecondInitrd> {
    let Base(base) = base;
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut sink = Hashed {
        sink: BufWriter::with_capacity(BUFFER_BYTES, file),
        digest: Sha256::new(),
        size_bytes: 0,
    };
    let mut write = || -> io::Result<()> {
        sink.write_all(base)?;
        let mut archive = Archive::new(&mut sink);
        archive.directory("chain")?;
        for (name, image) in kernels {
            let mut image = File::open(image)?;
            let size_bytes = image.metadata()?.len();
            archive.stream(&format!("chain/{name}"), size_bytes, &mut image)?;
        }
        if let Some(plan) = plan {
            archive.file("chain/plan", plan.as_bytes())?;
        }
        archive.finish()?;
        sink.flush()
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(SecondInitrd {
        sha256: hex(&sink.digest.finalize()),
        size_bytes: sink.size_bytes,
    })
}

/// A digest of everything that is written.
struct Hashed<W> {
    sink: W,
    digest: Sha256,
    size_bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        self.digest.update(bytes.get(..count).unwrap_or_default());
        self.size_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// The second initrd, made while it is read: base, padding's header, padding, trailer.
struct SecondInitrdReader<'base> {
    stream: Box<dyn Read + 'base>,
    size_bytes: u64,
    digest: Sha256,
}

impl<'base> SecondInitrdReader<'base> {
    fn new(base: &'base [u8], wanted_bytes: u64) -> io::Result<Self> {
        // An archive with one empty file is a header and a trailer; the padding goes between them.
        let mut empty = Vec::new();
        let mut archive = Archive::new(&mut empty);
        archive.stream(PADDING_NAME, 0, &mut io::empty())?;
        archive.finish()?;
        let fixed_bytes = (base.len() + empty.len()) as u64;
        // A multiple of the format's alignment, so that nothing has to be added after it.
        let padding_bytes = wanted_bytes.saturating_sub(fixed_bytes) / 4 * 4;
        let mut header = Vec::new();
        let mut archive = Archive::new(&mut header);
        archive.header_of_file(PADDING_NAME, padding_bytes)?;
        let trailer = empty.split_off(header.len());
        let stream = base
            .chain(io::Cursor::new(header))
            .chain(Incompressible(PADDING_SEED).take(padding_bytes))
            .chain(io::Cursor::new(trailer));
        Ok(Self {
            stream: Box::new(stream),
            size_bytes: fixed_bytes + padding_bytes,
            digest: Sha256::new(),
        })
    }
}

impl Read for SecondInitrdReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.digest.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that no page of which is like another and that nothing can compress away, the same in
/// every run: splitmix64.
#[derive(Debug)]
struct Incompressible(u64);

impl Read for Incompressible {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for chunk in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            let bytes = word.to_le_bytes();
            chunk.copy_from_slice(bytes.get(..chunk.len()).unwrap_or(&bytes));
        }
        Ok(buffer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_initrd_has_the_wanted_size() {
        let base = [7; 1000];
        for wanted_bytes in [0_u64, 1000, 5000, 100_001] {
            let mut reader = SecondInitrdReader::new(&base, wanted_bytes).unwrap();
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, reader.size_bytes);
            assert_eq!(hex(&reader.digest.finalize()), hex(&Sha256::digest(&bytes)));
            if wanted_bytes > 2000 {
                assert!(wanted_bytes - reader.size_bytes < 4);
            }
            assert_eq!(&bytes[..1000], &base);
            let trailer = String::from_utf8_lossy(&bytes[bytes.len() - 124..]).into_owned();
            assert!(trailer.starts_with("070701"), "{trailer}");
        }
    }

    #[test]
    fn padding_is_the_same_in_every_run() {
        let mut one = [0; 64];
        let mut two = [0; 64];
        Incompressible(PADDING_SEED).read_exact(&mut one).unwrap();
        Incompressible(PADDING_SEED).read_exact(&mut two).unwrap();
        assert_eq!(one, two);
        assert_ne!(one[..32], one[32..]);
    }
}
