//! A debugger's side of GDB's remote protocol, as far as a test needs it.
//!
//! Problem: that the MMU and the caches are on while bytes are moved must be shown by something else
//! than the code that claims it. QEMU's gdbstub shows any register of any CPU, stopped anywhere.
//! Choice: speak the protocol here; it is packets of text with a checksum. Rejected: gdb itself,
//! another hundred megabytes whose output would have to be parsed, and a TCG plugin, which has to be
//! compiled against QEMU's headers.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::qmp;

/// How long the stub may take to answer; it does so even while the guest is busy.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// How much of a long answer is asked for at once.
const PIECE_BYTES: usize = 0xff0;
/// How much is written at once: two digits a byte, within the smallest packet that a stub takes.
const WRITE_BYTES: usize = 1024;
/// The document that lists the registers, and names further ones.
const TARGET_DOCUMENT: &str = "target.xml";
/// A register's number is told by the document or follows the one before.
type RegisterNumbers = BTreeMap<String, u64>;

/// A connection to the stub.
#[derive(Debug)]
pub(crate) struct Debugger {
    stream: UnixStream,
    pending: Vec<u8>,
    registers: RegisterNumbers,
}

impl Debugger {
    /// Connects, as soon as QEMU has opened its socket, and learns the registers' numbers.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = qmp::connect_when_there(socket, || Ok(()))?;
        stream
            .set_read_timeout(Some(ANSWER_DEADLINE))
            .context("cannot set a time limit")?;
        let mut debugger = Self {
            stream,
            pending: Vec::new(),
            registers: BTreeMap::new(),
        };
        let supported = debugger.ask("qSupported:multiprocess+;xmlRegisters=aarch64")?;
        ensure!(
            supported.contains("qXfer:features:read+"),
            "QEMU's gdbstub does not describe its registers: {supported}"
        );
        debugger.registers = debugger.read_register_numbers()?;
        Ok(debugger)
    }

    /// The value of a register of the CPU that stopped last. Names are QEMU's, which differ between
    /// CPUs and versions: the first one that is known is taken, whatever its case.
    pub(crate) fn register(&mut self, names: &[&str]) -> Result<u64> {
        let number = names
            .iter()
            .find_map(|name| self.registers.get(&name.to_ascii_lowercase()).copied())
            .with_context(|| format!("QEMU describes no register {}", names.join(" or ")))?;
        let answer = self.ask(&format!("p{number:x}"))?;
        let bytes = parse_hex(&answer)
            .with_context(|| format!("cannot read {}: {answer}", names.join(" or ")))?;
        Ok(little_endian(&bytes))
    }

    /// The general registers x0 to x30, sp and pc.
    pub(crate) fn general_registers(&mut self) -> Result<Vec<u64>> {
        let answer = self.ask("g")?;
        let bytes = parse_hex(&answer).context("cannot read the general registers")?;
        let registers: Vec<u64> = bytes.chunks_exact(8).take(33).map(little_endian).collect();
        ensure!(
            registers.len() == 33,
            "the stub gave {} general registers",
            registers.len()
        );
        Ok(registers)
    }

    /// Memory at an address as the stopped CPU sees it.
    pub(crate) fn memory(&mut self, address: u64, count: usize) -> Result<Vec<u8>> {
        let answer = self.ask(&format!("m{address:x},{count:x}"))?;
        parse_hex(&answer).with_context(|| format!("cannot read memory at {address:#x}: {answer}"))
    }

    /// Writes memory at an address as the stopped CPU sees it.
    pub(crate) fn write_memory(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let mut at = address;
        for piece in bytes.chunks(WRITE_BYTES) {
            let digits: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
            self.expect_ok(&format!("M{at:x},{:x}:{digits}", piece.len()))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Sets a register of the CPU that stopped last.
    pub(crate) fn set_register(&mut self, name: &str, value: u64) -> Result<()> {
        let number = self.registers.get(name).copied();
        let number = number.with_context(|| format!("QEMU describes no register {name}"))?;
        let digits: String = value
            .to_le_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.expect_ok(&format!("P{number:x}={digits}"))
    }

    /// Makes memory accesses physical, or as the CPU sees them again.
    pub(crate) fn set_physical_memory(&mut self, physical: bool) -> Result<()> {
        self.expect_ok(&format!("Qqemu.PhyMemMode:{}", u8::from(physical)))
    }

    /// Stops whoever gets to an address. A hardware breakpoint changes no memory, so that code that
    /// is copied or checked after it is set stays what it was.
    pub(crate) fn set_breakpoint(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("Z1,{address:x},4"))
    }

    /// Takes a breakpoint away.
    pub(crate) fn clear_breakpoint(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("z1,{address:x},4"))
    }

    /// Stops whoever writes to the eight bytes at a virtual address.
    pub(crate) fn set_watchpoint(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("Z2,{address:x},8"))
    }

    /// Takes a watchpoint away.
    pub(crate) fn clear_watchpoint(&mut self, address: u64) -> Result<()> {
        self.expect_ok(&format!("z2,{address:x},8"))
    }

    /// Lets all CPUs run until one stops, and makes that one the one that is looked at.
    pub(crate) fn continue_until_stop(&mut self, deadline: Duration) -> Result<String> {
        self.send("c")?;
        self.wait_for_stop(deadline)
    }

    /// Lets the stopped CPU execute one instruction, whether or not a breakpoint is set there.
    pub(crate) fn step(&mut self) -> Result<()> {
        self.send("s")?;
        self.wait_for_stop(ANSWER_DEADLINE)?;
        Ok(())
    }

    /// Lets all CPUs run, without waiting; [`Debugger::stopped_within`] does that.
    pub(crate) fn start_running(&mut self) -> Result<()> {
        self.send("c")
    }

    /// Whether a CPU has stopped, or does within some time.
    pub(crate) fn stopped_within(&mut self, patience: Duration) -> Result<bool> {
        if self.pending.is_empty() {
            self.stream
                .set_read_timeout(Some(patience))
                .context("cannot set a time limit")?;
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer);
            self.stream
                .set_read_timeout(Some(ANSWER_DEADLINE))
                .context("cannot set a time limit")?;
            match read {
                Ok(0) => bail!("QEMU's gdbstub closed the connection"),
                Ok(count) => self.pending.extend(buffer.iter().take(count).rev()),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(error).context("cannot read from QEMU's gdbstub"),
            }
        }
        self.wait_for_stop(ANSWER_DEADLINE)?;
        Ok(true)
    }

    /// Lets all CPUs run and does not come back to them.
    pub(crate) fn detach(mut self) -> Result<()> {
        self.expect_ok("D;1").or_else(|_| self.expect_ok("D"))
    }

    fn wait_for_stop(&mut self, deadline: Duration) -> Result<String> {
        self.stream
            .set_read_timeout(Some(deadline))
            .context("cannot set a time limit")?;
        let answer = self.receive().context("waiting for a stop");
        self.stream
            .set_read_timeout(Some(ANSWER_DEADLINE))
            .context("cannot set a time limit")?;
        let answer = answer?;
        ensure!(
            answer.starts_with(['T', 'S']),
            "the machine did not stop but said {answer}"
        );
        // "T05thread:p01.03;..." names the CPU.
        if let Some(thread) = answer
            .split("thread:")
            .nth(1)
            .and_then(|rest| rest.split(';').next())
        {
            self.expect_ok(&format!("Hg{thread}"))?;
        }
        Ok(answer)
    }

    fn expect_ok(&mut self, request: &str) -> Result<()> {
        let answer = self.ask(request)?;
        ensure!(answer == "OK", "the stub answers {request} with '{answer}'");
        Ok(())
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        self.send(request)?;
        self.receive()
            .with_context(|| format!("no answer to {request}"))
    }

    fn send(&mut self, request: &str) -> Result<()> {
        self.stream
            .write_all(&frame(request))
            .context("cannot write to QEMU's gdbstub")?;
        loop {
            match self.next_byte()? {
                b'+' => return Ok(()),
                b'-' => bail!("QEMU's gdbstub did not understand {request}"),
                // An answer to what nobody waits for any more.
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> Result<String> {
        loop {
            while self.next_byte()? != b'$' {}
            let mut content = Vec::new();
            loop {
                match self.next_byte()? {
                    b'#' => break,
                    byte => content.push(byte),
                }
            }
            let digits = [self.next_byte()?, self.next_byte()?];
            let told = std::str::from_utf8(&digits)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok());
            if told == Some(checksum(&content)) {
                self.stream
                    .write_all(b"+")
                    .context("cannot write to QEMU's gdbstub")?;
                return Ok(String::from_utf8_lossy(&unescape(&content)).into_owned());
            }
            self.stream
                .write_all(b"-")
                .context("cannot write to QEMU's gdbstub")?;
        }
    }

    fn next_byte(&mut self) -> Result<u8> {
        while self.pending.is_empty() {
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("QEMU's gdbstub closed the connection"),
                Ok(count) => {
                    self.pending.extend(buffer.iter().take(count).rev());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    bail!("QEMU's gdbstub is silent")
                }
                Err(error) => return Err(error).context("cannot read from QEMU's gdbstub"),
            }
        }
        // Kept backwards, so that the next byte is the last.
        self.pending.pop().context("no byte")
    }

    fn read_document(&mut self, name: &str) -> Result<String> {
        let mut document = String::new();
        loop {
            let request = format!(
                "qXfer:features:read:{name}:{:x},{PIECE_BYTES:x}",
                document.len()
            );
            let answer = self.ask(&request)?;
            let (more, piece) = answer
                .split_at_checked(1)
                .with_context(|| format!("the stub has no document {name}"))?;
            document.push_str(piece);
            match more {
                "m" => {}
                "l" => return Ok(document),
                _ => bail!("the stub answers the request for {name} with '{answer}'"),
            }
        }
    }

    fn read_register_numbers(&mut self) -> Result<RegisterNumbers> {
        let target = self.read_document(TARGET_DOCUMENT)?;
        let mut registers = BTreeMap::new();
        let mut next = 0;
        for tag in tags(&target, "xi:include") {
            let name = attribute(tag, "href")
                .context("an include without a name")?
                .to_owned();
            let document = self.read_document(&name)?;
            add_registers(&document, &mut registers, &mut next);
        }
        // Newer stubs put everything into the first document.
        add_registers(&target, &mut registers, &mut next);
        ensure!(
            registers.contains_key("pc"),
            "QEMU's description has no register pc"
        );
        Ok(registers)
    }
}

/// Adds the registers that a document lists.
fn add_registers(document: &str, registers: &mut RegisterNumbers, next: &mut u64) {
    for tag in tags(document, "reg") {
        let Some(name) = attribute(tag, "name") else {
            continue;
        };
        if let Some(number) = attribute(tag, "regnum").and_then(|text| text.parse().ok()) {
            *next = number;
        }
        registers.entry(name.to_ascii_lowercase()).or_insert(*next);
        *next += 1;
    }
}

/// The attributes of each tag with this name. The documents are QEMU's own and regular: no XML
/// parser is needed for them.
fn tags<'text>(document: &'text str, name: &str) -> impl Iterator<Item = &'text str> {
    let start = format!("<{name} ");
    document
        .match_indices(&start)
        .map(|(index, _)| index + start.len())
        .filter_map(|index| document.get(index..)?.split('>').next())
        .collect::<Vec<_>>()
        .into_iter()
}

fn attribute<'tag>(tag: &'tag str, name: &str) -> Option<&'tag str> {
    let start = format!("{name}=\"");
    let index = if tag.starts_with(&start) {
        0
    } else {
        tag.find(&format!(" {start}"))? + 1
    };
    tag.get(index + start.len()..)?.split('"').next()
}

/// A packet: `$content#checksum`.
fn frame(content: &str) -> Vec<u8> {
    let mut packet = Vec::from(*b"$");
    for &byte in content.as_bytes() {
        if matches!(byte, b'#' | b'$' | b'}' | b'*') {
            packet.extend([b'}', byte ^ 0x20]);
        } else {
            packet.push(byte);
        }
    }
    let sum = checksum(packet.get(1..).unwrap_or_default());
    packet.extend(format!("#{sum:02x}").bytes());
    packet
}

fn checksum(content: &[u8]) -> u8 {
    content.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Undoes escapes and run lengths (`0*"` is six zeros).
fn unescape(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = content.iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            b'}' => bytes.extend(rest.next().map(|byte| byte ^ 0x20)),
            b'*' => {
                if let (Some(&last), Some(count)) = (bytes.last(), rest.next()) {
                    let more = usize::from(count.saturating_sub(29));
                    bytes.extend(std::iter::repeat_n(last, more));
                }
            }
            byte => bytes.push(byte),
        }
    }
    bytes
}

fn parse_hex(text: &str) -> Result<Vec<u8>> {
    // "E14" is an error, and so is nothing.
    ensure!(
        !text.is_empty() && text.len().is_multiple_of(2),
        "the stub refuses"
    );
    text.as_bytes()
        .chunks(2)
        .map(|digits| {
            let digits = std::str::from_utf8(digits).context("no hex digits")?;
            // Registers that are not available read as "xx".
            u8::from_str_radix(digits, 16).with_context(|| format!("'{digits}' is no byte"))
        })
        .collect()
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .take(8)
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_framed() {
        assert_eq!(frame("g"), b"$g#67");
        assert_eq!(frame("a#"), b"$a}\x03#e1");
        assert_eq!(unescape(b"0*\"1}\x03"), b"0000001#");
    }

    #[test]
    fn registers_are_found_in_documents() {
        let document = "<feature name=\"x\"><reg name=\"x0\" bitsize=\"64\" regnum=\"0\"/>\
                        <reg name=\"pc\" bitsize=\"64\"/>\
                        <reg bitsize=\"64\" name=\"SCTLR_EL1\" regnum=\"70\" group=\"cp_regs\"/>\
                        </feature>";
        let mut registers = BTreeMap::new();
        add_registers(document, &mut registers, &mut 0);
        assert_eq!(registers.get("pc"), Some(&1));
        assert_eq!(registers.get("sctlr_el1"), Some(&70));
    }

    #[test]
    fn values_are_little_endian() {
        assert_eq!(
            little_endian(&parse_hex("1000000000000080").unwrap()),
            0x8000_0000_0000_0010
        );
        assert!(parse_hex("E14").is_err());
        assert!(parse_hex("xx").is_err());
    }
}
