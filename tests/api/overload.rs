//! Overload: the service accepts only requests that it can answer in time, and refuses the others
//! at once.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all, stream};

use crate::support::{
    Answer, FakeNvidia, HUBBLE, ROCKET, Reply, ServiceProcess, TestApp, assert_problem, embedding,
    metric, post_head, tiny, variant,
};

/// The `Retry-After` of an error `overloaded`, in seconds.
const RETRY_AFTER: &str = "5";

/// Refusals count as immediate if their median time is less than this.
const AT_ONCE: Duration = Duration::from_millis(50);

/// The median duration. The tests do not compare the maximum, because a busy machine may delay a
/// single answer.
fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}

#[tokio::test]
async fn the_number_of_concurrent_calls_to_nvidia_never_exceeds_the_setting() {
    let nvidia = FakeNvidia::replying(vec![embedding().after(Duration::from_millis(50))]).await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_MAX_CONCURRENCY", "2").start().await;
    let pictures: Vec<_> = (0..10).map(tiny).collect();
    let uploads = pictures.iter().map(|picture| app.upload(picture, "a.png"));
    for answer in join_all(uploads).await {
        answer.assert_success();
    }
    assert_eq!(nvidia.max_delayed_at_once(), 2, "two calls should run at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_200_pictures_at_20_calls_per_minute_10_are_served_and_the_others_are_refused() {
    /// One client may make half of the 20 calls at once.
    const CALLS_AT_ONCE: usize = 10;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_REQUESTS_PER_MINUTE", "20")
        // The ten other calls of a minute are spread: one every six seconds. That is too late for this
        // timeout.
        .setting("IMAGESVC_REQUEST_TIMEOUT", "3s")
        // All uploads come from one address. The default for an address is 64 connections.
        .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "300")
        // The only client gets three quarters of this limit. That must be enough for 200 pictures.
        .setting("IMAGESVC_MAX_IN_FLIGHT", "400")
        // It also gets only three quarters of the memory. Each small picture counts as 512 KiB, so 200 of
        // them exceed three quarters of the default of 128 MiB.
        .setting("IMAGESVC_MAX_BUFFERED_BYTES", "256MiB")
        .start()
        .await;
    let pictures: Vec<_> = (0..200).map(tiny).collect();
    let answers = join_all(pictures.iter().map(|picture| app.upload(picture, "a.png"))).await;
    let (served, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((served.len(), nvidia.count()), (CALLS_AT_ONCE, CALLS_AT_ONCE));
    for answer in &refused {
        let problem = assert_problem(answer, 503, "embedding_rate_limited");
        assert!(problem["saved_as"].is_string(), "a picture that is not embedded should be saved");
        // The next call is allowed after six seconds and a margin.
        let seconds: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=7).contains(&seconds), "Retry-After should be 1 to 7 s, not {seconds} s");
    }
    let mut refusal_durations = Vec::new();
    let calls_before = nvidia.count();
    // None of these pictures is in the cache. One more call becomes allowed every six seconds, so a few
    // of these pictures may be served.
    for n in 200..221 {
        let picture = tiny(n);
        let started = Instant::now();
        if app.upload(&picture, "a.png").await.status == 503 {
            refusal_durations.push(started.elapsed());
        }
    }
    assert!(refusal_durations.len() >= 18, "at least 18 of 21 pictures should be refused");
    assert!(median(refusal_durations) < AT_ONCE, "pictures should be refused at once");
    assert!(
        nvidia.count() <= calls_before + 3,
        "at most 3 of 21 further pictures should be sent to NVIDIA"
    );
    // Pictures in the cache are still served.
    let uploads = stream::iter(&pictures).map(async |picture| app.upload(picture, "a.png").await);
    let successes =
        uploads.buffer_unordered(8).filter(|answer| std::future::ready(answer.status == 200));
    assert!(successes.count().await >= CALLS_AT_ONCE, "the served pictures should be cached");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_burst_hardly_any_call_is_made_whose_reply_would_come_after_the_deadline() {
    /// The value of `NVIDIA_MAX_CONCURRENCY`.
    const MAX_CALLS: usize = 4;
    let nvidia = FakeNvidia::replying(vec![embedding().after(Duration::from_millis(100))]).await;
    // Four calls at once, of 0.1 s each, are 80 calls within the timeout of 2 s.
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_MAX_CONCURRENCY", MAX_CALLS)
        .setting("IMAGESVC_REQUEST_TIMEOUT", "2s")
        // All 300 uploads come from one address.
        .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "1000")
        .start()
        .await;
    // The service estimates waiting times from earlier calls, so some calls must be made first.
    let earlier: Vec<_> = (0..40).map(tiny).collect();
    let uploads = stream::iter(&earlier).map(async |picture| app.upload(picture, "a.png").await);
    uploads
        .buffer_unordered(MAX_CALLS)
        .for_each(|answer| async move { answer.assert_success() })
        .await;
    let calls_before = nvidia.count();
    // All requests begin at once. When their heads arrive, no picture waits for a call yet. So the
    // service refuses pictures because of their expected wait only after their bodies have arrived.
    let pictures: Vec<_> = (1000..1300).map(tiny).collect();
    let answers = join_all(pictures.iter().map(|picture| app.upload(picture, "a.png"))).await;
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    let calls = nvidia.count() - calls_before;
    // On a busy machine, fewer calls than 80 fit into the timeout.
    assert!(served >= 40, "at least 40 pictures should be served, not {served}");
    assert!(
        calls <= served + MAX_CALLS,
        "there should be few calls without a served picture: {calls} calls, {served} served"
    );
    // The service can only estimate the waiting times, so a few pictures are accepted in vain.
    let late = answers.iter().filter(|answer| answer.status == 504).count();
    assert!(late <= 15, "at most 15 pictures should wait until their deadline, not {late}");
    for answer in answers.iter().filter(|answer| answer.status == 503) {
        assert_problem(answer, 503, "overloaded");
        assert_eq!(answer.header("retry-after"), RETRY_AFTER);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_pictures_beyond_the_limit_on_calls_per_minute_are_not_uploaded_to_nvidia() {
    // Each PUT to the asset store takes half a second, so all six pictures arrive before the first
    // inference call. The limit allows one such call immediately, and a second one after half a minute.
    let nvidia = FakeNvidia::healthy_except(|request| {
        (request.method == "PUT").then(|| Reply::status(200).after(Duration::from_millis(500)))
    })
    .await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_REQUESTS_PER_MINUTE", "2").start().await;
    let pictures: Vec<_> = (0..6).map(|n| variant(HUBBLE, n)).collect();
    let answers = join_all(pictures.iter().map(|picture| app.upload(picture, "a.jpg"))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 2);
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_problem(answer, 503, "embedding_rate_limited");
    }
    let puts = nvidia.received().iter().filter(|request| request.method == "PUT").count();
    assert_eq!(puts, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_time_window_contains_more_calls_to_nvidia_than_the_limit_allows() {
    let call_times = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&call_times);
    let nvidia = FakeNvidia::scripted(move |_, nth| {
        recorded.lock().unwrap().push(Instant::now());
        // Failed attempts count against the limit as well.
        if nth % 7 == 0 { Reply::status(503) } else { embedding() }
    })
    .await;
    // For this test, the limit is 20 calls in 1 s instead of 60 s. `pace_window` is 0.5 s longer, as a
    // margin.
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_REQUESTS_PER_MINUTE", "20")
        .setting("IMAGESVC_REQUEST_TIMEOUT", "5s")
        // All 120 uploads come from one address.
        .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "300")
        .configure(|config| {
            assert_eq!(config.nvidia.pace_window, Duration::from_millis(60_500));
            config.nvidia.pace_window = Duration::from_millis(1500);
        })
        .start()
        .await;
    let pictures: Vec<_> = (0..120).map(tiny).collect();
    let answers = join_all(pictures.iter().map(|picture| app.upload(picture, "a.png"))).await;
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    // `pace_window` is 1.5 s: windows begin at 0, 1.5, 3 and 4.5 s, and each allows 20 calls.
    assert!((50..=80).contains(&served), "50 to 80 pictures should be served, not {served}");
    let call_times = call_times.lock().unwrap();
    // The limit allows 20 calls in a second, so 21 calls in a row must take longer.
    for calls in call_times.windows(21) {
        let duration = calls[20] - calls[0];
        assert!(
            duration > Duration::from_secs(1),
            "21 calls should take more than 1 s, not {duration:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_ten_times_the_capacity_accepted_pictures_are_served_and_others_refused_at_once() {
    /// The value of `NVIDIA_MAX_CONCURRENCY`.
    const MAX_CALLS: u32 = 4;
    /// The duration of a call.
    const CALL_DURATION: Duration = Duration::from_millis(100);
    let nvidia = FakeNvidia::replying(vec![embedding().after(CALL_DURATION)]).await;
    // By default, one client may have 192 pictures in progress. To embed them would take 4.8 s, which is
    // longer than the timeout. So the service must refuse pictures long before this limit.
    let max_calls = MAX_CALLS.to_string();
    let settings = [
        ("NVIDIA_MAX_CONCURRENCY", max_calls.as_str()),
        ("IMAGESVC_REQUEST_TIMEOUT", "2s"),
        // All uploads come from one address.
        ("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "1024"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::new();
    let upload = |n: usize| {
        let request = service.base64_request(&client, &tiny(n));
        async move {
            let started = Instant::now();
            let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
            (answer, started.elapsed())
        }
    };
    // Twice as many uploads as `MAX_CALLS` run at once, so that the service always makes `MAX_CALLS`
    // calls at once.
    let started = Instant::now();
    let uploads = stream::iter(0..100).map(&upload).buffer_unordered(2 * MAX_CALLS as usize);
    let answers: Vec<_> = uploads.collect().await;
    assert!(answers.iter().all(|(answer, _)| answer.status == 200));
    let peak_rate = 100.0 / started.elapsed().as_secs_f64();

    // For 4 s, ten times as many pictures arrive as NVIDIA can embed.
    let capacity = f64::from(MAX_CALLS) / CALL_DURATION.as_secs_f64();
    let interval = Duration::from_secs_f64(1.0 / (10.0 * capacity));
    let started = Instant::now();
    let requests = (0..1600u32).map(|n| {
        let upload = upload(1000 + n as usize);
        async move {
            tokio::time::sleep_until((started + interval * n).into()).await;
            upload.await
        }
    });
    let answers = join_all(requests).await;
    let seconds = started.elapsed().as_secs_f64();
    let (accepted, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(answer, _)| answer.status != 503);
    let served = accepted.iter().filter(|(answer, _)| answer.status == 200).count();
    let served_rate = served as f64 / seconds;
    let median_refusal = median(refused.iter().map(|(_, elapsed)| *elapsed).collect());
    println!(
        "served per second: {peak_rate:.1} without overload, {served_rate:.1} with overload; \
         {} refused after {median_refusal:?} in the median",
        refused.len()
    );
    assert!(
        served_rate >= 0.9 * peak_rate,
        "with overload, at least 90 % of {peak_rate} pictures per second should be served, not \
         {served_rate}"
    );
    assert!(
        served * 100 >= accepted.len() * 99,
        "at least 99 % of the accepted pictures should be served, but {served} of {} were",
        accepted.len()
    );
    for (answer, _) in &refused {
        assert_problem(answer, 503, "overloaded");
        assert_eq!(answer.header("retry-after"), RETRY_AFTER);
    }
    assert!(median_refusal < AT_ONCE, "pictures should be refused at once");
}

#[tokio::test]
async fn a_picture_beyond_the_limit_on_pictures_in_progress_is_refused_before_its_body_is_sent() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IN_FLIGHT", "1").start().await;
    // NVIDIA never replies, so this picture stays in progress.
    let in_progress = app.upload(ROCKET, "first.jpg");
    let refused = async {
        nvidia.wait_for(1).await;
        for route in ["/vectorize-image", "/vectorize-image-base64", "/vectorize-image-upload"] {
            let mut stream = tokio::net::TcpStream::connect(app.address).await.unwrap();
            // The client sends only the head, which announces a body of 1000 bytes.
            let head = post_head(route, 1000, "expect: 100-continue\r\n");
            stream.write_all(&head).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            let retry_after = format!("retry-after: {RETRY_AFTER}\r\n");
            assert!(answer.contains("\"overloaded\"") && answer.contains(&retry_after), "{answer}");
        }
    };
    tokio::select! { answer = in_progress => panic!("{answer:?}"), () = refused => {} }
    // One request to each of the three routes was refused.
    let metrics = app.get("/metrics").await.text();
    assert_eq!(metric(&metrics, "imagesvc_requests_shed_total{reason=\"at_work\"}"), 3.0);
}

#[tokio::test]
async fn one_of_two_bodies_that_together_exceed_the_memory_for_bodies_is_refused() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_MAX_IMAGE_BYTES", "3MiB")
        .setting("IMAGESVC_MAX_BUFFERED_BYTES", "6MiB")
        .start()
        .await;
    let endless = || {
        // The client sends 3.5 MB, and does not end the body. One such body is allowed: a picture of
        // 3 MiB is 4 MiB in Base64. Two exceed the memory for all bodies, 6 MiB.
        let bytes = bytes::Bytes::from(vec![b' '; 3_500_000]);
        let frames = stream::iter([Ok::<_, std::io::Error>(http_body::Frame::data(bytes))]);
        let body = http_body_util::StreamBody::new(frames.chain(stream::pending()));
        let request = app.client.post(app.url("/vectorize-image-base64"));
        app.send(request.body(reqwest::Body::wrap(body)))
    };
    let answer = tokio::select! { answer = endless() => answer, answer = endless() => answer };
    assert_problem(&answer, 503, "overloaded");
    assert_eq!(answer.header("retry-after"), RETRY_AFTER);
}

#[tokio::test]
async fn connections_beyond_the_total_or_the_peer_limit_are_closed_and_counted() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let nvidia = FakeNvidia::healthy().await;
    for (max_total, max_per_peer, reason) in
        [("3", "10", "connections"), ("10", "3", "connections_of_peer")]
    {
        let app = TestApp::builder(&nvidia)
            .setting("IMAGESVC_MAX_CONNECTIONS", max_total)
            .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", max_per_peer)
            .start()
            .await;
        let mut open = Vec::new();
        let mut answered = 0;
        for _ in 0..5 {
            let mut stream = tokio::net::TcpStream::connect(app.address).await.unwrap();
            let written = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
            let mut beginning = [0; b"HTTP/1.1 200".len()];
            // A connection over the limit is closed or reset.
            let read = stream.read_exact(&mut beginning).await;
            answered += usize::from(written.is_ok() && read.is_ok());
            open.push(stream);
        }
        assert_eq!(answered, 3, "{reason}");
        // Closes all connections but one, so that the metrics can be read over a new connection.
        open.truncate(1);
        let shed = format!("imagesvc_requests_shed_total{{reason=\"{reason}\"}}");
        // Two of the five were refused. A connection for the metrics is also refused and counted if it
        // arrives before the service has noticed that the others are closed.
        app.wait_for(|value| value(&shed) >= 2.0).await;
    }
}
