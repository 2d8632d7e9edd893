//! `imagesvc embed`: how it treats the hosts of pictures.

use std::time::{Duration, Instant};

use crate::support::{Bulk, FakeNvidia, FakeServer, Reply, tiny};

/// Sends the tiny picture whose number is the path.
fn picture(target: &str) -> Reply {
    Reply::new(200, &[], tiny(target.trim_matches('/').parse().unwrap()))
}

/// A list of URLs of a server, with the pictures `numbers`.
fn urls(server: &FakeServer, numbers: std::ops::Range<usize>) -> String {
    numbers.map(|n| server.url(&format!("/{n}")) + "\n").collect()
}

fn bulk(nvidia: &FakeNvidia, servers: [&FakeServer; 2]) -> Bulk {
    let allowed = servers.map(|server| server.address.to_string()).join(",");
    Bulk::new(nvidia).setting("IMAGESVC_FETCH_ALLOW", allowed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_host_gets_two_requests_at_once_and_does_not_delay_another_host() {
    let nvidia = FakeNvidia::healthy().await;
    let slow =
        FakeServer::start(|request, _| picture(&request.target).after(Duration::from_millis(300)))
            .await;
    let fast = FakeServer::start(|request, _| picture(&request.target)).await;
    let bulk = bulk(&nvidia, [&slow, &fast]);
    // All URLs of the slow host come first.
    bulk.write("list.txt", urls(&slow, 0..12) + &urls(&fast, 100..130));
    let run = bulk.start("list.txt --out vectors.jsonl");
    fast.wait_for(30).await;
    assert!(slow.count() < 12, "the fast host must not wait for the slow one");
    crate::support::Finished::from(run).expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 42);
    assert_eq!(slow.most_delayed(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_left_alone_for_the_time_in_its_retry_after_and_others_go_on() {
    let nvidia = FakeNvidia::healthy().await;
    let times = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let script_times = std::sync::Arc::clone(&times);
    let busy = FakeServer::start(move |request, nth| {
        script_times.lock().unwrap().push(Instant::now());
        match nth {
            0 | 1 => Reply::new(429, &[("retry-after", "2")], ""),
            _ => picture(&request.target),
        }
    })
    .await;
    let other = FakeServer::start(|request, _| picture(&request.target)).await;
    let bulk = bulk(&nvidia, [&busy, &other]);
    bulk.write("list.txt", urls(&busy, 0..6) + &urls(&other, 100..120));
    let run = bulk.start("list.txt --out vectors.jsonl");
    other.wait_for(20).await;
    assert!(busy.count() <= 2, "the other host must not wait for the busy one");
    crate::support::Finished::from(run).expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 26);
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 8);
    assert!(times[2] - times[1] >= Duration::from_secs(2), "{:?}", times[2] - times[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_wants_a_long_pause_fails_its_pictures_and_the_run_ends() {
    let nvidia = FakeNvidia::healthy().await;
    let closed = FakeServer::start(|_, _| Reply::new(503, &[("retry-after", "86400")], "")).await;
    let other = FakeServer::start(|request, _| picture(&request.target)).await;
    let bulk = bulk(&nvidia, [&closed, &other]);
    bulk.write("list.txt", urls(&closed, 0..50) + &urls(&other, 100..105));
    bulk.run("list.txt --out vectors.jsonl --per-host 1").expect_exit_code(1);
    assert_eq!(closed.count(), 1);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 5);
    let failures = bulk.rows("vectors.failed.jsonl");
    assert_eq!(failures.len(), 50);
    assert!(failures.iter().all(|failure| failure["error"]["retryable"] == true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_may_succeed_soon_is_tried_again_and_another_one_is_not() {
    let nvidia = FakeNvidia::healthy().await;
    let origin = FakeServer::start(|request, nth| match (request.target.as_str(), nth) {
        // All pictures are requested once before the first one is requested again.
        ("/0", 0..6) => Reply::status(500),
        ("/1", 0..6) => picture("/1").broken_off(),
        ("/2", 0..6) => Reply::new(200, &[], "").broken_off(),
        ("/3", _) => Reply::status(404),
        ("/4", _) => Reply::status(403),
        (target, _) => picture(target),
    })
    .await;
    let bulk = bulk(&nvidia, [&origin, &origin]);
    bulk.write("list.txt", urls(&origin, 0..6));
    let run = bulk.run("list.txt --out vectors.jsonl --per-host 6").expect_exit_code(1);
    assert!(run.stderr.contains("4 embedded (0 cached), 2 failed"), "{}", run.stderr);
    assert_eq!(origin.count(), 6 + 3, "three pictures are fetched twice");
    let failures = bulk.rows("vectors.failed.jsonl");
    assert!(failures.iter().all(|row| row["error"]["retryable"] == false), "{failures:?}");
    let example = failures[0]["error"]["detail"].as_str().unwrap();
    assert!(run.stderr.contains(example), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_picture_is_fetched_once_and_fails() {
    let nvidia = FakeNvidia::healthy().await;
    let origin = FakeServer::start(|request, _| match request.target.as_str() {
        "/1" => Reply::status(404),
        target => picture(target),
    })
    .await;
    let bulk = bulk(&nvidia, [&origin, &origin]);
    bulk.write("list.txt", urls(&origin, 0..3));
    let run = bulk.run("list.txt --out vectors.jsonl").expect_exit_code(1);
    assert_eq!(origin.count(), 3);
    assert!(run.stderr.contains("1 x download_failed, for example http://"), "{}", run.stderr);
    assert!(run.stderr.contains("404"), "{}", run.stderr);
}
