//! A long run with valid and hostile requests. At its end, the service uses hardly more memory, files
//! and sockets than after the first three tenths. CI runs it for half a minute. This command runs it
//! for half an hour:
//!
//! `SOAK_SECONDS=1800 cargo test --release --test api -- --ignored --nocapture soak`

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    FakeNvidia, FakeServer, HUBBLE, PHONE, ROCKET, Reply, ResourceUsage, ServiceProcess, avif,
    bombs, converted, embedding, nvidia_api::INFER, tiny, variant,
};

/// The rate at which requests are sent.
const REQUESTS_PER_SECOND: u32 = 50;

/// In a run of at least this length, the memory may grow by at most 5 %. In a shorter run, the
/// allocator has not reached its peak before the first measurement, so the memory may grow by half.
const LONG_RUN: Duration = Duration::from_secs(600);

/// One in this many requests is a picture that takes longer to decode than the decoder's time limit.
/// It keeps a core busy for seconds, so such pictures must be rare.
const REQUESTS_PER_SLOW_PICTURE: usize = 1500;

/// Hostile pictures of this size and more are left out: some have several megabytes.
const MAX_HOSTILE_BYTES: usize = 300_000;

/// Sends one request, at random a valid or a hostile one. Returns its outcome: the status code, or
/// a word if there was no complete response. `n` is the number of the request.
async fn send_random(
    service: &ServiceProcess,
    picture_server: &FakeServer,
    client: &reqwest::Client,
    hostile: &[bombs::Bomb],
    n: usize,
) -> String {
    let random = fastrand::usize(..);
    let upload = |picture: Vec<u8>| service.upload_request(client, &picture);
    // A run of half a minute has about 1500 requests. The slow picture is in their middle, so that even
    // a run with slightly fewer requests contains one.
    let is_slow = n % REQUESTS_PER_SLOW_PICTURE == REQUESTS_PER_SLOW_PICTURE / 2;
    let request = match random % 16 {
        _ if is_slow => upload(variant(&bombs::shared_lzw(), n)),
        0..4 => upload(variant(ROCKET, n)),
        4 => upload(hostile[n % hostile.len()].1.clone()),
        5 => upload(variant(HUBBLE, n)),
        6 => upload(ROCKET.to_vec()),
        7 => upload(ROCKET.to_vec()).header("cache-control", "no-cache"),
        8 => service.base64_request(client, &variant(ROCKET, n)),
        9 => service.url_request(client, &picture_server.url(&format!("/{n}"))),
        10 => upload(converted(&tiny(n), image_rs::ImageFormat::Bmp)),
        11 if n.is_multiple_of(2) => upload(variant(PHONE, n)),
        11 => upload(avif()),
        12 => {
            client.post(service.url("/vectorize-image-base64")).body("{\"image_base64\": \"***\"}")
        }
        13 => client.get(service.url("/metrics")),
        14 => {
            // The client disconnects before the answer.
            let request =
                upload(variant(ROCKET, n)).timeout(Duration::from_millis(random as u64 % 60));
            return match request.send().await {
                Ok(response) => response.status().as_u16().to_string(),
                Err(_) => "disconnected".into(),
            };
        }
        _ => {
            // The client disconnects in the middle of its body.
            let mut stream = TcpStream::connect(service.address).await.unwrap();
            let beginning =
                b"POST /vectorize-image HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{";
            let _ = stream.write_all(beginning).await;
            return "incomplete".into();
        }
    };
    match request.send().await {
        Ok(response) => {
            let status = response.status().as_u16().to_string();
            if response.bytes().await.is_ok() { status } else { "truncated".into() }
        }
        Err(error) => format!("failed: {error:?}"),
    }
}

/// `deploy/imagesvc.service` sets `MALLOC_ARENA_MAX`, because with more arenas glibc retains more
/// freed memory.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour"]
async fn after_a_long_run_with_the_allocator_setting_of_the_systemd_unit_nothing_has_leaked() {
    soak(&[("MALLOC_ARENA_MAX", "2")]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour"]
async fn after_a_long_run_with_the_default_allocator_setting_nothing_has_leaked() {
    soak(&[]).await;
}

async fn soak(environment: &[(&str, &str)]) {
    let seconds: u64 = std::env::var("SOAK_SECONDS").map_or(1800, |text| text.parse().unwrap());
    let run_time = Duration::from_secs(seconds);
    // `when_idle` measures after each pause. A pause is longer than the 5 s after which the client closes
    // its idle connections. In a long run, it is also longer than the 10 s after which the service does.
    let pause = Duration::from_secs(if run_time < LONG_RUN { 6 } else { 15 });
    let hostile: Vec<_> = bombs::quick()
        .into_iter()
        .filter(|(_, picture)| picture.len() < MAX_HOSTILE_BYTES)
        .collect();
    let fault_count = AtomicUsize::new(0);
    let nvidia = FakeNvidia::healthy_except(move |request| {
        // One call in ten fails or is late. Six kinds of faults take turns.
        if request.line() != INFER || fastrand::u8(0..10) != 0 {
            return None;
        }
        Some(match fault_count.fetch_add(1, Ordering::Relaxed) % 6 {
            0 => Reply::status(503),
            1 => Reply::status(429),
            2 => Reply::CloseAfter(Vec::new()),
            3 => Reply::CloseAfter(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n{".to_vec()),
            4 => embedding().after(Duration::from_millis(300)),
            _ => Reply::Hang,
        })
    })
    .await;
    let picture_server = FakeServer::start(|request, _| {
        let n = request.target.trim_start_matches('/').parse().unwrap();
        Reply::new(200, &[], variant(ROCKET, n))
    })
    .await;
    let allow = picture_server.address.to_string();
    let mut settings = vec![
        // In a long run, the first three limits are reached before the first measurement.
        ("IMAGESVC_CACHE_MEMORY", "8MiB"),
        ("IMAGESVC_CACHE_DISK", "16MiB"),
        ("IMAGESVC_DOWNLOADS_MAX_BYTES", "200MiB"),
        ("IMAGESVC_FETCH_ALLOW", &allow),
        // All requests come from one address.
        ("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "512"),
        // Ends the calls to which NVIDIA never replies.
        ("NVIDIA_TIMEOUT", "2s"),
        ("IMAGESVC_REQUEST_TIMEOUT", "10s"),
    ];
    settings.extend(environment);
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    // The service closes a connection after 10 idle seconds. The client closes first. Otherwise it
    // would sometimes send a request on a connection that the service is closing.
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(16)
        .pool_idle_timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let counter = AtomicUsize::new(0);
    let outcomes = Mutex::new(std::collections::BTreeMap::<String, usize>::new());
    let send_requests = |duration: Duration| {
        let (client, service, picture_server, counter, outcomes) =
            (&client, &service, &picture_server, &counter, &outcomes);
        let hostile = &hostile;
        async move {
            let started = Instant::now();
            let ticks = stream::unfold(0, |n: u32| async move {
                let next = started + Duration::from_secs(1) / REQUESTS_PER_SECOND * n;
                tokio::time::sleep_until(next.into()).await;
                (next.duration_since(started) < duration).then_some(((), n + 1))
            });
            let requests = ticks.map(|()| async move {
                let n = counter.fetch_add(1, Ordering::Relaxed);
                let outcome = send_random(service, picture_server, client, hostile, n).await;
                *outcomes.lock().unwrap().entry(outcome).or_default() += 1;
            });
            requests.buffer_unordered(64).collect::<()>().await;
        }
    };
    // In a long run, the first three tenths fill the caches and the folder, and let the allocator reach
    // its peak.
    let tenth = run_time / 10;
    for _ in 0..3 {
        send_requests(tenth).await;
        println!("{} MB under load", service.memory() / 1_000_000);
    }
    let before = ResourceUsage::when_idle(&service, pause).await;
    println!("after {:?}: {before:?}", 3 * tenth);
    for _ in 0..7 {
        send_requests(tenth).await;
        println!("{} MB under load", service.memory() / 1_000_000);
    }
    let after = ResourceUsage::when_idle(&service, pause).await;
    println!("at the end: {after:?}; {:#?}", outcomes.lock().unwrap());
    let requests = counter.load(Ordering::Relaxed);
    println!("{requests} requests, {} calls to NVIDIA", nvidia.count());
    {
        let outcomes = outcomes.lock().unwrap();
        let expected =
            ["200", "400", "413", "415", "422", "502", "503", "504", "disconnected", "incomplete"];
        assert!(
            outcomes.keys().all(|outcome| expected.contains(&outcome.as_str())),
            "{outcomes:?}"
        );
        assert!(
            outcomes["200"] > requests / 2,
            "more than half of the requests should be served: {outcomes:?}"
        );
    }
    let allowed_growth = if run_time < LONG_RUN { before.memory / 2 } else { before.memory / 20 };
    after.assert_no_more_than(&before, allowed_growth);
    let (status, _) = service.stop();
    assert_eq!(status.code(), Some(0));
}
