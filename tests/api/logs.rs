//! What the log and the metrics contain.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::support::{
    FakeBucket, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, ServiceProcess, TestApp, avif,
    data_url, documents::Document, embedding, metric, picture_number, tiny,
};

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_logged_as_one_json_line() {
    // NVIDIA responds to the first call with 503, and to each call for picture 402 with 402.
    let nvidia = FakeNvidia::scripted(|request, nth| match picture_number(request) {
        402 => Reply::status(402),
        _ if nth == 0 => Reply::status(503),
        _ => embedding(),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
    let client = reqwest::Client::new();
    let send = |id: &'static str, picture: &[u8]| {
        service.base64_request(&client, picture).header("x-request-id", id).send()
    };
    for (id, picture, status) in [
        ("first", tiny(1), 200),
        ("repeated", tiny(1), 200),
        ("refused", tiny(402), 503),
        ("avif", avif(), 415),
    ] {
        assert_eq!(send(id, &picture).await.unwrap().status(), status);
    }
    let unknown =
        client.get(service.url("/no/such/path?query=1")).header("x-request-id", "unknown");
    assert_eq!(unknown.send().await.unwrap().status(), 404);
    let (_, log) = service.stop();
    let events: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for event in &events {
        assert!(event["timestamp"].is_string() && event["level"].is_string(), "{event}");
        assert!(event["message"].is_string(), "{event}");
    }
    let event_of = |id: &str| {
        let matching: Vec<_> = events.iter().filter(|event| event["request_id"] == id).collect();
        assert_eq!(matching.len(), 1, "{id} should be logged exactly once");
        let event = matching[0];
        assert_eq!(event["message"], "request");
        assert!(event["duration_ms"].as_f64().unwrap() >= 0.0);
        assert_eq!(event["client"], "127.0.0.1");
        event
    };

    let first = event_of("first");
    assert_eq!(first["level"], "INFO");
    assert_eq!(first["method"], "POST");
    assert_eq!(first["status"], 200);
    assert_eq!(first["route"], "/vectorize-image-base64");
    assert!(first["saved_as"].as_str().unwrap().ends_with(".png"));
    assert_eq!(first["size_bytes"], tiny(1).len());
    assert_eq!(first["cache"], "miss");
    assert_eq!(
        first["attempts"], 2,
        "the first call, answered with a 503, and its retry should be counted"
    );
    assert!(first.get("error").is_none() && first.get("code").is_none());

    let repeated = event_of("repeated");
    assert_eq!(repeated["cache"], "memory");
    assert_eq!(repeated["attempts"], 0);

    let refused = event_of("refused");
    assert_eq!(refused["level"], "WARN");
    assert_eq!(refused["code"], "embedding_exhausted");
    assert!(refused["error"].as_str().unwrap().contains("status 402"));
    assert!(refused["saved_as"].is_string());
    assert_eq!(refused["attempts"], 1);

    let avif = event_of("avif");
    assert_eq!(avif["level"], "INFO");
    assert_eq!(avif["code"], "unsupported_image");

    assert_eq!(event_of("unknown")["route"], "none");
    assert!(!log.join("").contains("/no/such/path"), "an unknown path must not be logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_id_of_a_client_is_logged_and_not_passed_on() {
    let nvidia = FakeNvidia::healthy().await;
    // The service sends this picture as an asset, which takes four calls to NVIDIA. The answer to
    // the second request comes from the cache.
    let picture_server = FakeServer::serving(HUBBLE).await;
    let folder = tempfile::tempdir().unwrap();
    let allowed = picture_server.address.to_string();
    let service = ServiceProcess::start_with(
        &nvidia,
        folder.path(),
        &[("IMAGESVC_FETCH_ALLOW", allowed.as_str())],
    );
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let (trace_id, span_id) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let assert_no_trace = |text: &str| {
        for part in ["traceparent", "tracestate", trace_id, span_id] {
            assert!(
                !text.contains(part),
                "the trace must not be passed on, but {part} is in {text:.1000}"
            );
        }
    };
    // Version ff of `traceparent` is invalid.
    for (id, version) in [("traced", "00"), ("not-traced", "ff")] {
        let response = service
            .url_request(&client, &picture_server.url("/photo"))
            .header("traceparent", format!("{version}-{trace_id}-{span_id}-01"))
            .header("tracestate", "congo=t61rcWkgMzE")
            .header("x-request-id", id)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_no_trace(&format!("{:?}", response.headers()));
    }
    // The flags 00 mean that the client does not record its trace. The service logs the trace's id
    // nevertheless.
    let not_found = client.get(service.url("/nothing")).header("x-request-id", "not-found");
    let not_found = not_found.header("traceparent", format!("00-{trace_id}-{span_id}-00"));
    assert_eq!(not_found.send().await.unwrap().status(), 404);
    for request in nvidia.wait_for(4).await.into_iter().chain(picture_server.received()) {
        assert_no_trace(&format!("{:?}", request.headers));
        assert_no_trace(&String::from_utf8_lossy(&request.body));
    }
    let (_, log) = service.stop();
    let events = log.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let requests: Vec<_> = events.filter(|event| event["message"] == "request").collect();
    let event_of = |id: &str| requests.iter().find(|event| event["request_id"] == id).unwrap();
    for id in ["traced", "not-found"] {
        assert_eq!(event_of(id)["trace_id"], trace_id);
        assert_eq!(event_of(id)["span_id"], span_id);
    }
    let not_traced = event_of("not-traced");
    let has_trace = not_traced.get("trace_id").is_some() || not_traced.get("span_id").is_some();
    assert!(!has_trace, "an invalid trace must not be logged: {not_traced}");
}

/// The text of `/metrics`, parsed.
struct Metrics {
    /// The types of the metrics by their names.
    types: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    fn parse(text: &str) -> Self {
        let (mut types, mut samples) = (BTreeMap::new(), Vec::new());
        assert!(text.ends_with("# EOF\n"));
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(comment) = line.strip_prefix("# ") {
                let words: Vec<_> = comment.splitn(3, ' ').collect();
                if let ["TYPE", name, metric_type] = words[..] {
                    types.insert(name.to_owned(), metric_type.to_owned());
                }
            } else {
                samples.push(Sample::parse(line));
            }
        }
        Self { types, samples }
    }

    /// The sum of the samples that have this name, and this value of this label.
    fn total(&self, name: &str, label: &str, value: &str) -> f64 {
        let has_label = |sample: &&Sample| {
            sample.labels.get(label).is_some_and(|label_value| label_value == value)
        };
        let samples = self.samples.iter().filter(|sample| sample.name == name).filter(has_label);
        samples.map(|sample| sample.value).sum()
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (series, ""),
        };
        let labels = labels.split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (label_name, label_value) = label.split_once('=').unwrap();
            (label_name.to_owned(), label_value.trim_matches('"').to_owned())
        });
        Self { name: name.to_owned(), labels: labels.collect(), value: value.parse().unwrap() }
    }
}

#[tokio::test]
async fn metrics_are_well_formed_and_their_label_values_are_bounded() {
    /// The number of requests of each kind: with an unknown path, with a path below `/docs`, and
    /// with an unknown method.
    const REQUESTS_PER_KIND: u32 = 50;
    // The first call fails, so that the metrics of failed calls have a sample.
    let nvidia =
        FakeNvidia::scripted(|_, nth| if nth == 0 { Reply::status(503) } else { embedding() })
            .await;
    let app = TestApp::start(&nvidia).await;
    app.upload(ROCKET, "a.jpg").await.assert_success();
    // The second answer comes from the cache.
    app.upload(ROCKET, "a.jpg").await.assert_success();
    for n in 0..REQUESTS_PER_KIND {
        app.get(&format!("/unknown/{n}")).await;
        app.get(&format!("/docs/{n}")).await;
        let request = app.client.request(format!("M{n}").parse().unwrap(), app.url("/health"));
        app.send(request).await;
    }
    let metrics = Metrics::parse(&app.get("/metrics").await.text());
    let mut values_by_label = BTreeMap::<_, BTreeSet<_>>::new();
    for Sample { name, labels, value } in &metrics.samples {
        assert!(name.starts_with("imagesvc_"), "{name}");
        let has_type = metrics.types.keys().any(|metric| name.starts_with(metric.as_str()));
        assert!(has_type, "{name} should have a type");
        assert!(*value >= 0.0, "{name} must not be negative, but is {value}");
        for (label, label_value) in labels {
            values_by_label.entry(label.as_str()).or_default().insert(label_value.as_str());
        }
    }
    let routes: Vec<_> = values_by_label["route"].iter().copied().collect();
    // The routes for pictures have samples from the start.
    assert_eq!(
        routes,
        [
            "/docs/{*path}",
            "/health",
            "/v1/embeddings",
            "/vectorize-image",
            "/vectorize-image-base64",
            "/vectorize-image-upload",
            "none"
        ]
    );
    let known_labels = ["route", "status", "operation", "outcome", "reason", "le", "version"];
    for label in values_by_label.keys() {
        assert!(
            known_labels.contains(label),
            "{label} should be one of the labels with a bounded number of values"
        );
    }
    for (name, label, value, total) in [
        ("imagesvc_requests_total", "route", "none", f64::from(REQUESTS_PER_KIND)),
        ("imagesvc_requests_total", "route", "/vectorize-image-upload", 2.0),
        ("imagesvc_request_duration_seconds_count", "route", "/vectorize-image-upload", 2.0),
        ("imagesvc_upstream_calls_total", "outcome", "503", 1.0),
        ("imagesvc_cache_lookups_total", "outcome", "memory", 1.0),
    ] {
        assert_eq!(metrics.total(name, label, value), total, "{name} {label}={value}");
    }
}

#[tokio::test]
async fn docs_operating_md_lists_every_metric_and_no_other() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let app = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    app.upload(ROCKET, "a.jpg").await.assert_success();
    let metrics = Metrics::parse(&app.get("/metrics").await.text());
    let page = Document::read("docs/operating.md").text;
    let names = page.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0));
    let names = names.filter(|name| name.starts_with("imagesvc_"));
    // The page has the names of the samples. The names in the `# TYPE` lines lack the suffixes
    // `_total` and `_info`.
    let without_suffix =
        |name: &str| name.trim_end_matches("_total").trim_end_matches("_info").to_owned();
    let documented: BTreeSet<_> = names.map(without_suffix).collect();
    for name in metrics.types.keys() {
        assert!(documented.contains(&without_suffix(name)), "docs/operating.md should list {name}");
    }
    // A metric without a sample is not in the text of `/metrics`, for example some counters of
    // errors. Therefore the number of documented metrics is compared with the source.
    let source = concat!(
        include_str!("../../src/telemetry/metrics.rs"),
        include_str!("../../src/telemetry/readings.rs")
    );
    // Without whitespace, because rustfmt may break a call.
    let source: String = source.split_whitespace().collect();
    // Each call that registers a metric contains one of these texts. The first is from the calls of helper
    // functions, such as `counters(&mut registry, "…")`.
    let register_calls = ["(&mutregistry,\"", ".register(\"", ".register_with_unit(\""];
    let registered: usize = register_calls.iter().map(|call| source.matches(call).count()).sum();
    assert_eq!(documented.len(), registered, "{documented:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_keeps_serving_if_nobody_reads_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let service =
        ServiceProcess::start_with_unread_log(folder.path(), &[("IMAGESVC_SANDBOX", "true")]);
    let client = reqwest::Client::new();
    // Each request is logged as one line. The log's queue has room for 4096 lines. The pipe has
    // room for 64 KiB, which is a few hundred lines.
    let url = service.url("/nothing");
    let requests = (0..8000).map(|_| client.get(&url).send());
    let mut responses = stream::iter(requests).buffer_unordered(16);
    while let Some(response) = responses.next().await {
        assert_eq!(response.unwrap().status(), 404);
    }
    let answer = service.upload_request(&client, ROCKET).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let metrics = client.get(service.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metric(&metrics, "imagesvc_log_lines_dropped_total") > 0.0);
    let (status, _) = service.stop();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failed_picture_of_a_batch_is_logged_if_errors_are_per_item() {
    let nvidia = FakeNvidia::scripted(|request, _| match picture_number(request) {
        402 => Reply::status(402),
        _ => embedding(),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
    // The third item is no picture.
    let input = json!([data_url(&tiny(1)), data_url(&tiny(402)), "text"]);
    let request = reqwest::Client::new()
        .post(service.url("/v1/embeddings?errors=item"))
        .header("x-request-id", "batch")
        .body(json!({ "input": input }).to_string());
    assert_eq!(request.send().await.unwrap().status(), 200);
    let (_, log) = service.stop();
    let events: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let request_event = events.iter().find(|event| event["message"] == "request").unwrap();
    assert_eq!(request_event["pictures"], 3);
    assert_eq!(request_event["failed_pictures"], 2);
    let failed: Vec<_> =
        events.iter().filter(|event| event["message"] == "a picture of a batch failed").collect();
    let codes: Vec<_> = failed.iter().map(|event| (&event["level"], &event["code"])).collect();
    assert_eq!(
        codes,
        [
            (&json!("WARN"), &json!("embedding_exhausted")),
            (&json!("INFO"), &json!("validation_failed"))
        ]
    );
    for event in failed {
        assert!(event.to_string().contains("\"request_id\":\"batch\""), "{event}");
        assert!(event["error"].as_str().unwrap().contains("input["), "{event}");
    }
}
