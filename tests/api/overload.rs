//! Overload: the service answers what it accepts in time, and refuses the rest at once.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all, stream};

use crate::support::{
    Answer, Child, FakeNvidia, HUBBLE, ROCKET, Reply, TestApp, assert_problem, embedding, metric,
    post_head, tiny, variant,
};

/// How long a refusal at once may take.
const AT_ONCE: Duration = Duration::from_millis(50);

/// The median, since a busy machine may delay a single answer.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
async fn at_most_the_configured_number_of_pictures_is_with_nvidia_at_once() {
    let nvidia = FakeNvidia::replying(vec![embedding().after(Duration::from_millis(50))]).await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_MAX_CONCURRENCY", "2").start().await;
    let pictures: Vec<_> = (0..10).map(tiny).collect();
    let uploads = pictures.iter().map(|picture| app.upload(picture, "a.png"));
    for answer in join_all(uploads).await {
        answer.vector();
    }
    assert_eq!(nvidia.most_delayed(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hundred_pictures_at_once_only_as_many_are_sent_as_the_pace_allows() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_REQUESTS_PER_MINUTE", "40")
        // Shorter than a window: with a whole minute, late pictures would be in time for the next
        // one.
        .setting("IMAGESVC_REQUEST_TIMEOUT", "20s")
        .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "300")
        // All two hundred may be in progress: a single client gets three quarters of the limit.
        .setting("IMAGESVC_MAX_IN_FLIGHT", "400")
        // Likewise for memory: two hundred bodies of 512 KiB exceed three quarters of 128 MiB.
        .setting("IMAGESVC_MAX_BUFFERED_BYTES", "256MiB")
        .start()
        .await;
    let pictures: Vec<_> = (0..200).map(tiny).collect();
    let answers = join_all(pictures.iter().map(|picture| app.upload(picture, "a.png"))).await;
    let (served, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((served.len(), nvidia.lines().len()), (40, 40));
    for answer in &refused {
        let problem = assert_problem(answer, 503, "embedding_rate_limited");
        assert!(problem["saved_as"].is_string());
        let seconds: u64 = answer.header("retry-after").parse().unwrap();
        assert!((50..=61).contains(&seconds), "{seconds}");
    }
    let mut times = Vec::new();
    for n in 200..221 {
        let picture = tiny(n);
        let started = Instant::now();
        assert_problem(&app.upload(&picture, "a.png").await, 503, "embedding_rate_limited");
        times.push(started.elapsed());
    }
    assert!(median(times) < AT_ONCE);
    assert_eq!(nvidia.lines().len(), 40);
    // Pictures in the cache are still served.
    let hit = stream::iter(&pictures).map(async |picture| app.upload(picture, "a.png").await);
    let hits = hit.buffer_unordered(8).filter(|answer| std::future::ready(answer.status == 200));
    assert_eq!(hits.count().await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_beyond_the_queue_costs_no_call_that_comes_too_late() {
    let nvidia = FakeNvidia::replying(vec![embedding().after(Duration::from_millis(100))]).await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_MAX_CONCURRENCY", "4")
        .setting("IMAGESVC_REQUEST_TIMEOUT", "2s")
        .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "1000")
        .start()
        .await;
    // The service first has to learn how long a call takes.
    let warm: Vec<_> = (0..40).map(tiny).collect();
    let warm = stream::iter(&warm).map(async |picture| app.upload(picture, "a.png").await);
    warm.buffer_unordered(4).for_each(|answer| async move { drop(answer.vector()) }).await;
    let before = nvidia.lines().len();
    // All at once, so that the queue is empty when each header arrives.
    let pictures: Vec<_> = (1000..1300).map(tiny).collect();
    let answers = join_all(pictures.iter().map(|picture| app.upload(picture, "a.png"))).await;
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    let calls = nvidia.lines().len() - before;
    assert!(served >= 40, "{served}");
    assert!(calls <= served + 4, "{calls} calls for {served} answers");
    let late = answers.iter().filter(|answer| answer.status == 504).count();
    assert!(late <= 15, "{late} waited until their deadline");
    for answer in answers.iter().filter(|answer| answer.status == 503) {
        assert_problem(answer, 503, "overloaded");
        assert_eq!(answer.header("retry-after"), "5");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_pictures_beyond_the_pace_are_not_uploaded() {
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
async fn no_window_sees_more_calls_than_the_pace_allows() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let nvidia = FakeNvidia::scripted(move |_, nth| {
        log.lock().unwrap().push(Instant::now());
        // Failed attempts count as well.
        if nth % 7 == 0 { Reply::status(503) } else { embedding() }
    })
    .await;
    // a window of 1 s instead of 60 s, with the same margin of half a second
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_REQUESTS_PER_MINUTE", "20")
        .setting("IMAGESVC_REQUEST_TIMEOUT", "5s")
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
    // Windows begin at 0, 1.5, 3 and 4.5 s.
    assert!((50..=80).contains(&served), "{served}");
    let seen = seen.lock().unwrap();
    for window in seen.windows(21) {
        assert!(window[20] - window[0] > Duration::from_secs(1), "{:?}", window[20] - window[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_ten_times_the_capacity_the_rest_is_shed_at_once_and_the_accepted_are_served() {
    const PERMITS: u32 = 4;
    const CALL: Duration = Duration::from_millis(100);
    let nvidia = FakeNvidia::replying(vec![embedding().after(CALL)]).await;
    // A queue of all pictures that may be in progress would take 6 s, long after their deadlines.
    let settings = [
        ("NVIDIA_MAX_CONCURRENCY", "4"),
        ("IMAGESVC_REQUEST_TIMEOUT", "2s"),
        ("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "1024"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let child = Child::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::new();
    let upload = |n: usize| {
        let request = child.base64_request(&client, &tiny(n));
        async move {
            let started = Instant::now();
            let answer = Answer::read(request.send().await.unwrap()).await.unwrap();
            (answer, started.elapsed())
        }
    };
    // A few more at once than there are permits, so that no permit is ever idle.
    let started = Instant::now();
    let peak = stream::iter(0..100).map(&upload).buffer_unordered(2 * PERMITS as usize);
    let peak: Vec<_> = peak.collect().await;
    assert!(peak.iter().all(|(answer, _)| answer.status == 200));
    let peak = 100.0 / started.elapsed().as_secs_f64();

    let capacity = f64::from(PERMITS) / CALL.as_secs_f64();
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
    let elapsed = started.elapsed().as_secs_f64();
    let (accepted, shed): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(answer, _)| answer.status != 503);
    let served = accepted.iter().filter(|(answer, _)| answer.status == 200).count();
    let goodput = served as f64 / elapsed;
    println!(
        "peak {peak:.1}/s, goodput {goodput:.1}/s; shed {}, after {:?} in the median",
        shed.len(),
        median(shed.iter().map(|(_, elapsed)| *elapsed).collect())
    );
    assert!(goodput >= 0.9 * peak, "{goodput} of {peak}");
    assert!(served * 100 >= accepted.len() * 99, "{served} of {}", accepted.len());
    for (answer, _) in &shed {
        assert_problem(answer, 503, "overloaded");
        assert_eq!(answer.header("retry-after"), "5");
    }
    assert!(median(shed.iter().map(|(_, elapsed)| *elapsed).collect()) < AT_ONCE);
}

#[tokio::test]
async fn more_pictures_than_may_be_at_work_are_refused_at_their_header() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IN_FLIGHT", "1").start().await;
    let busy = app.upload(ROCKET, "first.jpg");
    let refused = async {
        nvidia.wait_for(1).await;
        for route in ["/vectorize-image", "/vectorize-image-base64", "/vectorize-image-upload"] {
            let mut stream = tokio::net::TcpStream::connect(app.address).await.unwrap();
            // This sends only the header and never the body.
            let head = post_head(route, 1000, "expect: 100-continue\r\n");
            stream.write_all(&head).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(
                answer.contains("\"overloaded\"") && answer.contains("retry-after: 5"),
                "{answer}"
            );
        }
    };
    tokio::select! { answer = busy => panic!("{answer:?}"), () = refused => {} }
    let metrics = app.get("/metrics").await.text();
    assert_eq!(metric(&metrics, "imagesvc_requests_shed_total{reason=\"at_work\"}"), 3.0);
}

#[tokio::test]
async fn a_body_that_memory_has_no_room_for_is_refused() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_MAX_IMAGE_BYTES", "3MiB")
        .setting("IMAGESVC_MAX_BUFFERED_BYTES", "6MiB")
        .start()
        .await;
    let endless = || {
        // Two endless bodies, which together exceed the memory.
        let sent = bytes::Bytes::from(vec![b' '; 3_500_000]);
        let sent = stream::iter([Ok::<_, std::io::Error>(http_body::Frame::data(sent))]);
        let body = http_body_util::StreamBody::new(sent.chain(stream::pending()));
        let request = app.client.post(app.url("/vectorize-image-base64"));
        app.send(request.body(reqwest::Body::wrap(body)))
    };
    let answer = tokio::select! { answer = endless() => answer, answer = endless() => answer };
    assert_problem(&answer, 503, "overloaded");
    assert_eq!(answer.header("retry-after"), "5");
}

#[tokio::test]
async fn connections_beyond_the_limit_of_all_or_of_a_peer_are_closed_and_counted() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let nvidia = FakeNvidia::healthy().await;
    for (all, of_peer, reason) in [("3", "10", "connections"), ("10", "3", "connections_of_peer")] {
        let app = TestApp::builder(&nvidia)
            .setting("IMAGESVC_MAX_CONNECTIONS", all)
            .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", of_peer)
            .start()
            .await;
        let mut open = Vec::new();
        let mut answered = 0;
        for _ in 0..5 {
            let mut stream = tokio::net::TcpStream::connect(app.address).await.unwrap();
            let asked = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
            let mut first = [0; 12];
            // A connection over the limit is closed or reset.
            let read = stream.read_exact(&mut first).await;
            answered += usize::from(asked.is_ok() && read.is_ok());
            open.push(stream);
        }
        assert_eq!(answered, 3, "{reason}");
        open.truncate(1);
        let shed = format!("imagesvc_requests_shed_total{{reason=\"{reason}\"}}");
        app.wait_for(|value| value(&shed) >= 2.0).await;
    }
}
