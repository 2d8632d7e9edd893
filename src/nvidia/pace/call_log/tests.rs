//! Tests of the [`CallLog`] and of the Valkey's scripts. The replies that are expected from the scripts come
//! from a log in which each client stands for a replica. The time is simulated, also in the scripts.

use std::net::{IpAddr, Ipv4Addr};

use proptest::{
    collection::vec,
    prelude::*,
    sample::Index,
    test_runner::{Config, TestRunner},
};
use redis::{Connection, Script};

use super::*;
use crate::valkey::test_server::RedisServer;

/// The beginning of the simulated time, in microseconds since 1970.
const START: u64 = 1_764_000_000_123_456;

const WINDOW: Duration = super::super::WINDOW;

/// What happens to the scripts and to the log. An index chooses one of the open turns: those that are
/// neither given back nor used.
#[derive(Debug, Clone)]
enum Event {
    /// This many microseconds pass.
    Wait(u64),
    /// Time passes until a microsecond before the oldest call expires, and then this many microseconds.
    WaitForExpiry(u64),
    /// This replica takes a turn, if the limit allows a call now.
    Take(u8),
    /// This replica asks which calls were made.
    Ask(u8),
    /// The replica with this turn gives it back, and makes no call.
    GiveBack(Index),
    /// The replica with this turn makes its call now.
    Use(Index),
    /// The Valkey loses its data, and all replicas record their calls again.
    LoseData,
    /// All replicas record their calls, although the Valkey knows them.
    RecordAgain,
}

/// Any event. The numbers before `=>` say how often an event of this line is chosen.
fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0u64..10).prop_map(Event::Wait),
        // Up to a little more than the window, which is about a minute.
        3 => (0u64..70_000_000).prop_map(Event::Wait),
        2 => (0u64..3).prop_map(Event::WaitForExpiry),
        8 => (0u8..3).prop_map(Event::Take),
        2 => (0u8..3).prop_map(Event::Ask),
        2 => any::<Index>().prop_map(Event::GiveBack),
        3 => any::<Index>().prop_map(Event::Use),
        1 => Just(Event::LoseData),
        1 => Just(Event::RecordAgain),
    ]
}

/// The scripts, with a simulated time.
struct Scripts {
    connection: Connection,
    take: Script,
    record: Script,
    give_back: Script,
    /// Microseconds since 1970. The scripts get this in two keys: see [`with_simulated_time`].
    now: u64,
}

/// The reply to an attempt to take a turn: whether the turn is granted; how long a call must wait; and the
/// ages of the other replicas' calls. Both times are in microseconds.
type Reply = (bool, u64, Vec<u64>);

impl Scripts {
    fn new(server: &RedisServer) -> Self {
        let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        let () = redis::cmd("FLUSHALL").query(&mut connection).unwrap();
        Self {
            connection,
            take: with_simulated_time(include_str!("../../../valkey/pace.lua")),
            record: with_simulated_time(include_str!("../../../valkey/pace_record.lua")),
            give_back: Script::new(include_str!("../../../valkey/pace_return.lua")),
            now: START,
        }
    }

    /// Takes a turn for the call with this id. Without an id, only asks which calls were made.
    fn take(&mut self, limit: usize, replica: u8, id: Option<u64>) -> Reply {
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        let (mut script, now) = (self.take.key("calls"), self.now);
        script.key(now / 1_000_000).key(now % 1_000_000);
        script.arg(limit).arg(WINDOW.as_micros() as u64).arg(format!("r{replica}"));
        let max_searched = 1000; // more calls than a test makes
        script.arg(id).arg(max_searched).invoke(&mut self.connection).unwrap()
    }

    /// Records calls of a replica. Each call is an id and its age in microseconds. Returns the number of
    /// calls in the window.
    fn record(&mut self, replica: u8, calls: impl Iterator<Item = (u64, u64)>) -> usize {
        let (mut script, now) = (self.record.key("calls"), self.now);
        script.key(now / 1_000_000).key(now % 1_000_000);
        script.arg(WINDOW.as_micros() as u64);
        for (id, age) in calls {
            script.arg(format!("r{replica}:{id}")).arg(age);
        }
        script.invoke(&mut self.connection).unwrap()
    }

    fn give_back(&mut self, replica: u8, id: u64) {
        let mut script = self.give_back.key("calls");
        let _: usize = script.arg(format!("r{replica}:{id}")).invoke(&mut self.connection).unwrap();
    }
}

/// The script, with a simulated time in place of the server's. `KEYS[2]` and `KEYS[3]` are its seconds and
/// microseconds.
fn with_simulated_time(text: &str) -> Script {
    let parts: Vec<&str> = text.split("redis.call('TIME')").collect();
    assert_eq!(parts.len(), 2, "the script should read the time once");
    Script::new(&parts.join("{ KEYS[2], KEYS[3] }"))
}

/// In the log, each replica is a client with this network.
fn client(replica: u8) -> ClientNetwork {
    ClientNetwork(IpAddr::V4(Ipv4Addr::new(127, 0, 0, replica)))
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

/// Lets the events happen to the scripts and to the log. Asserts that the scripts give the same replies as
/// the log.
fn compare(scripts: &mut Scripts, limit: usize, events: Vec<Event>) {
    // `replicas` and `clients` have no effect here, because `is_spread` is false.
    let rule =
        Rule { calls_per_window: limit, window: WINDOW, replicas: 1, clients: Clients::Many };
    let (mut log, start) = (CallLog::new(rule), Instant::now());
    // The open turns, each with its replica.
    let mut turns: Vec<(u8, TimedCall)> = Vec::new();
    // The index of an event is the id of the call that it may add.
    for (id, event) in (0u64..).zip(events) {
        let now = start + Duration::from_micros(scripts.now - START);
        log.expire(now);
        // When the log allows the next call. The scripts do not spread calls, so the log must not either.
        let earliest = |log: &CallLog| {
            let client_network = ClientNetwork::UNKNOWN;
            let demand = Demand { client_network, is_spread: false, count: 1 };
            log.next([demand].into_iter(), now).unwrap().1
        };
        let expected_reply = |log: &CallLog, replica: u8, takes: bool| -> Reply {
            let wait = micros(earliest(log) - now);
            let others =
                log.calls.iter().filter(|call| call.client_network != Some(client(replica)));
            (takes && wait == 0, wait, others.map(|call| micros(now - call.time)).collect())
        };
        match event {
            Event::Wait(time) => scripts.now += time,
            Event::WaitForExpiry(more) => {
                if let Some(expiry) = log.next_expiry() {
                    scripts.now = scripts.now.max(START + micros(expiry - start) - 1 + more);
                }
            }
            Event::Take(replica) => {
                let expected = expected_reply(&log, replica, true);
                assert_eq!(scripts.take(limit, replica, Some(id)), expected, "a turn for {id}");
                if expected.0 {
                    let call = TimedCall { time: now, id, client_network: Some(client(replica)) };
                    log.record(call);
                    turns.push((replica, call));
                }
            }
            Event::Ask(replica) => {
                let expected = expected_reply(&log, replica, false);
                assert_eq!(scripts.take(limit, replica, None), expected, "replica {replica} asks");
            }
            Event::GiveBack(index) if !turns.is_empty() => {
                let (replica, call) = turns.swap_remove(index.index(turns.len()));
                scripts.give_back(replica, call.id);
                log.remove(call);
            }
            Event::Use(index) if !turns.is_empty() => {
                let (replica, call) = turns.swap_remove(index.index(turns.len()));
                log.remove(call);
                log.record(TimedCall { time: now, ..call });
                let count = scripts.record(replica, [(call.id, 0)].into_iter());
                assert_eq!(count, log.calls.len(), "the calls after the use of {}", call.id);
            }
            Event::GiveBack(_) | Event::Use(_) => {} // no turn is open
            Event::LoseData | Event::RecordAgain => {
                if matches!(event, Event::LoseData) {
                    let () = redis::cmd("FLUSHALL").query(&mut scripts.connection).unwrap();
                }
                let mut calls_in_window = 0;
                for replica in 0..3 {
                    let own = log.own().filter(|call| call.client_network == Some(client(replica)));
                    let calls = own.map(|call| (call.id, micros(now - call.time)));
                    // The script must not record an expired call.
                    let expired_call = (u64::MAX, micros(WINDOW));
                    calls_in_window = scripts.record(replica, calls.chain([expired_call]));
                }
                // The last replica's script counts the calls of all replicas.
                assert_eq!(calls_in_window, log.calls.len(), "all calls are recorded");
            }
        }
    }
}

#[test]
fn the_scripts_count_calls_of_replicas_as_the_log_does() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let config = Config { failure_persistence: None, ..Config::with_cases(256) };
    let cases = (1usize..6, vec(any_event(), 1..100));
    let outcome = TestRunner::new(config).run(&cases, |(limit, events)| {
        compare(&mut Scripts::new(&server), limit, events);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn a_client_may_make_half_of_the_calls_at_once_at_all_replicas_together() {
    let now = Instant::now();
    // Each replica allows an equal part of half of the 40 calls, rounded up.
    for (replicas, at_once) in [(1, 20), (2, 10), (3, 7)] {
        let rule = Rule { calls_per_window: 40, window: WINDOW, replicas, clients: Clients::Many };
        let mut log = CallLog::new(rule);
        let demand = Demand { client_network: client(1), is_spread: true, count: 1 };
        let mut makes_call_at_once = |id: &u64| {
            let is_at_once = log.next([demand].into_iter(), now) == Some((0, now));
            log.record(TimedCall { time: now, id: *id, client_network: Some(client(1)) });
            is_at_once
        };
        assert_eq!(
            (0..40).take_while(|id| makes_call_at_once(id)).count(),
            at_once,
            "{replicas} replicas"
        );
    }
}

#[test]
fn a_call_in_the_future_of_a_server_that_takes_over_counts_as_made_now() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let mut scripts = Scripts::new(&server);
    // The limit is one call. The arguments are this limit, the replica and the call's id.
    assert_eq!(scripts.take(1, 0, Some(0)), (true, 0, vec![]));
    // The clock of the server that takes over is an hour behind.
    scripts.now -= 3_600_000_000;
    assert_eq!(scripts.take(1, 1, Some(0)), (false, micros(WINDOW), vec![0]));
    scripts.now += micros(WINDOW);
    assert_eq!(scripts.take(1, 1, Some(0)), (true, 0, vec![]));
}

#[test]
fn a_call_that_is_recorded_again_keeps_its_later_time() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let mut scripts = Scripts::new(&server);
    assert!(scripts.take(1, 0, Some(7)).0);
    scripts.now += 1_000_000;
    scripts.record(0, [(7, 0)].into_iter());
    // Now a delayed command arrives, which records the call with the earlier time of its turn.
    scripts.record(0, [(7, 1_000_000)].into_iter());
    assert_eq!(scripts.take(1, 1, None), (false, micros(WINDOW), vec![0]));
}
