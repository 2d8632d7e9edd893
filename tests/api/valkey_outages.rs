//! Outages of the Valkey: no request fails or waits for longer than one timeout, a picture costs at most
//! one call for each replica, and the replicas soon share their calls again.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    FakeNvidia, Link, PATIENCE, Replica, Setting, ValkeyServer, count_lines,
    s3::{DiscardingBucket, MotoServer},
    tiny,
};

/// All replicas must use the Valkey again within this time after the end of the outage.
const MAX_RECOVERY: Duration = Duration::from_secs(6);

/// The service's timeout for a reply of the Valkey. It is so long that the tests can tell one timeout from
/// two, even on a busy machine.
const TIMEOUT: Duration = ValkeyServer::TIMEOUT;

/// What is wrong with the Valkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// The process is suspended.
    Paused,
    /// The process is killed, and started again at the end of the outage, without its data.
    Killed,
    /// The process is killed, and started again at once, without its data.
    Restarted,
    /// The server forgets all scripts.
    ScriptsFlushed,
    /// The server forgets all data.
    Emptied,
    /// The server has no memory for writes.
    OutOfMemory,
    /// Each reply arrives after the timeout.
    Slow,
    /// The server's machine is gone: connections stay open, and carry nothing.
    Silent,
}

impl Outage {
    async fn begin(self, valkey: &mut ValkeyServer) {
        match self {
            Self::Paused => valkey.pause(),
            Self::Killed => valkey.kill(),
            Self::Restarted => {
                valkey.kill();
                valkey.start_again();
            }
            Self::ScriptsFlushed => valkey.query(&["SCRIPT", "FLUSH"]).await,
            Self::Emptied => valkey.query(&["FLUSHALL"]).await,
            Self::OutOfMemory => valkey.query(&["CONFIG", "SET", "maxmemory", "1"]).await,
            Self::Slow => valkey.set_link(Link::Slow(TIMEOUT * 6 / 5)),
            Self::Silent => valkey.set_link(Link::Silent),
        }
    }

    async fn end(self, valkey: &mut ValkeyServer) {
        match self {
            Self::Paused => valkey.resume(),
            Self::Killed => valkey.start_again(),
            Self::Restarted | Self::ScriptsFlushed | Self::Emptied => {}
            Self::OutOfMemory => valkey.query(&["CONFIG", "SET", "maxmemory", "0"]).await,
            Self::Slow | Self::Silent => valkey.set_link(Link::Fast),
        }
    }

    /// Whether the service notices that the Valkey does not work.
    fn is_noticed(self) -> bool {
        !matches!(self, Self::ScriptsFlushed | Self::Emptied)
    }

    /// Whether the Valkey stays unusable until [`Self::end`].
    fn lasts(self) -> bool {
        !matches!(self, Self::Restarted | Self::ScriptsFlushed | Self::Emptied)
    }
}

/// Sends a picture to all replicas at once. Returns the time of the slowest answer.
async fn send_to_all(replicas: &[Replica], picture: usize) -> Duration {
    let started = Instant::now();
    let uploads = replicas.iter().map(async |replica| replica.upload_unsaved(&tiny(picture)).await);
    for answer in join_all(uploads).await {
        answer.assert_success();
    }
    started.elapsed()
}

/// Lets an outage happen to three replicas with this bucket, and checks their answers, calls and logs.
async fn suffer(outage: Outage, bucket: &[Setting]) {
    let Some(mut valkey) = ValkeyServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    // With limits, each request and each call is also counted in the Valkey.
    let limits = [
        ("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1000".to_owned()),
        ("NVIDIA_REQUESTS_PER_MINUTE", "1000".to_owned()),
    ];
    let settings = [bucket, &valkey.settings(), &limits].concat();
    let replicas = Replica::start_three(&nvidia, [&settings; 3]).await;
    send_to_all(&replicas, 0).await;
    assert_eq!(nvidia.inference_calls(), 1, "{outage:?}");

    outage.begin(&mut valkey).await;
    let slowest = send_to_all(&replicas, 1).await;
    println!("{outage:?}: the slowest request took {slowest:?}");
    // A request that waits for only one timeout also spends some time on its other work.
    assert!(slowest < 2 * TIMEOUT, "{outage:?}: a request took {slowest:?}");
    let calls = nvidia.inference_calls() - 1; // the first picture was paid for before
    assert!((1..=3).contains(&calls), "{outage:?}: {calls} calls for one picture");
    if outage.lasts() {
        for replica in &replicas {
            // A replica still assumes the number of replicas that the Valkey reported last.
            let unusable = json!({ "usable": false, "replicas": 3 });
            replica.wait_for_valkey(unusable, PATIENCE).await;
        }
        // Once a replica has noticed the outage, no request waits for the Valkey.
        let slowest = send_to_all(&replicas, 2).await;
        assert!(slowest < TIMEOUT, "{outage:?}: a later request took {slowest:?}");
    }

    outage.end(&mut valkey).await;
    let ended = Instant::now();
    for replica in &replicas {
        replica.wait_for_valkey(json!({ "usable": true, "replicas": 3 }), PATIENCE).await;
    }
    let recovery = ended.elapsed();
    println!("{outage:?}: all replicas used the Valkey again after {recovery:?}");
    assert!(recovery < MAX_RECOVERY, "{outage:?}: the recovery took {recovery:?}");
    let before = nvidia.inference_calls();
    send_to_all(&replicas, 3).await;
    assert_eq!(
        nvidia.inference_calls() - before,
        1,
        "{outage:?}: a new picture must be paid for once"
    );

    for replica in replicas {
        let (status, log) = replica.stop().await;
        assert_eq!(status.code(), Some(0), "{outage:?}");
        let expected_lines = usize::from(outage.is_noticed());
        for text in ["Valkey cannot be used", "Valkey works again"] {
            assert_eq!(count_lines(&log, text), expected_lines, "{outage:?}: {log:#?}");
        }
        assert!(!log.iter().any(|line| line.contains(ValkeyServer::PASSWORD)), "{outage:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_outage_of_the_valkey_makes_a_request_fail_and_calls_are_shared_again_soon_after() {
    let bucket = DiscardingBucket::start();
    let settings = bucket.settings();
    tokio::join!(
        suffer(Outage::Paused, &settings),
        suffer(Outage::Killed, &settings),
        suffer(Outage::Restarted, &settings),
        suffer(Outage::ScriptsFlushed, &settings),
        suffer(Outage::Emptied, &settings),
        suffer(Outage::OutOfMemory, &settings),
        suffer(Outage::Slow, &settings),
        suffer(Outage::Silent, &settings),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_stops_without_an_error_while_the_valkey_does_not_answer() {
    let Some(valkey) = ValkeyServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    let replica = Replica::start(&nvidia, &valkey.settings()).await;
    valkey.set_link(Link::Silent);
    replica.wait_for_valkey(json!({ "usable": false, "replicas": 1 }), PATIENCE).await;
    let (status, log) = replica.stop().await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(count_lines(&log, "ERROR"), 0, "{log:#?}");
}

/// Repeats one outage with a stricter bucket: the first test's bucket accepts every signature.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_bucket_that_checks_signatures_a_killed_valkey_makes_no_request_fail() {
    let Some(moto) = MotoServer::start().await else { return };
    suffer(Outage::Killed, &moto.settings()).await;
}
