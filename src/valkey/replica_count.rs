//! How many replicas use the Valkey.

use std::time::Duration;

use tokio::time::Instant;

/// If the Valkey did not know this replica when it reported, the count may rise but not fall for this
/// long. After the Valkey has lost its data, the replicas report to it one after another. The first must
/// not count only itself, and take the whole limit on calls.
const RISING_TIME: Duration = Duration::from_secs(3);

/// How many replicas use the Valkey, as far as is known.
#[derive(Debug)]
pub(super) struct ReplicaCount {
    count: u32,
    only_rises_until: Option<Instant>,
}

impl ReplicaCount {
    pub(super) fn new(assumed: u32) -> Self {
        Self { count: assumed.max(1), only_rises_until: None }
    }

    /// The number of replicas. At least 1.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Stores the reply to a regular report of this replica: whether the Valkey knew the replica before, and
    /// how many replicas it knows now. The Valkey does not know this replica before the first report,
    /// nor after the Valkey has lost its data.
    pub(super) fn store(&mut self, was_known: bool, count: u32, now: Instant) {
        if !was_known {
            self.only_rises_until = Some(now + RISING_TIME);
        }
        let only_rises = self.only_rises_until.is_some_and(|end| now < end);
        let minimum = if only_rises { self.count } else { 1 };
        self.count = count.max(minimum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_only_rises_for_a_while_after_the_valkey_has_lost_its_data() {
        let mut replicas = ReplicaCount::new(1);
        let now = Instant::now();
        replicas.store(false, 3, now);
        assert_eq!(replicas.count(), 3);
        let later = now + RISING_TIME;
        replicas.store(true, 2, later);
        assert_eq!(replicas.count(), 2, "a replica may stop");
        // The Valkey has lost its data, and this replica is the first to report again.
        for (was_known, reported) in [(false, 1), (true, 1)] {
            replicas.store(was_known, reported, later);
            assert_eq!(replicas.count(), 2);
        }
        replicas.store(true, 1, later + RISING_TIME);
        assert_eq!(replicas.count(), 1, "the other replica has not reported again");
    }
}
