//! Runs the command under test, and reads what it says.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The command.
pub(crate) const KLEAP: &str = "kleap";

/// How a run of it ended.
#[derive(Debug)]
pub(crate) struct Run {
    /// Its exit code; `None` if it was killed.
    pub(crate) code: Option<i32>,
    /// What it wrote to standard error.
    pub(crate) message: String,
    /// What it wrote to standard output.
    pub(crate) answer: String,
    /// How long it took.
    pub(crate) duration: Duration,
}

impl Run {
    /// From what `std::process` gives.
    pub(crate) fn from_output(output: &Output, duration: Duration) -> Self {
        Self {
            code: output.status.code(),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            answer: String::from_utf8_lossy(&output.stdout).into_owned(),
            duration,
        }
    }
}

/// Runs it with these arguments.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Result<Run> {
    let began = Instant::now();
    // What spares this program from being killed for lack of memory is not to be inherited.
    let output = Command::new("sh")
        .args([
            "-c",
            "echo 0 >/proc/self/oom_score_adj; exec \"$0\" \"$@\"",
            KLEAP,
        ])
        .args(arguments)
        .output()
        .context("cannot run kleap")?;
    Ok(Run::from_output(&output, began.elapsed()))
}

/// Runs it; it must succeed.
pub(crate) fn must(arguments: &[&str]) -> Result<Run> {
    let run = run(arguments)?;
    ensure!(
        run.code == Some(0),
        "kleap {} ended with {:?}: {}",
        arguments.join(" "),
        run.code,
        run.message
    );
    Ok(run)
}

/// What `status --json` says.
#[derive(Debug, Clone)]
pub(crate) struct Status(pub(crate) Value);

impl Status {
    /// Asks.
    pub(crate) fn ask() -> Result<Self> {
        let run = must(&["status", "--json"])?;
        let value = serde_json::from_str(&run.answer).context("status --json is no JSON")?;
        Ok(Self(value))
    }

    /// Whether something is loaded.
    pub(crate) fn is_loaded(&self) -> bool {
        self.0.get("loaded").is_some_and(|loaded| !loaded.is_null())
    }

    /// Size of all pieces, bytes.
    pub(crate) fn total_bytes(&self) -> Result<u64> {
        self.0
            .pointer("/loaded/pieces")
            .and_then(Value::as_array)
            .context("status names no pieces")?
            .iter()
            .map(|piece| {
                piece
                    .get("size_bytes")
                    .and_then(Value::as_u64)
                    .context("a piece has no size")
            })
            .sum()
    }

    /// What the hand-over will move, bytes.
    pub(crate) fn moved_bytes(&self) -> Result<u64> {
        self.0
            .pointer("/loaded/hand_over/moved_bytes")
            .and_then(Value::as_u64)
            .context("status does not say what will be moved")
    }

    /// Sizes of the huge pages that are held, bytes.
    pub(crate) fn page_sizes_bytes(&self) -> Result<Vec<u64>> {
        self.0
            .pointer("/loaded/huge_pages")
            .and_then(Value::as_array)
            .context("status names no huge pages")?
            .iter()
            .filter(|size| size.get("pages").and_then(Value::as_u64) != Some(0))
            .map(|size| {
                size.get("page_size_bytes")
                    .and_then(Value::as_u64)
                    .context("huge pages without a size")
            })
            .collect()
    }

    /// Size of the huge pages that are held, bytes.
    pub(crate) fn huge_page_bytes(&self) -> Result<u64> {
        self.0
            .pointer("/loaded/huge_pages")
            .and_then(Value::as_array)
            .context("status names no huge pages")?
            .iter()
            .map(|size| {
                let number = |name: &str| size.get(name).and_then(Value::as_u64);
                number("pages")
                    .zip(number("page_size_bytes"))
                    .map(|(pages, size_bytes)| pages * size_bytes)
                    .context("huge pages without a size")
            })
            .sum()
    }

    /// A piece's CRC32C, as status writes it.
    pub(crate) fn digest(&self, piece: &str) -> Option<&str> {
        self.0
            .pointer("/loaded/pieces")?
            .as_array()?
            .iter()
            .find(|value| value.get("piece").and_then(Value::as_str) == Some(piece))?
            .get("crc32c")?
            .as_str()
    }

    /// The next kernel's command line.
    pub(crate) fn command_line(&self) -> Option<&str> {
        self.0.pointer("/loaded/command_line")?.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_understood() {
        let status = Status(serde_json::json!({
            "loaded": {
                "command_line": "a b",
                "pieces": [
                    { "piece": "Image", "size_bytes": 10, "crc32c": "0x01" },
                    { "piece": "initrd", "size_bytes": 5, "crc32c": "0x02" },
                ],
                "hand_over": { "moved_bytes": 7 },
                "huge_pages": [{ "page_size_bytes": 10, "pages": 3 }, { "page_size_bytes": 7, "pages": 1 }],
            }
        }));
        assert!(status.is_loaded());
        assert_eq!(status.total_bytes().unwrap(), 15);
        assert_eq!(status.moved_bytes().unwrap(), 7);
        assert_eq!(status.huge_page_bytes().unwrap(), 37);
        assert_eq!(status.page_sizes_bytes().unwrap(), [10, 7]);
        assert_eq!(status.digest("initrd"), Some("0x02"));
        assert_eq!(status.command_line(), Some("a b"));
        let nothing = Status(serde_json::json!({ "loaded": null }));
        assert!(!nothing.is_loaded());
        assert!(nothing.total_bytes().is_err());
    }
}
