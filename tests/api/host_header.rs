//! A request over HTTP/1.1 must have exactly one valid `Host` (RFC 9112, section 3.2).

use serde_json::Value;

use crate::support::{
    FakeNvidia, SMUGGLED_REQUEST, TestApp, assert_problem, exchange, parse_answer, request_head,
};

/// The routes in the OpenAPI document, such as `POST /v1/embeddings`.
async fn documented_routes(app: &TestApp) -> Vec<String> {
    let document: Value = app.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap().iter();
    let routes = paths.flat_map(|(path, item)| {
        let path = path.replace("{id}", "nvidia/nv-dinov2");
        let methods = item.as_object().unwrap().keys();
        methods.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    routes.collect()
}

#[tokio::test]
async fn requests_of_each_kind_require_exactly_one_valid_host_header() {
    let nvidia = FakeNvidia::healthy().await;
    // With keys and origins, the test shows that the service checks the host before both.
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_API_KEYS", "k-1")
        .setting("IMAGESVC_CORS_ORIGINS", "https://app.example.com")
        .start()
        .await;
    let preflight = "origin: https://app.example.com\r\naccess-control-request-method: POST\r\n";
    let documented = documented_routes(&app).await;
    for route in [
        "GET /health",
        "GET /ready",
        "GET /metrics",
        "POST /v1/embeddings",
        "POST /vectorize-image",
        "POST /vectorize-image-base64",
        "POST /vectorize-image-upload",
    ] {
        assert!(documented.iter().any(|known| known == route), "{route}: {documented:?}");
    }
    let documented = documented.iter().map(|route| {
        let has_body = route.starts_with("POST ");
        (route.as_str(), if has_body { "content-length: 0\r\n" } else { "" })
    });
    let others = [
        ("GET /", ""),
        ("GET /docs/", ""),
        ("GET /openapi.json", ""),
        ("GET /nothing", ""),
        // An unknown method.
        ("BREW /health", ""),
        ("OPTIONS *", ""),
        ("OPTIONS /vectorize-image", preflight),
    ];
    for (route, headers) in documented.chain(others) {
        for hosts in [
            &[][..],
            &["x", "x"],
            &["x", "evil.example"],
            &["", "x"],
            &[""],
            &["a b"],
            &["a, b"],
            &["user@x"],
            &["http://x"],
            &["x/metrics"],
            &["x:port"],
            &["[::1"],
            &["b\u{fc}cher.example"],
        ] {
            let head = request_head(&format!("{route} HTTP/1.1"), hosts, headers);
            let answer = parse_answer(&exchange(app.address, &head).await);
            assert_problem(&answer, 400, "invalid_host");
            assert_eq!(answer.header("connection"), "close");
        }
    }
    // HTTP/1.0 requires no host, but two hosts or an invalid one are refused.
    for hosts in [&["x", "x"][..], &["a b"]] {
        let head = request_head("GET /health HTTP/1.0", hosts, "");
        assert_problem(&parse_answer(&exchange(app.address, &head).await), 400, "invalid_host");
    }
}

#[tokio::test]
async fn valid_host_headers_are_accepted_and_http_1_0_requires_none() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for host in ["x", "image_service:8000", "images.example.com.:80", "192.0.2.7:", "[::1]:8000"] {
        let head = request_head("GET /health HTTP/1.1", &[host], "connection: close\r\n");
        assert_eq!(parse_answer(&exchange(app.address, &head).await).status, 200, "{host}");
    }
    // Over HTTP/1.0, the host may be missing or empty.
    for hosts in [&[][..], &[""], &["x"]] {
        let head = request_head("GET /health HTTP/1.0", hosts, "");
        assert_eq!(parse_answer(&exchange(app.address, &head).await).status, 200, "{hosts:?}");
    }
}

#[tokio::test]
async fn after_a_request_with_two_host_headers_no_further_request_is_answered() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let two_hosts = request_head("GET /health HTTP/1.1", &["x", "evil.example"], "");
    let requests = [&two_hosts[..], SMUGGLED_REQUEST.as_bytes()].concat();
    let only_answer = parse_answer(&exchange(app.address, &requests).await);
    assert_problem(&only_answer, 400, "invalid_host");
}

#[tokio::test]
async fn a_host_in_the_request_line_overrides_the_host_header() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let post = async |scheme_and_host: &str, host: &str| {
        let line = format!("POST {scheme_and_host}/vectorize-image HTTP/1.1");
        let headers = "sec-fetch-site: same-origin\r\nconnection: close\r\ncontent-length: 0\r\n";
        parse_answer(&exchange(app.address, &request_head(&line, &[host], headers)).await)
    };
    // The service refuses requests from web pages under an unknown host name (DNS rebinding), but not
    // from those under an IP address. Of the two hosts, one is a name and the other an address, so
    // the status shows which of them counts. The 422 means that only the empty body was refused.
    assert_problem(&post("http://127.0.0.1", "evil.example").await, 422, "validation_failed");
    let refused =
        assert_problem(&post("http://evil.example:8000", "192.0.2.7").await, 403, "cross_origin");
    assert!(refused["detail"].as_str().unwrap().contains("evil.example:8000"));
    // The hosts in the request line and in the header must both be valid.
    assert_problem(&post("http://user:password@192.0.2.7", "x").await, 400, "invalid_host");
    assert_problem(&post("http://192.0.2.7", "a b").await, 400, "invalid_host");
}
