//! What a long run with hostile pictures among good ones leaves behind: nothing. Run by hand, for half
//! an hour; CI runs half a minute of it:
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
    Child, FakeNvidia, FakeServer, HUBBLE, PHONE, ROCKET, Reply, ResourceUsage, avif, bombs,
    converted, embedding, nvidia_api::INFER, tiny, variant,
};

/// Requests a second, at most: the run is bounded in number as well as in time.
const RATE: u32 = 50;

/// From which length on a run says something about memory, and how much it may grow by then. A
/// short one still shows the allocator's first growth.
const LONG: Duration = Duration::from_secs(600);

/// One request in so many is a picture whose decode never ends: each keeps a core busy for seconds.
const ENDLESS_IN: usize = 1500;

/// One request of the mix, with what comes of it counted.
async fn one(
    child: &Child,
    origin: &FakeServer,
    client: &reqwest::Client,
    hostile: &[bombs::Bomb],
    n: usize,
) -> String {
    let random = fastrand::usize(..);
    let upload = |picture: Vec<u8>| child.upload_request(client, &picture);
    let request = match random % 16 {
        _ if n % ENDLESS_IN == ENDLESS_IN / 2 => upload(variant(&bombs::shared_lzw(), n)),
        0..4 => upload(variant(ROCKET, n)),
        4 => upload(hostile[n % hostile.len()].1.clone()),
        5 => upload(variant(HUBBLE, n)),
        6 => upload(ROCKET.to_vec()),
        7 => upload(ROCKET.to_vec()).header("cache-control", "no-cache"),
        8 => child.base64_request(client, &variant(ROCKET, n)),
        9 => child.url_request(client, &origin.url(&format!("/{n}"))),
        10 => upload(converted(&tiny(n), image_rs::ImageFormat::Bmp)),
        11 if n.is_multiple_of(2) => upload(variant(PHONE, n)),
        11 => upload(avif()),
        12 => client.post(child.url("/vectorize-image-base64")).body("{\"image_base64\": \"***\"}"),
        13 => client.get(child.url("/metrics")),
        14 => {
            // Leaves before the answer.
            let sent =
                upload(variant(ROCKET, n)).timeout(Duration::from_millis(random as u64 % 60));
            return match sent.send().await {
                Ok(response) => response.status().as_u16().to_string(),
                Err(_) => "left".into(),
            };
        }
        _ => {
            // Sends half of a request, and stalls until it is closed.
            let mut stream = TcpStream::connect(child.address).await.unwrap();
            let half = b"POST /vectorize-image HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{";
            let _ = stream.write_all(half).await;
            return "stalled".into();
        }
    };
    match request.send().await {
        Ok(response) => {
            let status = response.status().as_u16().to_string();
            if response.bytes().await.is_ok() { status } else { "cut".into() }
        }
        Err(error) => format!("failed: {error:?}"),
    }
}

/// As the unit starts it: an allocator with an arena for each few threads keeps what each of them
/// once needed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour"]
async fn a_long_run_as_the_unit_starts_it_leaves_everything_as_it_was() {
    soak(&[("MALLOC_ARENA_MAX", "2")]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour"]
async fn a_long_run_as_cargo_starts_it_leaves_everything_as_it_was() {
    soak(&[]).await;
}

async fn soak(environment: &[(&str, &str)]) {
    let seconds: u64 = std::env::var("SOAK_SECONDS").map_or(1800, |text| text.parse().unwrap());
    let length = Duration::from_secs(seconds);
    // Until idle connections have been closed.
    let pause = Duration::from_secs(if length < LONG { 6 } else { 15 });
    let hostile: Vec<_> =
        bombs::all().into_iter().filter(|(_, picture)| picture.len() < 300_000).collect();
    let faults = AtomicUsize::new(0);
    let nvidia = FakeNvidia::with_uploads(move |request| {
        // One call in ten goes wrong, each time in another way.
        if request.line() != INFER || fastrand::u8(0..10) != 0 {
            return None;
        }
        Some(match faults.fetch_add(1, Ordering::Relaxed) % 6 {
            0 => Reply::status(503),
            1 => Reply::status(429),
            2 => Reply::CloseAfter(Vec::new()),
            3 => Reply::CloseAfter(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n{".to_vec()),
            4 => embedding().after(Duration::from_millis(300)),
            _ => Reply::Hang,
        })
    })
    .await;
    let origin = FakeServer::start(|request, _| {
        let n = request.target.trim_start_matches('/').parse().unwrap();
        Reply::new(200, &[], variant(ROCKET, n))
    })
    .await;
    let allow = origin.address.to_string();
    let mut settings = vec![
        // Small, so that they are full before the first look.
        ("IMAGESVC_CACHE_MEMORY", "8MiB"),
        ("IMAGESVC_CACHE_DISK", "16MiB"),
        ("IMAGESVC_DOWNLOADS_MAX_BYTES", "200MiB"),
        ("IMAGESVC_FETCH_ALLOW", &allow),
        ("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "512"),
        ("NVIDIA_TIMEOUT", "2s"),
        ("IMAGESVC_REQUEST_TIMEOUT", "10s"),
    ];
    settings.extend(environment);
    let folder = tempfile::tempdir().unwrap();
    let child = Child::start_with(&nvidia, folder.path(), &settings);
    // The service closes a connection that is idle for 10 s: a client that kept it as long would now
    // and then send a request into the closing one.
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(16)
        .pool_idle_timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let counter = AtomicUsize::new(0);
    let outcomes = Mutex::new(std::collections::BTreeMap::<String, usize>::new());
    let traffic = |length: Duration| {
        let (client, child, origin, counter, outcomes) =
            (&client, &child, &origin, &counter, &outcomes);
        let hostile = &hostile;
        async move {
            let started = Instant::now();
            let ticks = stream::unfold(0, |n: u32| async move {
                let next = started + Duration::from_secs(1) / RATE * n;
                tokio::time::sleep_until(next.into()).await;
                (next.duration_since(started) < length).then_some(((), n + 1))
            });
            let requests = ticks.map(|()| async move {
                let n = counter.fetch_add(1, Ordering::Relaxed);
                let outcome = one(child, origin, client, hostile, n).await;
                *outcomes.lock().unwrap().entry(outcome).or_default() += 1;
            });
            requests.buffer_unordered(64).collect::<()>().await;
        }
    };
    // Until the caches and the folder are full, and the allocator has seen the worst of the mix.
    let part = length / 10;
    for _ in 0..3 {
        traffic(part).await;
        println!("{} MB under load", child.memory() / 1_000_000);
    }
    let before = ResourceUsage::when_idle(&child, pause).await;
    println!("after {:?}: {before:?}", 3 * part);
    for _ in 0..7 {
        traffic(part).await;
        println!("{} MB under load", child.memory() / 1_000_000);
    }
    let after = ResourceUsage::when_idle(&child, pause).await;
    println!("at the end: {after:?}; {:#?}", outcomes.lock().unwrap());
    let requests = counter.load(Ordering::Relaxed);
    println!("{requests} requests, {} calls to NVIDIA", nvidia.count());
    {
        let outcomes = outcomes.lock().unwrap();
        let known = ["200", "400", "413", "415", "422", "502", "503", "504", "left", "stalled"];
        assert!(outcomes.keys().all(|outcome| known.contains(&outcome.as_str())), "{outcomes:?}");
        assert!(outcomes["200"] > requests / 2, "most are served: {outcomes:?}");
    }
    let growth = if length < LONG { before.memory / 2 } else { before.memory / 20 };
    after.assert_no_more_than(&before, growth);
    let (status, _) = child.stop();
    assert_eq!(status.code(), Some(0));
}
