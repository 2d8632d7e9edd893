//! Decides which rows of the sources are sent: those that the output does not contain, up to a limit.
//!
//! A run and `--dry-run` both use this selection, so the dry run counts what the run would send.

use super::{item::Identity, output::Existing};

/// Decides for one row after the other whether it is sent.
#[derive(Debug)]
pub(super) struct Selection {
    existing: Existing,
    /// How many further rows may be sent.
    remaining: u64,
}

/// What is done with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selected {
    /// The row is sent.
    Send,
    /// The output contains the row already.
    Skip,
    /// The row is not sent. The caller stops, so this row and all further ones are left for another run.
    LimitReached,
}

impl Selection {
    /// At most `limit` rows are sent, and none that is in `existing`. `None` means no limit.
    pub(super) fn new(existing: Existing, limit: Option<u64>) -> Self {
        Self { existing, remaining: limit.unwrap_or(u64::MAX) }
    }

    /// Decides about the next row.
    pub(super) fn select(&mut self, identity: Identity) -> Selected {
        // Each row of the output accounts for only one of several equal rows of the sources.
        if self.existing.take(identity) {
            return Selected::Skip;
        }
        match self.remaining.checked_sub(1) {
            Some(remaining) => {
                self.remaining = remaining;
                Selected::Send
            }
            None => Selected::LimitReached,
        }
    }

    /// Whether a further row may be sent.
    pub(super) fn wants_more(&self) -> bool {
        self.remaining > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_rows_are_sent_as_the_limit_allows_and_no_row_with_a_limit_of_zero() {
        let [a, b] = ["a", "b"].map(Identity::of);
        let mut selection = Selection::new(Existing::of([a]), Some(1));
        assert_eq!(selection.select(a), Selected::Skip);
        assert!(selection.wants_more());
        // The output contains one row of `a`, so the second `a` of the sources is sent.
        assert_eq!(selection.select(a), Selected::Send);
        assert!(!selection.wants_more());
        assert_eq!(selection.select(b), Selected::LimitReached);
        let mut limit_zero = Selection::new(Existing::of([a]), Some(0));
        assert_eq!(
            [limit_zero.select(a), limit_zero.select(b)],
            [Selected::Skip, Selected::LimitReached]
        );
        let mut unlimited = Selection::new(Existing::default(), None);
        assert!(unlimited.select(a) == Selected::Send && unlimited.wants_more());
    }
}
