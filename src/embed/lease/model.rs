//! Searches all orders of the steps that three replicas take for the same picture, and of the faults:
//! kills, suspensions, lost replies, and outages of the Valkey.
//!
//! The model's replicas decide with [`Step`], as the real ones do. A payment is a call to NVIDIA. After a
//! failed command, a replica does not use the Valkey until it has connected again, as in `Valkey`. The
//! reserve, `Valkey::lease_reserve`, is the least time that a lease has left while its holder runs and
//! reaches the Valkey. Time is reduced to one event: more time passes than the reserve. So a lease can expire
//! only if this event happens and nothing renews the lease.

use std::collections::HashMap;

use super::{Position, Reply, Step};
use crate::valkey::{LeaseReply, Unavailable};

const REPLICAS: usize = 3;

/// Where a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// It has not looked in the bucket yet.
    New,
    Next(Step),
    AboutToPay(Position),
    Paid(Position),
    Written(Position),
    /// It has the vector.
    Ended,
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Replica {
    state: State,
    /// Whether it looked in the bucket less than the reserve ago, and has not lost the lease since.
    looked_recently: bool,
    is_suspended: bool,
    /// Whether it uses the Valkey: no command has failed since it last connected.
    is_connected: bool,
}

impl Replica {
    const NEW: Self =
        Self { state: State::New, looked_recently: false, is_suspended: false, is_connected: true };
}

/// The lease's key in the Valkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum LeaseKey {
    Free,
    Held {
        /// `None` if the reply was lost, so that no replica knows that it holds the lease.
        by: Option<usize>,
        /// Whether more than the reserve has passed without a renewal.
        may_expire: bool,
    },
    Done,
}

/// How often each fault may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Faults {
    kills: u8,
    suspensions: u8,
    lost_replies: u8,
    outages: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    replicas: [Replica; REPLICAS],
    lease: LeaseKey,
    is_valkey_up: bool,
    vector_is_in_bucket: bool,
    payments: usize,
    /// The additional payments that kills, expired leases and lost replies allow.
    most_extra: usize,
    had_outage: bool,
    faults: Faults,
}

impl World {
    fn new(faults: Faults) -> Self {
        Self {
            replicas: [Replica::NEW; REPLICAS],
            lease: LeaseKey::Free,
            is_valkey_up: true,
            vector_is_in_bucket: false,
            payments: 0,
            most_extra: 0,
            had_outage: false,
            faults,
        }
    }

    /// One payment, or one for each replica if there was an outage. One more for each lost reply, and for
    /// each expiry of a lease that its holder relies on. One more for each kill of a replica that has paid
    /// and not written, or that relies on a lease that may expire already.
    fn most_payments(&self) -> usize {
        self.most_extra + if self.had_outage { REPLICAS } else { 1 }
    }

    /// Whether a command of this replica reaches the Valkey.
    fn reaches_valkey(&self, replica: usize) -> bool {
        self.is_valkey_up && self.replicas[replica].is_connected
    }

    fn is_final(&self) -> bool {
        self.replicas.iter().all(|r| matches!(r.state, State::Ended | State::Killed))
    }

    fn holds(&self, replica: usize) -> bool {
        matches!(self.lease, LeaseKey::Held { by, .. } if by == Some(replica))
    }

    /// The lease expires. If its holder relies on it and was not killed, another payment is allowed.
    fn expire_lease(&mut self) {
        if let LeaseKey::Held { by, .. } = self.lease {
            self.most_extra += usize::from(by.is_some_and(|by| self.relies_on_lease(by)));
            self.lease = LeaseKey::Free;
        }
    }

    /// Whether the replica is about to pay, or has paid and not ended: it never asks for the lease again.
    fn relies_on_lease(&self, replica: usize) -> bool {
        let state = self.replicas[replica].state;
        matches!(state, State::AboutToPay(_) | State::Paid(_) | State::Written(_))
    }

    /// All worlds that can follow without a fault.
    fn after_no_fault(&self) -> Vec<Self> {
        let mut next = Vec::new();
        for index in 0..REPLICAS {
            if !self.replicas[index].is_suspended {
                next.extend(self.step(index));
                if self.is_valkey_up && !self.replicas[index].is_connected {
                    let mut world = *self;
                    world.replicas[index].is_connected = true;
                    next.push(world);
                }
            } else {
                let mut world = *self;
                world.replicas[index].is_suspended = false;
                next.push(world);
            }
        }
        next.push(self.after_time_passed());
        if matches!(self.lease, LeaseKey::Held { may_expire: true, .. }) {
            let mut world = *self;
            world.expire_lease();
            next.push(world);
        }
        if !self.is_valkey_up {
            for is_emptied in [false, true] {
                let mut world = *self;
                world.is_valkey_up = true;
                if is_emptied {
                    world.lease = LeaseKey::Free;
                }
                next.push(world);
            }
        }
        next
    }

    /// More time than the reserve passes.
    fn after_time_passed(&self) -> Self {
        let mut world = *self;
        for replica in &mut world.replicas {
            replica.looked_recently = false;
        }
        if let LeaseKey::Held { by, may_expire } = &mut world.lease {
            let renews = by.is_some_and(|by| {
                let holder = self.replicas[by];
                self.reaches_valkey(by)
                    && !holder.is_suspended
                    && !matches!(holder.state, State::Killed | State::Ended)
            });
            *may_expire = !renews;
        }
        world
    }

    /// The worlds that can follow if one replica takes its next step.
    fn step(&self, index: usize) -> Vec<Self> {
        let with = |state| {
            let mut world = *self;
            world.replicas[index].state = state;
            world
        };
        let Replica { state, looked_recently, .. } = self.replicas[index];
        match state {
            State::Ended | State::Killed => Vec::new(),
            State::New if self.vector_is_in_bucket => vec![with(State::Ended)],
            State::New => {
                let mut world = with(State::Next(Step::FIRST));
                world.replicas[index].looked_recently = true;
                vec![world]
            }
            State::Next(Step::Acquire { ignore_done }) => {
                let (reply, lease) = self.acquire(index, ignore_done);
                let mut world = with(State::Next(Step::after_reply(&reply, looked_recently)));
                world.lease = lease;
                world.replicas[index].is_connected = reply.is_ok();
                let mut worlds = vec![world];
                if reply.is_ok() && self.faults.lost_replies > 0 {
                    let step = Step::after_reply(&Reply::<()>::Err(Unavailable), looked_recently);
                    let mut lost = with(State::Next(step));
                    if reply == Ok(LeaseReply::Acquired(())) {
                        lost.lease = LeaseKey::Held { by: None, may_expire: false };
                    }
                    lost.replicas[index].is_connected = false;
                    lost.most_extra += 1;
                    lost.faults.lost_replies -= 1;
                    worlds.push(lost);
                }
                worlds
            }
            State::Next(Step::Wait) => {
                let step = |must_look| with(State::Next(Step::after_wait(must_look)));
                [false, true].map(step).into()
            }
            State::Next(Step::Read(position)) if self.vector_is_in_bucket => {
                let mut world = with(State::Ended);
                if position == Position::Holder {
                    world.release_as_done(index);
                }
                vec![world]
            }
            State::Next(Step::Read(position)) => {
                let mut world = with(State::Next(Step::after_miss(position)));
                world.replicas[index].looked_recently = true;
                vec![world]
            }
            State::Next(Step::Call(Position::Holder)) => {
                let is_held = if self.reaches_valkey(index) {
                    Ok(self.holds(index))
                } else {
                    Err(Unavailable)
                };
                let mut world = match Step::after_confirmation(is_held) {
                    Step::Call(position) => with(State::AboutToPay(position)),
                    step => with(State::Next(step)),
                };
                world.replicas[index].is_connected = is_held.is_ok();
                if is_held == Ok(false) {
                    // Another replica may have written the vector, so this one must look again.
                    world.replicas[index].looked_recently = false;
                }
                if let LeaseKey::Held { by, may_expire } = &mut world.lease
                    && *by == Some(index)
                    && is_held.is_ok()
                {
                    *may_expire = false; // the confirmation has renewed the lease
                }
                vec![world]
            }
            State::Next(Step::Call(position)) => vec![with(State::AboutToPay(position))],
            State::AboutToPay(position) => {
                let mut world = with(State::Paid(position));
                world.payments += 1;
                vec![world]
            }
            State::Paid(position) => {
                let mut world = with(State::Written(position));
                world.vector_is_in_bucket = true;
                vec![world]
            }
            State::Written(_) => {
                let mut world = with(State::Ended);
                world.release_as_done(index);
                vec![world]
            }
        }
    }

    fn acquire(&self, index: usize, ignore_done: bool) -> (Reply<()>, LeaseKey) {
        match self.lease {
            _ if !self.reaches_valkey(index) => (Err(Unavailable), self.lease),
            LeaseKey::Held { .. } => (Ok(LeaseReply::Held), self.lease),
            LeaseKey::Done if !ignore_done => (Ok(LeaseReply::Done), self.lease),
            LeaseKey::Done | LeaseKey::Free => {
                let lease = LeaseKey::Held { by: Some(index), may_expire: false };
                (Ok(LeaseReply::Acquired(())), lease)
            }
        }
    }

    /// As in `lease_release.lua`, this also succeeds if the lease has expired and is free.
    fn release_as_done(&mut self, index: usize) {
        if self.reaches_valkey(index) && (self.holds(index) || self.lease == LeaseKey::Free) {
            self.lease = LeaseKey::Done;
        }
    }

    /// All worlds that can follow a fault.
    fn after_fault(&self) -> Vec<Self> {
        let mut next = Vec::new();
        for index in 0..REPLICAS {
            let Replica { state, is_suspended, .. } = self.replicas[index];
            if matches!(state, State::Ended | State::Killed) {
                continue;
            }
            if self.faults.kills > 0 {
                let mut world = *self;
                world.faults.kills -= 1;
                // `expire_lease` allows no payment for the lease of a killed holder. So if this lease may
                // expire already, the kill itself allows one.
                let may_lose_lease = self.relies_on_lease(index)
                    && matches!(self.lease, LeaseKey::Held { by, may_expire: true } if by == Some(index));
                world.most_extra += usize::from(matches!(state, State::Paid(_)) || may_lose_lease);
                world.replicas[index].state = State::Killed;
                next.push(world);
            }
            if self.faults.suspensions > 0 && !is_suspended {
                let mut world = *self;
                world.faults.suspensions -= 1;
                world.replicas[index].is_suspended = true;
                next.push(world);
            }
        }
        if self.faults.outages > 0 && self.is_valkey_up {
            let mut world = *self;
            world.faults.outages -= 1;
            world.is_valkey_up = false;
            world.had_outage = true;
            next.push(world);
        }
        next
    }
}

/// Visits all worlds, and checks the payments in each. Then checks that from each world, all replicas can
/// end without a further fault. Returns the number of worlds, and the most payments in any of them.
fn search(faults: Faults) -> (usize, usize) {
    let first = World::new(faults);
    let mut indexes = HashMap::from([(first, 0)]);
    let mut worlds = vec![first];
    let mut predecessors: Vec<Vec<usize>> = vec![Vec::new()];
    let mut at = 0;
    while let Some(world) = worlds.get(at).copied() {
        let most = world.most_payments();
        assert!(world.payments <= most, "there must be at most {most} payments: {world:?}");
        let after_no_fault = world.after_no_fault().into_iter().map(|next| (next, false));
        let after_fault = world.after_fault().into_iter().map(|next| (next, true));
        for (next, is_fault) in after_no_fault.chain(after_fault) {
            let index = *indexes.entry(next).or_insert_with(|| {
                worlds.push(next);
                predecessors.push(Vec::new());
                worlds.len() - 1
            });
            if !is_fault {
                predecessors[index].push(at);
            }
        }
        at += 1;
    }
    let mut can_end: Vec<bool> = worlds.iter().map(World::is_final).collect();
    let mut to_visit: Vec<usize> = (0..worlds.len()).filter(|index| can_end[*index]).collect();
    while let Some(index) = to_visit.pop() {
        for &before in &predecessors[index] {
            if !std::mem::replace(&mut can_end[before], true) {
                to_visit.push(before);
            }
        }
    }
    let stuck = can_end.iter().position(|can_end| !can_end).map(|index| worlds[index]);
    assert_eq!(stuck, None, "all replicas must be able to end");
    (worlds.len(), worlds.iter().map(|world| world.payments).max().unwrap_or(0))
}

const NO_FAULTS: Faults = Faults { kills: 0, suspensions: 0, lost_replies: 0, outages: 0 };

#[test]
fn without_faults_three_replicas_pay_once() {
    let (worlds, payments) = search(NO_FAULTS);
    assert!(worlds > 100, "only {worlds} worlds were found");
    assert_eq!(payments, 1);
}

#[test]
fn each_kill_or_suspension_costs_at_most_one_more_payment() {
    let (_, payments) = search(Faults { kills: 2, suspensions: 2, ..NO_FAULTS });
    // A suspension lets at most one lease expire, and `search` checks `most_payments` in each world.
    assert_eq!(payments, 3, "at worst, each replica should pay once");
}

#[test]
fn an_outage_or_a_lost_reply_may_cost_more_payments_but_only_the_allowed_ones() {
    for faults in [
        Faults { outages: 1, ..NO_FAULTS },
        Faults { lost_replies: 1, ..NO_FAULTS },
        Faults { kills: 1, outages: 1, ..NO_FAULTS },
        Faults { suspensions: 1, outages: 1, ..NO_FAULTS },
        Faults { suspensions: 1, lost_replies: 1, ..NO_FAULTS },
        Faults { kills: 1, suspensions: 1, lost_replies: 1, ..NO_FAULTS },
    ] {
        let (_, payments) = search(faults);
        assert!(payments > 1, "the faults should be able to cause a second payment: {faults:?}");
    }
}
