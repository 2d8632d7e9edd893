//! Limits on batches: permits, memory, calls per minute and deadlines; and the effect of batches on
//! other requests.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::watch;

use crate::{
    batches::{assert_entries, batch_of, nvidia_with_numbered_embeddings},
    cache::embedding_filled_with,
    support::{
        FakeNvidia, FakeServer, HUBBLE, Reply, TestApp, assert_problem, created_asset, data_url,
        embedding, metric, noise_png, nvidia_api::CREATE_ASSET, picture_number, tiny, variant,
    },
};

#[tokio::test]
async fn a_batch_that_needs_more_calls_than_this_minute_has_left_is_refused_before_any_call() {
    let nvidia = nvidia_with_numbered_embeddings().await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_REQUESTS_PER_MINUTE", 10).start().await;
    assert_entries(&app.batch(&batch_of(0..4)).await);
    // Four of the ten calls have been made. So six are left, but the next batch needs seven.
    let started = Instant::now();
    let refused = app.batch(&batch_of(10..17)).await;
    let problem = assert_problem(&refused, 503, "embedding_rate_limited");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "the refusal must not wait for the limit on calls per minute"
    );
    assert!(problem["error"]["param"].is_null(), "the error should be that of the whole batch");
    let retry_after: u64 = refused.header("retry-after").parse().unwrap();
    assert!(
        (50..=61).contains(&retry_after),
        "Retry-After should be the rest of the minute: {retry_after}"
    );
    assert_eq!(nvidia.count(), 4);
    assert_eq!(app.saved().len(), 4);
    // Six calls are still left, because the refused batch has reserved none. Cached pictures need
    // no calls.
    assert_entries(&app.batch(&batch_of((0..4).chain(10..16))).await);
    assert_eq!(nvidia.count(), 10);
}

#[tokio::test]
async fn the_error_of_a_batch_over_the_limit_on_calls_per_minute_names_the_most_pictures_allowed() {
    let nvidia = nvidia_with_numbered_embeddings().await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_REQUESTS_PER_MINUTE", 10).start().await;
    let problem = assert_problem(&app.batch(&batch_of(0..11)).await, 422, "validation_failed");
    let detail = problem["detail"].as_str().unwrap();
    // `chunk_size` is LangChain's name for the number of pictures in a batch.
    assert!(detail.contains("at most 10 at once") && detail.contains("chunk_size"), "{detail}");
    assert_eq!(nvidia.count(), 0);
    assert_entries(&app.batch(&batch_of(0..10)).await);
}

#[tokio::test]
async fn a_cached_batch_is_served_while_nvidia_allows_no_calls() {
    let nvidia = FakeNvidia::scripted(|request, _| match picture_number(request) {
        100 => Reply::new(429, &[("retry-after", "600")], ""),
        number => embedding_filled_with(number),
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    assert_entries(&app.batch(&batch_of(0..3)).await);
    assert_problem(&app.upload(&tiny(100), "a.png").await, 503, "embedding_rate_limited");
    let with_a_new_picture = app.batch(&batch_of(0..4)).await;
    assert_problem(&with_a_new_picture, 503, "embedding_rate_limited");
    assert_eq!(
        with_a_new_picture.header("retry-after"),
        "600",
        "Retry-After should be the time that NVIDIA sent"
    );
    assert_entries(&app.batch(&batch_of(0..3)).await);
    assert_eq!(nvidia.count(), 3 + 1, "only the first batch and the upload should be sent");
}

#[tokio::test]
async fn the_rate_limit_counts_each_picture_of_a_batch() {
    let nvidia = nvidia_with_numbered_embeddings().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_RATE_LIMIT_PER_MINUTE", 6).start().await;
    let problem = assert_problem(&app.batch(&batch_of(0..7)).await, 422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("send at most 6 at once"));
    assert_entries(&app.batch(&batch_of(0..3)).await);
    // Of the refused batch of seven, only the first picture counted; of the batch of three, all did.
    // Two of the six are left, but this batch has three. Cached pictures count, too.
    let refused = app.batch(&batch_of(0..3)).await;
    assert_problem(&refused, 429, "rate_limited");
    // With a limit of 6 per minute, another picture is allowed after 10 s.
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 10);
    assert_eq!(nvidia.count(), 3);
}

#[tokio::test]
async fn a_batch_that_does_not_get_all_its_permits_is_refused_and_returns_those_it_got() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    // One client may use three of these four permits.
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IN_FLIGHT", 4).start().await;
    let [first, second] = [1, 2].map(tiny);
    let singles = join_all([app.upload(&first, "a.png"), app.upload(&second, "b.png")]);
    let batches = async {
        app.wait_for(|value| value("imagesvc_pictures_at_work") >= 2.0).await;
        // The batch needs three permits, but the single pictures have two of the client's three.
        let refused = app.batch(&batch_of(10..13)).await;
        assert_problem(&refused, 503, "overloaded");
        assert!(!refused.header("retry-after").is_empty());
        app.wait_for(|value| value("imagesvc_pictures_at_work") == 2.0).await;
        let problem = assert_problem(&app.batch(&batch_of(0..5)).await, 422, "validation_failed");
        assert!(problem["detail"].as_str().unwrap().contains("one request may have 3"));
        release.send(true).unwrap();
    };
    tokio::join!(singles, batches);
    assert_entries(&app.batch(&batch_of(10..13)).await);
    app.wait_for(|value| value("imagesvc_pictures_at_work") == 0.0).await;
    assert_eq!(metric(&app.get("/metrics").await.text(), "imagesvc_buffered_bytes"), 0.0);
}

#[tokio::test]
async fn batches_that_compete_for_permits_do_not_deadlock() {
    let nvidia = nvidia_with_numbered_embeddings().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_MAX_IN_FLIGHT", 8)
        // In a deadlock, the batches would have a timeout error after this time.
        .setting("IMAGESVC_REQUEST_TIMEOUT", "20s")
        .start()
        .await;
    // Each batch needs six permits, the most that one client can get: three quarters of eight.
    let bodies: Vec<_> = (0..12).map(|n| batch_of(n * 6..(n + 1) * 6)).collect();
    let answers = join_all(bodies.iter().map(|body| app.batch(body))).await;
    let successes = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(successes >= 1, "at least one batch should succeed");
    for refused in answers.iter().filter(|answer| answer.status != 200) {
        assert_problem(refused, 503, "overloaded");
    }
    app.wait_for(|value| value("imagesvc_pictures_at_work") == 0.0).await;
}

#[tokio::test]
async fn a_single_picture_does_not_wait_for_a_batch_of_the_same_client() {
    let (release, _) = watch::channel(false);
    let release_replies = release.clone();
    let nvidia = FakeNvidia::scripted(move |request, _| match picture_number(request) {
        100 => embedding_filled_with(100),
        number => embedding_filled_with(number).held_until(&release_replies),
    })
    .await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_MAX_CONCURRENCY", 8).start().await;
    let body = batch_of(0..32);
    let single = async {
        // A batch makes at most three quarters of the concurrent calls: six of eight.
        nvidia.wait_for(6).await;
        let answer = app.upload(&tiny(100), "single.png").await;
        release.send(true).unwrap();
        answer.assert_success();
    };
    let (answer, ()) = tokio::join!(app.batch(&body), single);
    assert_eq!(assert_entries(&answer).len(), 32);
}

#[tokio::test]
async fn a_batch_makes_no_new_calls_after_its_client_has_disconnected() {
    let (release, _) = watch::channel(false);
    let release_replies = release.clone();
    let nvidia = FakeNvidia::scripted(move |request, _| {
        embedding_filled_with(picture_number(request)).held_until(&release_replies)
    })
    .await;
    // A batch makes at most three quarters of the concurrent calls: three of four.
    let app = TestApp::builder(&nvidia).setting("NVIDIA_MAX_CONCURRENCY", 4).start().await;
    let body = batch_of(0..10);
    tokio::select! {
        _ = app.batch(&body) => panic!("the batch must not be answered before NVIDIA's replies"),
        _ = nvidia.wait_for(3) => {} // dropping the request disconnects the client
    }
    // Only the pictures of the three running calls are still at work.
    app.wait_for(|value| value("imagesvc_pictures_at_work") == 3.0).await;
    release.send(true).unwrap();
    app.wait_for(|value| value("imagesvc_pictures_at_work") == 0.0).await;
    assert_eq!(nvidia.count(), 3);
    let cached_indexes: Vec<_> = assert_entries(&app.batch(&body).await)
        .iter()
        .filter(|entry| entry["imagesvc"]["cache"] == "hit")
        .map(|entry| entry["index"].clone())
        .collect();
    assert_eq!(
        cached_indexes,
        [0, 1, 2],
        "the embeddings of the first three calls should be cached"
    );
}

#[tokio::test]
async fn the_files_of_a_batch_are_removed_after_its_client_has_disconnected() {
    let (release, _) = watch::channel(false);
    let release_replies = release.clone();
    let nvidia = FakeNvidia::scripted(move |request, _| match picture_number(request) {
        9 => embedding().held_until(&release_replies),
        number => embedding_filled_with(number),
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    let body = batch_of(0..10);
    tokio::select! {
        _ = app.batch(&body) => panic!("the batch must not be answered before NVIDIA's last reply"),
        () = app.wait_for_saved_count(10) => {} // dropping the request disconnects the client
    }
    app.wait_for_saved_count(0).await; // while the last call still runs
    release.send(true).unwrap();
}

#[tokio::test]
async fn finished_pictures_of_a_running_batch_have_no_open_files() {
    // The last of the five assets is created only after `release`. So one picture waits.
    let (release, _) = watch::channel(false);
    let (release_reply, created) = (release.clone(), AtomicUsize::new(0));
    let nvidia = FakeNvidia::healthy_except(move |request| {
        let is_last = request.line() == CREATE_ASSET && created.fetch_add(1, Relaxed) == 4;
        is_last.then(|| created_asset(request).held_until(&release_reply))
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    let pictures: Vec<_> = (0..5).map(|n| data_url(&variant(HUBBLE, n))).collect();
    let request = app.json_request("/v1/embeddings?save=false", &json!({ "input": pictures }));
    // The service runs in this process.
    let open_files = || {
        let folder = app.folder().to_str().unwrap();
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let paths = open.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        paths.filter(|path| path.to_string_lossy().starts_with(folder)).count()
    };
    let check_files = async {
        // One picture waits. So when only one picture is at work, the other four are finished.
        let created = || nvidia.lines().iter().filter(|line| **line == CREATE_ASSET).count();
        app.wait_for(|value| created() == 5 && value("imagesvc_pictures_at_work") == 1.0).await;
        // The lock of the folder, and the file of the waiting picture.
        assert!(open_files() <= 2, "at most 2 files should be open, not {}", open_files());
        release.send(true).unwrap();
    };
    let (answer, ()) = tokio::join!(app.send(request), check_files);
    assert_entries(&answer);
}

#[tokio::test]
async fn a_batch_that_takes_longer_than_its_deadline_progresses_each_time_the_client_repeats_it() {
    const BATCH: usize = 16;
    const OTHER_PICTURES: usize = 16; // enough for the moving average of call times
    let nvidia = FakeNvidia::scripted(|request, _| {
        embedding_filled_with(picture_number(request)).after(Duration::from_millis(100))
    })
    .await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_MAX_CONCURRENCY", 1)
        .setting("IMAGESVC_REQUEST_TIMEOUT", "1s")
        .start()
        .await;
    // The calls of the batch, one at a time, take 1.6 s: longer than the deadline of 1 s. From other
    // pictures, the service first learns how long a call takes, so it expects the batch to be late.
    // It must try the batch nevertheless.
    for number in 100..100 + OTHER_PICTURES {
        app.upload(&tiny(number), "a.png").await.assert_success();
    }
    for failures in 0..BATCH {
        let answer = app.batch(&batch_of(0..BATCH)).await;
        if answer.status == 200 {
            // The deadline may end one call of each batch, which the next batch repeats.
            let calls = nvidia.count() - OTHER_PICTURES;
            assert!(
                (BATCH..=BATCH + failures).contains(&calls),
                "at most one call should be repeated after each of {failures} failures: {calls} calls"
            );
            return;
        }
        assert_problem(&answer, 504, "embedding_timeout");
    }
    panic!("{BATCH} requests should be enough to embed {BATCH} pictures");
}

#[tokio::test]
async fn if_errors_are_per_item_each_picture_that_misses_the_deadline_has_a_timeout_error() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    // Some pictures miss the deadline during their call, and the others while they wait for a call.
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_MAX_CONCURRENCY", 2)
        .setting("IMAGESVC_REQUEST_TIMEOUT", "300ms")
        .start()
        .await;
    let request = app.json_request("/v1/embeddings?errors=item", &batch_of(0..5));
    let outcomes = assert_entries(&app.send(request).await);
    let codes: Vec<_> = outcomes.iter().map(|entry| &entry["error"]["code"]).collect();
    assert_eq!(codes, ["embedding_timeout"; 5]);
}

#[tokio::test]
async fn without_memory_a_batch_fails_as_a_whole_even_if_errors_are_per_item() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let app = TestApp::builder(&nvidia)
        // The service reserves half a MiB for the call of each picture, even of a small one. One
        // client may use 6 MiB of these 8: enough for eight single pictures and a part of the
        // batch.
        .setting("IMAGESVC_MAX_BUFFERED_BYTES", "8MiB")
        // If larger pictures were allowed, the service would not start with so little memory.
        .setting("IMAGESVC_MAX_IMAGE_BYTES", "100000")
        .start()
        .await;
    let pictures: Vec<_> = (0..8).map(tiny).collect();
    let singles = join_all(pictures.iter().map(|picture| app.upload(picture, "a.png")));
    let batch = async {
        // Now all eight single pictures have their memory: eight times half a MiB.
        app.wait_for(|value| value("imagesvc_buffered_bytes") >= 4e6).await;
        // There is memory for the first picture, so the batch is admitted.
        let request = app.json_request("/v1/embeddings?errors=item", &batch_of(20..28));
        let answer = app.send(request).await;
        let problem = assert_problem(&answer, 503, "overloaded");
        let param = &problem["error"]["param"];
        assert!(param.is_null(), "the error should be that of the whole batch: {problem}");
        release.send(true).unwrap();
    };
    tokio::join!(singles, batch);
}

#[tokio::test]
async fn fetches_of_a_batch_that_would_begin_too_late_fail_with_a_timeout() {
    let host = FakeServer::start(|_, _| Reply::Hang).await;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .may_fetch_from(&host)
        // A batch begins no more fetches when twice this timeout has passed. It fetches eight
        // pictures at a time, so the last of 32 would begin after three timeouts.
        .setting("IMAGESVC_FETCH_TIMEOUT", "200ms")
        .start()
        .await;
    let urls: Vec<_> = (0..32).map(|n| host.url(&format!("/{n}"))).collect();
    let request = app.json_request("/v1/embeddings?errors=item", &json!({ "input": urls }));
    let outcomes = assert_entries(&app.send(request).await);
    assert!(outcomes.iter().all(|entry| entry["error"]["code"] == "download_timeout"));
    assert!(host.count() < 32, "some of the 32 fetches must not begin");
}

#[tokio::test]
async fn the_memory_of_a_batch_body_is_freed_when_all_pictures_in_it_are_received() {
    let (release, _) = watch::channel(false);
    // The memory is checked before NVIDIA sends this reply, so any reply would do.
    let nvidia = FakeNvidia::replying(vec![Reply::status(422).held_until(&release)]).await;
    let app = TestApp::builder(&nvidia)
        // A shrunk picture needs only one call, and equal pictures share it. So the batch waits for
        // its only call while the memory is checked.
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .start()
        .await;
    let picture_count = 4;
    let equal_pictures = vec![data_url(&noise_png(900, 900)); picture_count];
    let body = json!({ "input": equal_pictures });
    let body_bytes = body.to_string().len() as f64;
    let body_bytes_per_picture = body_bytes / picture_count as f64;
    assert!(body_bytes > 10e6, "the body must need far more memory than a call");
    let check_memory = async {
        nvidia.wait_for(1).await;
        let text = app.get("/metrics").await.text();
        let buffered_bytes = metric(&text, "imagesvc_buffered_bytes");
        assert!(
            buffered_bytes < body_bytes_per_picture,
            "the body should no longer count, not even one picture's part of it: {text}"
        );
        release.send(true).unwrap();
    };
    let (answer, ()) = tokio::join!(app.batch(&body), check_memory);
    assert_eq!(answer.status, 422);
}

#[tokio::test]
async fn the_error_of_a_batch_that_misses_the_deadline_contains_the_index_of_the_slow_picture() {
    let nvidia = FakeNvidia::scripted(|request, _| match picture_number(request) {
        1 => Reply::Hang,
        number => embedding_filled_with(number),
    })
    .await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_REQUEST_TIMEOUT", "500ms").start().await;
    let answer = app.batch(&batch_of([0, 1, 2])).await;
    let problem = assert_problem(&answer, 504, "embedding_timeout");
    assert_eq!(problem["error"]["param"], "input[1]");
    app.wait_for_saved_count(0).await;
}

#[tokio::test]
async fn a_batch_counts_as_one_request_in_the_metrics_and_each_saved_picture_is_counted() {
    let nvidia = nvidia_with_numbered_embeddings().await;
    let app = TestApp::builder(&nvidia).start().await;
    assert_entries(&app.batch(&batch_of([1, 2, 3])).await);
    let text = app.get("/metrics").await.text();
    let requests = r#"imagesvc_requests_total{route="/v1/embeddings",status="200"}"#;
    assert_eq!(metric(&text, requests), 1.0, "{text}");
    assert_eq!(metric(&text, "imagesvc_pictures_saved_total"), 3.0, "{text}");
}
