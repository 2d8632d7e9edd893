//! The query parameters `save` and `backend`, and trailing slashes in paths.

use std::{path::Path, time::Duration};

use image_rs::ImageFormat;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{
    Answer, CHELSEA, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, ServiceProcess, TestApp,
    assert_problem, avif, converted, embedding, noise_png, nvidia_api::INFER, variant,
};

/// A request with this picture for each route that takes one picture. For the URL route, the service
/// fetches the picture from `picture_server`.
fn requests(app: &TestApp, picture_server: &FakeServer, picture: &[u8]) -> [RequestBuilder; 3] {
    [
        app.upload_request(picture, "a.jpg"),
        app.base64_request(picture),
        app.url_request(&picture_server.url("/photo")),
    ]
}

/// Sets a request's query.
pub fn with_query(request: RequestBuilder, query: &str) -> RequestBuilder {
    let (client, request) = request.build_split();
    let mut request = request.unwrap();
    request.url_mut().set_query(Some(query));
    RequestBuilder::from_parts(client, request)
}

/// The names of the saved pictures in a downloads folder, and of the files in its `.incoming/`.
fn files(folder: &Path) -> Vec<String> {
    let names = |folder: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let saved = names(folder).into_iter().filter(|name| !name.starts_with('.'));
    saved.chain(names(&folder.join(".incoming"))).collect()
}

/// Asserts that an answer names no saved file.
fn assert_has_no_path(answer: &Answer) {
    let answer = answer.json();
    assert!(answer.get("saved_as").is_none() && answer.get("path").is_none(), "{answer}");
}

#[tokio::test]
async fn with_save_false_a_picture_is_embedded_and_not_saved() {
    // The service sends the first picture inline and the second as an asset. It re-encodes the third.
    for picture in [ROCKET.to_vec(), HUBBLE.to_vec(), converted(CHELSEA, ImageFormat::WebP)] {
        let nvidia = FakeNvidia::healthy().await;
        let picture_server = FakeServer::serving(&picture).await;
        let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
        for request in requests(&app, &picture_server, &picture) {
            let answer = app.send(with_query(request, "save=false")).await;
            answer.assert_success();
            assert_has_no_path(&answer);
            let answer = answer.json();
            assert!(answer.get("sha256").is_some() && answer.get("width").is_some(), "{answer}");
            assert!(files(app.folder()).is_empty(), "the picture must not be saved");
        }
        let metrics = app.get("/metrics").await.text();
        assert!(metrics.contains("imagesvc_pictures_saved_total 0\n"), "{metrics}");
        assert!(metrics.contains("imagesvc_pictures_saved_bytes_total 0\n"), "{metrics}");
        // Without the parameter, the same picture is a cache hit and is saved.
        let saved = app.upload(&picture, "a.jpg").await;
        assert_eq!(saved.header("x-cache"), "hit");
        assert_eq!(files(app.folder()), [saved.saved_as()]);
    }
}

#[tokio::test]
async fn with_save_false_an_error_leaves_no_file_and_the_answer_contains_no_path() {
    // ROCKET is sent inline. The noise is too large for that, so `NVIDIA_LARGE_IMAGES` has it shrunk.
    for picture in [ROCKET.to_vec(), noise_png(400, 300)] {
        for (reply, status, code) in [
            (Reply::status(422), 422, "embedding_rejected"),
            (Reply::status(401), 502, "embedding_unauthorized"),
            (Reply::status(503), 502, "embedding_unavailable"),
            (Reply::json(200, "{}"), 502, "embedding_invalid"),
            (Reply::Hang, 504, "embedding_timeout"),
        ] {
            let nvidia = FakeNvidia::healthy_except(move |request| {
                (request.line() == INFER).then(|| reply.clone())
            })
            .await;
            let picture_server = FakeServer::serving(&picture).await;
            let app = TestApp::builder(&nvidia)
                .may_fetch_from(&picture_server)
                .setting("NVIDIA_LARGE_IMAGES", "shrink")
                // for the last reply, which never comes
                .setting("IMAGESVC_REQUEST_TIMEOUT", "1s")
                .start()
                .await;
            for request in requests(&app, &picture_server, &picture) {
                let answer = app.send(with_query(request, "save=false")).await;
                assert_problem(&answer, status, code);
                assert_has_no_path(&answer);
                app.wait_for(|value| value("imagesvc_pictures_at_work") == 0.0).await;
                assert!(files(app.folder()).is_empty(), "{code}");
            }
        }
    }
}

#[tokio::test]
async fn an_unsupported_or_damaged_file_is_not_saved_whether_save_is_true_or_false() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // A GIF whose header is valid, but whose pixels are not.
    let mut damaged = converted(CHELSEA, ImageFormat::Gif);
    damaged.truncate(damaged.len() / 3);
    // Only the headers and the palette, about 800 bytes, stay valid.
    damaged[800..].fill(0xff);
    for picture in [avif(), damaged] {
        for query in ["save=false", "save=true"] {
            let answer = app.send(with_query(app.upload_request(&picture, "a"), query)).await;
            assert_problem(&answer, 415, "unsupported_image");
            assert!(files(app.folder()).is_empty(), "the file must not be saved with {query}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_save_false_a_disconnect_or_a_kill_leaves_no_file() {
    let (release, _) = watch::channel(false);
    let shared_release = release.clone();
    let nvidia = FakeNvidia::healthy_except(move |request| {
        (request.line() == INFER).then(|| embedding().held_until(&shared_release))
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let child = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
    let downloads = folder.path().join("downloads");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let picture = noise_png(400, 300);
    let request = with_query(child.upload_request(&client, &picture), "save=false");
    let upload = tokio::spawn(request.send());
    // The calls that create the asset, upload it, and compute the embedding.
    nvidia.wait_for(3).await;
    assert!(
        files(&downloads).is_empty(),
        "the picture should be in a file without a name, which a kill would not leave behind"
    );
    upload.abort();
    assert!(upload.await.is_err(), "the client should have disconnected");
    // The service counts the request of a client that has disconnected as one with the status 499.
    let line = "imagesvc_requests_total{route=\"/vectorize-image-upload\",status=\"499\"} 1";
    loop {
        let metrics = client.get(child.url("/metrics")).send().await.unwrap();
        if metrics.text().await.unwrap().contains(line) {
            break;
        }
    }
    assert!(files(&downloads).is_empty());
    // The call goes on without a client. The next request joins it, or finds its vector in the cache.
    release.send(true).unwrap();
    let again = with_query(child.upload_request(&client, &picture), "save=false");
    let again = again.send().await.unwrap();
    assert_eq!(
        (again.status().as_u16(), again.headers()["x-cache"].as_bytes()),
        (200, &b"hit"[..])
    );
    // The kill comes while another picture waits for NVIDIA.
    let calls_before = nvidia.count();
    release.send_replace(false);
    let request = with_query(child.upload_request(&client, &variant(&picture, 1)), "save=false");
    let upload = tokio::spawn(request.send());
    nvidia.wait_for(calls_before + 3).await;
    child.kill();
    assert!(upload.await.unwrap().is_err(), "the kill should have ended the request");
    assert!(files(&downloads).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_save_false_a_shutdown_leaves_no_file() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let app = TestApp::builder(&nvidia)
        // NVIDIA never replies, so a shutdown waits for the request until this timeout.
        .configure(|config| config.server.drain_timeout = Duration::from_millis(50))
        .start()
        .await;
    let request = with_query(app.upload_request(ROCKET, "a.jpg"), "save=false");
    let upload = tokio::spawn(request.send());
    nvidia.wait_for(1).await;
    let folder = app.stop().await;
    let answer = Answer::read(upload.await.unwrap().unwrap()).await.unwrap();
    assert_problem(&answer, 503, "shutting_down");
    assert!(files(folder.path()).is_empty());
}

#[tokio::test]
async fn with_save_false_the_disk_reserve_still_applies() {
    let nvidia = FakeNvidia::healthy().await;
    // No disk has as much free space.
    let app =
        TestApp::builder(&nvidia).setting("IMAGESVC_MIN_FREE_BYTES", "900000000GiB").start().await;
    let answer = app.send(with_query(app.upload_request(ROCKET, "a.jpg"), "save=false")).await;
    assert_problem(&answer, 507, "storage_full");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_save_false_the_log_contains_no_name_of_a_saved_file() {
    // Every call for the second picture gets the status 402.
    let nvidia = FakeNvidia::replying(vec![embedding(), Reply::status(402)]).await;
    let folder = tempfile::tempdir().unwrap();
    let child = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (status, picture) in [(200, ROCKET), (503, CHELSEA)] {
        let request = with_query(child.upload_request(&client, picture), "save=false");
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    let (_, log) = child.stop();
    let events = log.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let requests: Vec<_> = events.filter(|event| event["message"] == "request").collect();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|event| event.get("saved_as").is_none()), "{requests:?}");
    assert!(requests[0]["size_bytes"].is_u64(), "the size should still be logged");
}

#[tokio::test]
async fn the_only_backend_is_accepted_and_unknown_query_parameters_are_ignored() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(ROCKET).await;
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    for query in ["backend=nv_dino", "", "a=1&a=2&%zz=%&dimensions=7", "save=true&backend=nv_dino"]
    {
        for request in requests(&app, &picture_server, ROCKET) {
            let answer = app.send(with_query(request, query)).await;
            answer.assert_success();
            assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
        }
    }
}

#[tokio::test]
async fn an_unknown_backend_or_an_invalid_save_is_refused_and_the_error_contains_the_parameter() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(ROCKET).await;
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    for (query, parameter, word) in [
        ("backend=clip", "backend", "nv_dino"),
        ("backend=", "backend", "nv_dino"),
        ("save=no", "save", "true or false"),
        ("save=%zz", "save", "true or false"),
        ("save=true&save=false", "save", "send only one of them"),
    ] {
        for request in requests(&app, &picture_server, ROCKET) {
            let answer = app.send(with_query(request, query)).await;
            let problem = assert_problem(&answer, 422, "validation_failed");
            assert_eq!(problem["errors"][0]["loc"], json!(["query", parameter]));
            assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
        }
    }
    assert!(files(app.folder()).is_empty() && nvidia.received().is_empty());
    assert_eq!(picture_server.count(), 0);
}

#[tokio::test]
async fn one_trailing_slash_changes_nothing() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(ROCKET).await;
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    for request in requests(&app, &picture_server, ROCKET) {
        let (client, request) = request.build_split();
        let mut request = request.unwrap();
        let path = format!("{}/", request.url().path());
        request.url_mut().set_path(&path);
        let request = with_query(RequestBuilder::from_parts(client, request), "save=false");
        let answer = app.send(request).await;
        answer.assert_success();
        assert_has_no_path(&answer);
    }
    for path in ["/health", "/ready", "/openapi.json", "/docs", "/docs/swagger-ui.css"] {
        let (plain, slashed) = (app.get(path).await, app.get(&format!("{path}/?a=/")).await);
        assert_eq!((slashed.status, plain.status), (200, 200), "{path}");
        assert!(slashed.body == plain.body, "{path}");
    }
    let wrong_method = app.get("/vectorize-image/").await;
    assert_problem(&wrong_method, 405, "method_not_allowed");
    assert_eq!(wrong_method.header("allow"), "POST");
    // An unknown path, and paths with more slashes.
    for path in ["/nothing/", "/health//", "//", "//health/"] {
        assert_problem(&app.get(path).await, 404, "not_found");
    }
    // Requests with and without the slash are counted together: `/health` got one of each.
    let metrics = app.get("/metrics/").await.text();
    for line in [
        "imagesvc_requests_total{route=\"/vectorize-image\",status=\"200\"} 1",
        "imagesvc_requests_total{route=\"/vectorize-image-base64\",status=\"200\"} 1",
        "imagesvc_requests_total{route=\"/vectorize-image-upload\",status=\"200\"} 1",
        "imagesvc_requests_total{route=\"/vectorize-image\",status=\"405\"} 1",
        "imagesvc_requests_total{route=\"/health\",status=\"200\"} 2",
    ] {
        assert!(metrics.lines().any(|shown| shown == line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("/\""), "no route in the metrics should end in a slash");
}

#[tokio::test]
async fn a_trailing_slash_on_the_sandbox_picture_changes_nothing() {
    let app = TestApp::sandbox().start().await;
    assert_eq!(app.get("/sandbox/photo.jpg/").await.body, ROCKET);
}
