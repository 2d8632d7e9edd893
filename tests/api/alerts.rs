//! Has Prometheus' own tool try the alert rules of `docs/operating.md` on the metrics of a real
//! service, and check both formats of the metrics.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use reqwest::header::ACCEPT;
use serde_json::{Value, json};

use crate::support::{
    CHELSEA, FakeNvidia, HUBBLE, ROCKET, Reply, TestApp, converted, documents::Document, embedding,
    metric, picture_number, tiny,
};

/// The alert rules on the page.
fn rules() -> String {
    let blocks = Document::read("docs/operating.md").blocks();
    let mut rules = blocks.into_iter().filter(|block| block.language == "yaml");
    rules.next().unwrap().text
}

/// Runs promtool on `input`. Returns `None` if it is not installed, and its output if it finds a
/// fault.
fn promtool(arguments: &[&str], input: &str) -> Option<Result<(), String>> {
    let tool = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut tool) = tool else {
        assert!(std::env::var_os("CI").is_none(), "CI must have promtool");
        println!("skipped: there is no promtool on this machine (Debian's package prometheus)");
        return None;
    };
    let mut stdin = tool.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = tool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let is_content = output.status.success() && (said.is_empty() || arguments[0] == "test");
    Some(if is_content { Ok(()) } else { Err(said) })
}

/// Parses the samples of a metrics text.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| line.rsplit_once(' ').unwrap());
    samples.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// One case for `promtool test rules`: series with a value per minute, and at which times an alert
/// fires.
fn case(series: &BTreeMap<String, String>, alert: &str, fires: &[(&str, bool)]) -> Value {
    let series: Vec<_> =
        series.iter().map(|(name, values)| json!({ "series": name, "values": values })).collect();
    let tests: Vec<_> = fires
        .iter()
        .map(|(when, fires)| {
            let alerts = if *fires { vec![json!({ "exp_labels": {} })] } else { vec![] };
            json!({ "eval_time": when, "alertname": alert, "exp_alerts": alerts })
        })
        .collect();
    json!({ "interval": "1m", "input_series": series, "alert_rule_test": tests })
}

/// Has promtool try the rules on these cases.
fn assert_alerts(cases: &[Value]) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rules.yml"), rules()).unwrap();
    // promtool reads YAML, and JSON is YAML.
    let test = json!({ "rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": cases })
        .to_string();
    let path = folder.path().join("test.yml");
    std::fs::write(&path, test).unwrap();
    if let Some(said) = promtool(&["test", "rules", path.to_str().unwrap()], "") {
        assert_eq!(said, Ok(()));
    }
}

/// Turns two scrapes into series: five minutes of the first, then the second for an hour.
fn step(before: &str, after: &str) -> BTreeMap<String, String> {
    let before = samples(before);
    let series = samples(after).into_iter().map(|(series, then)| {
        // A series that the first scrape does not have has no value then.
        let first = before.get(&series).map_or("_x5".to_owned(), |value| format!("{value}x4"));
        (series, format!("{first} {then}x60"))
    });
    series.collect()
}

/// Turns two scrapes into series that grow by their difference every minute.
fn slope(before: &str, after: &str) -> BTreeMap<String, String> {
    let before = samples(before);
    let series = samples(after).into_iter().map(|(series, then)| {
        let first = before.get(&series).copied().unwrap_or(0.0);
        (series, format!("{first}+{}x40", (then - first).max(0.0)))
    });
    series.collect()
}

#[tokio::test]
async fn the_series_that_alerts_use_start_at_zero() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let samples = samples(&app.get("/metrics").await.text());
    let zero = |series: String| assert_eq!(samples.get(&series), Some(&0.0), "{series}");
    for route in ["/vectorize-image", "/vectorize-image-base64", "/vectorize-image-upload"] {
        for status in [200, 422, 500, 502, 503, 504, 507] {
            zero(format!("imagesvc_requests_total{{route=\"{route}\",status=\"{status}\"}}"));
        }
    }
    let operations = [
        "infer",
        "infer_asset",
        "poll",
        "poll_asset",
        "create_asset",
        "upload_asset",
        "delete_asset",
    ];
    for operation in operations {
        for status in [401, 402, 403] {
            zero(format!(
                "imagesvc_upstream_calls_total{{operation=\"{operation}\",outcome=\"{status}\"}}"
            ));
        }
    }
    assert!(samples["imagesvc_downloads_free_bytes"] > 0.0);
    assert_eq!(rules().matches("- alert:").count(), 3);
}

#[tokio::test]
async fn the_first_refusal_of_the_key_or_the_account_raises_the_alert() {
    for (status, picture) in [(401, ROCKET), (402, ROCKET), (403, ROCKET), (401, HUBBLE)] {
        let nvidia = FakeNvidia::replying(vec![Reply::status(status)]).await;
        let app = TestApp::start(&nvidia).await;
        let before = app.get("/metrics").await.text();
        assert!(app.upload(picture, "a.jpg").await.status >= 500);
        let after = app.get("/metrics").await.text();
        let refused = [("4m", false), ("6m", true), ("15m", true), ("25m", false)];
        assert_alerts(&[case(&step(&before, &after), "ImagesvcKeyRefused", &refused)]);
    }
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let before = app.get("/metrics").await.text();
    app.upload(ROCKET, "a.jpg").await.vector();
    let after = app.get("/metrics").await.text();
    let calm = [("6m", false), ("25m", false)];
    assert_alerts(&[case(&step(&before, &after), "ImagesvcKeyRefused", &calm)]);
}

#[tokio::test]
async fn errors_raise_the_alert_only_if_they_are_frequent_and_lasting() {
    // The picture's number is the status that NVIDIA answers.
    let nvidia = FakeNvidia::scripted(|request, _| match picture_number(request) {
        400 => Reply::status(400),
        503 => Reply::status(503),
        _ => embedding(),
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    let start = app.get("/metrics").await.text();
    assert_eq!(app.base64(&tiny(400)).await.status, 422);
    for n in 0..30 {
        app.base64(&tiny(n)).await.vector();
    }
    let few = app.get("/metrics").await.text();
    assert_eq!(app.base64(&tiny(503)).await.status, 502);
    let one = app.get("/metrics").await.text();
    for _ in 0..2 {
        assert_eq!(app.base64(&tiny(503)).await.status, 502);
    }
    let three = app.get("/metrics").await.text();
    let calm = [("15m", false), ("30m", false)];
    let failing = [("5m", false), ("30m", true)];
    assert_alerts(&[
        case(&slope(&start, &few), "ImagesvcFailing", &calm),
        case(&slope(&start, &one), "ImagesvcFailing", &calm), // one of 32
        case(&slope(&start, &three), "ImagesvcFailing", &failing),
        case(&slope(&few, &one), "ImagesvcFailing", &failing),
    ]);
}

#[tokio::test]
async fn a_disk_that_will_be_full_within_days_raises_the_alert() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let name = "imagesvc_downloads_free_bytes";
    assert!(samples(&app.get("/metrics").await.text()).contains_key(name));
    let free = |values: &str| BTreeMap::from([(name.to_owned(), values.to_owned())]);
    // A gigabyte an hour is 96 in four days.
    let of = |gigabytes: u64| format!("{}-{}x1800", gigabytes * 1_000_000_000, 1_000_000_000 / 60);
    assert_alerts(&[
        case(&free(&of(100)), "ImagesvcDiskFillsUp", &[("30m", false), ("25h", true)]),
        case(&free(&of(1000)), "ImagesvcDiskFillsUp", &[("2h", false), ("25h", false)]),
        case(&free("50000000000x1800"), "ImagesvcDiskFillsUp", &[("25h", false)]),
    ]);
}

#[tokio::test]
async fn both_metrics_formats_contain_the_same_samples_and_promtool_accepts_them() {
    let nvidia = FakeNvidia::with_uploads(|_| None).await;
    let app = TestApp::start(&nvidia).await;
    let plain = async || {
        let request = app.client.get(app.url("/metrics")).header(ACCEPT, "text/plain");
        app.send(request).await
    };
    for text in [plain().await.text(), {
        app.upload(ROCKET, "a.jpg").await.vector();
        app.upload(HUBBLE, "a.jpg").await.vector();
        app.upload(&converted(CHELSEA, image_rs::ImageFormat::WebP), "a").await.vector();
        app.upload(b"no picture", "a").await;
        app.get("/nothing").await;
        plain().await.text()
    }] {
        if let Some(said) = promtool(&["check", "metrics"], &text) {
            assert_eq!(said, Ok(()), "{text}");
        }
    }
    let (open_metrics, prometheus) = (app.get("/metrics").await, plain().await);
    assert_eq!(prometheus.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!((open_metrics.header("vary"), prometheus.header("vary")), ("Accept", "Accept"));
    assert!(open_metrics.header("content-type").starts_with("application/openmetrics-text"));
    let (open_metrics, prometheus) = (open_metrics.text(), prometheus.text());
    assert!(!prometheus.contains("# EOF") && !prometheus.contains("# UNIT"));
    let names = |text: &str| samples(text).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&open_metrics), names(&prometheus));
    let saved = "imagesvc_pictures_saved_total";
    assert_eq!((metric(&open_metrics, saved), metric(&prometheus, saved)), (3.0, 3.0));
    assert!(prometheus.contains(&format!("# TYPE {saved} counter\n")));
    assert!(prometheus.contains("# TYPE imagesvc_build_info gauge\n"));
}
