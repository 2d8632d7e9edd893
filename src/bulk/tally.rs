//! Counts what happened to the rows, and groups the failures by their causes.

use std::collections::BTreeMap;

use super::item::Failure;

/// The longest label of an example, in characters.
const MAX_LABEL: usize = 120;

/// The longest detail of an example, in characters.
const MAX_DETAIL: usize = 300;

/// The most causes that are counted separately. A cause is an error code of the service or of `embed`.
/// The limit protects the memory if another program answers in place of the service.
const MAX_CAUSES: usize = 100;

/// After [`MAX_CAUSES`] different codes, all failures with other codes are counted under this cause.
const OTHER_CAUSES: &str = "other";

/// What happened to the rows so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub embedded: u64,
    /// The embedded pictures whose vectors were in the service's cache.
    pub cached: u64,
    pub failed: u64,
    /// The rows of the sources that the output contained before this run.
    pub skipped: u64,
    /// For each cause, the number of failures, and the first of them as the example.
    causes: BTreeMap<String, (u64, String)>,
}

impl Tally {
    /// A tally with these counts, and without causes.
    #[cfg(test)]
    pub(super) fn of(embedded: u64, cached: u64, failed: u64, skipped: u64) -> Self {
        Self { embedded, cached, failed, skipped, causes: BTreeMap::new() }
    }

    /// Counts a source that cannot be read to its end. `reason` names the source.
    pub(super) fn add_broken_source(&mut self, reason: &str) {
        let detail = "the rest of this source was not read";
        self.add_failure(reason, &Failure::permanent("unreadable_source", detail));
    }

    /// Counts a failure.
    pub(super) fn add_failure(&mut self, label: &str, failure: &Failure) {
        self.failed += 1;
        let is_known = self.causes.contains_key(&failure.code);
        let code = if is_known || self.causes.len() < MAX_CAUSES {
            failure.code.clone()
        } else {
            OTHER_CAUSES.to_owned()
        };
        let example =
            || format!("{}: {}", shorten(label, MAX_LABEL), shorten(&failure.detail, MAX_DETAIL));
        let (count, _) = self.causes.entry(code).or_insert_with(|| (0, example()));
        *count += 1;
    }

    /// The rows that were embedded or failed in this run, and the sources that cannot be read to their end.
    pub(super) fn processed(&self) -> u64 {
        self.embedded + self.failed
    }

    /// The rows for which nothing is left to do in this run.
    pub(super) fn done(&self) -> u64 {
        self.processed() + self.skipped
    }

    /// One line for each cause of failures, the most frequent cause first.
    pub(super) fn causes(&self) -> Vec<String> {
        let mut causes: Vec<_> = self.causes.iter().collect();
        causes.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        let line = |(code, (count, example)): (&String, &(u64, String))| {
            format!("  {count} x {code}, for example {example}")
        };
        causes.into_iter().map(line).collect()
    }
}

/// The text, or its first `max_chars` characters and an ellipsis if it has more.
fn shorten(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_grouped_by_cause_with_the_first_one_as_the_example() {
        let mut tally = Tally::default();
        for (label, code) in [("a", "rare"), ("b", "often"), ("c", "often")] {
            tally.add_failure(label, &Failure::permanent(code, "Sentence."));
        }
        assert_eq!(
            tally.causes(),
            ["  2 x often, for example b: Sentence.", "  1 x rare, for example a: Sentence."]
        );
        assert_eq!((tally.failed, tally.done()), (3, 3));
    }

    #[test]
    fn the_lines_of_the_causes_are_few_and_short_whatever_the_service_answers() {
        let mut tally = Tally::default();
        for n in 0..10_000 {
            let failure = Failure::permanent(&format!("code {n}"), "ä".repeat(10_000));
            tally.add_failure(&"ö".repeat(10_000), &failure);
        }
        let causes = tally.causes();
        assert_eq!(causes.len(), MAX_CAUSES + 1);
        // Each failure has a code of its own. Only the first 100 codes are counted separately.
        assert!(causes[0].starts_with("  9900 x other, for example öö"), "{}", causes[0]);
        // A line contains a label of 120 characters, a detail of 300 characters, and a few more.
        assert!(causes.iter().all(|line| line.chars().count() < 500));
    }
}
