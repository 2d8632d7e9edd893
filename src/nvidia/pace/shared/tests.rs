//! Tests of limiters that share a limit through a real Valkey. Its clock cannot be simulated, so these tests
//! take real time.

use std::process::Command;

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    nvidia::pace::PaceLimiter,
    sha256::Sha256,
    shares::Clients,
    telemetry::Metrics,
    valkey::{Settings, ValkeyUrl, test_server::RedisServer},
};

const CLIENT: ClientNetwork = ClientNetwork::UNKNOWN;

/// The argument `is_spread` of [`PaceLimiter::take_permit`] for a call that is not part of a batch.
const SPREAD: bool = true;
/// The same argument for a call of a batch that fits into the window. Such calls are not spread: one client
/// may use the whole limit at once.
const AT_ONCE: bool = false;

/// The default of `IMAGESVC_VALKEY_TIMEOUT`.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(250);

/// A window that does not end during a test, or a deadline that does not pass.
const MINUTE: Duration = Duration::from_secs(60);

/// A test fails if something does not happen within this time.
const SOON: Duration = Duration::from_secs(10);

/// A replica: a limiter with its own connection to the Valkey.
struct Replica {
    pace: PaceLimiter,
    valkey: Valkey,
    background: TaskTracker,
}

fn key() -> PaceKey {
    PaceKey::new(Sha256::from_bytes([7; 32]))
}

impl Replica {
    /// A replica that shares `total` calls in a window, and need not wait until the limit has settled. The
    /// replica uses exactly this window: only a timeout above [`COVERED_TIMEOUT`] would lengthen it.
    async fn start(server: &RedisServer, total: u32, window: Duration) -> Self {
        Self::start_with(server, total, window, Duration::ZERO, COVERED_TIMEOUT).await
    }

    async fn start_with(
        server: &RedisServer,
        total: u32,
        window: Duration,
        settle_time: Duration,
        command_timeout: Duration,
    ) -> Self {
        let url = ValkeyUrl::parse(&server.url()).unwrap();
        let assumed_replicas = 1; // until the Valkey reports how many there are
        let settings = Settings { url, timeout: command_timeout, replicas: assumed_replicas };
        let background = TaskTracker::new();
        let valkey = Valkey::start(&settings, background.clone(), Metrics::new()).await.unwrap();
        assert!(valkey.works());
        let limit = SharedLimit::new(valkey.clone(), key());
        let limit = SharedLimit { settle_time, ..limit };
        let pace = PaceLimiter::new(total, window, Clients::Many, Some(limit));
        Self { pace, valkey, background }
    }

    /// Takes a permit. Panics if it does not get the permit soon.
    async fn permit(&self) -> PacePermit {
        let deadline = Instant::now() + 2 * MINUTE; // later than any wait, which is a window at most
        let permit = self.pace.take_permit(CLIENT, AT_ONCE, deadline);
        timeout(SOON, permit).await.expect("there should be a permit soon").unwrap()
    }

    /// Makes calls until the next one would have to wait for more than two seconds. Returns how many calls
    /// were made, and how long the next one would have to wait.
    async fn make_calls(&self) -> (usize, Duration) {
        let mut count = 0;
        loop {
            let deadline = Instant::now() + Duration::from_secs(2);
            match self.pace.take_permit(CLIENT, AT_ONCE, deadline).await {
                Ok(permit) => permit.use_now().await,
                Err(wait) => return (count, wait),
            }
            count += 1;
        }
    }

    /// Waits until this replica knows of two replicas.
    async fn wait_for_two_replicas(&self) {
        until(async || self.valkey.replicas() == 2).await;
    }

    /// How many calls of other replicas the Valkey knows.
    async fn calls_of_others(&self) -> usize {
        // With `no_call`, this only asks, and takes no turn. The limit affects only the wait in the reply.
        let (limit, no_call) = (1, None);
        let reply = self.valkey.take_turn(&key(), limit, MINUTE, no_call).await;
        reply.map_or(0, |reply| reply.ages_of_others.len())
    }
}

/// Waits until the condition is true.
async fn until(condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, wait).await.expect("the condition should be true soon");
}

/// Sends a signal to the server. `-STOP` makes it hang until `-CONT`.
fn signal(server: &RedisServer, name: &str) {
    let status = Command::new("kill").args([name, &server.pid().to_string()]).status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn two_replicas_keep_the_limit_together_and_use_all_of_it() {
    let Some(server) = RedisServer::start(&[]) else { return };
    // As in the service, the window is the period of the limit and a margin.
    let period = Duration::from_secs(1);
    let margin = Duration::from_millis(500);
    let window = period + margin;
    let replicas =
        [Replica::start(&server, 10, window).await, Replica::start(&server, 10, window).await];
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for replica in &replicas {
        for _ in 0..20 {
            let pace = replica.pace.clone();
            tasks.spawn(async move {
                let permit = pace.take_permit(CLIENT, AT_ONCE, Instant::now() + MINUTE).await;
                permit.unwrap().use_now().await;
                Instant::now()
            });
        }
    }
    let mut times = tasks.join_all().await;
    times.sort_unstable();
    for calls in times.windows(11) {
        let elapsed = calls[10] - calls[0];
        // A task may note the time of its call late. The margin allows for that.
        assert!(elapsed >= period, "eleven calls within {elapsed:?}");
    }
    // The last ten of the forty calls are made after three windows.
    let end = *times.last().unwrap() - start;
    assert!(end >= 3 * window && end < 3 * window + Duration::from_secs(2), "{end:?}");
}

#[tokio::test]
async fn another_replica_uses_a_turn_that_is_given_back() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let first = Replica::start(&server, 2, MINUTE).await;
    let second = Replica::start(&server, 2, MINUTE).await;
    let permits = [first.permit().await, first.permit().await];
    let waiting = second.permit();
    let give_back = async {
        until(async || second.pace.waiting() == 1).await;
        drop(permits);
    };
    let (permit, ()) = tokio::join!(waiting, give_back);
    permit.use_now().await;
    // Of two turns that were given back, one is left.
    assert_eq!(first.make_calls().await.0, 1);
    // The tasks that gave the turns back must end.
    first.background.close();
    timeout(SOON, first.background.wait()).await.unwrap();
}

#[tokio::test]
async fn a_request_that_ends_before_the_valkey_replies_gives_its_turn_back() {
    let Some(server) = RedisServer::start(&[]) else { return };
    // The command must not time out while the server is stopped.
    let command_timeout = SOON;
    let first = Replica::start_with(&server, 1, MINUTE, Duration::ZERO, command_timeout).await;
    signal(&server, "-STOP");
    let deadline = Instant::now() + MINUTE;
    let permit = first.pace.take_permit(CLIENT, SPREAD, deadline);
    assert!(timeout(Duration::from_millis(100), permit).await.is_err());
    // The task that gives the turn back waits for the server.
    assert_eq!(first.background.len(), 1);
    signal(&server, "-CONT");
    first.background.close();
    timeout(SOON, first.background.wait()).await.unwrap();
    let second = Replica::start(&server, 1, MINUTE).await;
    assert_eq!(second.make_calls().await.0, 1);
    assert!(second.valkey.works(), "the Valkey, not the replica's share, should allow the call");
}

#[tokio::test]
async fn a_call_that_other_replicas_delay_past_its_deadline_fails_at_once_with_its_wait() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let first = Replica::start(&server, 3, MINUTE).await;
    let second = Replica::start(&server, 3, MINUTE).await;
    assert_eq!(first.make_calls().await.0, 3);
    let (start, deadline) = (Instant::now(), Instant::now() + MINUTE / 2);
    let wait = second.pace.take_permit(CLIENT, SPREAD, deadline).await.unwrap_err();
    assert!(wait > MINUTE - SOON && wait <= MINUTE, "{wait:?}");
    assert!(start.elapsed() < Duration::from_secs(1));
    // The replica now knows when the calls were made, so it need not ask again.
    let wait = second.pace.reserve(CLIENT, 1, Instant::now(), deadline).unwrap_err();
    assert!(wait > MINUTE - SOON && wait <= MINUTE, "{wait:?}");
}

#[tokio::test]
async fn a_turn_counts_from_its_use() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let window = Duration::from_secs(1);
    let first = Replica::start(&server, 1, window).await;
    let second = Replica::start(&server, 1, window).await;
    let permit = first.permit().await;
    sleep(Duration::from_millis(500)).await;
    permit.use_now().await;
    let used = Instant::now();
    second.permit().await.use_now().await;
    // If the turn counted from its grant, this would take only 500 ms.
    assert!(used.elapsed() > Duration::from_millis(900), "{:?} after the use", used.elapsed());
}

#[tokio::test]
async fn without_a_valkey_a_replica_has_its_share_and_an_empty_valkey_learns_the_calls() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let first = Replica::start(&server, 10, MINUTE).await;
    let second = Replica::start(&server, 10, MINUTE).await;
    first.wait_for_two_replicas().await;
    first.permit().await.use_now().await;
    let port = server.port();
    drop(server);
    let (count, wait) = first.make_calls().await;
    assert_eq!(count, 4, "the share is five calls, and one was made before");
    assert!(wait > MINUTE - SOON && wait <= MINUTE, "{wait:?}");
    let _server = RedisServer::start_on(port, &[]).expect("the port should still be free");
    until(async || second.valkey.works() && second.calls_of_others().await == 5).await;
    // The limit is ten again, for both replicas together. The first one has made five calls.
    assert_eq!(second.make_calls().await.0, 5);
    assert_eq!(first.make_calls().await.0, 0);
}

#[tokio::test]
async fn until_its_limit_has_settled_a_replica_takes_turns_only_up_to_its_share() {
    let Some(server) = RedisServer::start(&[]) else { return };
    // The limit of the first and of the third replica does not settle during the test.
    let settle_time = Duration::from_secs(3600);
    let first = Replica::start_with(&server, 10, MINUTE, settle_time, DEFAULT_TIMEOUT).await;
    let second = Replica::start(&server, 10, MINUTE).await;
    first.wait_for_two_replicas().await;
    assert_eq!(first.make_calls().await.0, 5, "the share of each of two replicas is five calls");
    assert_eq!(second.make_calls().await.0, 5, "the first replica has made five of the ten calls");
    let third = Replica::start_with(&server, 10, MINUTE, settle_time, DEFAULT_TIMEOUT).await;
    assert_eq!(
        third.make_calls().await.0,
        0,
        "the third replica has a share, but the Valkey has no turn left"
    );
}

#[tokio::test]
async fn a_waiting_call_gets_its_permit_when_the_limit_has_settled() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let settle_time = Duration::from_secs(2);
    let first = Replica::start_with(&server, 2, MINUTE, settle_time, DEFAULT_TIMEOUT).await;
    let second = Replica::start(&server, 2, MINUTE).await;
    first.wait_for_two_replicas().await;
    // The first permit is the replica's share. The second one is granted only after the settle time.
    let _permits = (first.permit().await, first.permit().await);
    assert_eq!(second.make_calls().await.0, 0, "the first replica has both turns");
}

#[tokio::test]
async fn a_valkey_that_hangs_delays_only_one_call_by_the_timeout_of_a_command() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let command_timeout = Duration::from_secs(1);
    let replica = Replica::start_with(&server, 10, MINUTE, Duration::ZERO, command_timeout).await;
    signal(&server, "-STOP");
    let start = Instant::now();
    let (count, _) = replica.make_calls().await;
    assert_eq!(count, 10, "the share of the only replica is the whole limit");
    let elapsed = start.elapsed();
    assert!((command_timeout..2 * command_timeout).contains(&elapsed), "{elapsed:?}");
}

#[tokio::test]
async fn the_task_that_records_calls_again_does_not_keep_the_limiter_alive() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let Replica { pace, valkey, .. } = Replica::start(&server, 10, MINUTE).await;
    let inner = Arc::downgrade(&pace.0);
    drop(pace);
    until(async || inner.strong_count() == 0).await;
    assert!(valkey.works(), "the Valkey should outlive the limiter");
}

#[tokio::test]
async fn a_long_timeout_of_the_valkey_lengthens_the_settle_time() {
    let Some(server) = RedisServer::start(&[]) else { return };
    // The settle time is one second and seven timeouts, but at least three seconds.
    for (timeout_ms, settle_time_ms) in [(250, 3000), (1000, 8000)] {
        let url = ValkeyUrl::parse(&server.url()).unwrap();
        let timeout = Duration::from_millis(timeout_ms);
        let settings = Settings { url, timeout, replicas: 1 };
        let valkey = Valkey::start(&settings, TaskTracker::new(), Metrics::new()).await.unwrap();
        let limit = SharedLimit::new(valkey, key());
        assert_eq!(limit.settle_time, Duration::from_millis(settle_time_ms));
    }
}
