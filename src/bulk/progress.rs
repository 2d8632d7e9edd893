//! Shows the progress on standard error, and the summary at the end.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{IsTerminal, Write as _, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::item::Failure;

/// How often the bar on a terminal changes.
const BAR_INTERVAL: Duration = Duration::from_millis(250);

/// How often a line is written if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The longest label in the summary, in characters.
const MAX_LABEL: usize = 120;

/// What happened to the rows so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub embedded: u64,
    /// The embedded pictures whose vector the service had already.
    pub cached: u64,
    pub failed: u64,
    /// The rows that the output contained already.
    pub skipped: u64,
    /// For each code, the number of failures and one example.
    causes: BTreeMap<String, (u64, String)>,
}

impl Tally {
    /// Counts a failure.
    pub(super) fn add_failure(&mut self, label: &str, failure: &Failure) {
        self.failed += 1;
        let (count, _) = self.causes.entry(failure.code.clone()).or_insert_with(|| {
            let label: String = label.chars().take(MAX_LABEL).collect();
            (0, format!("{label}: {}", failure.detail))
        });
        *count += 1;
    }

    /// One line with all counts.
    fn line(&self, elapsed: Duration) -> String {
        let done = self.embedded + self.failed;
        let per_second = done as f64 / elapsed.as_secs_f64().max(0.001);
        let mut line = format!(
            "{} embedded ({} cached), {} failed, {per_second:.1} a second",
            self.embedded, self.cached, self.failed
        );
        if self.skipped > 0 {
            let _ = write!(line, ", {} skipped", self.skipped); // a String never fails
        }
        line
    }
}

/// The bar on a terminal, or a line from time to time elsewhere.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    pub(super) fn start() -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style("[{elapsed_precise}] {wide_msg}"));
            bar
        });
        let now = Instant::now();
        Self { bar, started: now, last_line: now }
    }

    /// How often [`Self::update`] should be called.
    pub(super) fn interval(&self) -> Duration {
        if self.bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL / 10 }
    }

    /// Shows the counts. `total` is the number of rows to send, once it is known.
    pub(super) fn update(&mut self, tally: &Tally, total: Option<u64>) {
        let line = tally.line(self.started.elapsed());
        match (&self.bar, total) {
            (Some(bar), Some(total)) => {
                if bar.length().is_none() {
                    bar.set_style(style(
                        "[{elapsed_precise}] {bar:20} {pos}/{len} {eta} left, {wide_msg}",
                    ));
                }
                bar.set_message(line);
                bar.set_length(total);
                bar.set_position(tally.embedded + tally.failed);
            }
            (Some(bar), None) => bar.set_message(line),
            (None, _) if self.last_line.elapsed() >= LINE_INTERVAL => {
                self.last_line = Instant::now();
                say(&line);
            }
            (None, _) => {}
        }
    }

    /// Writes a line above the bar.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// Removes the bar, and writes the counts and the causes of the failures.
    pub(super) fn finish(self, tally: &Tally) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        say(&tally.line(self.started.elapsed()));
        for (code, (count, example)) in &tally.causes {
            say(&format!("  {count} x {code}, for example {example}"));
        }
    }
}

/// Writes a line to standard error. If nobody reads it any more, the run goes on.
pub(super) fn say(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
