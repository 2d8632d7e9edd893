//! `imagesvc embed --to`: how it uses a running service.

use std::time::{Duration, Instant};

use crate::support::{
    Bulk, FakeNvidia, FakeServer, Finished, Received, Reply, TestApp, embedding, tiny,
};

const MODELS: &str = "GET /v1/models";

/// The service's reply to a picture.
fn answer() -> Reply {
    Reply::json(
        200,
        r#"{"sha256":"ab","model":"m","prepared":"original","width":4,"height":4,"vector":[0.5]}"#,
    )
}

/// A fake service whose replies to pictures come from a script. The script gets the number of earlier
/// requests, of which the first one asks for the model.
async fn fake_service(
    script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
) -> FakeServer {
    FakeServer::start(move |request, nth| match request.line().as_str() {
        MODELS => Reply::json(200, r#"{"data":[{"id":"m"}]}"#),
        _ => script(request, nth),
    })
    .await
}

/// An error of the service.
fn problem(status: u16, code: &str, headers: &[(&str, &str)]) -> Reply {
    Reply::new(status, headers, format!(r#"{{"code":"{code}","detail":"Sentence."}}"#))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_service_is_used_with_one_of_its_keys() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_API_KEYS", "first,second").start().await;
    let arguments = format!("photos --out vectors.jsonl --to {}", app.url("/"));
    for (key, message) in [("", "set IMAGESVC_API_KEY"), ("third", "set IMAGESVC_API_KEY")] {
        let bulk = Bulk::without_nvidia().setting("IMAGESVC_API_KEY", key);
        bulk.write_pictures(1);
        let run = bulk.run(&arguments).expect_exit_code(2);
        assert!(run.stderr.contains(message), "{}", run.stderr);
    }
    let bulk = Bulk::without_nvidia().setting("IMAGESVC_API_KEY", "second");
    bulk.write_pictures(20);
    // A file above the limit for sending from memory.
    bulk.write("photos/large.jpg", crate::support::noise_png(300, 300));
    let run = bulk.run(&arguments).expect_exit_code(0);
    assert!(run.stderr.contains("21 embedded"), "{}", run.stderr);
    assert!(app.saved().is_empty() && !bulk.path(".cache").exists());
    bulk.run(&arguments.replace("vectors", "again").replace("photos", "photos --save"))
        .expect_exit_code(0);
    assert_eq!(app.saved().len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_for_other_clients_do_not_apply_to_the_command() {
    let nvidia = FakeNvidia::healthy().await;
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
async fn a_running_service_gets_eight_requests_at_once() {
    let nvidia =
        FakeNvidia::healthy_except(|_| Some(embedding().after(Duration::from_millis(100)))).await;
    let app = TestApp::start(&nvidia).await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(30);
    bulk.run(&format!("photos --out vectors.jsonl --to {}", app.url(""))).expect_exit_code(0);
    assert_eq!(nvidia.most_delayed(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_service_is_left_alone_for_the_time_in_its_retry_after() {
    let service = fake_service(|_, nth| match nth {
        1..=3 => problem(503, "overloaded", &[("retry-after", "1")]),
        4 => problem(429, "rate_limited", &[("retry-after", "1")]),
        _ => answer(),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(4);
    let started = Instant::now();
    bulk.run(&format!("photos --out vectors.jsonl --concurrency 2 --to {}", service.url("")))
        .expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 4);
    // Two pictures are refused together, and then one after each of two pauses.
    assert!(started.elapsed() >= Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(service.count(), 1 + 4 + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_busy_gets_half_as_many_requests_at_once() {
    let service = fake_service(|_, nth| match nth {
        1..=8 => problem(503, "overloaded", &[("retry-after", "1")]),
        _ => answer().after(Duration::from_millis(100)),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(16);
    bulk.run(&format!("photos --out vectors.jsonl --to {}", service.url(""))).expect_exit_code(0);
    assert_eq!(service.count(), 1 + 8 + 16, "no picture must be refused again");
    let most = service.most_delayed();
    assert!((4..=6).contains(&most), "{most} requests at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_sends_as_many_pictures_at_once_as_it_is_told() {
    let nvidia =
        FakeNvidia::healthy_except(|_| Some(embedding().after(Duration::from_millis(100)))).await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(12);
    bulk.run("photos --out vectors.jsonl --concurrency 3").expect_exit_code(0);
    assert_eq!(nvidia.most_delayed(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_sent_again_after_a_broken_answer_but_not_for_ever() {
    let service = fake_service(|_, nth| match nth {
        1 => answer().broken_off(),
        2 => problem(502, "embedding_unavailable", &[]),
        3 => answer(),
        _ => problem(415, "unsupported_image", &[]),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(2);
    let run =
        bulk.run(&format!("photos --out vectors.jsonl --concurrency 1 --to {}", service.url("")));
    let run = run.expect_exit_code(1);
    assert!(run.stderr.contains("1 embedded (0 cached), 1 failed"), "{}", run.stderr);
    assert_eq!(service.count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_concerns_every_picture_stops_the_run() {
    let service = fake_service(|_, _| problem(502, "embedding_unauthorized", &[])).await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(50);
    let arguments = format!("photos --out vectors.jsonl --concurrency 2 --to {}", service.url(""));
    let run = bulk.run(&arguments).expect_exit_code(1);
    assert!(run.stderr.contains("stopped: Sentence."), "{}", run.stderr);
    assert!(service.count() <= 3, "{} requests", service.count());
    let other = FakeServer::start(|_, _| Reply::new(200, &[], "a web page")).await;
    let run = bulk.run(&format!("photos --to {}", other.url(""))).expect_exit_code(2);
    assert!(run.stderr.contains("is not this service"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_restarts_in_the_middle_of_a_run_is_waited_for() {
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
    assert_eq!(nvidia.count(), 60, "a stopping service finishes its calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_another_model_stops_the_run() {
    let service = fake_service(|_, nth| match nth {
        1 => answer(),
        _ => Reply::json(
            200,
            r#"{"sha256":"a","model":"other","prepared":"jpeg","width":1,"height":1,"vector":[1]}"#,
        ),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(5);
    bulk.write("one.png", tiny(9));
    let run =
        bulk.run(&format!("photos --out vectors.jsonl --concurrency 1 --to {}", service.url("")));
    assert!(run.expect_exit_code(1).stderr.contains("vectors of other, not m"));
    assert_eq!(bulk.rows("vectors.jsonl").len(), 1);
}
