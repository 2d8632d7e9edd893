//! Single flight: tasks that need the same result at the same time share one call. A key identifies
//! the result.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt, future::Shared};
use tokio::sync::oneshot;

/// Resolves to the outcome of a running call. Any number of tasks can wait for it. They get an
/// error if the task that makes the call ends without an outcome, for example by a panic.
pub(super) type Completion<T> = Shared<oneshot::Receiver<T>>;

/// The running calls by key. Cheap to clone.
#[derive(Debug)]
pub(super) struct SingleFlight<K, T>(Arc<Mutex<HashMap<K, Completion<T>>>>);

/// Whether a task joins a running call or starts a new one.
#[derive(Debug)]
pub(super) enum Role<K: Copy + Eq + Hash, T: Clone> {
    /// A call for the same key is running: wait for it.
    Join(Completion<T>),
    /// No call that this task can join is running: give the guard to a new task that makes one, and wait
    /// for it.
    Lead(Completion<T>, LeadGuard<K, T>),
}

/// Owned by the task that makes the call. If the guard is dropped without an outcome, the
/// completion of every waiting task fails.
#[derive(Debug)]
pub(super) struct LeadGuard<K: Copy + Eq + Hash, T: Clone> {
    sender: oneshot::Sender<T>,
    completion: Completion<T>,
    entry: EntryGuard<K, T>,
}

/// Keeps a call in the map of running calls until the guard is dropped. Until then, other tasks can
/// join the call, even after the call has completed.
#[derive(Debug)]
pub(super) struct EntryGuard<K: Copy + Eq + Hash, T: Clone> {
    /// The map and the call's key; `None` if no task can join the call.
    calls_and_key: Option<(SingleFlight<K, T>, K)>,
}

impl<K: Copy + Eq + Hash, T: Clone> SingleFlight<K, T> {
    /// Joins the running call for a key, or leads a new call that others can join.
    pub(super) fn join_or_lead(&self, key: K) -> Role<K, T> {
        let mut calls = self.lock();
        if let Some(completion) = calls.get(&key) {
            return Role::Join(completion.clone());
        }
        let (completion, guard) = LeadGuard::new(Some((self.clone(), key)));
        calls.insert(key, completion.clone());
        Role::Lead(completion, guard)
    }

    /// Leads a call that nobody can join.
    pub(super) fn lead_alone(&self) -> Role<K, T> {
        let (completion, guard) = LeadGuard::new(None);
        Role::Lead(completion, guard)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Completion<T>>> {
        // The map stays consistent even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, T> Clone for SingleFlight<K, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, T> Default for SingleFlight<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Copy + Eq + Hash, T: Clone> LeadGuard<K, T> {
    fn new(calls_and_key: Option<(SingleFlight<K, T>, K)>) -> (Completion<T>, Self) {
        let (sender, receiver) = oneshot::channel();
        let completion = receiver.shared();
        (completion.clone(), Self { sender, completion, entry: EntryGuard { calls_and_key } })
    }

    /// Whether no task waits for the call now. Another task may still join it.
    pub(super) fn is_abandoned(&self) -> bool {
        // The guard has one clone of the completion, and the map of running calls may have another.
        let own_clones = 1 + usize::from(self.entry.calls_and_key.is_some());
        // The count is `None` only after this clone was polled, and the guard does not poll it.
        self.completion.strong_count().is_none_or(|count| count <= own_clones)
    }

    /// Sends the outcome of a failed call to all waiting tasks. Later tasks make a new call.
    pub(super) fn fail(self, outcome: T) {
        let Self { sender, entry, completion: _receiver } = self;
        drop(entry);
        // This cannot fail: `_receiver` still exists.
        let _ = sender.send(outcome);
    }

    /// Sends the outcome of a successful call to all waiting tasks. Other tasks can still join the call
    /// until the returned guard is dropped.
    pub(super) fn complete(self, outcome: T) -> EntryGuard<K, T> {
        // This cannot fail: `self.completion` is a receiver.
        let _ = self.sender.send(outcome);
        self.entry
    }
}

impl<K: Copy + Eq + Hash, T: Clone> Drop for EntryGuard<K, T> {
    fn drop(&mut self) {
        if let Some((calls, key)) = &self.calls_and_key {
            calls.lock().remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Calls = SingleFlight<u8, &'static str>;

    fn lead(calls: &Calls) -> (Completion<&'static str>, LeadGuard<u8, &'static str>) {
        match calls.join_or_lead(1) {
            Role::Lead(completion, guard) => (completion, guard),
            Role::Join(_) => panic!("no call should be running"),
        }
    }

    fn join(calls: &Calls) -> Completion<&'static str> {
        match calls.join_or_lead(1) {
            Role::Join(completion) => completion,
            Role::Lead(..) => panic!("a call should be running"),
        }
    }

    #[tokio::test]
    async fn a_task_can_join_a_completed_call_until_the_entry_is_dropped() {
        let calls = Calls::default();
        let (led, guard) = lead(&calls);
        let joined = join(&calls);
        let entry = guard.complete("done");
        let late = join(&calls);
        drop(entry);
        for completion in [led, joined, late] {
            assert_eq!(completion.await, Ok("done"));
        }
        drop(lead(&calls)); // panics if the entry still exists
    }

    #[tokio::test]
    async fn dropping_the_guard_fails_all_waiting_tasks_and_removes_the_entry() {
        let calls = Calls::default();
        let (_, guard) = lead(&calls);
        let joined = join(&calls);
        drop(guard);
        assert!(joined.await.is_err());
        drop(lead(&calls)); // panics if the entry still exists
    }

    #[test]
    fn a_call_is_abandoned_while_no_task_waits_for_it() {
        let calls = Calls::default();
        let (led, guard) = lead(&calls);
        assert!(!guard.is_abandoned());
        drop(led);
        assert!(guard.is_abandoned());
        let joined = join(&calls);
        assert!(!guard.is_abandoned());
        drop(joined);
        assert!(guard.is_abandoned());
    }

    #[test]
    fn no_task_joins_a_call_that_is_led_alone() {
        let calls = Calls::default();
        let Role::Lead(completion, guard) = calls.lead_alone() else {
            panic!("`lead_alone` must not join a call");
        };
        let _second_call = lead(&calls); // panics if the first call can be joined
        assert!(!guard.is_abandoned());
        drop(completion);
        assert!(guard.is_abandoned());
    }
}
