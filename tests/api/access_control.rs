//! Who may call the service: client keys, the rate limit, trusted proxies, and pages of other
//! sites.

use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Answer, FakeNvidia, ROCKET, ServiceProcess, TestApp, assert_problem, post_head, tiny,
};

/// The setting with two client keys.
const KEYS: (&str, &str) = ("IMAGESVC_API_KEYS", "first-client-key, second-client-key");

/// The routes that take one picture. `batch_errors.rs` tests that `/v1/embeddings` requires a key.
const VECTORIZE_ROUTES: [&str; 3] =
    ["/vectorize-image", "/vectorize-image-base64", "/vectorize-image-upload"];

/// Sends a request without a body.
async fn send(app: &TestApp, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = app.client.request(method, app.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.send(request).await
}

#[tokio::test]
async fn with_client_keys_every_route_except_the_open_ones_requires_a_key() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).settings(&[KEYS]).start().await;
    let protected = VECTORIZE_ROUTES.map(|path| (Method::POST, path)).into_iter().chain([
        (Method::GET, "/metrics"),
        (Method::GET, "/metrics/"),
        // a wrong method
        (Method::GET, "/vectorize-image"),
        // Paths that do not exist. Two of them begin like an open path.
        (Method::GET, "/nothing"),
        (Method::GET, "/docsx"),
        (Method::GET, "/health//"),
    ]);
    for (method, path) in protected {
        for wrong_value in [
            None,
            Some("Bearer "),
            Some("Bearer wrong"),
            Some("Bearer first-client-ke"),
            Some("Bearer first-client-key-and-more"),
            Some("Bearer first-client-key, second-client-key"),
            Some("Basic first-client-key"),
            Some("first-client-key"),
        ] {
            let headers: Vec<_> =
                wrong_value.map(|value| ("authorization", value)).into_iter().collect();
            let answer = send(&app, method.clone(), path, &headers).await;
            assert_problem(&answer, 401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), "Bearer", "{path} {wrong_value:?}");
        }
        for valid_value in ["Bearer first-client-key", "bearer second-client-key"] {
            let headers = [("authorization", valid_value)];
            let answer = send(&app, method.clone(), path, &headers).await;
            assert_ne!(answer.status, 401, "the key must be accepted on {path}");
        }
    }
    let open = [
        "/",
        "/health",
        "/health/",
        "/ready",
        "/docs",
        "/docs/",
        "/docs/swagger-ui.css",
        "/openapi.json",
    ];
    for path in open {
        assert_eq!(send(&app, Method::GET, path, &[]).await.status, 200, "{path}");
    }
    // On an open path, a wrong method is a 405 even without a key.
    let wrong_method = send(&app, Method::POST, "/", &[]).await;
    assert_problem(&wrong_method, 405, "method_not_allowed");
    let upload = app.upload_request(ROCKET, "a.jpg").bearer_auth("second-client-key");
    app.send(upload).await.assert_success();
    assert_eq!(app.saved().len(), 1);
}

#[tokio::test]
async fn a_request_without_a_key_is_refused_before_its_body_is_read() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).settings(&[KEYS]).start().await;
    for path in VECTORIZE_ROUTES {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        let head = post_head(path, 1_000_000, "expect: 100-continue\r\n");
        stream.write_all(&head).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 401 "),
            "the first answer should be a 401, not a 100: {answer}"
        );
    }
    // A client that sends a large body without waiting receives the 401 as well.
    let five_mib = vec![0; 5 << 20];
    assert_problem(&app.upload(&five_mib, "a.jpg").await, 401, "unauthorized");
    assert!(app.saved().is_empty());
}

#[tokio::test]
async fn each_client_key_has_its_own_rate_limit() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .settings(&[KEYS])
        .setting("IMAGESVC_RATE_LIMIT_PER_MINUTE", "3")
        .start()
        .await;
    let upload = |key: &'static str| app.send(app.upload_request(ROCKET, "a.jpg").bearer_auth(key));
    for _ in 0..3 {
        upload("first-client-key").await.assert_success();
    }
    let answer = upload("first-client-key").await;
    assert_problem(&answer, 429, "rate_limited");
    let retry_after: u64 = answer.header("retry-after").parse().unwrap();
    assert!(
        (15..=20).contains(&retry_after),
        "Retry-After should be a third of a minute, or a little less: {retry_after} s"
    );
    upload("second-client-key").await.assert_success();
    // The limit counts POST requests only, so more than three other requests with the first key are
    // answered.
    for _ in 0..5 {
        let key = [("authorization", "Bearer first-client-key")];
        assert_eq!(send(&app, Method::GET, "/metrics", &key).await.status, 200);
    }
    assert_eq!(app.saved().len(), 3 + 1, "the refused picture must not be saved");
}

/// Uploads a picture with this `X-Forwarded-For`, and returns the status.
async fn upload_forwarded_for(app: &TestApp, forwarded_for: &str) -> u16 {
    let request = app.upload_request(ROCKET, "a.jpg").header("x-forwarded-for", forwarded_for);
    app.send(request).await.status
}

#[tokio::test]
async fn without_keys_the_rate_limit_counts_by_the_client_address_that_a_trusted_proxy_reports() {
    let nvidia = FakeNvidia::healthy().await;
    // The limit of each client: two pictures per minute.
    let two_per_minute = ("IMAGESVC_RATE_LIMIT_PER_MINUTE", "2");
    let app = TestApp::builder(&nvidia)
        .settings(&[two_per_minute])
        .setting("IMAGESVC_TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .await;
    // The proxy appends the client's address. The client may have forged any address before it.
    for (forwarded_for, status, expectation) in [
        ("198.51.100.1", 200, "the first picture of a client should be accepted"),
        ("9.9.9.9, 198.51.100.1", 200, "the second picture of a client should be accepted"),
        ("8.8.8.8, 198.51.100.1", 429, "a forged address should not give a client another limit"),
        ("198.51.100.2", 200, "another client should have its own limit"),
        ("2001:db8:1:2::3", 200, "the first picture of an IPv6 network should be accepted"),
        ("2001:db8:1:2::4", 200, "the second picture of an IPv6 network should be accepted"),
        ("2001:db8:1:2:ffff::5", 429, "a whole IPv6 /64 should have one limit"),
    ] {
        assert_eq!(upload_forwarded_for(&app, forwarded_for).await, status, "{expectation}");
    }

    let app = TestApp::builder(&nvidia).settings(&[two_per_minute]).start().await;
    for (forwarded_for, status) in
        [("198.51.100.1", 200), ("198.51.100.2", 200), ("198.51.100.3", 429)]
    {
        assert_eq!(
            upload_forwarded_for(&app, forwarded_for).await,
            status,
            "without trusted proxies the header should be ignored"
        );
    }
}

#[tokio::test]
async fn a_trusted_proxy_is_exempt_from_the_connection_limit_per_peer() {
    let nvidia = FakeNvidia::healthy().await;
    // The test connects from 127.0.0.1. Only the first value contains this address.
    for (trusted_proxies, expected) in [("127.0.0.1", 4), ("10.0.0.0/8", 2)] {
        let app = TestApp::builder(&nvidia)
            .setting("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "2")
            .setting("IMAGESVC_TRUSTED_PROXIES", trusted_proxies)
            .start()
            .await;
        let mut answered = 0;
        let mut open_connections = Vec::new();
        for _ in 0..4 {
            let mut stream = TcpStream::connect(app.address).await.unwrap();
            let mut status = [0; b"HTTP/1.1 200".len()];
            // The service closes or resets a connection over the limit, so writing and reading may
            // fail.
            let written = stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
            let read = stream.read_exact(&mut status).await;
            if written.is_ok() && read.is_ok() && &status == b"HTTP/1.1 200" {
                answered += 1;
            }
            open_connections.push(stream);
        }
        assert_eq!(
            answered, expected,
            "with the trusted proxies {trusted_proxies}, {expected} connections should be answered"
        );
    }
}

#[tokio::test]
async fn a_request_from_a_page_of_another_origin_is_refused_on_every_vectorize_route() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for path in VECTORIZE_ROUTES {
        for headers in [
            &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")][..],
            // the page of a mobile app
            &[("origin", "capacitor://localhost")],
            // a page in a sandboxed frame
            &[("origin", "null")],
            &[("sec-fetch-site", "cross-site")],
        ] {
            let answer = send(&app, Method::POST, path, headers).await;
            let problem = assert_problem(&answer, 403, "cross_origin");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("IMAGESVC_CORS_ORIGINS"), "{detail}");
            // The error quotes the origin, or calls it unknown if the request has none.
            let origin = headers.iter().find(|(name, _)| *name == "origin");
            assert!(detail.contains(origin.map_or("unknown", |(_, origin)| origin)), "{detail}");
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
        }
        let own_origin = app.url("");
        for headers in [
            &[("sec-fetch-site", "same-origin"), ("origin", own_origin.as_str())][..],
            &[("origin", own_origin.as_str())],
            // a client that is not a browser
            &[],
        ] {
            let answer = send(&app, Method::POST, path, headers).await;
            assert_eq!(
                answer.status, 422,
                "the origin should be accepted, and the empty body refused"
            );
        }
    }
    // Without allowed origins, a preflight request is refused like any request with a wrong method.
    let preflight = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
    let answer = send(&app, Method::OPTIONS, VECTORIZE_ROUTES[0], &preflight).await;
    assert_problem(&answer, 405, "method_not_allowed");
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_call_the_service_and_read_its_answers() {
    let nvidia = FakeNvidia::healthy().await;
    let origins = ("IMAGESVC_CORS_ORIGINS", "https://app.example.com, capacitor://localhost");
    let app = TestApp::builder(&nvidia).settings(&[KEYS, origins]).start().await;
    for origin in ["https://app.example.com", "capacitor://localhost"] {
        // The browser's preflight request carries no key.
        let preflight = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, content-type"),
        ];
        let preflight_answer =
            send(&app, Method::OPTIONS, "/vectorize-image-upload", &preflight).await;
        assert_eq!(
            (preflight_answer.status, preflight_answer.header("access-control-allow-origin")),
            (200, origin)
        );
        let allowed = preflight_answer.header("access-control-allow-headers");
        let allowed: Vec<_> = allowed.split(',').map(str::trim).collect();
        for header in [
            "authorization",
            "content-type",
            "cache-control",
            "x-request-id",
            "traceparent",
            "tracestate",
            // The headers that OpenAI's JavaScript client adds.
            "x-stainless-arch",
            "x-stainless-lang",
            "x-stainless-os",
            "x-stainless-package-version",
            "x-stainless-retry-count",
            "x-stainless-runtime",
            "x-stainless-runtime-version",
            "x-stainless-timeout",
        ] {
            assert!(allowed.contains(&header), "{header}: {allowed:?}");
        }
        assert!(preflight_answer.header("access-control-allow-methods").contains("POST"));

        let upload_with_key = |key: &str| {
            let request = app.upload_request(&tiny(1), "a.png").bearer_auth(key);
            app.send(request.header("origin", origin).header("sec-fetch-site", "cross-site"))
        };
        let success = upload_with_key("first-client-key").await;
        success.assert_success();
        let error = upload_with_key("wrong").await;
        assert_problem(&error, 401, "unauthorized");
        for answer in [success, error] {
            assert_eq!(answer.header("access-control-allow-origin"), origin);
            let exposed = answer.header("access-control-expose-headers");
            for header in ["x-request-id", "x-cache", "x-should-retry", "retry-after"] {
                assert!(exposed.split(',').any(|name| name.trim() == header), "{header}");
            }
            assert!(answer.header("vary").contains("origin"));
        }
    }
    let other_origin = [("origin", "https://other.example"), ("sec-fetch-site", "cross-site")];
    let answer = send(&app, Method::POST, "/vectorize-image", &other_origin).await;
    assert_problem(&answer, 403, "cross_origin");
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn the_log_contains_the_client_address_that_a_trusted_proxy_reports() {
    let nvidia = FakeNvidia::healthy().await;
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(
        &nvidia,
        folder.path(),
        &[("IMAGESVC_TRUSTED_PROXIES", "127.0.0.1/32")],
    );
    let client = reqwest::Client::new();
    // The proxy appends the client's address. The client may have forged any address before it.
    for forwarded_for in ["198.51.100.7", "1.2.3.4, 198.51.100.8"] {
        let request = client.get(service.url("/nothing")).header("x-forwarded-for", forwarded_for);
        assert_eq!(request.send().await.unwrap().status(), 404);
    }
    let (_, log) = service.stop();
    let events = log.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let clients: Vec<_> =
        events.filter_map(|event| Some(event.get("client")?.as_str()?.to_owned())).collect();
    assert_eq!(clients, ["198.51.100.7", "198.51.100.8"]);
}

#[tokio::test]
async fn under_an_unknown_host_name_the_home_page_shows_a_warning_and_its_uploads_are_refused() {
    const HOST: &str = "evil.example:8000";
    const FROM_PAGE: [(&str, &str); 2] =
        [("origin", "http://evil.example:8000"), ("sec-fetch-site", "same-origin")];
    let upload = async |app: &TestApp, headers: &[(&str, &str)]| {
        let mut request = app.upload_request(ROCKET, "a.jpg").header("host", HOST);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        app.send(request).await
    };
    let home_page = async |app: &TestApp| {
        app.send(app.client.get(app.url("/")).header("host", HOST)).await.text()
    };
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // To the browser, the page and the service have the same origin: that of the unknown host.
    let problem = assert_problem(&upload(&app, &FROM_PAGE).await, 403, "cross_origin");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(HOST) && detail.contains("IMAGESVC_HOSTS"), "{detail}");
    // The page shows its warning if this attribute is not empty.
    assert!(home_page(&app).await.contains(&format!("data-unknown-host=\"{HOST}\"")));
    assert!(
        app.get("/").await.text().contains("data-unknown-host=\"\""),
        "there should be no warning if the host is an IP address"
    );
    assert_eq!(nvidia.count(), 0);
    // A client that is not a browser sends no origin, and may use any host name.
    upload(&app, &[]).await.assert_success();
    // Each of these settings allows the page's origin.
    for (name, value) in [
        ("IMAGESVC_HOSTS", "images.example, evil.example"),
        ("IMAGESVC_CORS_ORIGINS", "http://evil.example:8000"),
    ] {
        let app = TestApp::builder(&nvidia).setting(name, value).start().await;
        upload(&app, &FROM_PAGE).await.assert_success();
    }
    // With client keys every host name is allowed, because an attacker's page has no key.
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_API_KEYS", "k-1").start().await;
    assert_problem(&upload(&app, &FROM_PAGE).await, 401, "unauthorized");
    let with_key = [&FROM_PAGE[..], &[("authorization", "Bearer k-1")]].concat();
    upload(&app, &with_key).await.assert_success();
    assert!(home_page(&app).await.contains("data-unknown-host=\"\""));
}
