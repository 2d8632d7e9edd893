//! No log line, answer or metric contains a key or another secret.

use std::time::Duration;

use imagesvc::config::RawSettings;

use serde_json::Value;

use crate::support::{
    Config, FakeNvidia, FakeServer, HUBBLE, ROCKET, Replica, Reply, ServiceProcess, Setting,
    TestApp, ValkeyServer, avif,
    nvidia_api::KEY,
    s3::{Credentials, FakeMetadata, Fault, FaultProxy, MotoServer},
    tiny, try_picture_number,
};

/// The secrets, or parts of them, that every test looks for. [`assert_no_credentials_leak`] looks for more.
const SECRETS: [&str; 7] = [
    // the key for NVIDIA
    KEY,
    // two valid client keys, and a wrong one
    "planted-client-key-1",
    "planted-client-key-2",
    "planted-wrong-key",
    // in the queries of fetched URLs, and the password of a proxy
    "planted-query",
    // in the queries of presigned URLs
    "X-Amz-Signature",
    // in the URL of the Valkey
    ValkeyServer::PASSWORD,
];

/// Asserts that a text contains none of [`SECRETS`]. `source` says where the text is from.
fn assert_no_secret(source: &str, text: &str) {
    for secret in SECRETS {
        if let Some(index) = text.find(secret) {
            // The message contains the 200 characters before the secret.
            let start = text[..index].char_indices().rev().nth(199).map_or(0, |(start, _)| start);
            panic!("{source} must not contain {secret}, but does after {:?}", &text[start..index]);
        }
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
    // NVIDIA's error replies contain the key, as the errors of some gateways do. For a tiny picture
    // whose number is a status, NVIDIA replies with this status.
    let nvidia = FakeNvidia::healthy_except(|request| {
        let authorization = request.header("authorization").unwrap_or("none");
        match try_picture_number(request) {
            // The status of a success, with a body that contains no embedding.
            Some(200) => Some(Reply::json(200, format!(r#"{{"metadata":"no: {authorization}"}}"#))),
            Some(number @ 400..=599) => {
                let status = u16::try_from(number).unwrap();
                Some(Reply::json(status, format!(r#"{{"detail":"no: {authorization}"}}"#)))
            }
            _ => None,
        }
    })
    .await;
    let allowed = picture_server.address.to_string();
    let settings = [
        ("IMAGESVC_LOG", "trace"),
        ("IMAGESVC_FETCH_ALLOW", allowed.as_str()),
        ("IMAGESVC_API_KEYS", "planted-client-key-1,planted-client-key-2"),
        // With a limit, the service also counts requests by client key. This test stays below the limit.
        ("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1000"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::new();
    let upload = |picture: &[u8]| service.upload_request(&client, picture);
    let by_url = |url: String| service.url_request(&client, &url);
    let get = |path: &str| client.get(service.url(path));
    let (client_key, other_client_key) = ("planted-client-key-1", "planted-client-key-2");
    // Each request with the status of its answer.
    let mut requests = vec![
        (200, upload(ROCKET).bearer_auth(client_key)),
        // NVIDIA replies with a presigned URL, to which the service uploads this large picture.
        (200, upload(HUBBLE).bearer_auth(other_client_key)),
        // The client does not accept a cached vector.
        (200, upload(ROCKET).bearer_auth(client_key).header("cache-control", "no-cache")),
        (415, upload(&avif()).bearer_auth(client_key)),
        (401, upload(ROCKET).bearer_auth("planted-wrong-key")),
        (401, upload(ROCKET)),
        (403, upload(ROCKET).bearer_auth(client_key).header("origin", "https://evil.example")),
        (200, by_url(picture_server.url("/photo.jpg?token=planted-query")).bearer_auth(client_key)),
        (200, by_url(picture_server.url("/moved?token=planted-query")).bearer_auth(client_key)),
        // The picture's host responds with 404.
        (502, by_url(picture_server.url("/gone?token=planted-query")).bearer_auth(client_key)),
        (403, by_url("http://10.0.0.1/?token=planted-query".into()).bearer_auth(client_key)),
        (
            502,
            by_url("http://no-such-host.invalid/?token=planted-query".into())
                .bearer_auth(client_key),
        ),
        (400, by_url("ftp://x/?token=planted-query".into()).bearer_auth(client_key)),
        (404, get("/nothing?key=planted-query").bearer_auth(client_key)),
        (200, get("/metrics").bearer_auth(client_key)),
        // These five routes require no key.
        (200, get("/openapi.json").bearer_auth(client_key)),
        (200, get("/ready").bearer_auth("planted-wrong-key")),
        (200, get("/health")),
        (200, get("/docs")),
        (200, get("/")),
    ];
    for nvidia_status in [200, 401, 403, 422, 429, 500] {
        let expected_status = match nvidia_status {
            422 => 422,
            429 => 503,
            _ => 502,
        };
        requests.push((expected_status, upload(&tiny(nvidia_status)).bearer_auth(client_key)));
    }
    for (expected_status, request) in requests {
        let response = request.send().await.unwrap();
        let headers = format!("{:?}", response.headers());
        assert_eq!(response.status(), expected_status, "{}", response.url());
        assert_no_secret("an answer's header", &headers);
        let body = response.text().await.unwrap();
        // In an answer, `source_url` is the URL from the client's request, with its query. No other
        // member may contain the query.
        let mut answer: Value = serde_json::from_str(&body).unwrap_or(Value::String(body));
        if let Some(members) = answer.as_object_mut() {
            members.remove("source_url");
        }
        assert_no_secret("an answer", &answer.to_string());
    }
    assert!(
        nvidia.received().iter().any(|request| request.target.contains("X-Amz-Signature")),
        "HUBBLE should be uploaded to a presigned URL"
    );
    let (_, log) = service.stop();
    let log = log.join("\n");
    assert!(log.contains("\"TRACE\""), "the log should contain lines of the trace level");
    assert!(
        log.contains("[redacted]"),
        "the log should contain NVIDIA's errors, with the key replaced"
    );
    assert_no_secret("the log", &log);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_line_answer_or_metric_contains_credentials_of_a_bucket_even_at_trace_level() {
    let Some(moto) = MotoServer::start().await else { return };
    let role_credentials = moto.assume_role().await;
    // The service fetches new credentials five minutes before the old ones expire. So with this lifetime,
    // it fetches them again and again.
    let metadata = FakeMetadata::start(role_credentials.clone(), Duration::from_secs(200)).await;
    let user_proxy = FaultProxy::start(moto.address).await;
    let role_proxy = FaultProxy::start(moto.address).await;
    let from_environment = moto.settings_through(user_proxy.address);
    let mut from_metadata = moto.settings_without_credentials_through(role_proxy.address);
    from_metadata.push(("AWS_METADATA_ENDPOINT", metadata.endpoint()));
    // These run at the same time, because each waits several times for the bucket to recover.
    tokio::join!(
        assert_no_credentials_leak(user_proxy, moto.user.clone(), from_environment),
        assert_no_credentials_leak(role_proxy, role_credentials, from_metadata),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_line_answer_or_metric_contains_the_password_of_the_valkey_even_at_trace_level() {
    let Some(mut valkey) = ValkeyServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    let other_settings = [
        ("IMAGESVC_LOG", "trace".to_owned()),
        // With these limits, the replica uses the Valkey. The test sends fewer requests.
        ("NVIDIA_REQUESTS_PER_MINUTE", "1000".to_owned()),
        ("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1000".to_owned()),
    ];
    let replica =
        Replica::start(&nvidia, &[&valkey.settings()[..], &other_settings].concat()).await;
    let use_replica = async || {
        let answer = replica.upload(ROCKET).await;
        answer.assert_success();
        assert_no_secret("an answer", &format!("{:?} {}", answer.headers, answer.text()));
        for path in ["/ready", "/metrics", "/"] {
            assert_no_secret(path, &replica.get(path).await.text());
        }
    };
    use_replica().await;
    valkey.kill();
    use_replica().await;
    valkey.start_again();
    // From now on, the server has another password, and refuses the one of the service.
    let () = valkey.query(&["CONFIG", "SET", "requirepass", "another"]).await;
    use_replica().await;
    let (_, log) = replica.stop().await;
    let log = log.join("\n");
    assert!(log.contains("\"TRACE\"") && log.contains("Valkey cannot be used"), "{log}");
    assert_no_secret("the log", &log);
}

/// Starts a service that uses a bucket through this proxy, lets the proxy cause each fault, and asserts that
/// no output contains the credentials.
async fn assert_no_credentials_leak(
    mut proxy: FaultProxy,
    credentials: Credentials,
    mut settings: Vec<Setting>,
) {
    let Credentials { key_id, secret, token } = credentials;
    let mut secrets = vec![key_id, secret, FakeMetadata::TOKEN.to_owned()];
    secrets.extend(token);
    let assert_nothing_leaks = |source: &str, text: &str| {
        assert_no_secret(source, text);
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{source} contains {secret}: {text}");
        }
    };
    settings.push(("IMAGESVC_LOG", "trace".to_owned()));
    settings.push(("IMAGESVC_BUCKET_TIMEOUT", "1s".to_owned()));
    let nvidia = FakeNvidia::healthy().await;
    let replica = Replica::start(&nvidia, &settings).await;
    replica.upload(ROCKET).await.assert_success();
    for fault in [
        Fault::Error(403, "AccessDenied"),
        Fault::Error(503, "SlowDown"),
        Fault::CutRequest,
        Fault::CutResponse,
        Fault::Hold,
        Fault::Refuse,
    ] {
        proxy.set(fault).await;
        for picture in [&tiny(1), HUBBLE] {
            let answer = replica.upload(picture).await;
            assert_eq!(answer.status, 503);
            assert_nothing_leaks("an answer", &format!("{:?} {}", answer.headers, answer.text()));
        }
        for path in ["/ready", "/metrics", "/"] {
            assert_nothing_leaks(path, &replica.get(path).await.text());
        }
        proxy.clear().await;
        replica.wait_until_bucket_works(Duration::from_secs(20)).await;
    }
    let is_signed = proxy.lines().iter().all(|line| line.contains("X-Amz-Signature"));
    assert!(is_signed, "every request should have a signature that could leak");
    let (_, log) = replica.stop().await;
    let log = log.join("\n");
    assert!(log.contains("\"TRACE\""), "the log should contain lines of the trace level");
    assert!(log.contains("the bucket cannot be written to"), "{log}");
    for parameter in ["X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token"] {
        assert!(!log.contains(parameter), "the log contains {parameter}");
    }
    assert_nothing_leaks("the log", &log);
}

#[tokio::test]
async fn debug_output_and_errors_of_settings_contain_no_secret() {
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
        assert_no_secret("the configuration", &printed);
    }
    assert!(
        format!("{:?}", config.nvidia).contains("3128"),
        "the settings should be printed with the proxy's port"
    );
    let (app, _folder) = builder.build().await.unwrap();
    // The app contains the state of the routes and the HTTP clients.
    assert_no_secret("the app", &format!("{app:?}"));
    // A key with a space is invalid, and so is a SOCKS proxy.
    let errors = Config::resolve(&RawSettings::from_pairs([
        ("NVIDIA_API_KEY", "planted-client-key-1 planted-client-key-2"),
        ("IMAGESVC_API_KEYS", "planted-client-key-1 planted-client-key-2"),
        ("NVIDIA_PROXY", "socks5://user:planted-query@host"),
    ]))
    .unwrap_err();
    assert_no_secret("the errors of invalid settings", &format!("{errors:?} {errors}"));
}
