//! Signatures for Secure Boot, as far as they say that a file is whole.
//!
//! Nothing in an `Image` covers its body: a flipped bit in its code boots, and what it does then nobody knows. But
//! distributions sign their kernels, and people their UKIs, with Authenticode ("Windows Authenticode Portable Executable
//! Signature Format"): a digest over all of the file but the two fields that signing changes, inside a certificate table
//! at its end. The digest is compared here, so that such a file is known to be whole in whatever it came: a plain
//! `Image`, an older lz4 frame, a `vmlinux`, a UKI.
//!
//! Who signed it is *not* checked: that needs the keys that this machine trusts, and is what `kexec_file_load` with
//! CONFIG_KEXEC_SIG is for. Somebody who changes a kernel on purpose can take its signature off as well.
//!
//! Rejected: the CheckSum of the PE header. Most signers and `objcopy` set it, ukify leaves what its stub had, and
//! no firmware compares it: a wrong one says nothing.

use std::ops::Range;

use authenticode::{
    AttributeCertificate, AttributeCertificateIterator, AuthenticodeSignature,
    AuthenticodeSignatureParseError as ParseError, PeOffsetError, PeOffsets, PeTrait,
    WIN_CERT_REVISION_2_0, WIN_CERT_TYPE_PKCS_SIGNED_DATA,
};
use object::LittleEndian;
use object::pe;
use object::read::pe::ImageNtHeaders;
use sha2::Digest;

use crate::Error;
use crate::fit::hex;

/// Signatures of one file that are looked at. Each may want a digest over all of it.
const MAX_SIGNATURES: usize = 8;
/// Sections that an EFI program may have (PE Format, "COFF File Header"): with more it is not looked at.
const MAX_SECTIONS: usize = 96;
/// Length of the table of signatures that is looked at, bytes. Debian's have 1,472, and each certificate of a chain
/// adds one or two thousand. Sets in it are sorted, which takes the square of their length.
const MAX_TABLE_BYTES: usize = 64 << 10;

/// Longest digest, bytes: SHA-512.
const MAX_DIGEST_BYTES: usize = 64;

/// Kinds of entries that are no Authenticode signatures (PE Format, "The Attribute Certificate Table"; UEFI, section
/// 32.2.4: PKCS1.5 and by GUID).
const OTHER_TYPES: [u16; 5] = [1, 3, 4, 0x0ef0, 0x0ef1];

/// Offset of CheckSum in the optional header, and its length, bytes (PE Format, "Optional Header").
const CHECKSUM: Range<usize> = 64..68;
/// From the optional header to the data directories, bytes (PE32+).
const DIRECTORIES_BYTES: usize = 112;
/// Length of one of them: address and size, bytes (PE Format, "Optional Header Data Directories").
const DIRECTORY_BYTES: usize = 8;
/// Entries of the table begin at multiples of this, bytes; its size may leave out what pads the last one.
const ENTRY_ALIGNMENT_BYTES: usize = 8;

/// What the signatures of a file say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signed {
    /// It has none.
    No,
    /// It is what was signed, by whomever.
    Whole,
    /// It has only such as are of another kind, or with a digest of another kind: which.
    Unknown(String),
}

/// What is needed of an EFI program to take its digest.
struct Program<'a> {
    /// Up to the end of the certificate table: containers pad.
    data: &'a [u8],
    sections: Vec<Range<usize>>,
    certificates: Range<usize>,
    offsets: PeOffsets,
}

impl<'a> Program<'a> {
    /// `None` if it is no EFI program, or has no signature.
    fn read(file: &'a [u8]) -> Option<Self> {
        let dos = pe::ImageDosHeader::parse(file).ok()?;
        let mut offset = u64::from(dos.nt_headers_offset());
        let optional = usize::try_from(dos.nt_headers_offset())
            .ok()?
            .checked_add(size_of::<u32>() + size_of::<pe::ImageFileHeader>())?;
        let (headers, directories) = pe::ImageNtHeaders64::parse(file, &mut offset).ok()?;
        let security = directories.get(pe::IMAGE_DIRECTORY_ENTRY_SECURITY)?;
        let certificates = range(
            security.virtual_address.get(LittleEndian),
            security.size.get(LittleEndian),
        )?;
        if certificates.is_empty() {
            return None;
        }
        let padded = certificates.start
            ..certificates
                .end
                .checked_next_multiple_of(ENTRY_ALIGNMENT_BYTES)?;
        let certificates = if padded.end <= file.len() {
            padded
        } else {
            certificates
        };
        let sections = headers.sections(file, offset).ok()?;
        let sections = sections
            .iter()
            .filter(|section| section.size_of_raw_data.get(LittleEndian) != 0)
            .map(|section| {
                range(
                    section.pointer_to_raw_data.get(LittleEndian),
                    section.size_of_raw_data.get(LittleEndian),
                )
            })
            .collect::<Option<Vec<_>>>()?;
        let security_data_dir = optional.checked_add(
            DIRECTORIES_BYTES + DIRECTORY_BYTES * pe::IMAGE_DIRECTORY_ENTRY_SECURITY,
        )?;
        Some(Self {
            data: file.get(..certificates.end).unwrap_or(file),
            sections,
            certificates,
            offsets: PeOffsets {
                check_sum: optional.checked_add(CHECKSUM.start)?,
                after_check_sum: optional.checked_add(CHECKSUM.end)?,
                security_data_dir,
                after_security_data_dir: security_data_dir.checked_add(DIRECTORY_BYTES)?,
                after_header: usize::try_from(
                    headers.optional_header.size_of_headers.get(LittleEndian),
                )
                .ok()?,
            },
        })
    }

    /// Whether everything that counts lies in the file, each byte once: what does not cannot be what was signed, and is
    /// not worth reading many times over.
    fn is_sound(&self) -> bool {
        let counted_bytes = self
            .sections
            .iter()
            .try_fold(self.offsets.after_header, |sum, section| {
                sum.checked_add(section.len())
            });
        counted_bytes.is_some_and(|counted_bytes| counted_bytes <= self.certificates.start)
    }

    /// The digest by one algorithm; nothing if some of what counts is not there.
    fn digest<D: Digest>(&self) -> Vec<u8> {
        let mut digest = Taken(D::new());
        match authenticode::authenticode_digest(self, &mut digest) {
            Ok(()) => digest.0.finalize().to_vec(),
            Err(PeOffsetError) => Vec::new(),
        }
    }
}

fn range(start: u32, size: u32) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    Some(start..start.checked_add(usize::try_from(size).ok()?)?)
}

/// A digest of sha2's, for a crate that was written for the version of its traits before.
struct Taken<D>(D);

impl<D: Digest> digest_0_10::Update for Taken<D> {
    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }
}

impl PeTrait for Program<'_> {
    fn data(&self) -> &[u8] {
        self.data
    }

    fn num_sections(&self) -> usize {
        self.sections.len()
    }

    fn section_data_range(&self, index: usize) -> Result<Range<usize>, PeOffsetError> {
        let section = index
            .checked_sub(1)
            .and_then(|index| self.sections.get(index));
        section.cloned().ok_or(PeOffsetError)
    }

    fn certificate_table_range(&self) -> Result<Option<Range<usize>>, PeOffsetError> {
        Ok(Some(self.certificates.clone()))
    }

    fn offsets(&self) -> Result<PeOffsets, PeOffsetError> {
        Ok(self.offsets.clone())
    }
}

/// Compares a file with the digests in its signatures.
///
/// # Errors
/// [`Error::NotWhatWasSigned`] where none of them is right and one is another; [`Error::Truncated`] where the signatures
/// are cut off; [`Error::Signature`] where they are no signatures. If that were no error, damage that moves what follows it (in a
/// compressed stream) would be taken, because it damages the signature as well.
pub(crate) fn check(file: &[u8]) -> Result<Signed, Error> {
    let Some(program) = Program::read(file) else {
        return Ok(Signed::No);
    };
    if program.certificates.end > file.len() {
        return Err(Error::Truncated {
            file_bytes: file.len(),
            needed_bytes: u64::try_from(program.certificates.end).unwrap_or(u64::MAX),
            what: "signature",
        });
    }
    if program.sections.len() > MAX_SECTIONS {
        let reason = format!("{} sections", program.sections.len());
        return Ok(Signed::Unknown(reason));
    }
    if program.certificates.len() > MAX_TABLE_BYTES {
        let reason = format!("{} bytes of signatures", program.certificates.len());
        return Ok(Signed::Unknown(reason));
    }
    let unreadable = |error: &dyn std::fmt::Display| Error::Signature {
        reason: error.to_string(),
    };
    let certificates =
        AttributeCertificateIterator::new(&program).map_err(|error| unreadable(&error))?;
    let mut found = Digests::default();
    let mut other = None;
    let mut reason = "there is none in its table".to_owned();
    for certificate in certificates.into_iter().flatten().take(MAX_SIGNATURES) {
        let signature = match read(&certificate.map_err(|error| unreadable(&error))?)? {
            Ok(signature) => signature,
            Err(another_kind) => {
                reason = another_kind;
                continue;
            }
        };
        let algorithm = signature.digest_algorithm().oid.to_string();
        let Some((algorithm, found)) = found.of(&program, &algorithm) else {
            reason = format!("its digest is of an unknown kind, {algorithm}");
            continue;
        };
        let expected = signature.digest();
        // One is enough: somebody may have signed an earlier state of it, and that signature was left.
        if found == expected {
            return Ok(Signed::Whole);
        }
        if expected.len() <= MAX_DIGEST_BYTES {
            other = Some(Error::NotWhatWasSigned {
                algorithm,
                expected: hex(expected),
                found: hex(found),
            });
        }
    }
    other.map_or(Ok(Signed::Unknown(reason)), Err)
}

/// Digests of a program, each taken once.
#[derive(Default)]
struct Digests([Option<Vec<u8>>; 3]);

impl Digests {
    /// The digest by an algorithm (RFC 5754, section 2) and that one's name; `None` if it is not known here.
    fn of(&mut self, program: &Program<'_>, algorithm: &str) -> Option<(&'static str, &[u8])> {
        type Take<'a> = fn(&Program<'a>) -> Vec<u8>;
        let (index, name, take): (usize, &str, Take<'_>) = match algorithm {
            "2.16.840.1.101.3.4.2.1" => (0, "SHA-256", Program::digest::<sha2::Sha256>),
            "2.16.840.1.101.3.4.2.2" => (1, "SHA-384", Program::digest::<sha2::Sha384>),
            "2.16.840.1.101.3.4.2.3" => (2, "SHA-512", Program::digest::<sha2::Sha512>),
            _ => return None,
        };
        let digest = self.0.get_mut(index)?.get_or_insert_with(|| {
            if program.is_sound() {
                take(program)
            } else {
                Vec::new()
            }
        });
        Some((name, digest))
    }
}

/// One entry of the table; why it is not looked at, where it is of another kind.
fn read(
    certificate: &AttributeCertificate<'_>,
) -> Result<Result<AuthenticodeSignature, String>, Error> {
    let unreadable = |reason: String| Err(Error::Signature { reason });
    if certificate.revision != WIN_CERT_REVISION_2_0 {
        return unreadable(format!("revision {:#06x}", certificate.revision));
    }
    match certificate.certificate_type {
        WIN_CERT_TYPE_PKCS_SIGNED_DATA => {}
        other if OTHER_TYPES.contains(&other) => return Ok(Err(format!("of type {other:#06x}"))),
        other => return unreadable(format!("of type {other:#06x}")),
    }
    match AuthenticodeSignature::from_bytes(certificate.data) {
        Ok(signature) => Ok(Ok(signature)),
        Err(
            error @ (ParseError::Empty
            | ParseError::InvalidContentInfo(_)
            | ParseError::InvalidContentType(_)),
        ) => unreadable(format!("{error:?}")),
        // Inside it, this library may be stricter than who made it; and what is damaged there is the signature alone.
        Err(error) => Ok(Err(format!("{error:?}"))),
    }
}
