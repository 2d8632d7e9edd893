//! Single flight: all who want the same thing at the same time share one call.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt, future::Shared};
use tokio::sync::oneshot;

/// A call that is under way, to be waited for by any number; it fails when its leader died.
pub(super) type Flight<T> = Shared<oneshot::Receiver<T>>;

/// The calls that are under way, by what they are for. Cheap to clone.
#[derive(Debug)]
pub(super) struct Flights<K, T>(Arc<Mutex<HashMap<K, Flight<T>>>>);

/// What becomes of one who wants something.
#[derive(Debug)]
pub(super) enum Boarding<K: Copy + Eq + Hash, T: Clone> {
    /// A call for the same is under way.
    Joined(Flight<T>),
    /// None is: the leader must make it.
    Leads(Flight<T>, Leader<K, T>),
}

/// The duty to make a call. Dropping it without landing fails those who wait.
#[derive(Debug)]
pub(super) struct Leader<K: Copy + Eq + Hash, T: Clone> {
    outcome: oneshot::Sender<T>,
    flight: Flight<T>,
    seat: Seat<K, T>,
}

/// A call's place in the list, given up when dropped: until then others join it, also when it has
/// landed.
#[derive(Debug)]
pub(super) struct Seat<K: Copy + Eq + Hash, T: Clone> {
    listed: Option<(Flights<K, T>, K)>,
}

impl<K: Copy + Eq + Hash, T: Clone> Flights<K, T> {
    /// Joins the call for a key, or leads one that others can join.
    pub(super) fn board(&self, key: K) -> Boarding<K, T> {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(&key) {
            return Boarding::Joined(flight.clone());
        }
        let (flight, leader) = Leader::new(Some((self.clone(), key)));
        flights.insert(key, flight.clone());
        Boarding::Leads(flight, leader)
    }

    /// Leads a call that nobody can join.
    pub(super) fn alone(&self) -> Boarding<K, T> {
        let (flight, leader) = Leader::new(None);
        Boarding::Leads(flight, leader)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Flight<T>>> {
        // The map is whole whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, T> Clone for Flights<K, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Copy + Eq + Hash, T: Clone> Leader<K, T> {
    fn new(listed: Option<(Flights<K, T>, K)>) -> (Flight<T>, Self) {
        let (outcome, receiver) = oneshot::channel();
        let flight = receiver.shared();
        (flight.clone(), Self { outcome, flight, seat: Seat { listed } })
    }

    /// Whether nobody waits for the call.
    pub(super) fn is_alone(&self) -> bool {
        let own = 1 + usize::from(self.seat.listed.is_some());
        self.flight.strong_count().is_none_or(|count| count <= own)
    }

    /// Tells everybody who waits that the call failed. Who comes later makes one of their own.
    pub(super) fn fail(self, outcome: T) {
        let Self { outcome: sender, seat, .. } = self;
        drop(seat);
        // Nobody may be waiting.
        let _ = sender.send(outcome);
    }

    /// Tells everybody how the call ended. Others can join until the seat is dropped.
    pub(super) fn land(self, outcome: T) -> Seat<K, T> {
        // The leader itself holds a receiver: there always is one.
        let _ = self.outcome.send(outcome);
        self.seat
    }
}

impl<K: Copy + Eq + Hash, T: Clone> Drop for Seat<K, T> {
    fn drop(&mut self) {
        if let Some((flights, key)) = &self.listed {
            flights.lock().remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead(
        flights: &Flights<u8, &'static str>,
    ) -> (Flight<&'static str>, Leader<u8, &'static str>) {
        match flights.board(1) {
            Boarding::Leads(flight, leader) => (flight, leader),
            Boarding::Joined(_) => panic!("joined"),
        }
    }

    fn join(flights: &Flights<u8, &'static str>) -> Flight<&'static str> {
        match flights.board(1) {
            Boarding::Joined(flight) => flight,
            Boarding::Leads(..) => panic!("led"),
        }
    }

    #[tokio::test]
    async fn who_comes_later_gets_the_same_outcome_until_the_seat_is_given_up() {
        let flights = Flights::default();
        let (flight, leader) = lead(&flights);
        let joined = join(&flights);
        let seat = leader.land("done");
        let late = join(&flights);
        drop(seat);
        for flight in [flight, joined, late] {
            assert_eq!(flight.await, Ok("done"));
        }
        drop(lead(&flights));
    }

    #[tokio::test]
    async fn a_leader_that_dies_fails_those_who_wait_and_frees_the_seat() {
        let flights = Flights::default();
        let (_, leader) = lead(&flights);
        let joined = join(&flights);
        drop(leader);
        assert!(joined.await.is_err());
        drop(lead(&flights));
    }

    #[test]
    fn a_call_knows_whether_anybody_waits_for_it() {
        let flights = Flights::default();
        let (flight, leader) = lead(&flights);
        assert!(!leader.is_alone());
        drop(flight);
        assert!(leader.is_alone());
        let joined = join(&flights);
        assert!(!leader.is_alone());
        drop(joined);
        assert!(leader.is_alone());
    }

    #[test]
    fn one_that_flies_alone_is_not_joined() {
        let flights = Flights::<u8, &str>::default();
        let Boarding::Leads(flight, leader) = flights.alone() else { panic!("joined") };
        let _own = lead(&flights);
        assert!(!leader.is_alone());
        drop(flight);
        assert!(leader.is_alone());
    }
}
