//! Logs and metrics, parsed as a machine parses them.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::support::{
    Child, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, TestApp, avif, documents::Document,
    embedding, metric, picture_number, tiny,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_one_json_line_with_its_fields() {
    let nvidia = FakeNvidia::scripted(|request, nth| match picture_number(request) {
        402 => Reply::status(402),
        _ if nth == 0 => Reply::status(503),
        _ => embedding(),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let child = Child::start_with(&nvidia, folder.path(), &[]);
    let client = reqwest::Client::new();
    let upload = |id: &'static str, picture: &[u8]| {
        child.base64_request(&client, picture).header("x-request-id", id).send()
    };
    for (id, picture, status) in [
        ("first", tiny(1), 200),
        ("again", tiny(1), 200),
        ("refused", tiny(402), 503),
        ("avif", avif(), 415),
    ] {
        assert_eq!(upload(id, &picture).await.unwrap().status(), status);
    }
    let none = client.get(child.url("/no/such/path?query=1")).header("x-request-id", "none");
    assert_eq!(none.send().await.unwrap().status(), 404);
    let (_, log) = child.stop();
    let events: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for event in &events {
        assert!(event["timestamp"].is_string() && event["level"].is_string(), "{event}");
        assert!(event["message"].is_string(), "{event}");
    }
    let line = |id: &str| {
        let lines: Vec<_> = events.iter().filter(|event| event["request_id"] == id).collect();
        assert_eq!(lines.len(), 1, "{id}: a request is logged once");
        assert_eq!(lines[0]["message"], "request");
        assert!(lines[0]["duration_ms"].as_f64().unwrap() >= 0.0);
        assert_eq!(lines[0]["client"], "127.0.0.1");
        lines[0].clone()
    };
    let first = line("first");
    assert_eq!(first["level"], "INFO");
    assert_eq!((first["method"].as_str(), first["status"].as_u64()), (Some("POST"), Some(200)));
    assert_eq!(first["route"], "/vectorize-image-base64");
    assert!(first["saved_as"].as_str().unwrap().ends_with(".png"));
    assert_eq!(first["size_bytes"].as_u64(), Some(tiny(1).len() as u64));
    assert_eq!((first["cache"].as_str(), first["attempts"].as_u64()), (Some("miss"), Some(2)));
    assert!(first.get("error").is_none() && first.get("code").is_none());
    let again = line("again");
    assert_eq!((again["cache"].as_str(), again["attempts"].as_u64()), (Some("memory"), Some(0)));
    let refused = line("refused");
    assert_eq!(
        (refused["level"].as_str(), refused["code"].as_str()),
        (Some("WARN"), Some("embedding_exhausted"))
    );
    assert!(refused["error"].as_str().unwrap().contains("status 402"));
    assert!(refused["saved_as"].is_string());
    assert_eq!(refused["attempts"].as_u64(), Some(1));
    let avif = line("avif");
    assert_eq!(
        (avif["level"].as_str(), avif["code"].as_str()),
        (Some("INFO"), Some("unsupported_image"))
    );
    let none = line("none");
    assert_eq!(none["route"], "none", "never a raw path");
    assert!(!log.join("").contains("/no/such/path"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_is_in_the_log_and_passed_on_to_nobody() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(HUBBLE).await; // this picture takes four calls to NVIDIA
    let folder = tempfile::tempdir().unwrap();
    let allow = picture_server.address.to_string();
    let child =
        Child::start_with(&nvidia, folder.path(), &[("IMAGESVC_FETCH_ALLOW", allow.as_str())]);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    for (id, version, status) in [("traced", "00", 200), ("not-traced", "ff", 200)] {
        let request = child.url_request(&client, &picture_server.url("/photo"));
        let answer = request
            .header("traceparent", format!("{version}-{trace}-{span}-01"))
            .header("tracestate", "congo=t61rcWkgMzE")
            .header("x-request-id", id)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), status);
        let told = format!("{:?}", answer.headers());
        assert!(
            !told.contains("traceparent") && !told.contains("tracestate") && !told.contains(trace),
            "{told}"
        );
    }
    let refused = client.get(child.url("/nothing")).header("x-request-id", "refused");
    let refused = refused.header("traceparent", format!("00-{trace}-{span}-00"));
    assert_eq!(refused.send().await.unwrap().status(), 404);
    for request in nvidia.wait_for(4).await.into_iter().chain(picture_server.received()) {
        let told = format!("{:?}{}", request.headers, String::from_utf8_lossy(&request.body));
        assert!(
            !told.contains("traceparent")
                && !told.contains("tracestate")
                && !told.contains(trace)
                && !told.contains(span)
        );
    }
    let (_, log) = child.stop();
    let events = log.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines: Vec<_> = events.filter(|event| event["message"] == "request").collect();
    let line = |id: &str| lines.iter().find(|line| line["request_id"] == id).unwrap();
    for id in ["traced", "refused"] {
        assert_eq!((&line(id)["trace_id"], &line(id)["span_id"]), (&trace.into(), &span.into()));
    }
    let other = line("not-traced");
    assert!(other.get("trace_id").is_none() && other.get("span_id").is_none(), "{other}");
}

/// The families of a metrics text with their types, and the samples.
type Parsed = (BTreeMap<String, String>, Vec<(String, BTreeMap<String, String>, f64)>);

fn parse(text: &str) -> Parsed {
    let (mut families, mut samples) = (BTreeMap::new(), Vec::new());
    assert!(text.ends_with("# EOF\n"));
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next());
            if kind == "TYPE" {
                families.insert(name.to_owned(), rest.unwrap().to_owned());
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels = labels.strip_suffix('}').unwrap().split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (name, value) = label.split_once('=').unwrap();
            (name.to_owned(), value.trim_matches('"').to_owned())
        });
        samples.push((name.to_owned(), labels.collect(), value.parse().unwrap()));
    }
    (families, samples)
}

#[tokio::test]
async fn metrics_are_well_formed_and_their_labels_are_bounded() {
    let nvidia =
        FakeNvidia::scripted(|_, nth| if nth == 0 { Reply::status(503) } else { embedding() })
            .await;
    let app = TestApp::start(&nvidia).await;
    app.upload(ROCKET, "a.jpg").await.vector();
    app.upload(ROCKET, "a.jpg").await.vector();
    for n in 0..50 {
        app.get(&format!("/raw/{n}")).await;
        app.get(&format!("/docs/{n}")).await;
        let request = app.client.request(format!("M{n}").parse().unwrap(), app.url("/health"));
        app.send(request).await;
    }
    let (families, samples) = parse(&app.get("/metrics").await.text());
    let mut values = BTreeMap::<_, BTreeSet<_>>::new();
    for (name, labels, value) in &samples {
        assert!(name.starts_with("imagesvc_"), "{name}");
        let family = families.keys().find(|family| name.starts_with(family.as_str()));
        assert!(family.is_some(), "{name} has a type");
        assert!(*value >= 0.0);
        for (label, value) in labels {
            values.entry(label.as_str()).or_default().insert(value.as_str());
        }
    }
    let routes: Vec<_> = values["route"].iter().copied().collect();
    assert_eq!(
        routes,
        [
            "/docs/{*path}",
            "/health",
            "/vectorize-image",
            "/vectorize-image-base64",
            "/vectorize-image-upload",
            "none"
        ]
    );
    let known = ["route", "status", "operation", "outcome", "reason", "le", "version"];
    assert!(values.keys().all(|label| known.contains(label)), "{:?}", values.keys());
    let total = |name: &str, label: &str, wanted: &str| -> f64 {
        let found = samples.iter().filter(|(known, labels, _)| {
            known == name && labels.get(label).is_some_and(|value| value == wanted)
        });
        found.map(|(_, _, value)| value).sum()
    };
    assert_eq!(total("imagesvc_requests_total", "route", "none"), 50.0);
    assert_eq!(total("imagesvc_requests_total", "route", "/vectorize-image-upload"), 2.0);
    assert_eq!(
        total("imagesvc_request_duration_seconds_count", "route", "/vectorize-image-upload"),
        2.0
    );
    assert_eq!(total("imagesvc_upstream_calls_total", "outcome", "503"), 1.0);
    assert_eq!(total("imagesvc_cache_lookups_total", "outcome", "memory"), 1.0);
}

#[tokio::test]
async fn the_page_on_operating_lists_every_metric_and_no_other() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    app.upload(ROCKET, "a.jpg").await.vector();
    let (families, _) = parse(&app.get("/metrics").await.text());
    let page = Document::read("docs/operating.md").text;
    let names = page.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0));
    let documented: BTreeSet<_> = names.filter(|name| name.starts_with("imagesvc_")).collect();
    let bare = |name: &str| name.trim_end_matches("_total").trim_end_matches("_info").to_owned();
    let listed: BTreeSet<_> = documented.iter().map(|name| bare(name)).collect();
    for family in families.keys() {
        assert!(listed.contains(&bare(family)), "{family} is not on the page");
    }
    // The text lacks families without samples, such as those of faults that did not happen, so
    // count them in the source.
    let source = include_str!("../../src/telemetry/metrics.rs");
    let source: String = source.split_whitespace().collect();
    let by_name = ["(&mutregistry,\"", ".register(\"", ".register_with_unit(\""];
    let registered: usize = by_name.iter().map(|call| source.matches(call).count()).sum();
    assert_eq!(listed.len(), registered, "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let child = Child::start_unread(folder.path(), &[("IMAGESVC_SANDBOX", "true")]);
    let client = reqwest::Client::new();
    // more lines than the pipe and the queue hold
    let address = child.url("/nothing");
    let requests = (0..8000).map(|_| client.get(&address).send());
    let mut answers = stream::iter(requests).buffer_unordered(16);
    while let Some(answer) = answers.next().await {
        assert_eq!(answer.unwrap().status(), 404);
    }
    let picture = child.upload_request(&client, ROCKET).send().await.unwrap();
    assert_eq!(picture.status(), 200);
    let metrics = client.get(child.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metric(&metrics, "imagesvc_log_lines_dropped_total") > 0.0);
    let (status, _) = child.stop();
    assert_eq!(status.code(), Some(0));
}
