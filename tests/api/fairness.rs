//! Fairness: whatever one network sends, another network is served.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use image_rs::ImageFormat;
use imagesvc::decoder;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

use crate::support::{
    FakeNvidia, FakeServer, HUBBLE, ROCKET, TestApp, assert_problem, client_from, connect_from,
    converted, decoder_settings, embedding, fake_decoder, form, metric, noise_png, picture_number,
    post_head, tiny, variant,
};

/// The address of the clients that take too much.
const FLOOD: [u8; 4] = [127, 0, 0, 2];
/// The address of a client that must be served all the same.
const OTHER: [u8; 4] = [127, 0, 0, 9];

/// How long a prompt answer may take on a busy machine.
const PROMPTLY: Duration = Duration::from_secs(5);

/// Sends a good picture by each route from an address, and asserts that all are answered promptly.
async fn assert_served(
    app: &TestApp,
    picture_server: &FakeServer,
    source: [u8; 4],
    picture: &[u8],
) {
    let client = client_from(source);
    let requests = [
        app.upload_request(picture, "a.png"),
        app.base64_request(picture),
        app.url_request(&picture_server.url("/a.png")),
    ];
    for request in requests {
        let answer = timeout(PROMPTLY, app.send_by(&client, request)).await.unwrap();
        answer.vector();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_send_only_a_head_block_no_other_client() {
    const HEADERS: [(&str, usize); 6] = [
        ("/vectorize-image-base64", 30_300_000),
        ("/vectorize-image-base64", 11_050_000),
        ("/vectorize-image-upload", 20 << 20),
        ("/vectorize-image-base64", 29_000_000),
        ("/vectorize-image", 60_000),
        ("/vectorize-image-upload", 1000),
    ];
    let (nvidia, picture_server) = (FakeNvidia::healthy().await, FakeServer::serving(ROCKET).await);
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    let mut open: Vec<TcpStream> = Vec::new();
    // As many connections as one address may have, less those of the good client at the same
    // address; then the same from more addresses.
    for (source, count) in [(1, 58), (2, 64), (3, 64), (4, 64)] {
        for n in 0..count {
            let mut stream = connect_from([127, 0, 0, source], app.address).await.unwrap();
            let (route, length) = HEADERS[n % HEADERS.len()];
            stream.write_all(&post_head(route, length, "")).await.unwrap();
            open.push(stream);
        }
        let waiting = open.len() as f64;
        app.wait_for(|value| value("imagesvc_requests_in_flight") >= waiting + 1.0).await;
        assert_eq!(metric(&app.get("/metrics").await.text(), "imagesvc_buffered_bytes"), 0.0);
        for source in [OTHER, [127, 0, 0, 1]] {
            assert_served(&app, &picture_server, source, ROCKET).await;
        }
    }
    let metrics = app.get("/metrics").await.text();
    assert!(!metrics.contains("imagesvc_requests_shed_total{"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_sends_until_it_is_refused_leaves_memory_for_another_network() {
    let (nvidia, picture_server) = (FakeNvidia::healthy().await, FakeServer::serving(ROCKET).await);
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_MAX_IMAGE_BYTES", "3MiB")
        .setting("IMAGESVC_MAX_BUFFERED_BYTES", "20MiB")
        .may_fetch_from(&picture_server)
        .start()
        .await;
    let body = vec![b' '; 4_000_000];
    let mut open = Vec::new();
    for round in 1.. {
        assert!(round < 9, "the flood is never refused");
        let mut stream = connect_from(FLOOD, app.address).await.unwrap();
        stream.write_all(&post_head("/vectorize-image-base64", 4_100_000, "")).await.unwrap();
        // The service may close the connection of a refused client.
        let _ = stream.write_all(&body).await;
        open.push(stream);
        let shed = "imagesvc_requests_shed_total{reason=\"memory\"}";
        let taken = f64::from(round) * 4_000_000.0;
        app.wait_for(|value| value("imagesvc_buffered_bytes") >= taken || value(shed) > 0.0).await;
        if metric(&app.get("/metrics").await.text(), shed) > 0.0 {
            break;
        }
    }
    let refused = app.send_by(&client_from(FLOOD), app.base64_request(&vec![0; 2_700_000])).await;
    assert_problem(&refused, 503, "overloaded");
    // A request whose declared length cannot fit is refused at its header.
    let mut stream = connect_from(FLOOD, app.address).await.unwrap();
    stream.write_all(&post_head("/vectorize-image-base64", 4_100_000, "")).await.unwrap();
    let mut status = [0; 12];
    timeout(PROMPTLY, stream.read_exact(&mut status)).await.unwrap().unwrap();
    assert_eq!(&status, b"HTTP/1.1 503");
    // nearly as large as a picture may be
    let large = noise_png(1000, 1000);
    assert_served(&app, &picture_server, OTHER, &large).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn received_bytes_count_as_long_as_they_are_in_memory() {
    const STEP: f64 = 65_536.0;
    const BUFFERED: &str = "imagesvc_buffered_bytes";
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_LARGE_IMAGES", "shrink").start().await;
    // A body that is read as a whole, the header of a form's part, and undecoded Base64.
    for route in ["/vectorize-image", "/vectorize-image-upload", "/vectorize-image-base64"] {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        stream.write_all(&post_head(route, 60_000, "")).await.unwrap();
        let part = [b"--x\r\nContent-Disposition: ".to_vec(), vec![b'a'; 20_000]].concat();
        stream.write_all(&part).await.unwrap();
        app.wait_for(|value| value(BUFFERED) == STEP).await;
        drop(stream);
        app.wait_for(|value| value(BUFFERED) == 0.0).await;
    }
    // Beside the form's step, a small picture is in memory; a larger one moves to a file.
    let form = form(HUBBLE);
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    stream.write_all(&post_head("/vectorize-image-upload", form.len(), "")).await.unwrap();
    stream.write_all(&form[..100_000]).await.unwrap();
    app.wait_for(|value| value(BUFFERED) == 3.0 * STEP).await;
    stream.write_all(&form[100_000..200_000]).await.unwrap();
    app.wait_for(|value| value(BUFFERED) == 2.0 * STEP).await;
    // The body of the call to NVIDIA counts until both the request and the call have ended.
    stream.write_all(&form[200_000..]).await.unwrap();
    nvidia.wait_for(1).await;
    app.wait_for(|value| value(BUFFERED) == 8.0 * STEP).await;
    drop(stream);
    app.wait_for(|value| value("imagesvc_requests_in_flight") == 1.0).await;
    assert_eq!(metric(&app.get("/metrics").await.text(), BUFFERED), 8.0 * STEP);
    release.send(true).unwrap();
    app.wait_for(|value| value(BUFFERED) == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_with_the_most_pictures_at_work_leaves_permits_for_another_network() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IN_FLIGHT", "8").start().await;
    let (flood, other) = (client_from(FLOOD), client_from(OTHER));
    let mut flooding = FuturesUnordered::new();
    // The flood sends pictures one by one until one is refused.
    loop {
        assert!(flooding.len() < 8, "the flood took everything");
        let picture = tiny(flooding.len());
        let at_work = flooding.len() as f64 + 1.0;
        flooding.push(app.send_by(&flood, app.upload_request(&picture, "a.png")));
        let arrived = app.wait_for(|value| value("imagesvc_pictures_at_work") >= at_work);
        tokio::select! {
            refused = flooding.next() => {
                assert_problem(&refused.unwrap(), 503, "overloaded");
                break;
            }
            () = arrived => {}
        }
    }
    assert_eq!(flooding.len(), 6);
    let mine = [tiny(100), tiny(101)];
    let requests = mine.iter().map(|mine| app.upload_request(mine, "a.png"));
    let served = join_all(requests.map(|request| app.send_by(&other, request)));
    let opened = async {
        nvidia.wait_for(8).await;
        release.send(true).unwrap();
    };
    for answer in tokio::join!(served, opened).0 {
        answer.vector();
    }
    flooding.for_each(|answer| async move { drop(answer.vector()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_does_not_wait_for_every_call_of_another_networks_flood() {
    let reply = embedding().after(Duration::from_millis(50));
    let nvidia = FakeNvidia::replying(vec![reply]).await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_MAX_CONCURRENCY", "2").start().await;
    let (flood, other) = (client_from(FLOOD), client_from(OTHER));
    let pictures: Vec<_> = (0..50).map(tiny).collect();
    let flooding =
        pictures.iter().map(|picture| app.send_by(&flood, app.upload_request(picture, "a.png")));
    let beside = async {
        app.wait_for(|value| value("imagesvc_pictures_waiting") >= 30.0).await;
        let picture = tiny(1000);
        app.send_by(&other, app.upload_request(&picture, "a.png")).await.vector();
        let calls = nvidia.received();
        let mine = calls.iter().position(|call| picture_number(call) == 1000).unwrap();
        assert!(mine < 35, "{mine} calls came before it");
    };
    let (answers, ()) = tokio::join!(join_all(flooding), beside);
    answers.iter().for_each(|answer| drop(answer.vector()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_uses_up_the_pace_leaves_calls_for_another_network() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_REQUESTS_PER_MINUTE", "8")
        .setting("IMAGESVC_REQUEST_TIMEOUT", "5s")
        .configure(|config| {
            config.nvidia.pace_window = Duration::from_millis(1500);
        })
        .start()
        .await;
    let (flood, other) = (client_from(FLOOD), client_from(OTHER));
    let pictures: Vec<_> = (0..60).map(tiny).collect();
    let flooding =
        pictures.iter().map(|picture| app.send_by(&flood, app.upload_request(picture, "a.png")));
    let beside = async {
        // By now the flood has all the calls that it can get.
        let refused = "imagesvc_requests_total{route=\"/vectorize-image-upload\",status=\"503\"}";
        app.wait_for(|value| value(refused) >= 1.0).await;
        let picture = tiny(1000);
        app.send_by(&other, app.upload_request(&picture, "a.png")).await.vector();
    };
    let (answers, ()) = tokio::join!(join_all(flooding), beside);
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(served >= 20, "{served}: before the other came, the flood had most of the pace");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_does_not_wait_for_every_decode_of_another_networks_flood() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let real = decoder_settings().program;
    let slow =
        format!("echo \"$5\" >> '{}'; sleep 0.1; exec '{}' \"$@\"", log.display(), real.display());
    let program = fake_decoder(&folder, &slow);
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| {
            config.decoder = decoder::Settings { program, max_children: 1, ..decoder_settings() };
        })
        .start()
        .await;
    let (flood, other) = (client_from(FLOOD), client_from(OTHER));
    let bmp = converted(&tiny(0), ImageFormat::Bmp);
    let pictures: Vec<_> = (0..30).map(|n| variant(&bmp, n)).collect();
    let flooding =
        pictures.iter().map(|picture| app.send_by(&flood, app.upload_request(picture, "a.bmp")));
    let widths = || std::fs::read_to_string(&log).unwrap_or_default();
    let beside = async {
        let (at_work, done) = ("imagesvc_pictures_at_work", "imagesvc_pictures_saved_total");
        app.wait_for(|value| value(at_work) + value(done) >= 30.0).await;
        let decoded = widths().lines().count();
        assert!(decoded < 20, "{decoded}: the flood is over");
        let picture = converted(ROCKET, ImageFormat::WebP);
        app.send_by(&other, app.upload_request(&picture, "a.webp")).await.vector();
        let widths = widths();
        let mine = widths.lines().position(|width| width == "640").unwrap();
        assert!(mine <= decoded + 2, "of {widths:?} after {decoded}");
    };
    let (answers, ()) = tokio::join!(join_all(flooding), beside);
    answers.iter().for_each(|answer| drop(answer.vector()));
}
