//! Fairness: a flood of requests from one client network does not keep clients in another network
//! from being served.

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
    Bulk, FakeNvidia, FakeServer, Finished, HUBBLE, ROCKET, TestApp, assert_problem, client_from,
    connect_from, converted, decoder_settings, embedding, fake_decoder, form, metric, noise_png,
    picture_number, post_head, tiny, variant,
};

/// The source address of the clients that send too much. Each IPv4 address counts as one network.
const FLOOD: [u8; 4] = [127, 0, 0, 2];
/// The source address of a client in another network, which must be served nevertheless.
const OTHER: [u8; 4] = [127, 0, 0, 9];

/// How long an answer may take, on a busy machine, if the request does not wait for other clients.
const PROMPTLY: Duration = Duration::from_secs(5);

/// Sends `picture` by upload and as Base64, and the URL of the picture server's own picture, from this
/// source address. Asserts that each answer has a vector and comes promptly.
async fn assert_served_promptly(
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
        answer.assert_success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_send_only_their_head_do_not_block_other_clients() {
    /// The routes of the requests, and the lengths of the bodies that the requests declare. The first
    /// length is nearly the longest that is allowed for a picture of 20 MiB as Base64 with line breaks.
    /// The other lengths are examples of long and short bodies. All declared bodies together would need
    /// far more memory than IMAGESVC_MAX_BUFFERED_BYTES, which is 128 MiB.
    const HEADS: [(&str, usize); 6] = [
        ("/vectorize-image-base64", 30_300_000),
        ("/vectorize-image-base64", 11_050_000),
        ("/vectorize-image-upload", 20 << 20),
        ("/vectorize-image-base64", 29_000_000),
        ("/vectorize-image", 60_000),
        ("/vectorize-image-upload", 1000),
    ];
    let (nvidia, picture_server) = (FakeNvidia::healthy().await, FakeServer::serving(ROCKET).await);
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    let mut open_connections: Vec<TcpStream> = Vec::new();
    // One address may have 64 connections. 127.0.0.1 opens only 58, because it also sends pictures.
    for (last_byte, count) in [(1, 58), (2, 64), (3, 64), (4, 64)] {
        for n in 0..count {
            let mut stream = connect_from([127, 0, 0, last_byte], app.address).await.unwrap();
            let (route, length) = HEADS[n % HEADS.len()];
            stream.write_all(&post_head(route, length, "")).await.unwrap();
            open_connections.push(stream);
        }
        // The request for the metrics is in flight, too.
        let in_flight = open_connections.len() as f64 + 1.0;
        app.wait_for(|value| value("imagesvc_requests_in_flight") >= in_flight).await;
        assert_eq!(metric(&app.get("/metrics").await.text(), "imagesvc_buffered_bytes"), 0.0);
        // `OTHER` sends no heads, but 127.0.0.1 does.
        for source in [OTHER, [127, 0, 0, 1]] {
            assert_served_promptly(&app, &picture_server, source, ROCKET).await;
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
    // The flood sends unfinished bodies until the service refuses a request. The declared length is
    // allowed: the Base64 text of a picture of 3 MiB has 4.2 million characters.
    let unfinished_body = vec![b' '; 4_000_000];
    let mut open_connections = Vec::new();
    for round in 1.. {
        // One network may use three quarters of the 20 MiB, which is 15 MiB. Only three of these bodies
        // fit, so the refusal must come soon.
        assert!(round < 9, "the flood must be refused before its ninth request");
        let mut stream = connect_from(FLOOD, app.address).await.unwrap();
        stream.write_all(&post_head("/vectorize-image-base64", 4_100_000, "")).await.unwrap();
        // This fails if the service refuses the request and closes the connection.
        let _ = stream.write_all(&unfinished_body).await;
        open_connections.push(stream);
        let shed = "imagesvc_requests_shed_total{reason=\"memory\"}";
        let sent_bytes = f64::from(round) * 4_000_000.0;
        app.wait_for(|value| value("imagesvc_buffered_bytes") >= sent_bytes || value(shed) > 0.0)
            .await;
        if metric(&app.get("/metrics").await.text(), shed) > 0.0 {
            break;
        }
    }
    // Another request of the flood is refused: its Base64 text has 3.6 million characters. Three bodies
    // leave only 3.5 million bytes of the 15 MiB, because each counts as a multiple of 64 KiB.
    let refused = app.send_by(&client_from(FLOOD), app.base64_request(&vec![0; 2_700_000])).await;
    assert_problem(&refused, 503, "overloaded");
    // A request is refused before its body arrives if the declared length does not fit into the rest
    // of the 15 MiB.
    let mut stream = connect_from(FLOOD, app.address).await.unwrap();
    stream.write_all(&post_head("/vectorize-image-base64", 4_100_000, "")).await.unwrap();
    let mut status = [0; b"HTTP/1.1 503".len()];
    timeout(PROMPTLY, stream.read_exact(&mut status)).await.unwrap().unwrap();
    assert_eq!(&status, b"HTTP/1.1 503");
    // This picture of 3 MB is nearly as large as IMAGESVC_MAX_IMAGE_BYTES allows.
    let large = noise_png(1000, 1000);
    assert_served_promptly(&app, &picture_server, OTHER, &large).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn received_bytes_count_towards_the_memory_limit_while_they_are_in_memory() {
    /// The service counts memory in units of this many bytes.
    const UNIT: f64 = 65_536.0;
    const BUFFERED: &str = "imagesvc_buffered_bytes";
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    // HUBBLE is sent inline at the end of this test, so it must be shrunk.
    let app = TestApp::builder(&nvidia).setting("NVIDIA_LARGE_IMAGES", "shrink").start().await;
    // Each route keeps this start of a body in memory. The upload route takes it for the header of a
    // form's part. The other two routes parse their JSON only when the whole body has arrived.
    let start_of_body = [b"--x\r\nContent-Disposition: ".to_vec(), vec![b'a'; 20_000]].concat();
    for route in ["/vectorize-image", "/vectorize-image-upload", "/vectorize-image-base64"] {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        stream.write_all(&post_head(route, 60_000, "")).await.unwrap();
        stream.write_all(&start_of_body).await.unwrap();
        app.wait_for(|value| value(BUFFERED) == UNIT).await;
        drop(stream);
        app.wait_for(|value| value(BUFFERED) == 0.0).await;
    }
    // The form takes one unit. The first bytes of the picture are in memory, and take two units.
    // Later they move to a file; then the buffer for writing takes one unit.
    let body = form(HUBBLE);
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    stream.write_all(&post_head("/vectorize-image-upload", body.len(), "")).await.unwrap();
    stream.write_all(&body[..100_000]).await.unwrap();
    app.wait_for(|value| value(BUFFERED) == 3.0 * UNIT).await;
    stream.write_all(&body[100_000..200_000]).await.unwrap();
    app.wait_for(|value| value(BUFFERED) == 2.0 * UNIT).await;
    // An inline call takes eight units, which is the most memory that it may need. This memory
    // counts until the call has ended, even if the client disconnects.
    stream.write_all(&body[200_000..]).await.unwrap();
    nvidia.wait_for(1).await;
    app.wait_for(|value| value(BUFFERED) == 8.0 * UNIT).await;
    drop(stream);
    // When the upload's request has ended, only the request for the metrics is in flight.
    app.wait_for(|value| value("imagesvc_requests_in_flight") == 1.0).await;
    assert_eq!(metric(&app.get("/metrics").await.text(), BUFFERED), 8.0 * UNIT);
    release.send(true).unwrap();
    app.wait_for(|value| value(BUFFERED) == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_sends_pictures_until_one_is_refused_leaves_permits_for_another_network() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IN_FLIGHT", "8").start().await;
    let (flood, other) = (client_from(FLOOD), client_from(OTHER));
    let mut flood_uploads = FuturesUnordered::new();
    // The flood sends further pictures until the service refuses one. NVIDIA holds its replies, so
    // all accepted pictures stay at work.
    loop {
        assert!(flood_uploads.len() < 8, "the flood must be refused before it has all permits");
        let picture = tiny(flood_uploads.len());
        let expected_at_work = flood_uploads.len() as f64 + 1.0;
        flood_uploads.push(app.send_by(&flood, app.upload_request(&picture, "a.png")));
        let admitted = app.wait_for(|value| value("imagesvc_pictures_at_work") >= expected_at_work);
        tokio::select! {
            refused = flood_uploads.next() => {
                assert_problem(&refused.unwrap(), 503, "overloaded");
                break;
            }
            () = admitted => {}
        }
    }
    assert_eq!(flood_uploads.len(), 6, "one network may have three quarters of the permits");
    let pictures = [tiny(100), tiny(101)];
    let requests = pictures.iter().map(|picture| app.upload_request(picture, "a.png"));
    let other_uploads = join_all(requests.map(|request| app.send_by(&other, request)));
    let release_replies = async {
        // Six calls for the flood, and two for the other network.
        nvidia.wait_for(8).await;
        release.send(true).unwrap();
    };
    let (answers, ()) = tokio::join!(other_uploads, release_replies);
    for answer in answers {
        answer.assert_success();
    }
    while let Some(answer) = flood_uploads.next().await {
        answer.assert_success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_does_not_wait_for_every_call_of_a_flood_from_another_network() {
    let reply = embedding().after(Duration::from_millis(50));
    let nvidia = FakeNvidia::replying(vec![reply]).await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_MAX_CONCURRENCY", "2").start().await;
    let (flood, other) = (client_from(FLOOD), client_from(OTHER));
    let pictures: Vec<_> = (0..50).map(tiny).collect();
    let flood_uploads =
        pictures.iter().map(|picture| app.send_by(&flood, app.upload_request(picture, "a.png")));
    let other_upload = async {
        app.wait_for(|value| value("imagesvc_pictures_waiting") >= 30.0).await;
        let picture = tiny(1000);
        app.send_by(&other, app.upload_request(&picture, "a.png")).await.assert_success();
        let calls = nvidia.received();
        let calls_before = calls.iter().position(|call| picture_number(call) == 1000).unwrap();
        // While 30 of the flood's 50 pictures waited, at most 20 calls were made. A few more are
        // made until the other network's picture is received.
        assert!(
            calls_before < 35,
            "the other network's call must come after fewer than 35 others, not {calls_before}"
        );
    };
    let (answers, ()) = tokio::join!(join_all(flood_uploads), other_upload);
    for answer in answers {
        answer.assert_success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_exhausts_the_calls_per_minute_does_not_block_another_network() {
    let nvidia = FakeNvidia::healthy().await;
    // The window is 1.5 s long, in place of a minute. With 8 calls per window, which are mostly
    // spread evenly, about 26 calls fit into the request timeout of 5 s.
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
    let flood_uploads =
        pictures.iter().map(|picture| app.send_by(&flood, app.upload_request(picture, "a.png")));
    let other_upload = async {
        // The first refusal means that the flood has reserved all calls that it can get before the
        // deadline.
        let refused = "imagesvc_requests_total{route=\"/vectorize-image-upload\",status=\"503\"}";
        app.wait_for(|value| value(refused) >= 1.0).await;
        let picture = tiny(1000);
        app.send_by(&other, app.upload_request(&picture, "a.png")).await.assert_success();
    };
    let (answers, ()) = tokio::join!(join_all(flood_uploads), other_upload);
    let embedded = answers.iter().filter(|answer| answer.status == 200).count();
    // The flood gets most of the 26 calls, because the other network needs only one.
    assert!(embedded >= 20, "the flood should get at least 20 of the calls, not {embedded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_does_not_wait_for_every_decode_of_a_flood_from_another_network() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let real_decoder = decoder_settings().program;
    // Logs its fifth argument, which is the picture's width. Waits 0.1 s. Runs the real decoder.
    let slow_decoder = format!(
        "echo \"$5\" >> '{}'; sleep 0.1; exec '{}' \"$@\"",
        log.display(),
        real_decoder.display()
    );
    let program = fake_decoder(&folder, &slow_decoder);
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
    let flood_uploads =
        pictures.iter().map(|picture| app.send_by(&flood, app.upload_request(picture, "a.bmp")));
    let read_widths = || std::fs::read_to_string(&log).unwrap_or_default();
    let other_upload = async {
        // Waits until all 30 pictures of the flood have arrived.
        app.wait_for(|value| value("imagesvc_pictures_saved_total") >= 30.0).await;
        let decodes_before = read_widths().lines().count();
        assert!(
            decodes_before < 20,
            "fewer than 20 of the 30 decodes should have started, not {decodes_before}"
        );
        let picture = converted(ROCKET, ImageFormat::WebP); // 640 pixels wide
        app.send_by(&other, app.upload_request(&picture, "a.webp")).await.assert_success();
        let widths = read_widths();
        let position = widths.lines().position(|width| width == "640").unwrap();
        // A few decodes may start before the picture has arrived.
        assert!(
            position <= decodes_before + 2,
            "the picture of width 640 should be among the first decodes after {decodes_before} \
             others: {widths:?}"
        );
    };
    let (answers, ()) = tokio::join!(join_all(flood_uploads), other_upload);
    for answer in answers {
        answer.assert_success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_client_is_served_soon_although_a_bulk_run_fills_the_service() {
    /// How many pictures the single client sends, one after the other.
    const ROUNDS: usize = 5;
    /// How many pictures the bulk run sends. Each round needs 100 waiting pictures, and fewer than 40 are
    /// embedded in it. So enough pictures are left for the last round.
    const PICTURES: usize = 450;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_REQUESTS_PER_MINUTE", "100")
        // The bulk run opens up to 500 connections.
        .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "1000")
        .configure(|config| {
            // Two seconds in place of a minute, so that the test is short.
            config.nvidia.pace_window = Duration::from_secs(2);
        })
        .start()
        .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(PICTURES);
    let arguments = format!("photos --out vectors.jsonl --concurrency 500 --to {}", app.url(""));
    let run = bulk.start(&arguments);
    let single_client = client_from(OTHER);
    for round in 0..ROUNDS {
        app.wait_for(|value| value("imagesvc_pictures_waiting") >= 100.0).await;
        let calls_before = nvidia.count();
        let picture = tiny(1000 + round);
        let upload = app.send_by(&single_client, app.upload_request(&picture, "a.png"));
        // This is a tenth of the request timeout, which is 60 s.
        timeout(Duration::from_secs(6), upload).await.unwrap().assert_success();
        // In the order of arrival, this call would come after 100 calls for waiting pictures. A few
        // calls are made while the client's picture is received.
        let calls = nvidia.count() - calls_before;
        assert!(calls < 40, "round {round}: fewer than 40 calls should be made, not {calls}");
    }
    Finished::from(run).expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), PICTURES);
    assert_eq!(nvidia.count(), PICTURES + ROUNDS);
}
