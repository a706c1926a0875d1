//! A unified kernel image: an EFI program with a kernel, an initrd and a command line as sections.
//!
//! UAPI.5 "Unified Kernel Images" (uapi-group.org). Profiles begin with a section `.profile`; what is before the
//! first is the base, and that is what is taken. `.dtbauto` is chosen by the firmware's hardware ids, which are not
//! known here. The file is compared with the digest in its signature, if it has one; whose that is, is not checked, and
//! that is said.

use std::ops::Range;

use object::LittleEndian;
use object::pe;
use object::read::pe::ImageNtHeaders;

use crate::signature::{self, Signed};
use crate::{Container, Error};

/// Longest command line that is taken, bytes; arm64 kernels cut at 2048.
const MAX_COMMAND_LINE_BYTES: usize = 64 << 10;

/// What a UKI holds: places in the file.
#[derive(Debug)]
pub(crate) struct Uki {
    pub(crate) kernel: Range<usize>,
    pub(crate) initrd: Option<Range<usize>>,
    pub(crate) command_line: Option<String>,
    pub(crate) device_tree: Option<Range<usize>>,
    pub(crate) remarks: Vec<String>,
}

fn refuse(what: impl Into<String>) -> Error {
    Error::Container {
        container: Container::Uki,
        what: what.into(),
    }
}

/// Reads the sections; `None` if there is no kernel among them, or the file is no PE program at all.
pub(crate) fn read(file: &[u8]) -> Result<Option<Uki>, Error> {
    let Ok(dos) = pe::ImageDosHeader::parse(file) else {
        return Ok(None);
    };
    let mut offset = u64::from(dos.nt_headers_offset());
    let Ok((headers, _)) = pe::ImageNtHeaders64::parse(file, &mut offset) else {
        return Ok(None);
    };
    let Ok(sections) = headers.sections(file, offset) else {
        return Ok(None);
    };
    let machine = headers.file_header().machine.get(LittleEndian);
    let mut uki = Uki {
        kernel: 0..0,
        initrd: None,
        command_line: None,
        device_tree: None,
        remarks: Vec::new(),
    };
    let mut has_kernel = false;
    for section in sections.iter() {
        let name = section.raw_name();
        if name == b".profile" {
            uki.remarks
                .push("it has profiles; the base was taken".into());
            break;
        }
        if ![
            &b".linux"[..],
            b".initrd",
            b".cmdline",
            b".dtb",
            b".dtbauto",
        ]
        .contains(&name)
        {
            continue;
        }
        // Rounded up in the file, exact in memory.
        let (start, size) = section.pe_file_range();
        let range = usize::try_from(start).ok().zip(usize::try_from(size).ok());
        let range = range
            .and_then(|(start, size)| Some(start..start.checked_add(size)?))
            .filter(|range| range.end <= file.len())
            .ok_or_else(|| {
                refuse(format!(
                    "the section {} lies at {start:#x} with {size:#x} bytes, but the file has {:#x}: it is \
                     truncated, install it again (was the disk full?)",
                    name.escape_ascii(),
                    file.len()
                ))
            })?;
        match name {
            b".linux" if !has_kernel => {
                uki.kernel = range;
                has_kernel = true;
            }
            b".initrd" if uki.initrd.is_none() && !range.is_empty() => uki.initrd = Some(range),
            b".dtb" if uki.device_tree.is_none() => uki.device_tree = Some(range),
            b".cmdline" if uki.command_line.is_none() => {
                uki.command_line = Some(command_line(file.get(range).unwrap_or_default())?);
            }
            b".dtbauto" => uki
                .remarks
                .push(".dtbauto not taken: the machine's hardware ids are not known here".into()),
            _ => {}
        }
    }
    if !has_kernel {
        return Ok(None);
    }
    if machine != pe::IMAGE_FILE_MACHINE_ARM64 {
        return Err(refuse(format!(
            "for machine {machine:#06x}, not arm64 ({:#06x})",
            pe::IMAGE_FILE_MACHINE_ARM64
        )));
    }
    match signature::check(file)? {
        Signed::No => {}
        Signed::Whole => uki
            .remarks
            .push("it is what was signed; who signed it is not checked".into()),
        Signed::Unknown(reason) => uki
            .remarks
            .push(format!("its signature is not checked: {reason}")),
    }
    Ok(Some(uki))
}

fn command_line(section: &[u8]) -> Result<String, Error> {
    let text = section.split(|byte| *byte == 0).next().unwrap_or_default();
    if text.len() > MAX_COMMAND_LINE_BYTES {
        return Err(refuse(format!(
            ".cmdline has {} bytes, more than {MAX_COMMAND_LINE_BYTES}",
            text.len()
        )));
    }
    let text = std::str::from_utf8(text)
        .map_err(|error| refuse(format!(".cmdline is not UTF-8 ({error})")))?;
    // As systemd-stub does: line breaks are spaces, and those around it are not part of it.
    let line = text.replace(char::is_control, " ");
    Ok(line.trim().to_owned())
}
