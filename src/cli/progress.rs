//! How far a command is, on standard error: a bar on a terminal, lines elsewhere.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two lines of one phase.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// A bar, or the last line.
pub(super) struct Progress {
    bar: ProgressBar,
    line: Option<(String, Instant)>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Self { bar, line: None }
    }

    /// Shows how far a phase is, and of how much, if that is known.
    pub(super) fn at(&mut self, phase: &str, done: u64, total: Option<u64>, more: &str) {
        if !self.bar.is_hidden() {
            self.draw(phase, done, total, more);
        } else if self.is_due(phase) {
            let of = total.map_or_else(String::new, |total| format!(" of {total}"));
            let more = if more.is_empty() { String::new() } else { format!(", {more}") };
            // The work goes on although nobody can be told.
            let _ = writeln!(io::stderr(), "{phase}: {done}{of}{more}");
            self.line = Some((phase.to_owned(), Instant::now()));
        }
    }

    fn draw(&mut self, phase: &str, done: u64, total: Option<u64>, more: &str) {
        let begins = self.line.as_ref().is_none_or(|(last, _)| last != phase);
        if begins {
            let template = match total {
                Some(_) => "{prefix} [{bar:30}] {pos} of {len}  {msg}",
                None => "{prefix} {spinner} {pos}  {msg}",
            };
            let style = ProgressStyle::with_template(template);
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.line = Some((phase.to_owned(), Instant::now()));
        }
        // Each of these may draw.
        let length = total.map(|total| total.max(done));
        if length.is_some() && length != self.bar.length() {
            self.bar.set_length(length.unwrap_or_default());
        }
        if begins {
            self.bar.set_prefix(phase.to_owned());
        }
        if self.bar.message() != more {
            self.bar.set_message(more.to_owned());
        }
        self.bar.set_position(done);
    }

    fn is_due(&self, phase: &str) -> bool {
        match &self.line {
            Some((last, time)) => last != phase || time.elapsed() >= BETWEEN_LINES,
            None => true,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
