//! A bar on the terminal, for what takes seconds.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kleap_image::Progress;

/// A bar on standard error, if that is a terminal; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Nothing is drawn before the first step.
    pub(crate) fn new(what: &'static str) -> Self {
        // Hidden where standard error is no terminal, and where TERM is dumb.
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("kleap: {msg} [{bar:30}] {percent}%") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        Self(bar)
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        self.0.set_length(progress.total_bytes as u64);
        self.0.set_position(progress.done_bytes as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
