//! Knows whether the bucket can be written to and read, and tests it while it cannot.
//!
//! A request that waits for a failing bucket would hold its memory and its permits for nothing. So
//! requests stop using the bucket after the first failure of a write, or after three failures of
//! reads. From then on, a task tests the bucket every few seconds. Tests overlap: one that hangs does
//! not delay the next. Letting requests themselves try would make some of them wait.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{task::JoinSet, time::interval};

use super::{Bucket, Inner, TestReport, error::Operation};

/// After this many failures in a row, the bucket is not read any more. One slow read says little,
/// because reads have only a second.
const MAX_FAILED_READS: u32 = 3;

/// The time between the starts of two tests of a failing bucket.
const TEST_INTERVAL: Duration = Duration::from_secs(3);

/// How long a test may take.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// At most this many tests run at once.
const MAX_TESTS: usize = 8;

/// A change that the log reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transition {
    /// The operation begins to fail.
    Fails,
    /// The operation works again.
    Works,
}

/// What is known about the bucket.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    writes: Failures,
    reads: Failures,
    /// Whether a task tests the bucket.
    is_tested: bool,
}

/// The failures of one kind of operation since its last success.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    is_failing: bool,
}

impl Failures {
    /// Counts the outcome of an operation that fails when `max` operations in a row have failed.
    fn record(&mut self, has_failed: bool, max: u32) -> Option<Transition> {
        self.count = if has_failed { self.count.saturating_add(1) } else { 0 };
        let was_failing = self.is_failing;
        self.is_failing = self.count >= max || (was_failing && has_failed);
        match (was_failing, self.is_failing) {
            (false, true) => Some(Transition::Fails),
            (true, false) => Some(Transition::Works),
            _ => None,
        }
    }
}

impl Health {
    /// Whether the operation is not to be tried at the moment. A removal is always tried, because no
    /// client waits for it.
    pub(super) fn is_failing(&self, operation: Operation) -> bool {
        let state = self.state();
        match operation {
            Operation::Write => state.writes.is_failing,
            Operation::Read { .. } | Operation::ReadMissing => state.reads.is_failing,
            Operation::Remove => false,
        }
    }

    /// Counts the outcome of an operation.
    pub(super) fn record(&self, operation: Operation, has_failed: bool) -> Option<Transition> {
        self.count(operation, has_failed, MAX_FAILED_READS)
    }

    /// Counts the outcome of a test. One failed test suffices.
    pub(super) fn record_test(&self, operation: Operation, has_failed: bool) -> Option<Transition> {
        self.count(operation, has_failed, 1)
    }

    fn count(
        &self,
        operation: Operation,
        has_failed: bool,
        max_failed_reads: u32,
    ) -> Option<Transition> {
        let mut state = self.state();
        match operation {
            Operation::Write => state.writes.record(has_failed, 1),
            Operation::Read { .. } | Operation::ReadMissing => {
                state.reads.record(has_failed, max_failed_reads)
            }
            Operation::Remove => None,
        }
    }

    /// Returns whether the caller must start the task that tests the bucket.
    fn begin_testing(&self) -> bool {
        !std::mem::replace(&mut self.state().is_tested, true)
    }

    /// Ends the testing, unless the bucket fails again. Returns whether it has ended.
    fn end_testing(&self) -> bool {
        let mut state = self.state();
        state.is_tested = state.writes.is_failing || state.reads.is_failing;
        !state.is_tested
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state stays consistent even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts to test a failing bucket, unless it is tested already.
pub(super) fn start_testing(bucket: &Bucket) {
    if bucket.0.health.begin_testing() {
        // The task ends when the bucket works again, or when nobody uses the bucket any more.
        drop(tokio::spawn(test_until_it_works(Arc::downgrade(&bucket.0))));
    }
}

async fn test_until_it_works(bucket: Weak<Inner>) {
    let mut ticks = interval(TEST_INTERVAL);
    ticks.tick().await; // the first tick comes at once
    let mut tests: JoinSet<TestReport> = JoinSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let Some(inner) = bucket.upgrade() else { return };
                if tests.len() < MAX_TESTS {
                    tests.spawn(async move { Bucket(inner).self_test(TEST_TIMEOUT).await });
                }
            }
            Some(report) = tests.join_next() => {
                let Some(inner) = bucket.upgrade() else { return };
                let Ok(report) = report else { continue };
                let bucket = Bucket(inner);
                bucket.record_test(&report);
                if bucket.0.health.end_testing() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Operation = Operation::Read { max_len: 1 };

    #[test]
    fn one_failed_write_or_three_failed_reads_in_a_row_suspend_the_operation() {
        let health = Health::default();
        assert!(!health.is_failing(Operation::Write) && !health.is_failing(READ));
        assert_eq!(health.record(Operation::Write, true), Some(Transition::Fails));
        assert!(health.is_failing(Operation::Write) && !health.is_failing(READ));
        for has_failed in [true, true, false, true, true] {
            assert_eq!(health.record(READ, has_failed), None);
        }
        assert_eq!(health.record(READ, true), Some(Transition::Fails));
        assert_eq!(health.record(READ, true), None, "one failure must be reported once");
        assert!(health.is_failing(READ) && !health.is_failing(Operation::Remove));
    }

    #[test]
    fn a_successful_operation_ends_the_failure() {
        let health = Health::default();
        for operation in [Operation::Write, READ] {
            assert_eq!(health.record_test(operation, true), Some(Transition::Fails));
            assert!(health.begin_testing() && !health.begin_testing());
            assert!(!health.end_testing(), "a failing bucket must be tested on");
            assert_eq!(health.record_test(operation, false), Some(Transition::Works));
            assert!(health.end_testing() && !health.is_failing(operation));
        }
    }
}
