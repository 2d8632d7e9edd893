//! Single flight: all who want the same thing at the same time share one call. (What is the same, the
//! keys of `cache.rs` say.)

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt, future::Shared};
use tokio::sync::oneshot;

/// The outcome of a call that is under way, to be waited for by any number; an error when its
/// leader died.
pub(super) type Completion<T> = Shared<oneshot::Receiver<T>>;

/// The calls that are under way, by what they are for. Cheap to clone.
#[derive(Debug)]
pub(super) struct SingleFlight<K, T>(Arc<Mutex<HashMap<K, Completion<T>>>>);

/// What becomes of one who wants something.
#[derive(Debug)]
pub(super) enum Role<K: Copy + Eq + Hash, T: Clone> {
    /// A call for the same is under way.
    Joins(Completion<T>),
    /// None is: the leader must make it.
    Leads(Completion<T>, Leader<K, T>),
}

/// The duty to make a call. Dropping it without completing it fails those who wait.
#[derive(Debug)]
pub(super) struct Leader<K: Copy + Eq + Hash, T: Clone> {
    outcome: oneshot::Sender<T>,
    completion: Completion<T>,
    entry: Entry<K, T>,
}

/// A call's entry among those under way, removed when dropped: until then others join the call,
/// also when it is complete.
#[derive(Debug)]
pub(super) struct Entry<K: Copy + Eq + Hash, T: Clone> {
    listed: Option<(SingleFlight<K, T>, K)>,
}

impl<K: Copy + Eq + Hash, T: Clone> SingleFlight<K, T> {
    /// Joins the call for a key, or leads one that others can join.
    pub(super) fn join_or_lead(&self, key: K) -> Role<K, T> {
        let mut calls = self.lock();
        if let Some(completion) = calls.get(&key) {
            return Role::Joins(completion.clone());
        }
        let (completion, leader) = Leader::new(Some((self.clone(), key)));
        calls.insert(key, completion.clone());
        Role::Leads(completion, leader)
    }

    /// Leads a call that nobody can join.
    pub(super) fn lead_alone(&self) -> Role<K, T> {
        let (completion, leader) = Leader::new(None);
        Role::Leads(completion, leader)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Completion<T>>> {
        // The map is whole whatever panicked elsewhere.
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

impl<K: Copy + Eq + Hash, T: Clone> Leader<K, T> {
    fn new(listed: Option<(SingleFlight<K, T>, K)>) -> (Completion<T>, Self) {
        let (outcome, receiver) = oneshot::channel();
        let completion = receiver.shared();
        (completion.clone(), Self { outcome, completion, entry: Entry { listed } })
    }

    /// Whether nobody waits for the call.
    pub(super) fn is_alone(&self) -> bool {
        let own = 1 + usize::from(self.entry.listed.is_some());
        self.completion.strong_count().is_none_or(|count| count <= own)
    }

    /// Tells everybody who waits that the call failed. Who comes later makes one of their own.
    pub(super) fn fail(self, outcome: T) {
        let Self { outcome: sender, entry, .. } = self;
        drop(entry);
        // Nobody may be waiting.
        let _ = sender.send(outcome);
    }

    /// Tells everybody who waits how the call ended. Others can join until the entry is dropped.
    pub(super) fn complete(self, outcome: T) -> Entry<K, T> {
        // The leader itself holds a receiver: there always is one.
        let _ = self.outcome.send(outcome);
        self.entry
    }
}

impl<K: Copy + Eq + Hash, T: Clone> Drop for Entry<K, T> {
    fn drop(&mut self) {
        if let Some((calls, key)) = &self.listed {
            calls.lock().remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Calls = SingleFlight<u8, &'static str>;

    fn lead(calls: &Calls) -> (Completion<&'static str>, Leader<u8, &'static str>) {
        match calls.join_or_lead(1) {
            Role::Leads(completion, leader) => (completion, leader),
            Role::Joins(_) => panic!("joined"),
        }
    }

    fn join(calls: &Calls) -> Completion<&'static str> {
        match calls.join_or_lead(1) {
            Role::Joins(completion) => completion,
            Role::Leads(..) => panic!("led"),
        }
    }

    #[tokio::test]
    async fn who_comes_later_gets_the_same_outcome_until_the_entry_is_dropped() {
        let calls = Calls::default();
        let (led, leader) = lead(&calls);
        let joined = join(&calls);
        let entry = leader.complete("done");
        let late = join(&calls);
        drop(entry);
        for completion in [led, joined, late] {
            assert_eq!(completion.await, Ok("done"));
        }
        drop(lead(&calls));
    }

    #[tokio::test]
    async fn a_leader_that_dies_fails_those_who_wait_and_removes_the_entry() {
        let calls = Calls::default();
        let (_, leader) = lead(&calls);
        let joined = join(&calls);
        drop(leader);
        assert!(joined.await.is_err());
        drop(lead(&calls));
    }

    #[test]
    fn a_call_knows_whether_anybody_waits_for_it() {
        let calls = Calls::default();
        let (led, leader) = lead(&calls);
        assert!(!leader.is_alone());
        drop(led);
        assert!(leader.is_alone());
        let joined = join(&calls);
        assert!(!leader.is_alone());
        drop(joined);
        assert!(leader.is_alone());
    }

    #[test]
    fn one_that_leads_alone_is_not_joined() {
        let calls = Calls::default();
        let Role::Leads(completion, leader) = calls.lead_alone() else { panic!("joined") };
        let _own = lead(&calls);
        assert!(!leader.is_alone());
        drop(completion);
        assert!(leader.is_alone());
    }
}
