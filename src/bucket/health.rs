//! Records whether the bucket can be written to and read, and tests it while it cannot.
//!
//! A request that waits for a failing bucket would hold its memory and its permits for nothing. So
//! requests stop writing after one failed write, and stop reading after three failed reads in a row.
//! From then on, a task tests the bucket every few seconds. Tests overlap: one that hangs does
//! not delay the next. Requests do not test the bucket: a request that did would wait.
//!
//! A request fails if its picture cannot be written, but not if its vector cannot. So writes of vectors
//! ([`Bucket::write_optional`]) are not recorded.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, interval},
};

use super::{Bucket, Inner, TestReport, error::Operation};

/// After this many failures in a row, requests start no write until a write succeeds: that of a test, or one
/// that was already running.
const MAX_FAILED_WRITES: u32 = 1;

/// After requests have failed to read this many times in a row, they start no read until a read succeeds. One
/// slow read says little, because reads have only a second.
const MAX_FAILED_READS: u32 = 3;

/// The time between the starts of two tests of a failing bucket.
const TEST_INTERVAL: Duration = Duration::from_secs(3);

/// How long a test's write of an object may take, and how long the removal of this object. A test's reads
/// take at most a second each.
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
    is_being_tested: bool,
}

/// The failures of one kind of operation since its last success.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    is_failing: bool,
    last_success: Option<Instant>,
}

impl Failures {
    /// Counts the success or failure of an operation that began at `started` and ends `now`. This kind
    /// of operation is failing after `max_failures` in a row. A failure is ignored if another operation
    /// has succeeded since this one began. Returns the transition that this causes, if any.
    fn record(
        &mut self,
        has_failed: bool,
        started: Instant,
        now: Instant,
        max_failures: u32,
    ) -> Option<Transition> {
        if !has_failed {
            self.count = 0;
            self.last_success = Some(now);
        } else if self.last_success.is_none_or(|success| started >= success) {
            self.count = self.count.saturating_add(1);
        } else {
            return None;
        }
        let was_failing = self.is_failing;
        // One failed read of a test suspends reads. If a request's read fails after that, reads must
        // stay suspended, although `max_failures` is higher for requests.
        self.is_failing = self.count >= max_failures || (was_failing && has_failed);
        match (was_failing, self.is_failing) {
            (false, true) => Some(Transition::Fails),
            (true, false) => Some(Transition::Works),
            _ => None,
        }
    }
}

impl Health {
    /// Whether this kind of operation is suspended, because it is failing. Removals are never suspended,
    /// because no client waits for them.
    pub(super) fn is_suspended(&self, operation: Operation) -> bool {
        let state = self.state();
        match operation {
            Operation::Write => state.writes.is_failing,
            Operation::Read | Operation::ReadMissing => state.reads.is_failing,
            Operation::Remove => false,
        }
    }

    /// Counts the success or failure of a request's operation that began at `started` and has just ended.
    pub(super) fn record(
        &self,
        operation: Operation,
        has_failed: bool,
        started: Instant,
    ) -> Option<Transition> {
        self.count(operation, has_failed, started, MAX_FAILED_READS)
    }

    /// Like [`Self::record`], for an operation of a test. One failed read of a test is enough to suspend
    /// reads.
    pub(super) fn record_test(
        &self,
        operation: Operation,
        has_failed: bool,
        started: Instant,
    ) -> Option<Transition> {
        let max_failed_reads = 1;
        self.count(operation, has_failed, started, max_failed_reads)
    }

    fn count(
        &self,
        operation: Operation,
        has_failed: bool,
        started: Instant,
        max_failed_reads: u32,
    ) -> Option<Transition> {
        let (mut state, now) = (self.state(), Instant::now());
        match operation {
            Operation::Write => state.writes.record(has_failed, started, now, MAX_FAILED_WRITES),
            Operation::Read | Operation::ReadMissing => {
                state.reads.record(has_failed, started, now, max_failed_reads)
            }
            Operation::Remove => None,
        }
    }

    /// Records that a task tests the bucket. Returns whether the caller must start that task.
    fn begin_testing(&self) -> bool {
        !std::mem::replace(&mut self.state().is_being_tested, true)
    }

    /// Ends the testing if neither writes nor reads are failing. Returns whether it has ended.
    fn end_testing_if_works(&self) -> bool {
        let mut state = self.state();
        state.is_being_tested = state.writes.is_failing || state.reads.is_failing;
        !state.is_being_tested
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state stays consistent even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts to test a failing bucket, unless a task already does so.
pub(super) fn start_testing(bucket: &Bucket) {
    if bucket.0.health.begin_testing() {
        // The task ends when the bucket works again, or when nobody uses the bucket any more.
        drop(tokio::spawn(test_until_it_works(Arc::downgrade(&bucket.0))));
    }
}

async fn test_until_it_works(bucket: Weak<Inner>) {
    let mut ticks = interval(TEST_INTERVAL); // the first tick comes at once
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
                if bucket.0.health.end_testing_if_works() {
                    // The other tests continue, so that they remove their objects.
                    return tests.detach_all();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The values of `has_failed`.
    const FAILED: bool = true;
    const SUCCEEDED: bool = false;

    #[test]
    fn one_failed_write_or_three_failed_reads_in_a_row_suspend_the_operation() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(!health.is_suspended(Operation::Write) && !health.is_suspended(Operation::Read));
        assert_eq!(health.record(Operation::Write, FAILED, now), Some(Transition::Fails));
        assert!(health.is_suspended(Operation::Write) && !health.is_suspended(Operation::Read));
        for has_failed in [FAILED, FAILED, SUCCEEDED] {
            assert_eq!(health.record(Operation::Read, has_failed, now), None);
        }
        // Not `now`: failures of reads that began before the successful read are ignored.
        let later = Instant::now();
        for _ in 0..2 {
            assert_eq!(health.record(Operation::Read, FAILED, later), None);
        }
        assert_eq!(health.record(Operation::Read, FAILED, later), Some(Transition::Fails));
        assert_eq!(
            health.record(Operation::Read, FAILED, later),
            None,
            "a failure must be reported only once"
        );
        assert!(health.is_suspended(Operation::Read) && !health.is_suspended(Operation::Remove));
    }

    #[test]
    fn the_testing_ends_once_a_test_succeeds_and_the_operation_works_again() {
        let (health, now) = (Health::default(), Instant::now());
        for operation in [Operation::Write, Operation::Read] {
            assert_eq!(health.record_test(operation, FAILED, now), Some(Transition::Fails));
            assert!(health.begin_testing() && !health.begin_testing());
            assert!(!health.end_testing_if_works(), "the tests of a failing bucket must not end");
            assert_eq!(health.record_test(operation, SUCCEEDED, now), Some(Transition::Works));
            assert!(health.end_testing_if_works() && !health.is_suspended(operation));
        }
    }

    #[test]
    fn an_operation_that_began_before_the_recovery_and_fails_later_is_ignored() {
        let (health, before) = (Health::default(), Instant::now());
        assert_eq!(health.record(Operation::Write, FAILED, before), Some(Transition::Fails));
        assert_eq!(
            health.record_test(Operation::Write, SUCCEEDED, before),
            Some(Transition::Works)
        );
        assert_eq!(health.record(Operation::Write, FAILED, before), None);
        assert!(!health.is_suspended(Operation::Write));
        let after = Instant::now();
        assert_eq!(health.record(Operation::Write, FAILED, after), Some(Transition::Fails));
    }
}
