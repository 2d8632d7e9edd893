//! Shows the progress on standard error, and the summary at the end.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt::Write as _,
    io::{IsTerminal, Write as _, stderr, stdout},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::tally::Tally;

/// How often the bar on a terminal changes.
const BAR_INTERVAL: Duration = Duration::from_millis(250);

/// How often a line is written if there is no bar.
pub(super) const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The speed is the average over this time.
const SPEED_WINDOW: Duration = Duration::from_secs(60);

/// How often the number of processed rows is recorded, to compute the speed from it later.
const SPEED_INTERVAL: Duration = Duration::from_secs(1);

/// The bar with [`State::done_text`] as `prefix`, and below it [`State::details_text`] on a second line,
/// which is cut at the terminal's width. With one line, a narrow terminal would not show the time that is
/// left and the failures. There are no colours.
///
/// Above the bar is an empty line. A terminal shows Ctrl-C as `^C` below the bar, and thereby moves the
/// cursor down. The removal of the bar then misses its topmost line. Because that line is empty, nothing of
/// the bar stays on the terminal.
const BAR_TEMPLATE: &str = "\n[{wide_bar}] {prefix}\n{wide_msg}";

/// The same lines without the bar itself, while the number of rows is unknown.
const COUNT_TEMPLATE: &str = "\n{prefix}\n{wide_msg}";

/// The progress of a run: a bar on a terminal, or else a line from time to time.
#[derive(Debug)]
pub(super) struct Progress {
    console: Console,
    started: Instant,
    last_line: Instant,
    speed: Speed,
}

/// Standard error, perhaps with a bar. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Console(Option<ProgressBar>);

impl Console {
    /// Writes a line, above the bar if there is one.
    pub(super) fn write_line(&self, line: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| write_line(line)),
            None => write_line(line),
        }
    }

    /// Writes JSON as one line. The line means the same JSON, although control characters are replaced.
    pub(super) fn write_json(&self, json: &str) {
        self.write_line(&without_tabs_and_line_breaks(json));
    }
}

impl Progress {
    /// `prints_rows` is whether the rows are written to standard output.
    pub(super) fn start(prints_rows: bool) -> Self {
        // Rows on the same terminal would overwrite the bar.
        let can_show_bar = stderr().is_terminal() && !(prints_rows && stdout().is_terminal());
        let bar = can_show_bar.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(COUNT_TEMPLATE));
            bar
        });
        // indicatif shows no bar on a terminal that cannot move its cursor (`TERM=dumb`).
        Self::with_bar(bar.filter(|bar| !bar.is_hidden()))
    }

    /// A progress that is not shown, so that tests do not write thousands of lines.
    #[cfg(test)]
    pub(super) fn hidden() -> Self {
        Self::with_bar(Some(ProgressBar::hidden()))
    }

    fn with_bar(bar: Option<ProgressBar>) -> Self {
        let now = Instant::now();
        Self { console: Console(bar), started: now, last_line: now, speed: Speed::new(now) }
    }

    /// The console to which lines must be written while the progress is shown.
    pub(super) fn console(&self) -> Console {
        self.console.clone()
    }

    /// How often [`Self::update`] should be called. Without a bar, most of these calls write no line.
    pub(super) fn interval(&self) -> Duration {
        if self.console.0.is_some() { BAR_INTERVAL } else { LINE_INTERVAL / 10 }
    }

    /// Shows the counts. Without a bar, does so only if a line is due. `total` is the number of all rows, if
    /// it is known. `note` says why the run waits, if it does.
    pub(super) fn update(&mut self, tally: &Tally, total: Option<u64>, note: Option<&str>) {
        self.speed.record(Instant::now(), tally.processed());
        let state = State { tally, total, note, per_second: self.speed.per_second() };
        match &self.console.0 {
            Some(bar) => {
                if let Some(total) = total {
                    if bar.length().is_none() {
                        bar.set_style(style(BAR_TEMPLATE));
                    }
                    bar.set_length(total);
                    bar.set_position(tally.done());
                }
                bar.set_prefix(state.done_text());
                bar.set_message(state.details_text());
                // Draws the texts even if the position has not changed.
                bar.tick();
            }
            None => {
                if self.take_due_line() {
                    write_line(&format!("{}: {}", state.done_text(), state.details_text()));
                }
            }
        }
    }

    /// Whether a line is due. If so, the next one is due after [`LINE_INTERVAL`].
    fn take_due_line(&mut self) -> bool {
        let is_due = self.last_line.elapsed() >= LINE_INTERVAL;
        if is_due {
            self.last_line = Instant::now();
        }
        is_due
    }

    /// Removes the bar. A line is written from time to time instead.
    pub(super) fn remove_bar(&mut self) {
        if let Some(bar) = self.console.0.take() {
            bar.finish_and_clear();
        }
    }

    /// Removes the bar, and writes the counts and the causes of the failures.
    pub(super) fn finish(mut self, tally: &Tally) {
        self.remove_bar();
        write_line(&summary(tally, self.started.elapsed()));
        tally.causes().iter().for_each(|line| write_line(line));
    }
}

/// What the progress shows.
struct State<'a> {
    tally: &'a Tally,
    total: Option<u64>,
    note: Option<&'a str>,
    per_second: f64,
}

impl State<'_> {
    /// The text that says how many rows are done, the skipped ones included, and how much time is left.
    fn done_text(&self) -> String {
        let done = self.tally.done();
        let Some(total) = self.total else { return format!("{done} done") };
        let seconds_left = total.saturating_sub(done) as f64 / self.per_second;
        let mut text = format!("{done}/{total} done");
        // If no row was processed in the last minute, the number of seconds is infinite or not a number.
        if let Ok(left) = Duration::try_from_secs_f64(seconds_left) {
            let _ = write!(text, ", {} left", short_time(left)); // a String never fails
        }
        text
    }

    /// The text with the other counts, the speed and the note.
    fn details_text(&self) -> String {
        let Tally { failed, cached, skipped, .. } = self.tally;
        let mut text = format!("{failed} failed, {cached} cached, {:.1} a second", self.per_second);
        if *skipped > 0 {
            let _ = write!(text, ", {skipped} skipped"); // a String never fails
        }
        if let Some(note) = self.note {
            let _ = write!(text, ", {note}");
        }
        text
    }
}

/// The counts at the end of a run.
fn summary(tally: &Tally, elapsed: Duration) -> String {
    let Tally { embedded, cached, failed, skipped, .. } = tally;
    let mut line = format!("{embedded} embedded ({cached} cached), {failed} failed");
    if *skipped > 0 {
        let _ = write!(line, ", {skipped} skipped"); // a String never fails
    }
    let per_second = tally.processed() as f64 / elapsed.as_secs_f64().max(0.001);
    let _ = write!(line, ", in {} ({per_second:.1} a second)", short_time(elapsed));
    line
}

/// The number of rows processed per second, over the last minute.
#[derive(Debug)]
struct Speed {
    /// Earlier times, and how many rows had been processed by then. Never empty.
    earlier: VecDeque<(Instant, u64)>,
    /// The latest time, and how many rows had been processed by then.
    latest: (Instant, u64),
}

impl Speed {
    fn new(now: Instant) -> Self {
        Self { earlier: VecDeque::from([(now, 0)]), latest: (now, 0) }
    }

    /// Records that `processed` rows have been processed since the start.
    fn record(&mut self, now: Instant, processed: u64) {
        self.latest = (now, processed);
        if self.earlier.back().is_some_and(|(last, _)| now - *last >= SPEED_INTERVAL) {
            self.earlier.push_back(self.latest);
        }
        while self.earlier.len() > 1 && now - self.earlier[0].0 > SPEED_WINDOW {
            self.earlier.pop_front();
        }
    }

    fn per_second(&self) -> f64 {
        let ((first, processed_then), (last, processed_now)) = (self.earlier[0], self.latest);
        processed_now.saturating_sub(processed_then) as f64
            / (last - first).as_secs_f64().max(0.001)
    }
}

/// A time in its two largest units.
fn short_time(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match hours {
        0 if minutes == 0 => format!("{seconds}s"),
        0 => format!("{minutes}m {}s", seconds % 60),
        1..24 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{}d {}h", hours / 24, hours % 24),
    }
}

/// Writes a line to standard error. An error is ignored: the run continues if nobody reads its messages.
pub(super) fn write_line(line: &str) {
    let _ = writeln!(stderr(), "{}", printable(line));
}

/// Escapes control characters, so that a file's name or an error message cannot control the terminal.
/// The escapes are those of JSON, so in a JSON string they mean the same characters. Between the tokens
/// of JSON they are not allowed: see [`without_tabs_and_line_breaks`].
pub(super) fn printable(line: &str) -> Cow<'_, str> {
    // The ranges are the characters that change the direction of writing.
    let is_control =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !line.contains(is_control) {
        return line.into();
    }
    let mut text = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        if is_control(c) {
            let _ = write!(text, "\\u{:04x}", u32::from(c)); // a String never fails
        } else {
            text.push(c);
        }
    }
    text.into()
}

/// Replaces tabs and line breaks by spaces. In valid JSON, they are only between tokens, where an escape
/// is not allowed.
fn without_tabs_and_line_breaks(row: &str) -> String {
    row.replace(['\t', '\n', '\r'], " ")
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[test]
    fn the_progress_shows_the_counts_the_speed_and_the_time_left_if_it_is_known() {
        // 90 were embedded (45 of them from the cache), 10 failed, and none were skipped.
        let tally = Tally::of(90, 45, 10, 0);
        let state = State { tally: &tally, total: Some(5000), note: None, per_second: 14.0 };
        // 4900 rows are left, at 14 a second.
        assert_eq!(state.done_text(), "100/5000 done, 5m 50s left");
        assert_eq!(state.details_text(), "10 failed, 45 cached, 14.0 a second");
        let without_total = State { total: None, note: Some("waiting"), ..state };
        assert_eq!(without_total.done_text(), "100 done");
        assert!(without_total.details_text().ends_with(", waiting"));
        let stuck = State { total: Some(5000), per_second: 0.0, ..without_total };
        assert_eq!(stuck.done_text(), "100/5000 done");
    }

    #[test]
    fn skipped_rows_are_done_but_do_not_count_as_speed() {
        // 90 were embedded (45 of them from the cache), 10 failed, and 400 were skipped.
        let tally = Tally::of(90, 45, 10, 400);
        let state = State { tally: &tally, total: Some(1000), note: None, per_second: 10.0 };
        assert_eq!(state.done_text(), "500/1000 done, 50s left");
        assert!(state.details_text().ends_with(", 400 skipped"));
        assert_eq!(
            summary(&tally, Duration::from_secs(50)),
            "90 embedded (45 cached), 10 failed, 400 skipped, in 50s (2.0 a second)"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_terminal_a_line_is_written_every_ten_seconds() {
        let mut progress = Progress::with_bar(None);
        let mut lines = Vec::new();
        for second in 1..=35 {
            advance(Duration::from_secs(1)).await;
            if progress.take_due_line() {
                lines.push(second);
            }
        }
        assert_eq!(lines, [10, 20, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_speed_is_the_average_of_the_last_minute() {
        let mut speed = Speed::new(Instant::now());
        let mut processed = 0;
        let mut run_for = async |seconds: u64, per_second: u64| {
            for _ in 0..seconds * 4 {
                advance(Duration::from_millis(250)).await;
                processed += per_second / 4;
                speed.record(Instant::now(), processed);
            }
            (speed.per_second(), speed.earlier.len())
        };
        assert_eq!(run_for(20, 8).await.0, 8.0);
        // 160 rows in 50 s.
        assert_eq!(run_for(30, 0).await.0, 3.2);
        let (per_second, samples) = run_for(600, 40).await;
        assert!((per_second - 40.0).abs() < 0.1, "{per_second}");
        // There is one sample for each second of the last minute, and one for its start.
        assert_eq!(samples, 61);
    }

    #[test]
    fn a_time_is_printed_in_its_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (3599, "59m 59s"),
            (3600, "1h 0m"),
            (86_399, "23h 59m"),
            (180_000, "2d 2h"),
        ] {
            assert_eq!(short_time(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn control_characters_in_a_line_are_escaped() {
        assert_eq!(
            printable("ä \u{1b}]0;x\u{7}\u{9b}\u{202e}\n"),
            r"ä \u001b]0;x\u0007\u009b\u202e\u000a"
        );
        assert!(matches!(printable("ä, 漢字 and \"quotes\""), Cow::Borrowed(_)));
    }

    #[test]
    fn a_printed_row_stays_the_same_json_and_cannot_control_a_terminal() {
        let row = "{\t\"a\u{9b}\u{202e}\" :\t\"b\\tc\u{7f}\",\r\n\"n\":\t1.50}";
        let spaced = without_tabs_and_line_breaks(row);
        let printed = printable(&spaced);
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(parse(&printed), parse(row), "{printed}");
        assert_eq!(printable(&printed), printed, "no control character may be left");
    }
}
