//! `imagesvc embed`: how it treats the hosts of pictures.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::support::{Bulk, FakeNvidia, FakeServer, Finished, Reply, tiny};

/// The reply with the tiny picture whose number is the path.
fn picture_reply(target: &str) -> Reply {
    Reply::new(200, &[], tiny(target.trim_matches('/').parse().unwrap()))
}

/// A list of a server's URLs, one for each of the tiny pictures with these numbers.
fn urls(server: &FakeServer, numbers: std::ops::Range<usize>) -> String {
    numbers.map(|n| server.url(&format!("/{n}")) + "\n").collect()
}

/// Prepares runs that may fetch from these servers.
fn bulk_with_hosts<const N: usize>(nvidia: &FakeNvidia, servers: [&FakeServer; N]) -> Bulk {
    let allowed = servers.map(|server| server.address.to_string()).join(",");
    Bulk::new(nvidia).setting("IMAGESVC_FETCH_ALLOW", allowed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_host_gets_two_requests_at_once_and_does_not_delay_another_host() {
    let nvidia = FakeNvidia::healthy().await;
    let slow = FakeServer::start(|request, _| {
        picture_reply(&request.target).after(Duration::from_millis(300))
    })
    .await;
    let fast = FakeServer::start(|request, _| picture_reply(&request.target)).await;
    let bulk = bulk_with_hosts(&nvidia, [&slow, &fast]);
    // All URLs of the slow host come first. Two at a time, its twelve pictures take 6 × 300 ms.
    bulk.write("list.txt", urls(&slow, 0..12) + &urls(&fast, 100..130));
    let run = bulk.start("list.txt --out vectors.jsonl");
    fast.wait_for(30).await;
    assert!(slow.count() < 12, "the fast host must not wait for the slow one");
    Finished::from(run).expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 12 + 30);
    // Two is the default of `--per-host`.
    assert_eq!(
        slow.max_delayed_at_once(),
        2,
        "two requests at once should be sent to the slow host"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_picture_is_fetched_from_a_host_during_its_retry_after_and_other_hosts_do_not_wait() {
    let nvidia = FakeNvidia::healthy().await;
    let times = Arc::new(Mutex::new(Vec::new()));
    let times_to_record = Arc::clone(&times);
    let busy = FakeServer::start(move |request, nth| {
        times_to_record.lock().unwrap().push(Instant::now());
        match nth {
            // By default, a run sends two requests to a host at once. Both are refused.
            0 | 1 => Reply::new(429, &[("retry-after", "2")], ""),
            _ => picture_reply(&request.target),
        }
    })
    .await;
    let other = FakeServer::start(|request, _| picture_reply(&request.target)).await;
    let bulk = bulk_with_hosts(&nvidia, [&busy, &other]);
    bulk.write("list.txt", urls(&busy, 0..6) + &urls(&other, 100..120));
    let run = bulk.start("list.txt --out vectors.jsonl");
    other.wait_for(20).await;
    assert!(busy.count() <= 2, "the other host must not wait for the busy one");
    Finished::from(run).expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 6 + 20);
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 2 + 6, "only the two refused pictures should be requested again");
    let (second_refusal, next_request) = (times[1], times[2]);
    let pause = next_request - second_refusal;
    assert!(pause >= Duration::from_secs(2), "the pause should be the Retry-After, not {pause:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn if_a_host_asks_for_a_long_pause_all_its_pictures_fail_after_one_request() {
    let nvidia = FakeNvidia::healthy().await;
    // The host asks for a day. A run waits for at most five minutes.
    let closed = FakeServer::start(|_, _| Reply::new(503, &[("retry-after", "86400")], "")).await;
    let other = FakeServer::start(|request, _| picture_reply(&request.target)).await;
    let bulk = bulk_with_hosts(&nvidia, [&closed, &other]);
    bulk.write("list.txt", urls(&closed, 0..50) + &urls(&other, 100..105));
    bulk.run("list.txt --out vectors.jsonl --per-host 1").expect_exit_code(1);
    assert_eq!(closed.count(), 1);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 5);
    let failures = bulk.rows("vectors.failed.jsonl");
    assert_eq!(failures.len(), 50);
    assert!(failures.iter().all(|failure| failure["error"]["retryable"] == true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_is_tried_again_only_if_it_may_succeed_soon() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|request, nth| match (request.target.as_str(), nth) {
        // `nth` counts the requests for all pictures. The first six are for the six pictures: with
        // `--per-host 6`, a run sends them all before it requests a picture again. The first replies for
        // the pictures 0, 1 and 2 are an error, half of the picture, and half of a head.
        ("/0", 0..6) => Reply::status(500),
        ("/1", 0..6) => picture_reply("/1").broken_off(),
        ("/2", 0..6) => Reply::new(200, &[], "").broken_off(),
        // Two pictures fail with an error that will not end soon.
        ("/3", _) => Reply::status(404),
        ("/4", _) => Reply::status(403),
        (target, _) => picture_reply(target),
    })
    .await;
    let bulk = bulk_with_hosts(&nvidia, [&picture_server]);
    bulk.write("list.txt", urls(&picture_server, 0..6));
    let run = bulk.run("list.txt --out vectors.jsonl --per-host 6").expect_exit_code(1);
    assert!(run.stderr.contains("4 embedded (0 cached), 2 failed"), "{}", run.stderr);
    assert_eq!(picture_server.count(), 6 + 3, "three pictures should be requested twice");
    let failures = bulk.rows("vectors.failed.jsonl");
    assert!(failures.iter().all(|row| row["error"]["retryable"] == false), "{failures:?}");
    // The run prints the first failure of each cause as an example.
    let first_detail = failures[0]["error"]["detail"].as_str().unwrap();
    assert!(run.stderr.contains(first_detail), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_picture_is_fetched_once_and_fails() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|request, _| match request.target.as_str() {
        "/1" => Reply::status(404),
        target => picture_reply(target),
    })
    .await;
    let bulk = bulk_with_hosts(&nvidia, [&picture_server]);
    bulk.write("list.txt", urls(&picture_server, 0..3));
    let run = bulk.run("list.txt --out vectors.jsonl").expect_exit_code(1);
    assert_eq!(picture_server.count(), 3, "each picture should be requested once");
    assert!(run.stderr.contains("1 x download_failed, for example http://"), "{}", run.stderr);
    assert!(run.stderr.contains("404"), "{}", run.stderr);
}
