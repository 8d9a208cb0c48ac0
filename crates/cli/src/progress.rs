//! Progress on stderr: a bar where stderr is a terminal, nothing where it is not, so that logs stay readable.

use crate::args::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// A bar over `total` values.
pub struct Progress(ProgressBar);

impl Progress {
    /// Shows a bar, unless the user wants quiet or stderr is no terminal.
    pub fn new(context: &Context, what: &str, total: u64) -> Progress {
        let shown = !context.quiet && std::io::stderr().is_terminal();
        let target =
            if shown { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = "{prefix} {bar:30} {percent:>3} % {elapsed} left {eta} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        Progress(bar)
    }

    /// Says how much is done, and of what.
    pub fn at(&self, done: u64, what: &str) {
        self.0.set_position(done);
        if !self.0.is_hidden() {
            self.0.set_message(crate::error::one_line(what));
        }
    }

    /// Says how much of how much is done.
    pub fn at_of(&self, done: u64, total: u64, what: &str) {
        self.0.set_length(total);
        self.at(done, what);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
