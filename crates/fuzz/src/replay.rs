//! The corpus once more, and seeded mutations of it, without libFuzzer.
//!
//! Every target runs its whole corpus, byte for byte, and then a stated number of mutations. A panic is caught
//! and reported with the input, which is written to a file, and the command that repeats it. An input that does
//! not return cannot be interrupted from within: a second thread watches, says which one it was, and ends the
//! process. (Its patience is generous, because timing is no verdict: it only tells a hang from a slow machine.)

use crate::Target;
use crate::mutate::{Random, mutated};
use std::fmt::Write as _;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long one input may take before it is called a hang.
const HANG_SECONDS: u64 = 120;

/// A target that is slow gets this part of the mutations: one in so many.
const SLOW_DIVISOR: u64 = 10;

/// What a replay is to do.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Where the corpora are: a directory for each target.
    pub corpus: PathBuf,
    /// Where failing inputs are written.
    pub artifacts: PathBuf,
    /// Mutations for each target, count.
    pub mutations: u64,
    /// Their seed.
    pub seed: u64,
}

/// What came of one target.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Inputs in its corpus, count.
    pub corpus: usize,
    /// Inputs that were run, count.
    pub runs: u64,
    /// How long the slowest took.
    pub slowest: Duration,
    /// The first failure: what the panic said, the file with the input.
    pub failure: Option<(String, PathBuf)>,
}

/// The corpus of a target, in the order of the file names. A target without one has an empty input.
///
/// # Errors
/// If it cannot be read.
pub fn corpus(directory: &Path, target: &Target) -> io::Result<Vec<Vec<u8>>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory.join(target.name))?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    paths.sort();
    paths.iter().map(std::fs::read).collect()
}

/// Runs one input; the text of the panic, if it panics.
#[must_use]
pub fn attempt(target: &Target, input: &[u8]) -> Option<String> {
    let ended = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    ended.err().map(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a text")
            .to_owned()
    })
}

/// Writes a failing input to a file that is named by what is in it.
fn keep(directory: &Path, target: &Target, input: &[u8]) -> io::Result<PathBuf> {
    let digest = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let path = directory.join(format!("{}-{digest:016x}", target.name));
    std::fs::create_dir_all(directory)?;
    std::fs::write(&path, input)?;
    Ok(path)
}

/// Since when, and what.
type Running = (Instant, Vec<u8>);

/// Looks at what is being run, from a thread of its own.
struct Watch {
    running: Arc<Mutex<Option<Running>>>,
    runs: Arc<AtomicU64>,
}

impl Watch {
    fn start(target: &'static Target, artifacts: PathBuf) -> Self {
        let this = Self {
            running: Arc::default(),
            runs: Arc::default(),
        };
        let running = Arc::downgrade(&this.running);
        std::thread::spawn(move || {
            // Ends when the target is done.
            while let Some(running) = running.upgrade() {
                let stuck = running.lock().ok().and_then(|running| {
                    let (since, input) = running.as_ref()?;
                    (since.elapsed().as_secs() > HANG_SECONDS).then(|| input.clone())
                });
                if let Some(input) = stuck {
                    let path = keep(&artifacts, target, &input);
                    eprintln!(
                        "{}: no answer in {HANG_SECONDS} s; the input is in {path:?}",
                        target.name
                    );
                    std::process::exit(1);
                }
                drop(running);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        this
    }

    fn set(&self, input: Option<&[u8]>) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut running) = self.running.lock() {
            *running = input.map(|input| (Instant::now(), input.to_vec()));
        }
    }
}

/// Runs the corpus of a target and mutations of it, up to the first failure.
///
/// # Errors
/// If the corpus cannot be read, or a failing input not be written.
pub fn replay(target: &'static Target, wish: &Wish) -> io::Result<Outcome> {
    let inputs = corpus(&wish.corpus, target)?;
    let watch = Watch::start(target, wish.artifacts.clone());
    let mut outcome = Outcome {
        corpus: inputs.len(),
        runs: 0,
        slowest: Duration::ZERO,
        failure: None,
    };
    let mut run = |input: &[u8]| -> io::Result<bool> {
        watch.set(Some(input));
        let began = Instant::now();
        let failed = attempt(target, input);
        outcome.slowest = outcome.slowest.max(began.elapsed());
        watch.set(None);
        outcome.runs += 1;
        if let Some(text) = failed {
            outcome.failure = Some((text, keep(&wish.artifacts, target, input)?));
            return Ok(false);
        }
        Ok(true)
    };
    for input in &inputs {
        if !run(input)? {
            return Ok(outcome);
        }
    }
    // Each mutation has its own seed, so that the number of a failing one says all.
    let mutations = if target.is_slow {
        wish.mutations / SLOW_DIVISOR
    } else {
        wish.mutations
    };
    for number in 0..mutations {
        let mut random = Random::new(wish.seed.wrapping_add(number.wrapping_mul(0x1_0000_0001)));
        let empty = Vec::new();
        let input = inputs.get(random.below(inputs.len())).unwrap_or(&empty);
        let other = inputs.get(random.below(inputs.len())).unwrap_or(&empty);
        let input = mutated(&mut random, input, other, target.max_len_bytes);
        if !run(&input)? {
            break;
        }
    }
    Ok(outcome)
}

/// Bytes for people: hexadecimal, the first of them.
#[must_use]
pub fn shown(input: &[u8]) -> String {
    const SHOWN_BYTES: usize = 64;
    let mut text = String::new();
    for byte in input.iter().take(SHOWN_BYTES) {
        let _ = write!(text, "{byte:02x}");
    }
    if input.len() > SHOWN_BYTES {
        let _ = write!(text, "... ({} bytes)", input.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails_at_seven(data: &[u8]) {
        assert!(data.first() != Some(&7), "it is a seven");
    }

    static SEVEN: Target = Target {
        name: "seven",
        covers: "",
        max_len_bytes: 16,
        is_drawn: false,
        is_slow: false,
        run: fails_at_seven,
    };

    /// The runner itself: a target that fails is found, at the same input each time, and its input is kept.
    #[test]
    fn a_failure_is_found_kept_and_repeated() {
        let root = std::env::temp_dir().join(format!("kleap-replay-{}", std::process::id()));
        std::fs::create_dir_all(root.join("seven")).unwrap();
        std::fs::write(root.join("seven/a"), [1, 2, 3]).unwrap();
        let wish = Wish {
            corpus: root.clone(),
            artifacts: root.join("artifacts"),
            mutations: 100_000,
            seed: 1,
        };
        let first = replay(&SEVEN, &wish).unwrap();
        let second = replay(&SEVEN, &wish).unwrap();
        let (text, path) = first.failure.expect("a seven comes up");
        let input = std::fs::read(&path).unwrap();
        let few = replay(
            &SEVEN,
            &Wish {
                mutations: 0,
                ..wish
            },
        )
        .unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert!(text.contains("it is a seven"), "{text}");
        assert_eq!(input.first(), Some(&7));
        assert_eq!(second.failure.unwrap().1, path);
        assert_eq!(first.runs, second.runs);
        assert!(few.failure.is_none());
        assert_eq!((few.corpus, few.runs), (1, 1));
    }

    #[test]
    fn every_target_has_its_own_name() {
        for target in crate::TARGETS {
            let found = crate::find(target.name).unwrap();
            assert_eq!(found.covers, target.covers);
        }
        assert!(crate::find("no such").is_none());
    }
}
