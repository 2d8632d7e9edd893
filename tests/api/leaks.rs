//! Keys and other secrets appear in no log, answer or metric.

use imagesvc::config::RawSettings;

use crate::support::{
    Child, Config, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, TestApp, avif, nvidia_api::KEY,
    tiny, try_picture_number,
};

/// The secrets: NVIDIA's key, the clients' keys, a wrong key, a proxy's password, and the queries
/// of fetched and of presigned URLs.
const PLANTED: [&str; 6] = [
    KEY,
    "planted-client-key-1",
    "planted-client-key-2",
    "planted-wrong-key",
    "planted-query",
    "X-Amz-Signature",
];

fn assert_clean(what: &str, text: &str) {
    for secret in PLANTED {
        let found = text.find(secret);
        let around = found.map(|at| text[..at].chars().rev().take(200).collect::<Vec<_>>());
        let around = around.map(|chars| chars.into_iter().rev().collect::<String>());
        assert!(found.is_none(), "{secret} is in {what}, behind {around:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_line_answer_or_metric_contains_a_secret_even_at_trace_level() {
    let picture_server = FakeServer::start(|request, _| match request.target.split('?').next() {
        Some("/moved") => Reply::new(302, &[("location", "/photo.jpg?token=planted-query")], ""),
        Some("/photo.jpg") => Reply::new(200, &[], ROCKET),
        _ => Reply::status(404),
    })
    .await;
    // This NVIDIA repeats the key that it received, as some gateways do.
    let nvidia = FakeNvidia::with_uploads(|request| {
        let authorization = request.header("authorization").unwrap_or("none");
        let says = format!(r#"{{"detail":"no: {authorization}"}}"#);
        match try_picture_number(request) {
            // An invalid success, which repeats the key as well.
            Some(200) => Some(Reply::json(200, format!(r#"{{"metadata":"no: {authorization}"}}"#))),
            Some(n @ 400..=599) => Some(Reply::json(u16::try_from(n).unwrap(), says)),
            _ => None,
        }
    })
    .await;
    let allow = picture_server.address.to_string();
    let settings = [
        ("IMAGESVC_LOG", "trace"),
        ("IMAGESVC_FETCH_ALLOW", allow.as_str()),
        ("IMAGESVC_API_KEYS", "planted-client-key-1,planted-client-key-2"),
        ("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1000"),
        ("NVIDIA_TIMEOUT", "2s"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let child = Child::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::new();
    let upload = |picture: &[u8]| child.upload_request(&client, picture);
    let by_url = |url: String| child.url_request(&client, &url);
    let own = "planted-client-key-1";
    let get = |path: &str| client.get(child.url(path));
    let mut requests = vec![
        (200, upload(ROCKET).bearer_auth(own)),
        (200, upload(HUBBLE).bearer_auth("planted-client-key-2")),
        (200, upload(ROCKET).bearer_auth(own).header("cache-control", "no-cache")),
        (415, upload(&avif()).bearer_auth(own)),
        (401, upload(ROCKET).bearer_auth("planted-wrong-key")),
        (401, upload(ROCKET)),
        (403, upload(ROCKET).bearer_auth(own).header("origin", "https://evil.example")),
        (200, by_url(picture_server.url("/photo.jpg?token=planted-query")).bearer_auth(own)),
        (200, by_url(picture_server.url("/moved?token=planted-query")).bearer_auth(own)),
        (502, by_url(picture_server.url("/gone?token=planted-query")).bearer_auth(own)),
        (403, by_url("http://10.0.0.1/?token=planted-query".into()).bearer_auth(own)),
        (502, by_url("http://no-such-host.invalid/?token=planted-query".into()).bearer_auth(own)),
        (400, by_url("ftp://x/?token=planted-query".into()).bearer_auth(own)),
        (404, get("/nothing?key=planted-query").bearer_auth(own)),
        (200, get("/metrics").bearer_auth(own)),
        (200, get("/openapi.json").bearer_auth(own)),
        (200, get("/ready").bearer_auth("planted-wrong-key")),
        (200, get("/health")),
        (200, get("/docs")),
        (200, get("/")),
    ];
    for n in [200, 401, 403, 422, 429, 500] {
        let status = match n {
            422 => 422,
            429 => 503,
            _ => 502,
        };
        requests.push((status, upload(&tiny(n)).bearer_auth(own)));
    }
    for (status, request) in requests {
        let response = request.send().await.unwrap();
        let headers = format!("{:?}", response.headers());
        assert_eq!(response.status(), status, "{}", response.url());
        assert_clean("an answer's headers", &headers);
        let body = response.text().await.unwrap();
        // The answer repeats the client's own URL, which is no leak.
        let body = body.replace("?token=planted-query", "");
        assert_clean("an answer", &body);
    }
    assert!(nvidia.received().iter().any(|request| request.target.contains("X-Amz-Signature")));
    let (_, log) = child.stop();
    let log = log.join("\n");
    assert!(log.contains("\"TRACE\""), "the log is at the trace level");
    assert!(log.contains("[redacted]"), "the log quotes NVIDIA without the key");
    assert_clean("the log", &log);
}

#[tokio::test]
async fn no_type_prints_a_key() {
    let nvidia = FakeNvidia::healthy().await;
    let builder = TestApp::builder(&nvidia)
        .setting("NVIDIA_PROXY", "http://user:planted-query@127.0.0.1:3128")
        .setting("IMAGESVC_API_KEYS", "planted-client-key-1,planted-client-key-2");
    let config = builder.config();
    for printed in [
        format!("{config:?}"),
        format!("{:?}", config.upstream),
        format!("{:?}", config.nvidia),
        format!("{:?}", config.web),
        format!("{:?}", config.web.keys),
    ] {
        assert_clean("a setting", &printed);
    }
    assert!(format!("{:?}", config.nvidia).contains("3128"));
    let (app, _folder) = builder.build().await.unwrap();
    // The app holds the state and the HTTP clients.
    assert_clean("the app", &format!("{app:?}"));
    let faults = Config::resolve(&RawSettings::from_pairs([
        ("NVIDIA_API_KEY", "planted-client-key-1 planted-client-key-2"),
        ("IMAGESVC_API_KEYS", "planted-client-key-1 planted-client-key-2"),
        ("NVIDIA_PROXY", "socks5://user:planted-query@host"),
    ]))
    .unwrap_err();
    assert_clean("faults", &format!("{faults:?} {faults}"));
}
