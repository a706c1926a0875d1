//! A Debian kernel in every format that kleap takes, made by the tools that people make it with.
//!
//! Problem: a format is what its tools write, not what its description says, and a loader tested with files of its own
//! making is tested against itself. Choice: Debian's tools, unpacked into the lab as everything else is, with the
//! options of the kernel's own build. The rows `formats/...` hand over to each of them. `cargo xtask formats` leaves them
//! in a directory, for the test that damages them (`KLEAP_TEST_FORMATS`).
//!
//! EFI zboot is of two kinds, because Debian has no such kernel. With gzip and zstd, all that Linux knows now, the file
//! is what the kernel's own build leaves (`kernels`). With the compressions that older kernels knew it is put together
//! here: header and payload as drivers/firmware/efi/libstub/zboot-header.S and Makefile.zboot made them, the payload
//! by the real compressors, without the program between them that unpacks the payload under EFI.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection};

use crate::apt::{self, Apt};
use crate::cpio::Archive;
use crate::kernels;
use crate::lab::{self, Lab};
use crate::progress::Progress;
use crate::rows::Row;
use crate::setup;
use crate::toolchain::{self, QemuSystem};

/// A format, and what it brings beside the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    /// Its name in rows and as a file.
    pub(crate) name: &'static str,
    /// The initrd is in the same file.
    pub(crate) has_initrd: bool,
    /// So is the command line.
    pub(crate) has_command_line: bool,
    /// So is the device tree.
    pub(crate) has_tree: bool,
}

const fn kernel_only(name: &'static str) -> Format {
    Format {
        name,
        has_initrd: false,
        has_command_line: false,
        has_tree: false,
    }
}

const fn with_initrd(name: &'static str) -> Format {
    Format {
        has_initrd: true,
        ..kernel_only(name)
    }
}

/// All of them.
pub(crate) const FORMATS: &[Format] = &[
    kernel_only("gzip"),
    kernel_only("zstd"),
    kernel_only("xz"),
    kernel_only("xz-arm64"),
    kernel_only("lzma"),
    kernel_only("lz4"),
    kernel_only("lz4-legacy"),
    kernel_only("lzop"),
    kernel_only("bzip2"),
    kernel_only("zboot-gzip"),
    kernel_only("zboot-zstd"),
    kernel_only("zboot-xz"),
    kernel_only("zboot-lzma"),
    kernel_only("zboot-lz4"),
    kernel_only("zboot-lzo"),
    kernel_only("vmlinux"),
    kernel_only("vmlinux-zstd"),
    kernel_only("uimage"),
    with_initrd("uimage-multi"),
    Format {
        has_tree: true,
        ..with_initrd("fit")
    },
    with_initrd("fit-external"),
    Format {
        has_command_line: true,
        ..with_initrd("uki")
    },
    Format {
        has_command_line: true,
        ..with_initrd("uki-zboot")
    },
    Format {
        has_command_line: true,
        has_tree: true,
        ..with_initrd("ukify")
    },
];

/// What the build of [`kernels::ZBOOT_KERNEL`] leaves: made of that kernel alone.
pub(crate) const BUILT_FORMATS: &[Format] = &[
    kernel_only("built-zboot-gzip"),
    kernel_only("built-zboot-zstd"),
    kernel_only("built-vmlinux"),
    kernel_only("built-vmlinux-stripped"),
    Format {
        has_command_line: true,
        ..with_initrd("ukify-built-zboot")
    },
];

/// The packages of the tools, and the programs in them.
const PACKAGES: [&str; 8] = [
    "gzip",
    "zstd",
    "xz-utils",
    "lz4",
    "lzop",
    "bzip2",
    "u-boot-tools",
    "device-tree-compiler",
];
const PROGRAMS: [(&str, &str); 8] = [
    ("gzip", "bin/gzip"),
    ("zstd", "usr/bin/zstd"),
    ("xz", "usr/bin/xz"),
    ("lz4", "usr/bin/lz4"),
    ("lzop", "usr/bin/lzop"),
    ("bzip2", "bin/bzip2"),
    ("mkimage", "usr/bin/mkimage"),
    ("dtc", "usr/bin/dtc"),
];
/// Where they are unpacked, below the lab.
const PART: &str = "format-tools";

/// The tools.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Scripts that start them; mkimage finds dtc by PATH.
    bin: PathBuf,
    objcopy: PathBuf,
    ld: PathBuf,
    stub: PathBuf,
    /// systemd's tool for UKIs, as words of a command.
    ukify: Vec<String>,
    cache: PathBuf,
}

/// What a file is made of.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    /// The kernel, an `Image`.
    pub(crate) image: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) tree: &'a Path,
    pub(crate) command_line: &'a str,
    /// For what is made on the way, and the file; fresh.
    pub(crate) directory: &'a Path,
}

impl Tools {
    /// Gets them, from the lab or from the archive.
    pub(crate) fn fetch(lab: &Lab) -> Result<Self> {
        let root = lab.path(PART);
        if let Some(_exclusive) = setup::to_be_made(lab, &root)? {
            let apt = Apt::open(lab, apt::BOOKWORM, &apt::host_architecture()?)?;
            // The host's own libc is used: it is at least as new.
            setup::closure(lab, PART, &apt, &PACKAGES, &["libc6"])?;
        }
        let mut bin = PathBuf::new();
        for (name, program) in PROGRAMS {
            let script = toolchain::wrapper(lab, &format!("formats/{name}"), &root, program, "")?;
            bin = script.parent().map(Path::to_path_buf).unwrap_or_default();
        }
        Ok(Self {
            bin,
            objcopy: toolchain::binutils(lab, "objcopy")?,
            ld: toolchain::binutils(lab, "ld")?,
            stub: setup::efi_stub(lab)?,
            ukify: toolchain::ukify(lab)?,
            cache: lab.directory("formats")?,
        })
    }

    /// A command that finds the tools; relative names are below `directory`.
    fn command(&self, program: impl AsRef<OsStr>, directory: &Path) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .current_dir(directory)
            .env("PATH", format!("{}:{path}", self.bin.display()));
        command
    }

    fn run(&self, program: impl AsRef<OsStr>, words: &[&str], directory: &Path) -> Result<()> {
        let program = program.as_ref();
        let output = self
            .command(program, directory)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        ensure!(
            output.status.success(),
            "{} {} failed: {}{}",
            program.display(),
            words.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Runs a compressor from a file to a file.
    fn filter(&self, words: &[&str], from: &Path, to: &Path) -> Result<()> {
        let (program, words) = words.split_first().context("no compressor")?;
        let open = |path: &Path| fs::File::open(path).with_context(|| path.display().to_string());
        let file = fs::File::create(to).with_context(|| to.display().to_string())?;
        let status = self
            .command(self.bin.join(program), &self.cache)
            .args(words)
            .stdin(open(from)?)
            .stdout(file)
            .status()
            .with_context(|| format!("cannot run {program}"))?;
        ensure!(status.success(), "{program} failed: {status}");
        Ok(())
    }

    /// What the kernel's build calls (scripts/Makefile.lib, scripts/xz_wrap.sh), and a few more.
    fn compressor(name: &str) -> Result<&'static [&'static str]> {
        Ok(match name {
            "gzip" => &["gzip", "-n", "-c", "-9"],
            "zstd" => &["zstd", "-q", "-22", "--ultra", "-c"],
            "xz" => &["xz", "--check=crc32", "--lzma2=dict=32MiB", "-c"],
            "xz-arm64" => &[
                "xz",
                "--check=crc32",
                "--arm64",
                "--lzma2=dict=128MiB",
                "-c",
            ],
            "lzma" => &["xz", "--format=lzma", "-9", "-c"],
            "lz4" => &["lz4", "-q", "-9", "-c"],
            "lz4-legacy" => &["lz4", "-q", "-l", "-9", "-c"],
            "lzop" => &["lzop", "-9", "-c"],
            "bzip2" => &["bzip2", "-9", "-c"],
            other => bail!("no compressor is called {other}"),
        })
    }

    /// Compresses a file into another one.
    pub(crate) fn compress(&self, name: &str, from: &Path, to: &Path) -> Result<()> {
        self.filter(Self::compressor(name)?, from, to)
    }

    /// A file, compressed. Kept: what compresses well takes a minute.
    fn compressed(&self, name: &str, from: &Path) -> Result<PathBuf> {
        let content = fs::read(from).with_context(|| from.display().to_string())?;
        let digest = crate::initramfs::sha256(&content);
        let kept = self.cache.join(format!("{digest}.{name}"));
        if !kept.exists() {
            let progress = Progress::start(format!("compressing with {name}"));
            let part = self
                .cache
                .join(format!("{digest}.{name}.part-{}", std::process::id()));
            self.filter(Self::compressor(name)?, from, &part)?;
            fs::rename(&part, &kept).context("cannot rename what was compressed")?;
            progress.finish("done");
        }
        Ok(kept)
    }

    /// Makes a file of this format.
    pub(crate) fn make(&self, format: Format, inputs: &Inputs<'_>) -> Result<PathBuf> {
        let Inputs {
            image, directory, ..
        } = inputs;
        let to = directory.join("kernel");
        let text = |path: &Path| path.display().to_string();
        match format.name {
            "vmlinux" => self.link(image, directory, &to)?,
            "vmlinux-zstd" => {
                let linked = directory.join("vmlinux");
                self.link(image, directory, &linked)?;
                return self.compressed("zstd", &linked);
            }
            "uimage" => {
                let words = "-A arm64 -O linux -T kernel -C none -a 0x80000 -e 0x80000 -n kleap -d";
                let (image, to) = (text(image), text(&to));
                let words: Vec<&str> = words.split(' ').chain([&*image, &*to]).collect();
                self.run(self.bin.join("mkimage"), &words, directory)?;
            }
            "uimage-multi" => {
                let files = format!(
                    "{}:{}",
                    self.compressed("gzip", image)?.display(),
                    inputs.initrd.display()
                );
                let words = "-A arm64 -O linux -T multi -C gzip -a 0x80000 -e 0x80000 -n kleap -d";
                let to = text(&to);
                let words: Vec<&str> = words.split(' ').chain([&*files, &*to]).collect();
                self.run(self.bin.join("mkimage"), &words, directory)?;
            }
            "fit" => {
                let kernel = self.compressed("gzip", image)?;
                let source = image_tree(
                    &kernel,
                    "gzip",
                    &["sha256"],
                    inputs.initrd,
                    Some(inputs.tree),
                );
                self.fit(&source, &[], directory)?;
            }
            "fit-external" => {
                let kernel = self.compressed("zstd", image)?;
                let source = image_tree(&kernel, "zstd", &["sha1", "crc32"], inputs.initrd, None);
                self.fit(&source, &["-E"], directory)?;
            }
            "uki" => self.uki(image, inputs, &to)?,
            "uki-zboot" => {
                let kernel = directory.join("vmlinuz.efi");
                self.zboot("zstd", image, directory, &kernel)?;
                self.uki(&kernel, inputs, &to)?;
            }
            "built-zboot-gzip" => return built(image, kernels::ZBOOT_GZIP),
            "built-zboot-zstd" => return built(image, kernels::ZBOOT_ZSTD),
            "built-vmlinux" => return built(image, kernels::VMLINUX),
            "built-vmlinux-stripped" => {
                // As packages of distributions are: without symbols.
                let (linked, to) = (text(&built(image, kernels::VMLINUX)?), text(&to));
                self.run(&self.objcopy, &["--strip-all", &linked, &to], directory)?;
            }
            "ukify" => self.ukify(image, Some(inputs.tree), inputs, &to)?,
            "ukify-built-zboot" => {
                self.ukify(&built(image, kernels::ZBOOT_ZSTD)?, None, inputs, &to)?;
            }
            name => match name.strip_prefix("zboot-") {
                Some(compression) => self.zboot(compression, image, directory, &to)?,
                None => return self.compressed(name, image),
            },
        }
        Ok(to)
    }

    /// Links an `Image` to where arm64 kernels are linked.
    fn link(&self, image: &Path, directory: &Path, to: &Path) -> Result<()> {
        const SCRIPT: &str = "PHDRS { text PT_LOAD FLAGS(5); bss PT_LOAD FLAGS(6); }\n\
            SECTIONS {\n. = 0xffff800080000000;\n.text : { *(.data) } :text\n.bss : { . += 0x100000; } :bss\n}\n";
        let script = directory.join("vmlinux.lds");
        fs::write(&script, SCRIPT).context("cannot write a linker script")?;
        let (image, to) = (image.display().to_string(), to.display().to_string());
        let emulation = ["-m", "aarch64linux"];
        let words = [
            &emulation[..],
            &["-r", "-b", "binary", "-o", "Image.o", &image],
        ]
        .concat();
        self.run(&self.ld, &words, directory)?;
        let entry = ["-e", "0xffff800080000000", "-T", "vmlinux.lds"];
        let words = [&emulation[..], &entry, &["-o", &to, "Image.o"]].concat();
        self.run(&self.ld, &words, directory)
    }

    fn fit(&self, source: &str, words: &[&str], directory: &Path) -> Result<()> {
        fs::write(directory.join("kernel.its"), source).context("cannot write an image tree")?;
        let words = [words, &["-q", "-f", "kernel.its", "kernel"]].concat();
        self.run(self.bin.join("mkimage"), &words, directory)
    }

    /// As Makefile.zboot: padded to its size in memory, compressed, with its length behind it.
    fn zboot(&self, compression: &str, image: &Path, directory: &Path, to: &Path) -> Result<()> {
        const HEADER_BYTES: usize = 4096;
        const PE_OFFSET: usize = 64;
        let (compressor, word) = match compression {
            "gzip" => ("gzip", "gzip"),
            "zstd" => ("zstd", "zstd22"),
            "xz" => ("xz-arm64", "xzkern"),
            "lzma" => ("lzma", "lzma"),
            "lz4" => ("lz4-legacy", "lz4"),
            "lzo" => ("lzop", "lzo"),
            other => bail!("EFI zboot has no {other}"),
        };
        let mut padded = fs::read(image).with_context(|| image.display().to_string())?;
        let size_bytes = padded
            .get(16..24)
            .and_then(|field| Some(u64::from_le_bytes(field.try_into().ok()?)))
            .and_then(|size| usize::try_from(size).ok())
            .context("no image_size in the kernel's header")?;
        padded.resize(size_bytes.max(padded.len()), 0);
        let padded_file = directory.join("vmlinux.bin");
        fs::write(&padded_file, &padded).context("cannot write the padded kernel")?;
        let compressed = self.compressed(compressor, &padded_file)?;
        fs::remove_file(&padded_file).context("cannot remove the padded kernel")?;
        let payload = fs::read(&compressed).with_context(|| compressed.display().to_string())?;

        let mut file = vec![0; HEADER_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| {
            if let Some(place) = file.get_mut(offset..offset + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        let word32 = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
        put(0, b"MZ\0\0zimg");
        put(8, &word32(HEADER_BYTES));
        put(12, &word32(payload.len()));
        put(24, word.as_bytes());
        // LINUX_PE_MAGIC.
        put(0x38, &0x8182_23cd_u32.to_le_bytes());
        put(0x3c, &word32(PE_OFFSET));
        put(PE_OFFSET, b"PE\0\0\x64\xaa");
        file.extend_from_slice(&payload);
        if compression != "gzip" {
            file.extend_from_slice(&word32(padded.len()));
        }
        // _etext = ALIGN(4096) in zboot.lds.
        file.resize(file.len().next_multiple_of(4096), 0);
        fs::write(to, file).with_context(|| to.display().to_string())
    }

    /// As Debian's kernel hooks make one.
    fn ukify(
        &self,
        kernel: &Path,
        tree: Option<&Path>,
        inputs: &Inputs<'_>,
        to: &Path,
    ) -> Result<()> {
        let (program, arguments) = self.ukify.split_first().context("no ukify")?;
        let mut words: Vec<String> = arguments.to_vec();
        words.push("build".to_owned());
        for (name, value) in [
            ("linux", kernel.display().to_string()),
            ("initrd", inputs.initrd.display().to_string()),
            ("cmdline", inputs.command_line.to_owned()),
            ("stub", self.stub.display().to_string()),
            ("os-release", "ID=debian\nVERSION_ID=13\n".to_owned()),
            // It would look for these in the kernel, and ask this machine.
            ("uname", "kleap".to_owned()),
            ("efi-arch", "aa64".to_owned()),
            ("output", to.display().to_string()),
        ] {
            words.push(format!("--{name}={value}"));
        }
        words.extend(tree.map(|tree| format!("--devicetree={}", tree.display())));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.run(program, &words, inputs.directory)
    }

    /// As systemd's documentation makes one of systemd-stub with objcopy.
    fn uki(&self, kernel: &Path, inputs: &Inputs<'_>, to: &Path) -> Result<()> {
        const ALIGNMENT: u64 = 4096;
        let stub = fs::read(&self.stub).with_context(|| self.stub.display().to_string())?;
        let stub = object::File::parse(&*stub).context("the EFI stub is no PE program")?;
        let mut address = stub
            .sections()
            .map(|section| section.address() + section.size())
            .max()
            .context("the EFI stub has no sections")?;
        let directory = inputs.directory;
        let write = |name: &str, content: &str| {
            let path = directory.join(name);
            fs::write(&path, content).with_context(|| path.display().to_string())?;
            anyhow::Ok(path)
        };
        let parts = [
            (".osrel", write("osrel", "ID=debian\nVERSION_ID=13\n")?),
            (".cmdline", write("cmdline", inputs.command_line)?),
            (".linux", kernel.to_path_buf()),
            (".initrd", inputs.initrd.to_path_buf()),
        ];
        let mut words = Vec::new();
        for (name, path) in parts {
            address = address.next_multiple_of(ALIGNMENT);
            words.push("--add-section".to_owned());
            words.push(format!("{name}={}", path.display()));
            words.push("--change-section-vma".to_owned());
            words.push(format!("{name}={address:#x}"));
            let metadata = fs::metadata(&path).with_context(|| path.display().to_string())?;
            address += metadata.len();
        }
        words.push(self.stub.display().to_string());
        words.push(to.display().to_string());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.run(&self.objcopy, &words, directory)
    }
}

/// What a kernel's build left beside its `Image`.
fn built(image: &Path, kept: &str) -> Result<PathBuf> {
    let path = image.with_file_name(kept);
    ensure!(
        path.is_file(),
        "no {}: only the kernel {} has one",
        path.display(),
        kernels::ZBOOT_KERNEL
    );
    Ok(path)
}

/// The source of a FIT.
fn image_tree(
    kernel: &Path,
    compression: &str,
    algorithms: &[&str],
    initrd: &Path,
    tree: Option<&Path>,
) -> String {
    let hashes: String = algorithms
        .iter()
        .enumerate()
        .map(|(index, algorithm)| format!("hash-{index} {{ algo = \"{algorithm}\"; }};\n"))
        .collect();
    let image = |name: &str, path: &Path, kind: &str, compression: &str| {
        format!(
            "{name} {{\ndata = /incbin/(\"{}\");\ntype = \"{kind}\";\narch = \"arm64\";\nos = \"linux\";\n\
             compression = \"{compression}\";\nload = <0x80000>;\nentry = <0x80000>;\n{hashes}}};\n",
            path.display()
        )
    };
    let mut images = image("kernel-1", kernel, "kernel", compression);
    images.push_str(&image("ramdisk-1", initrd, "ramdisk", "none"));
    let mut parts = "kernel = \"kernel-1\";\nramdisk = \"ramdisk-1\";\n".to_owned();
    if let Some(tree) = tree {
        images.push_str(&image("fdt-1", tree, "flat_dt", "none"));
        parts.push_str("fdt = \"fdt-1\";\n");
    }
    format!(
        "/dts-v1/;\n/ {{\ndescription = \"kleap\";\n#address-cells = <1>;\nimages {{\n{images}}};\n\
         configurations {{\ndefault = \"conf-1\";\nconf-1 {{\n{parts}}};\n}};\n}};\n"
    )
}

/// The device tree that QEMU makes for a row's machine.
pub(crate) fn dump_tree(qemu: &QemuSystem, row: &Row, to: &Path) -> Result<()> {
    let on_off = |on: bool| if on { "on" } else { "off" };
    let (program, arguments) = qemu.words.split_first().context("no QEMU")?;
    let output = Command::new(program)
        .args(arguments)
        .arg("-M")
        .arg(format!(
            "virt,gic-version=3,virtualization={},its={},dumpdtb={}",
            on_off(row.kind.virtualization),
            on_off(row.its),
            to.display()
        ))
        .args(["-cpu", row.kind.cpu, "-nic", "none", "-display", "none"])
        .args(["-smp", &row.cpus.to_string()])
        .args(["-m", &format!("{}M", row.memory_mb)])
        .output()
        .context("cannot run QEMU")?;
    ensure!(
        output.status.success() && to.exists(),
        "QEMU gives no device tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// `cargo xtask formats`: one kernel in every format, in a directory.
pub(crate) fn run(lab: &Lab, kernel: &str) -> Result<()> {
    let tools = Tools::fetch(lab)?;
    let kernel = setup::kernel(lab, kernel)?;
    let row = crate::rows::format_row(kernel_only("gzip"));
    let directory = lab.directory(&format!("formats/{}", kernel.name))?;
    let work = directory.join("work");
    lab::fresh_directory(&work)?;
    let tree = work.join("tree.dtb");
    dump_tree(&toolchain::qemu_system(lab)?, &row, &tree)?;
    let initrd = work.join("initrd");
    let mut bytes = Vec::new();
    let mut archive = Archive::new(&mut bytes);
    archive.file("init", b"#!/bin/sh\n")?;
    archive.finish()?;
    fs::write(&initrd, &bytes).context("cannot write an initrd")?;
    let built: &[Format] = if kernel.name == kernels::ZBOOT_KERNEL {
        BUILT_FORMATS
    } else {
        &[]
    };
    for format in FORMATS.iter().chain(built) {
        let own = work.join(format.name);
        lab::fresh_directory(&own)?;
        let made = tools.make(
            *format,
            &Inputs {
                image: &kernel.image,
                initrd: &initrd,
                tree: &tree,
                command_line: "console=ttyAMA0",
                directory: &own,
            },
        )?;
        let to = directory.join(format!("{}.kernel", format.name));
        fs::copy(&made, &to).with_context(|| format!("cannot copy to {}", to.display()))?;
        let size_bytes = fs::metadata(&to).context("cannot examine it")?.len();
        println!("{}: {size_bytes} bytes", format.name);
        fs::remove_dir_all(&own).context("cannot remove leftovers")?;
    }
    fs::remove_dir_all(&work).context("cannot remove leftovers")?;
    println!(
        "to damage them: KLEAP_TEST_FORMATS={} cargo test --release -p kleap-image --test formats -- --nocapture",
        directory.display()
    );
    Ok(())
}
