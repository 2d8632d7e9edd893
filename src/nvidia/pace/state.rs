//! The limiter's state: the calls that were made, that are reserved, and that wait. Decides what the task
//! of a waiting call does next.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{
    call_log::{CallLog, Demand, Rule},
    shared::{Mode, Sharing},
};
use crate::shares::{ClientNetwork, Tally};

#[derive(Debug)]
pub(super) struct State {
    pub log: CallLog,
    /// The number of each client's reserved calls that do not wait for a permit yet.
    pub reserved: Tally,
    /// What is known about the Valkey.
    pub sharing: Sharing,
    /// The calls that wait for a permit. The queues are in the order in which they were created. Empty
    /// queues are removed.
    queues: Vec<ClientQueue>,
    next_id: u64,
}

/// The waiting calls of one client that have the same `is_spread`.
#[derive(Debug)]
struct ClientQueue {
    client_network: ClientNetwork,
    /// See [`Demand::is_spread`].
    is_spread: bool,
    /// The ids of the calls, in the order of their arrival.
    ids: VecDeque<u64>,
}

/// What the task of a waiting call does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Makes the call.
    Call,
    /// Asks the Valkey for a turn: a place for the call in the window that all replicas share.
    AskForTurn,
    /// Asks the Valkey which calls other replicas have made.
    AskForCalls,
    /// This call is the next one. Its task waits until the state changes, but at most until `until`. As far
    /// as is known now, the limit allows the call at `earliest`.
    Wait { until: Instant, earliest: Instant },
    /// Another call is the next one, or another task is asking the Valkey. This task waits until the state
    /// changes.
    WaitForOthers,
}

impl State {
    pub(super) fn new(rule: Rule, now: Instant) -> Self {
        let (reserved, queues) = Default::default();
        let (log, sharing) = (CallLog::new(rule), Sharing::new(now));
        Self { log, reserved, sharing, queues, next_id: 0 }
    }

    /// Adds a waiting call, and returns its id.
    pub(super) fn enqueue(&mut self, client_network: ClientNetwork, is_spread: bool) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut queues = self.queues.iter_mut();
        let same = |queue: &&mut ClientQueue| {
            (queue.client_network, queue.is_spread) == (client_network, is_spread)
        };
        match queues.find(same) {
            Some(queue) => queue.ids.push_back(id),
            None => {
                self.queues.push(ClientQueue { client_network, is_spread, ids: [id].into() });
            }
        }
        id
    }

    /// Removes a waiting call, if it still waits.
    pub(super) fn dequeue(&mut self, id: u64) {
        for queue in &mut self.queues {
            queue.ids.retain(|known| *known != id);
        }
        self.queues.retain(|queue| !queue.ids.is_empty());
    }

    /// The most calls that this replica may make in a window.
    pub(super) fn limit(&self) -> usize {
        match self.sharing.mode {
            // The log has the whole limit, but the replica keeps to its share.
            Mode::Settling => self.sharing.share,
            // The log's limit: the replica's share in `Alone` with a Valkey, otherwise the whole limit.
            Mode::Alone | Mode::Shared => self.log.limit(),
        }
    }

    /// The number of waiting calls.
    pub(super) fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.ids.len()).sum()
    }

    /// What the task of this waiting call does now.
    pub(super) fn step(&self, id: u64, now: Instant) -> Step {
        let mut earliest = match self.next(now) {
            Some((next, time)) if next == id => time,
            _ => return Step::WaitForOthers,
        };
        if let Some(time) = self.sharing.must_wait_until(|| self.log.own().count()) {
            earliest = earliest.max(time);
        }
        let needs_turn = self.sharing.mode != Mode::Alone;
        if earliest <= now && !needs_turn {
            return Step::Call;
        }
        // When the oldest call leaves the window, another waiting call may become the next one.
        let expiry = self.log.next_expiry().unwrap_or(earliest);
        if !needs_turn {
            return Step::Wait { until: expiry.min(earliest), earliest };
        }
        let next_ask = self.sharing.next_ask;
        if self.sharing.is_asking {
            // The state changes when the other task has its reply.
            Step::WaitForOthers
        } else if earliest <= now {
            Step::AskForTurn
        } else if next_ask <= now {
            Step::AskForCalls
        } else {
            Step::Wait { until: expiry.min(earliest).min(next_ask), earliest }
        }
    }

    /// The waiting call that is made next, and its earliest time.
    fn next(&self, now: Instant) -> Option<(u64, Instant)> {
        let (index, time) = self.log.next(self.queues.iter().map(ClientQueue::demand), now)?;
        Some((*self.queues.get(index)?.ids.front()?, time))
    }

    /// The value of [`Demand::is_spread`] for a request with `count` calls. False only for a batch whose
    /// calls all fit into the window, besides the calls that wait or are reserved.
    pub(super) fn must_spread(&self, count: usize) -> bool {
        let reserved = usize::try_from(self.reserved.total()).unwrap_or(usize::MAX);
        let earlier = self.waiting().saturating_add(reserved);
        count <= 1 || !self.log.fits(earlier.saturating_add(count))
    }

    /// When the last call of a new demand can be made, if all waiting and reserved calls are made.
    pub(super) fn expected_time(&mut self, demand: Demand, now: Instant) -> Instant {
        let waiting = self.queues.iter().map(ClientQueue::demand);
        // The tally does not say which reserved calls are spread, so all count as spread.
        let reserved = self.reserved.iter().map(|(client_network, count)| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            Demand { client_network, is_spread: true, count }
        });
        // The client's earlier calls come before its new ones. Both count as one demand, with the
        // `is_spread` of the new ones.
        let (of_client, mut demands): (Vec<_>, Vec<_>) = waiting
            .chain(reserved)
            .partition(|other| other.client_network == demand.client_network);
        let earlier: usize = of_client.iter().map(|other| other.count).sum();
        demands.push(Demand { count: earlier.saturating_add(demand.count), ..demand });
        self.log.expected_time(demands, now)
    }
}

impl ClientQueue {
    fn demand(&self) -> Demand {
        let Self { client_network, is_spread, ref ids } = *self;
        Demand { client_network, is_spread, count: ids.len() }
    }
}
