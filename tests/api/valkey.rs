//! Replicas: real processes with one Valkey and, in most tests, one bucket. They call NVIDIA once for a
//! picture that all of them receive, and they stop without losing anything.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::support::{
    Answer, Bulk, FakeNvidia, PATIENCE, ROCKET, Replica, Reply, Setting, ValkeyServer, count_lines,
    data_url, embedding, nvidia_api::INFER, picture_number, s3::MotoServer, tiny, wait_for,
};

/// Long enough for the next report of a replica to the Valkey: it reports every second. Much shorter than
/// ten seconds, after which a replica without a report counts as stopped.
const SOON: Duration = Duration::from_secs(5);

/// How long the fake NVIDIA takes for a call. All requests for the same picture arrive in this time.
const CALL_TIME: Duration = Duration::from_millis(500);

/// A fake NVIDIA that takes [`CALL_TIME`] for each call.
async fn slow_nvidia() -> FakeNvidia {
    FakeNvidia::healthy_except(|request| {
        (request.line() == INFER).then(|| embedding().after(CALL_TIME))
    })
    .await
}

/// Three replicas, and what they share.
struct Setup {
    moto: MotoServer,
    valkey: ValkeyServer,
    nvidia: FakeNvidia,
    replicas: [Replica; 3],
}

impl Setup {
    /// Starts all of them. Returns `None` if moto or `redis-server` is not installed.
    async fn new(more_settings: &[Setting]) -> Option<Self> {
        let (moto, valkey) = (MotoServer::start().await?, ValkeyServer::start().await?);
        let nvidia = slow_nvidia().await;
        let settings = [moto.settings(), valkey.settings(), more_settings.to_vec()].concat();
        let replicas = Replica::start_three(&nvidia, [&settings; 3]).await;
        Some(Self { moto, valkey, nvidia, replicas })
    }
}

/// Asserts that all answers are successes with the same vector.
fn assert_same_vectors(answers: &[Answer]) {
    let vectors: Vec<_> = answers.iter().map(Answer::vector).collect();
    assert!(vectors.iter().all(|vector| *vector == vectors[0]), "all vectors should be the same");
}

/// Asserts that there are leases of calls, and that none of them is held: each is marked as done.
async fn assert_all_leases_done(valkey: &ValkeyServer) {
    // No lease expires while a script runs. With two commands, a lease might expire between them, and
    // its state would be unknown.
    const STATES: &str = "local states = {}
        for _, lease in ipairs(redis.call('KEYS', ARGV[1])) do
          table.insert(states, redis.call('GET', lease))
        end
        return states";
    let states: Vec<String> = valkey.query(&["EVAL", STATES, "0", "{imagesvc}:lease:*"]).await;
    assert!(!states.is_empty(), "the calls should have had leases");
    let are_done = states.iter().all(|state| state == "done");
    assert!(are_done, "each lease must be released as done: {states:?}");
}

/// The number of turns in the Valkey. With a limit on calls per minute, a call takes a turn before it is
/// made. The turn stays in the Valkey for a minute, unless the replica gives it back.
async fn turns(valkey: &ValkeyServer) -> usize {
    let [key] = &valkey.keys("pace:").await[..] else { panic!("there should be one set of turns") };
    valkey.query(&["ZCARD", key]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_come_to_several_replicas_at_once_cause_one_call_each() {
    let Some(Setup { moto, valkey, nvidia, replicas }) = Setup::new(&[]).await else { return };

    // One picture, ten times to each replica.
    let uploads = (0..30).map(|n| replicas[n % 3].upload(ROCKET));
    let answers = join_all(uploads).await;
    assert_same_vectors(&answers);
    assert_eq!(nvidia.inference_calls(), 1, "one picture must cause one call");
    assert_eq!(moto.keys_in("downloads").await.len(), 30, "each request saves its picture");

    // Fifty pictures to each replica, five of them at the same time. A look-up in the bucket times
    // out after 1 s; with more pictures at once, moto may be slower.
    for first in (0..50).step_by(5) {
        let uploads =
            (0..15).map(async |n| replicas[n % 3].upload_unsaved(&tiny(first + n / 3)).await);
        // The three answers for the same picture are adjacent.
        for same in join_all(uploads).await.chunks(3) {
            assert_same_vectors(same);
        }
    }
    assert_eq!(nvidia.inference_calls(), 1 + 50);
    let mut numbers: Vec<_> = nvidia.received()[1..].iter().map(picture_number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..50).collect::<Vec<_>>());

    // The same batch of ten pictures to two replicas.
    let batch = json!({
        "model": "nvidia/nv-dinov2",
        "input": (100..110).map(|n| data_url(&tiny(n))).collect::<Vec<_>>(),
    });
    let batches = join_all(replicas[..2].iter().map(|replica| replica.embed_batch(&batch))).await;
    for answer in &batches {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["data"].as_array().unwrap().len(), 10);
    }
    assert_eq!(nvidia.inference_calls(), 1 + 50 + 10);

    // Two bulk runs with the same ten pictures, each through its own replica.
    let runs = replicas[..2].iter().map(|replica| {
        let service = replica.process.url("");
        spawn_blocking(move || {
            let bulk = Bulk::without_nvidia();
            for n in 200..210 {
                bulk.write(&format!("photos/{n}.png"), tiny(n));
            }
            bulk.run(&format!("photos --out vectors.jsonl --to {service}")).expect_exit_code(0);
            assert_eq!(bulk.rows("vectors.jsonl").len(), 10);
        })
    });
    for run in join_all(runs).await {
        run.unwrap();
    }
    assert_eq!(nvidia.inference_calls(), 1 + 50 + 10 + 10);

    assert_all_leases_done(&valkey).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_sigterm_under_load_nothing_is_lost_and_no_unused_turn_or_held_lease_is_left() {
    let limit = [("NVIDIA_REQUESTS_PER_MINUTE", "1000".to_owned())];
    let Some(setup) = Setup::new(&limit).await else { return };
    let Setup { valkey, nvidia, replicas, .. } = setup;
    let [stopping, second, third] = replicas;

    // Eight clients of the stopping replica upload one picture after the other, until they cannot
    // connect.
    let (next, answered) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let client = async || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Ok(answer) = stopping.try_upload(&tiny(n)).await else { return };
            answer.assert_success();
            answered.lock().unwrap().push(n);
        }
    };
    let clients = join_all((0..8).map(|_| client()));
    let terminate = async {
        let is_enough = async || answered.lock().unwrap().len() >= 16;
        wait_for("the number of answers", PATIENCE, is_enough).await;
        stopping.process.terminate();
    };
    tokio::join!(clients, terminate);
    let answered = answered.into_inner().unwrap();
    let (status, log) = stopping.wait().await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(count_lines(&log, "stopped: every request was answered"), 1, "{log:#?}");
    assert!(!log.iter().any(|line| line.contains(ValkeyServer::PASSWORD)), "{log:#?}");

    let calls_before = nvidia.inference_calls();
    let uploads = answered.into_iter().map(async |n| second.upload_unsaved(&tiny(n)).await);
    for answer in join_all(uploads).await {
        answer.assert_success();
    }
    assert_eq!(
        nvidia.inference_calls(),
        calls_before,
        "the vector of every answered picture must be in the bucket"
    );
    assert_all_leases_done(&valkey).await;
    let turns = turns(&valkey).await;
    assert_eq!(
        turns, calls_before,
        "each call should have its turn, and unused turns must be given back"
    );
    // The stopped replica has told the Valkey that it stops, so its last report does not have to expire
    // first.
    for replica in [&second, &third] {
        replica.wait_for_valkey(json!({ "usable": true, "replicas": 2 }), SOON).await;
        let metrics = replica.get("/metrics").await.text();
        assert!(!metrics.contains(ValkeyServer::PASSWORD));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stops_gives_back_the_turns_of_the_calls_that_it_does_not_make() {
    let Some(valkey) = ValkeyServer::start().await else { return };
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let more = [
        ("NVIDIA_REQUESTS_PER_MINUTE", "1000".to_owned()),
        ("NVIDIA_MAX_CONCURRENCY", "1".to_owned()),
        ("IMAGESVC_REQUEST_TIMEOUT", "5s".to_owned()),
    ];
    let replica = Replica::start(&nvidia, &[valkey.settings(), more.to_vec()].concat()).await;
    // A call takes a turn first, and then waits for a permit. The first call keeps the only permit until its
    // request fails after 5 s. Then too little time is left for the other calls.
    let first = replica.start_unsaved_upload(&tiny(0));
    nvidia.wait_for(1).await;
    let others = (1..4).map(|n| replica.start_unsaved_upload(&tiny(n)));
    let uploads: Vec<_> = [first].into_iter().chain(others).collect();
    wait_for("the number of turns", PATIENCE, async || turns(&valkey).await == 4).await;
    let (status, _) = replica.stop().await;
    assert_eq!(status.code(), Some(0));
    for upload in uploads {
        assert_eq!(upload.await.unwrap().unwrap().status, 504);
    }
    assert_eq!(nvidia.received().len(), 1);
    assert_eq!(turns(&valkey).await, 1, "only the turn of the call that was made should be left");
}
