//! How `imagesvc embed` uses a service: a running one (`--to`), or one that it starts itself.

use std::time::{Duration, Instant};

use crate::support::{
    Bulk, FakeNvidia, FakeServer, Finished, Received, Reply, TestApp, embedding, noise_png,
};

const MODELS: &str = "GET /v1/models";

/// The reply of a fake service that has embedded a picture. The model is `m`, and the vector has
/// one number.
fn embedded_reply() -> Reply {
    Reply::json(
        200,
        r#"{"sha256":"ab","model":"m","prepared":"original","width":4,"height":4,"vector":[0.5]}"#,
    )
}

/// A fake service with the model `m`, whose replies to pictures come from a script. The script gets
/// the number of earlier requests. The first request asks for the model, so the first picture has
/// the number 1.
async fn fake_service(
    script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
) -> FakeServer {
    FakeServer::start(move |request, nth| match request.line().as_str() {
        MODELS => Reply::json(200, r#"{"data":[{"id":"m"}]}"#),
        _ => script(request, nth),
    })
    .await
}

/// A fake service's error.
fn problem(status: u16, code: &str, headers: &[(&str, &str)]) -> Reply {
    Reply::new(status, headers, format!(r#"{{"code":"{code}","detail":"Sentence."}}"#))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_service_is_used_with_one_of_its_keys() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_API_KEYS", "first,second").start().await;
    // A `/` at the end of the URL makes no difference.
    let arguments = |options: &str| format!("photos {options} --to {}", app.url("/"));
    // No key and a wrong key are refused.
    for wrong_key in ["", "third"] {
        let bulk = Bulk::without_nvidia().setting("IMAGESVC_API_KEY", wrong_key);
        bulk.write_pictures(1);
        let run = bulk.run(&arguments("--out vectors.jsonl")).expect_exit_code(2);
        assert!(run.stderr.contains("set IMAGESVC_API_KEY"), "{}", run.stderr);
    }
    let bulk = Bulk::without_nvidia().setting("IMAGESVC_API_KEY", "second");
    bulk.write_pictures(20);
    // The command streams a file of more than 128 KiB in chunks. This file has 270 KB.
    bulk.write("photos/large.png", noise_png(300, 300));
    let run = bulk.run(&arguments("--out vectors.jsonl")).expect_exit_code(0);
    assert!(run.stderr.contains("21 embedded"), "{}", run.stderr);
    // Without --save the service saves nothing. The command itself needs no cache.
    assert!(app.saved().is_empty() && !bulk.path(".cache").exists());
    bulk.run(&arguments("--out again.jsonl --save")).expect_exit_code(0);
    assert_eq!(app.saved().len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_that_the_command_starts_ignores_keys_limits_and_host() {
    let nvidia = FakeNvidia::healthy().await;
    // This machine does not have the address 192.0.2.1, so no service could listen on it.
    let bulk = Bulk::new(&nvidia)
        .setting("IMAGESVC_API_KEYS", "first")
        .setting("IMAGESVC_RATE_LIMIT_PER_MINUTE", 1)
        .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", 1)
        .setting("IMAGESVC_HOST", "192.0.2.1");
    bulk.write_pictures(10);
    let run = bulk.run("photos --out vectors.jsonl").expect_exit_code(0);
    assert!(run.stderr.contains("10 embedded"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_service_gets_eight_requests_at_once_by_default() {
    let nvidia =
        FakeNvidia::healthy_except(|_| Some(embedding().after(Duration::from_millis(100)))).await;
    let app = TestApp::start(&nvidia).await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(30);
    bulk.run(&format!("photos --out vectors.jsonl --to {}", app.url(""))).expect_exit_code(0);
    assert_eq!(nvidia.max_delayed_at_once(), 8, "eight calls should run at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_picture_is_sent_to_a_busy_service_during_its_retry_after() {
    let service = fake_service(|_, nth| match nth {
        1..=3 => problem(503, "overloaded", &[("retry-after", "1")]),
        4 => problem(429, "rate_limited", &[("retry-after", "1")]),
        _ => embedded_reply(),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(4);
    let started = Instant::now();
    bulk.run(&format!("photos --out vectors.jsonl --concurrency 2 --to {}", service.url("")))
        .expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 4);
    // The service refuses two pictures together. That halves the number of requests at once, to one. So
    // the service refuses one picture after the first pause, and another after the second pause. The run
    // makes three pauses of 1 s.
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_secs(3), "the run should take at least 3 s, not {elapsed:?}");
    assert_eq!(
        service.count(),
        1 + 4 + 4,
        "the service should get a request for the model, refuse 4 pictures, and embed 4"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_busy_gets_half_as_many_requests_at_once() {
    let service = fake_service(|_, nth| match nth {
        // The eight requests that a run with `--to` sends at once.
        1..=8 => problem(503, "overloaded", &[("retry-after", "1")]),
        _ => embedded_reply().after(Duration::from_millis(100)),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(16);
    bulk.run(&format!("photos --out vectors.jsonl --to {}", service.url(""))).expect_exit_code(0);
    assert_eq!(
        service.count(),
        1 + 8 + 16,
        "the service should get a request for the model, refuse 8 pictures, and embed 16"
    );
    // Half of the eight requests are four. With each success, that number grows a little: after 16
    // successes, six requests may run at once.
    let most = service.max_delayed_at_once();
    assert!((4..=6).contains(&most), "4 to 6 requests should run at once, not {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_sends_as_many_pictures_at_once_as_it_is_told() {
    let nvidia =
        FakeNvidia::healthy_except(|_| Some(embedding().after(Duration::from_millis(100)))).await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(12);
    bulk.run("photos --out vectors.jsonl --concurrency 3").expect_exit_code(0);
    assert_eq!(nvidia.max_delayed_at_once(), 3, "three calls should run at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_sent_again_after_a_broken_answer_and_a_502_but_not_after_a_415() {
    // With one request at once, the first picture gets the first three replies.
    let service = fake_service(|_, nth| match nth {
        1 => embedded_reply().broken_off(),
        2 => problem(502, "embedding_unavailable", &[]),
        3 => embedded_reply(),
        _ => problem(415, "unsupported_image", &[]),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(2);
    let run =
        bulk.run(&format!("photos --out vectors.jsonl --concurrency 1 --to {}", service.url("")));
    let run = run.expect_exit_code(1);
    assert!(run.stderr.contains("1 embedded (0 cached), 1 failed"), "{}", run.stderr);
    assert_eq!(
        service.count(),
        1 + 3 + 1,
        "a request for the model, 3 for the first picture and 1 for the second should arrive"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_concerns_every_picture_stops_the_run() {
    let service = fake_service(|_, _| problem(502, "embedding_unauthorized", &[])).await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(50);
    let arguments = format!("photos --out vectors.jsonl --concurrency 2 --to {}", service.url(""));
    let run = bulk.run(&arguments).expect_exit_code(1);
    assert!(run.stderr.contains("stopped: Sentence."), "{}", run.stderr);
    assert!(
        service.count() <= 1 + 2,
        "after the request for the model, at most 2 pictures should be sent: {}",
        service.count()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_this_service_is_refused_before_a_picture_is_sent() {
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(1);
    let website = FakeServer::start(|_, _| Reply::new(200, &[], "a web page")).await;
    let run = bulk.run(&format!("photos --to {}", website.url(""))).expect_exit_code(2);
    assert!(run.stderr.contains("is not this service"), "{}", run.stderr);
    let received = website.received();
    assert!(
        received.iter().all(|request| request.method == "GET"),
        "no picture should be sent: {received:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_a_service_that_restarts() {
    let nvidia =
        FakeNvidia::healthy_except(|_| Some(embedding().after(Duration::from_millis(20)))).await;
    let app = TestApp::start(&nvidia).await;
    let port = app.address.port();
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(60);
    let run =
        bulk.start(&format!("photos --out vectors.jsonl --concurrency 2 --to {}", app.url("")));
    nvidia.wait_for(10).await;
    let folder = app.stop().await;
    assert!(nvidia.count() < 60, "the run must not have ended before the restart");
    let _app =
        TestApp::builder(&nvidia).folder(folder).setting("IMAGESVC_PORT", port).start().await;
    Finished::from(run).expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 60);
    assert_eq!(
        nvidia.count(),
        60,
        "the stopping service should finish its calls, so that none is repeated"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_another_model_stops_the_run() {
    let service = fake_service(|_, nth| match nth {
        1 => embedded_reply(),
        _ => Reply::json(
            200,
            r#"{"sha256":"a","model":"other","prepared":"jpeg","width":1,"height":1,"vector":[1]}"#,
        ),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(5);
    let run =
        bulk.run(&format!("photos --out vectors.jsonl --concurrency 1 --to {}", service.url("")));
    let run = run.expect_exit_code(1);
    assert!(run.stderr.contains("vectors of other, not m"), "{}", run.stderr);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 1);
}
