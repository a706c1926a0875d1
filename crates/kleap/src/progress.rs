//! A bar on the terminal, for what takes a while.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kleap_image::Progress;
use std::time::{Duration, Instant};

/// What is done before this is not worth a bar.
const DELAY: Duration = Duration::from_millis(200);

/// A bar on standard error, if that is a terminal; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Bar {
    what: &'static str,
    began: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Nothing is drawn yet.
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            began: Instant::now(),
            bar: None,
        }
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        if self.bar.is_none() && self.began.elapsed() < DELAY {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            // Hidden where standard error is no terminal, and where TERM is dumb.
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("kleap: {msg} [{bar:30}] {percent}%") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.with_message(self.what)
        });
        bar.set_length(progress.total_bytes as u64);
        bar.set_position(progress.done_bytes as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
