//! The URL route: which pictures the service fetches, and how.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use serde_json::json;

use crate::support::{
    Answer, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, TestApp, assert_problem, free_address,
};

/// The line of the `Accept` header that a fetch sends.
const ACCEPT: &str = if cfg!(feature = "heic") {
    "accept: image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff,image/heic;q=0.5"
} else {
    "accept: image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff"
};

/// A service whose address policy allows this server.
async fn app_allowed_to_fetch_from(nvidia: &FakeNvidia, picture_server: &FakeServer) -> TestApp {
    TestApp::builder(nvidia).may_fetch_from(picture_server).start().await
}

/// Requests a picture by the URL of a host that sends this reply. If the answer is an error, asserts that
/// no picture is saved or sent to NVIDIA.
async fn fetch(reply: Reply) -> Answer {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(move |_, _| reply.clone()).await;
    let app = app_allowed_to_fetch_from(&nvidia, &picture_server).await;
    let answer = app.by_url(&picture_server.url("/photo")).await;
    if answer.status != 200 {
        assert!(app.saved().is_empty());
        assert!(nvidia.received().is_empty());
    }
    answer
}

#[tokio::test]
async fn a_fetch_sends_path_and_query_unchanged_and_only_the_expected_headers() {
    let nvidia = FakeNvidia::healthy().await;
    // The wrong content type does not matter: the service detects the format from the bytes.
    let picture_server =
        FakeServer::start(|_, _| Reply::new(200, &[("content-type", "text/plain")], ROCKET)).await;
    let app = app_allowed_to_fetch_from(&nvidia, &picture_server).await;
    // The fragment after `#` is not sent. The rest is sent as it is: the service does not decode it and
    // encode it again.
    let url = picture_server.url("/a%20b/photo.jpg?size=1&x=%2F#part");
    let answer = app.by_url(&url).await;
    answer.assert_success();
    assert_eq!(
        answer.json()["source_url"],
        url,
        "source_url should be exactly the URL that the client sent"
    );
    assert!(answer.json().get("original_filename").is_none());
    assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
    let received = picture_server.received();
    assert_eq!(picture_server.lines(), ["GET /a%20b/photo.jpg?size=1&x=%2F"]);
    assert_eq!(
        received[0].sorted_headers(), // all except `host`
        [
            "accept-encoding: identity",
            ACCEPT,
            concat!(
                "user-agent: Mozilla/5.0 (compatible; imagesvc/",
                env!("CARGO_PKG_VERSION"),
                ")"
            ),
        ]
    );
}

#[tokio::test]
async fn at_most_three_redirects_are_followed_and_none_without_a_location() {
    let nvidia = FakeNvidia::healthy().await;
    // Three redirects lead from /0 to the picture, so four lead there from /-1.
    let picture_server = FakeServer::start(|request, _| match request.target.as_str() {
        "/0" => Reply::new(302, &[("location", "/1")], ""),
        "/1" => Reply::new(307, &[("location", "2?a=b")], ""),
        "/2?a=b" => Reply::new(308, &[("location", "/3")], ""),
        "/-1" => Reply::new(301, &[("location", "/0")], ""),
        "/without-location" => Reply::status(302),
        _ => Reply::new(200, &[], ROCKET),
    })
    .await;
    let app = app_allowed_to_fetch_from(&nvidia, &picture_server).await;
    app.by_url(&picture_server.url("/0")).await.assert_success();
    assert_problem(&app.by_url(&picture_server.url("/-1")).await, 502, "download_failed");
    let answer = app.by_url(&picture_server.url("/without-location")).await;
    assert_problem(&answer, 502, "download_failed");
}

#[tokio::test]
async fn a_redirect_to_a_denied_address_is_refused_and_no_connection_is_made() {
    let nvidia = FakeNvidia::healthy().await;
    let denied_server = FakeServer::serving(ROCKET).await;
    let port = denied_server.address.port();
    let picture_server = FakeServer::start(move |request, _| {
        let template = request.target.strip_prefix("/to/").unwrap();
        let location = template.replace("PORT", &port.to_string());
        Reply::new(302, &[("location", &location)], "")
    })
    .await;
    // Both servers listen on 127.0.0.1, which `may_fetch_from` allows only with the picture server's port.
    // `IMAGESVC_FETCH_PORTS` has the ports of the locations, so only their addresses can be refused.
    let app = TestApp::builder(&nvidia)
        .may_fetch_from(&picture_server)
        .setting("IMAGESVC_FETCH_PORTS", format!("80,443,{port}"))
        .start()
        .await;
    for location in [
        "http://127.0.0.1:PORT/",
        "http://localhost:PORT/",
        "//[::ffff:127.0.0.1]:PORT/",
        "http://169.254.169.254/",
    ] {
        assert_problem(
            &app.by_url(&picture_server.url(&format!("/to/{location}"))).await,
            403,
            "url_not_allowed",
        );
    }
    // The code `invalid_url` is only for the URL that the client sent.
    let answer = app.by_url(&picture_server.url("/to/file:///etc/passwd")).await;
    assert_problem(&answer, 403, "url_not_allowed");
    assert_eq!(denied_server.count(), 0, "no request should reach the denied server");
}

#[tokio::test]
async fn no_connection_is_made_to_a_denied_address() {
    let nvidia = FakeNvidia::healthy().await;
    let denied_server = FakeServer::serving(ROCKET).await;
    let port = denied_server.address.port();
    // The port is allowed, so only the address can be the reason of a refusal.
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_FETCH_PORTS", port).start().await;
    // A connection to any of these would reach the denied server.
    for host in [
        "127.0.0.1",
        "localhost",
        "127.1",
        "0x7f000001",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "127.0.0.1.",
    ] {
        let answer = app.by_url(&format!("http://{host}:{port}/")).await;
        assert_problem(&answer, 403, "url_not_allowed");
    }
    assert_eq!(denied_server.count(), 0, "no request should reach the denied server");
}

#[tokio::test]
async fn a_host_name_is_refused_if_any_of_its_addresses_is_denied() {
    let nvidia = FakeNvidia::healthy().await;
    let denied_server = FakeServer::serving(ROCKET).await;
    let port = denied_server.address.port();
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", port)
        .lookup(|name| {
            let addresses: &[[u8; 4]] = match name {
                "private.example" => &[[127, 0, 0, 1]],
                // The first address is public.
                "mixed.example" => &[[93, 184, 215, 14], [127, 0, 0, 1]],
                _ => return Err(std::io::ErrorKind::NotFound.into()),
            };
            Ok(addresses.iter().copied().map(IpAddr::from).collect())
        })
        .start()
        .await;
    for name in ["private.example", "mixed.example"] {
        let answer = app.by_url(&format!("http://{name}:{port}/")).await;
        assert_problem(&answer, 403, "url_not_allowed");
    }
    // The look-up knows neither `private.example.`, with the dot, nor `missing.example`.
    for name in ["PRIVATE.example.", "missing.example"] {
        let answer = app.by_url(&format!("http://{name}:{port}/")).await;
        assert_problem(&answer, 502, "download_failed");
    }
    assert_eq!(denied_server.count(), 0, "no request should reach the denied server");
}

#[tokio::test]
async fn the_connection_goes_to_the_address_that_was_checked() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(ROCKET).await;
    let port = picture_server.address.port();
    // Only this test's look-up, whose addresses the service checks, knows `pictures.example`. The
    // system's resolver would find nothing. After the first look-up, the name has another address, on
    // which nobody listens. An attacker's name server can do the same (DNS rebinding).
    let lookups = Arc::new(AtomicU8::new(0));
    let count = Arc::clone(&lookups);
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", port)
        .setting("IMAGESVC_FETCH_ALLOW", "127.0.0.0/8")
        .lookup(move |_| {
            let earlier = count.fetch_add(1, Ordering::SeqCst);
            Ok(vec![IpAddr::from([127, 0, 0, 1 + earlier])])
        })
        .start()
        .await;
    app.by_url(&format!("http://pictures.example:{port}/a.jpg")).await.assert_success();
    assert_eq!(lookups.load(Ordering::SeqCst), 1, "the name should be looked up only once");
    assert_eq!(
        picture_server.received()[0].header("host"),
        Some(format!("pictures.example:{port}").as_str())
    );
}

#[tokio::test]
async fn a_host_outside_the_list_of_allowed_hosts_is_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let app =
        TestApp::builder(&nvidia).setting("IMAGESVC_FETCH_HOSTS", "*.example.com").start().await;
    let answer = app.by_url("https://upload.wikimedia.org/a.jpg").await;
    let problem = assert_problem(&answer, 403, "url_not_allowed");
    assert!(problem["detail"].as_str().unwrap().contains("list of hosts"));
}

#[tokio::test]
async fn an_invalid_url_and_an_invalid_or_long_body_are_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for url in [
        "",
        "photo.jpg",
        "ftp://example.com/",
        "file:///etc/passwd",
        "http://u:p@example.com/",
        "http://",
    ] {
        assert_problem(&app.by_url(url).await, 400, "invalid_url");
    }
    for (body, error_type) in [
        (json!({}).to_string(), "missing"),
        (json!({ "url": "https://example.com" }).to_string(), "missing"),
        (json!({ "image_url": 7 }).to_string(), "string_type"),
        // A body that does not begin with `{`, and an object with a syntax error.
        ("https://example.com/a.jpg".to_owned(), "model_attributes_type"),
        ("{\"image_url\": }".to_owned(), "json_invalid"),
    ] {
        // The route ignores the content type.
        let problem = assert_problem(
            &app.post("/vectorize-image", "text/plain", body).await,
            422,
            "validation_failed",
        );
        assert_eq!(problem["errors"][0]["type"], error_type);
    }
    // The limit on this route's bodies is 64 KiB.
    let long_body = json!({ "image_url": "x".repeat(70_000) }).to_string();
    assert_problem(
        &app.post("/vectorize-image", "application/json", long_body).await,
        413,
        "image_too_large",
    );
}

#[tokio::test]
async fn an_unexpected_status_or_an_unusable_reply_is_a_failed_download() {
    for status in [201, 204, 206, 304, 400, 404, 500] {
        let problem = assert_problem(&fetch(Reply::status(status)).await, 502, "download_failed");
        assert!(problem["detail"].as_str().unwrap().contains(&status.to_string()));
    }
    for reply in [
        // An empty body, no reply, and a reply that is not HTTP.
        Reply::status(200),
        Reply::CloseAfter(Vec::new()),
        Reply::CloseAfter(b"no http".to_vec()),
        // A body that is shorter than its `Content-Length`, and an empty body without `Content-Length`.
        Reply::CloseAfter([b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n", ROCKET].concat()),
        Reply::CloseAfter(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        // A body that is not gzip, although the header says so.
        Reply::new(200, &[("content-encoding", "gzip")], ROCKET),
    ] {
        assert_problem(&fetch(reply).await, 502, "download_failed");
    }
}

#[tokio::test]
async fn a_picture_without_a_content_length_is_fetched() {
    let reply = Reply::CloseAfter([b"HTTP/1.1 200 OK\r\n\r\n", HUBBLE].concat());
    fetch(reply).await.assert_success();
}

#[tokio::test]
async fn a_fetched_file_that_is_not_a_picture_is_an_unsupported_image() {
    assert_problem(&fetch(Reply::new(200, &[], "<html>no</html>")).await, 415, "unsupported_image");
}

#[tokio::test]
async fn a_stalling_host_is_a_download_timeout() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|_, _| Reply::Hang).await;
    let app = TestApp::builder(&nvidia)
        .may_fetch_from(&picture_server)
        .setting("IMAGESVC_FETCH_TIMEOUT", "100ms")
        .start()
        .await;
    assert_problem(&app.by_url(&picture_server.url("/")).await, 504, "download_timeout");
}

#[tokio::test]
async fn a_host_that_refuses_the_connection_is_a_failed_download() {
    let nvidia = FakeNvidia::healthy().await;
    let closed_address = free_address().await;
    let app =
        TestApp::builder(&nvidia).setting("IMAGESVC_FETCH_ALLOW", closed_address).start().await;
    assert_problem(&app.by_url(&format!("http://{closed_address}/")).await, 502, "download_failed");
}

#[tokio::test]
async fn a_redirect_whose_location_is_raw_utf8_is_followed() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|request, _| match request.target.as_str() {
        "/0" => Reply::new(302, &[("location", "/föto.jpg")], ""),
        "/f%C3%B6to.jpg" => Reply::new(200, &[], ROCKET),
        other => panic!("unexpected request for {other}"),
    })
    .await;
    let app = app_allowed_to_fetch_from(&nvidia, &picture_server).await;
    app.by_url(&picture_server.url("/0")).await.assert_success();
}

#[tokio::test]
async fn the_user_agent_can_be_set() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(ROCKET).await;
    let user_agent = "my-app/1.0 (ops@example.com)";
    let app = TestApp::builder(&nvidia)
        .may_fetch_from(&picture_server)
        .setting("IMAGESVC_FETCH_USER_AGENT", user_agent)
        .start()
        .await;
    app.by_url(&picture_server.url("/rocket.jpg")).await.assert_success();
    assert_eq!(picture_server.received()[0].header("user-agent"), Some(user_agent));
}

#[tokio::test]
async fn a_picture_whose_content_length_exceeds_the_limit_is_refused_before_it_is_read() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 30000000\r\n\r\n".to_vec();
    // The body arrives so slowly that reading it would exceed the time limit of a fetch.
    let problem = assert_problem(&fetch(Reply::Trickle(head)).await, 413, "image_too_large");
    assert_eq!(problem["detail"], "The picture has 30000000 bytes, the limit is 20 MiB.");
}

#[tokio::test]
async fn an_https_host_without_tls_is_a_failed_download() {
    let nvidia = FakeNvidia::healthy().await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_FETCH_ALLOW", address).start().await;
    let answer = app.by_url(&format!("https://{address}/")).await;
    assert_problem(&answer, 502, "download_failed");
}
