//! Runs promtool, a tool of Prometheus, on the metrics of a real service. promtool evaluates the
//! alert rules of `docs/operating.md`, and checks the metrics in Prometheus's text format.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use reqwest::header::ACCEPT;
use serde_json::{Value, json};

use crate::support::{
    CHELSEA, FakeBucket, FakeNvidia, HUBBLE, ROCKET, Reply, TestApp, ValkeyServer, converted,
    documents::Document, embedding, metric, picture_number, tiny,
};

/// The alert rules of `docs/operating.md`. They are its first block of YAML.
fn rules() -> String {
    let blocks = Document::read("docs/operating.md").blocks();
    blocks.into_iter().find(|block| block.language == "yaml").unwrap().text
}

/// Runs promtool with `input` as its standard input. Returns `None` if promtool is not installed.
/// If promtool reports a problem, the error is its output.
fn promtool(arguments: &[&str], input: &str) -> Option<Result<(), String>> {
    let tool = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut tool) = tool else {
        assert!(std::env::var_os("CI").is_none(), "in CI, promtool must be installed");
        println!("skipped: there is no promtool on this machine (Debian's package prometheus)");
        return None;
    };
    let mut stdin = tool.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = tool.wait_with_output().unwrap();
    let output_bytes = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&output_bytes).into_owned();
    // `promtool check` prints warnings and still succeeds. `promtool test` always prints something.
    let has_no_warning = printed.is_empty() || arguments[0] == "test";
    Some(if output.status.success() && has_no_warning { Ok(()) } else { Err(printed) })
}

/// Parses the text of `/metrics`. Returns the value of each series.
fn series_values(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').unwrap());
    pairs.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// One case for `promtool test rules`. `series` contains the values of each series, one per minute,
/// in promtool's notation: `3x4` is 3 and four repetitions, `3+2x4` is 3 and four increments by 2,
/// and `_x5` is five missing values. `expected` lists points in time, each with whether the alert
/// fires then.
fn case(series: &BTreeMap<String, String>, alert: &str, expected: &[(&str, bool)]) -> Value {
    let series: Vec<_> =
        series.iter().map(|(name, values)| json!({ "series": name, "values": values })).collect();
    let tests: Vec<_> = expected
        .iter()
        .map(|(time, fires)| {
            let alerts = if *fires { vec![json!({ "exp_labels": {} })] } else { vec![] };
            json!({ "eval_time": time, "alertname": alert, "exp_alerts": alerts })
        })
        .collect();
    json!({ "interval": "1m", "input_series": series, "alert_rule_test": tests })
}

/// Asserts that each alert fires, or does not fire, as the cases expect. Asserts nothing without
/// promtool.
fn assert_alerts(cases: &[Value]) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rules.yml"), rules()).unwrap();
    // promtool reads YAML, and JSON is YAML.
    let test_file =
        json!({ "rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": cases });
    let path = folder.path().join("test.yml");
    std::fs::write(&path, test_file.to_string()).unwrap();
    if let Some(result) = promtool(&["test", "rules", path.to_str().unwrap()], "") {
        assert_eq!(result, Ok(()));
    }
}

/// Makes series from two scrapes. The series have the values of the first scrape for five minutes,
/// then those of the second for an hour.
fn series_with_one_change(before: &str, after: &str) -> BTreeMap<String, String> {
    let values_before = series_values(before);
    let series = series_values(after).into_iter().map(|(name, value_after)| {
        // The first scrape may lack the series.
        let first_five =
            values_before.get(&name).map_or("_x5".to_owned(), |value| format!("{value}x4"));
        (name, format!("{first_five} {value_after}x60"))
    });
    series.collect()
}

/// Makes series from two scrapes. The series start with the values of the first scrape. Every
/// minute, for 40 minutes, they grow by the difference between the two scrapes.
fn growing_series(before: &str, after: &str) -> BTreeMap<String, String> {
    let values_before = series_values(before);
    let series = series_values(after).into_iter().map(|(name, value_after)| {
        let value_before = values_before.get(&name).copied().unwrap_or(0.0);
        // A gauge that has shrunk stays constant.
        (name, format!("{value_before}+{}x40", (value_after - value_before).max(0.0)))
    });
    series.collect()
}

/// Prometheus sees no increase in a counter that first appears with the value 1, so an alert would miss
/// the first event.
#[tokio::test]
async fn at_the_start_the_alert_counters_are_zero_and_an_unset_bucket_or_valkey_has_no_gauge() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let values = series_values(&app.get("/metrics").await.text());
    let assert_zero = |series: String| assert_eq!(values.get(&series), Some(&0.0), "{series}");
    for route in ["/vectorize-image", "/vectorize-image-base64", "/vectorize-image-upload"] {
        for status in [200, 422, 500, 502, 503, 504, 507] {
            assert_zero(format!(
                "imagesvc_requests_total{{route=\"{route}\",status=\"{status}\"}}"
            ));
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
            assert_zero(format!(
                "imagesvc_upstream_calls_total{{operation=\"{operation}\",outcome=\"{status}\"}}"
            ));
        }
    }
    assert!(values["imagesvc_downloads_free_bytes"] > 0.0);
    // Without a bucket and a Valkey, the alerts about them must not fire.
    assert_eq!(values.get("imagesvc_bucket_writable"), None);
    assert_eq!(values.get("imagesvc_valkey_usable"), None);
    assert_eq!(
        rules().matches("- alert:").count(),
        5,
        "the number of alerts has changed: this test must check the series of each alert"
    );
}

#[tokio::test]
async fn one_refusal_of_the_nvidia_key_or_of_the_account_raises_the_key_alert() {
    // For ROCKET, the refused call is the inference. HUBBLE is too long to be sent inline, so the refused
    // call is the creation of an asset.
    for (status, picture) in [(401, ROCKET), (402, ROCKET), (403, ROCKET), (401, HUBBLE)] {
        let nvidia = FakeNvidia::replying(vec![Reply::status(status)]).await;
        let app = TestApp::start(&nvidia).await;
        let before = app.get("/metrics").await.text();
        assert!(app.upload(picture, "a.jpg").await.status >= 500);
        let after = app.get("/metrics").await.text();
        // The refusal is in minute 5. The alert looks at the last 15 minutes.
        let fires_for_a_while = [("4m", false), ("6m", true), ("15m", true), ("25m", false)];
        let series = series_with_one_change(&before, &after);
        assert_alerts(&[case(&series, "ImagesvcKeyRefused", &fires_for_a_while)]);
    }
    // A presigned URL that has expired says nothing about the key. The picture is shrunk instead.
    let nvidia =
        FakeNvidia::healthy_except(|request| (request.method == "PUT").then(|| Reply::status(403)))
            .await;
    let app = TestApp::start(&nvidia).await;
    for picture in [ROCKET, HUBBLE] {
        let before = app.get("/metrics").await.text();
        app.upload(picture, "a.jpg").await.assert_success();
        let after = app.get("/metrics").await.text();
        let never_fires = [("6m", false), ("25m", false)];
        let series = series_with_one_change(&before, &after);
        assert_alerts(&[case(&series, "ImagesvcKeyRefused", &never_fires)]);
    }
}

#[tokio::test]
async fn errors_raise_the_failing_alert_only_if_they_are_frequent_and_lasting() {
    // The alert fires if, for ten minutes, more than one in twenty requests to `/vectorize*` fails
    // with an error 5xx other than 501.
    // NVIDIA replies to the tiny pictures 400 and 503 with their number as the status.
    let nvidia = FakeNvidia::scripted(|request, _| match picture_number(request) {
        400 => Reply::status(400),
        503 => Reply::status(503),
        _ => embedding(),
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    let at_start = app.get("/metrics").await.text();
    // The alert counts no errors 4xx.
    assert_eq!(app.base64(&tiny(400)).await.status, 422);
    for n in 0..30 {
        app.base64(&tiny(n)).await.assert_success();
    }
    let no_5xx = app.get("/metrics").await.text();
    assert_eq!(app.base64(&tiny(503)).await.status, 502);
    let one_5xx = app.get("/metrics").await.text();
    for _ in 0..2 {
        assert_eq!(app.base64(&tiny(503)).await.status, 502);
    }
    let three_5xx = app.get("/metrics").await.text();
    let never_fires = [("15m", false), ("30m", false)];
    let fires_later = [("5m", false), ("30m", true)];
    assert_alerts(&[
        case(&growing_series(&at_start, &no_5xx), "ImagesvcFailing", &never_fires),
        // one error 502 in 32 requests
        case(&growing_series(&at_start, &one_5xx), "ImagesvcFailing", &never_fires),
        // three errors 502 in 34 requests
        case(&growing_series(&at_start, &three_5xx), "ImagesvcFailing", &fires_later),
        // nothing but errors 502
        case(&growing_series(&no_5xx, &one_5xx), "ImagesvcFailing", &fires_later),
    ]);
}

#[tokio::test]
async fn a_bucket_that_fails_for_five_minutes_raises_the_bucket_alert() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let app = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    let before = app.get("/metrics").await.text();
    bucket.fail(|_| Some(FakeBucket::error(403, "AccessDenied")));
    assert_eq!(app.upload(ROCKET, "a.jpg").await.status, 503);
    let after = app.get("/metrics").await.text();
    // The bucket fails from minute 5 on.
    let fires = [("4m", false), ("9m", false), ("11m", true)];
    let series = series_with_one_change(&before, &after);
    assert_alerts(&[case(&series, "ImagesvcBucketFails", &fires)]);
    let never_fires = [("9m", false), ("30m", false)];
    let series = series_with_one_change(&before, &before);
    assert_alerts(&[case(&series, "ImagesvcBucketFails", &never_fires)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valkey_that_fails_for_five_minutes_raises_the_valkey_alert() {
    let Some(mut valkey) = ValkeyServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).valkey(&valkey).start().await;
    let before = app.get("/metrics").await.text();
    valkey.kill();
    app.wait_for(|value| value("imagesvc_valkey_usable") == 0.0).await;
    let after = app.get("/metrics").await.text();
    // The Valkey fails from minute 5 on.
    let fires = [("4m", false), ("9m", false), ("11m", true)];
    let series = series_with_one_change(&before, &after);
    assert_alerts(&[case(&series, "ImagesvcValkeyFails", &fires)]);
    let never_fires = [("9m", false), ("30m", false)];
    let series = series_with_one_change(&before, &before);
    assert_alerts(&[case(&series, "ImagesvcValkeyFails", &never_fires)]);
}

#[tokio::test]
async fn only_a_disk_that_will_be_full_within_four_days_raises_the_disk_alert() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let metric_name = "imagesvc_downloads_free_bytes";
    assert!(series_values(&app.get("/metrics").await.text()).contains_key(metric_name));
    let free_space = |values: &str| BTreeMap::from([(metric_name.to_owned(), values.to_owned())]);
    // For 30 hours (1800 minutes) the free space shrinks by one gigabyte per hour. At this rate, four
    // days take 96 GB, so the alert must fire if less than 96 GB are free. Shrinking from 100 GB, more
    // than 99 GB are free after 30 minutes, and 75 GB after 25 hours. From 1000 GB, over 96 GB stay free.
    let shrinking_from = |gigabytes: u64| {
        free_space(&format!("{}-{}x1800", gigabytes * 1_000_000_000, 1_000_000_000 / 60))
    };
    let constant_50_gb = free_space("50000000000x1800");
    assert_alerts(&[
        case(&shrinking_from(100), "ImagesvcDiskFillsUp", &[("30m", false), ("25h", true)]),
        case(&shrinking_from(1000), "ImagesvcDiskFillsUp", &[("2h", false), ("25h", false)]),
        case(&constant_50_gb, "ImagesvcDiskFillsUp", &[("25h", false)]),
    ]);
}

#[tokio::test]
async fn both_metrics_formats_contain_the_same_series_and_promtool_accepts_the_text_format() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let scrape_as_prometheus_text = async || {
        let request = app.client.get(app.url("/metrics")).header(ACCEPT, "text/plain");
        app.send(request).await
    };
    let at_start = scrape_as_prometheus_text().await;
    // Three pictures that are saved, and two other requests. Each is of another kind, so that more series
    // appear.
    app.upload(ROCKET, "a.jpg").await.assert_success();
    app.upload(HUBBLE, "a.jpg").await.assert_success();
    app.upload(&converted(CHELSEA, image_rs::ImageFormat::WebP), "a").await.assert_success();
    app.upload(b"no picture", "a").await;
    app.get("/nothing").await;
    for scrape in [at_start, scrape_as_prometheus_text().await] {
        if let Some(result) = promtool(&["check", "metrics"], &scrape.text()) {
            assert_eq!(result, Ok(()), "{}", scrape.text());
        }
    }
    let open_metrics = app.get("/metrics").await;
    let prometheus = scrape_as_prometheus_text().await;
    assert_eq!(prometheus.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!((open_metrics.header("vary"), prometheus.header("vary")), ("Accept", "Accept"));
    assert!(open_metrics.header("content-type").starts_with("application/openmetrics-text"));
    let (open_metrics, prometheus) = (open_metrics.text(), prometheus.text());
    assert!(!prometheus.contains("# EOF") && !prometheus.contains("# UNIT"));
    let names = |text: &str| series_values(text).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&open_metrics), names(&prometheus));
    let saved_total = "imagesvc_pictures_saved_total";
    assert_eq!((metric(&open_metrics, saved_total), metric(&prometheus, saved_total)), (3.0, 3.0));
    assert!(prometheus.contains(&format!("# TYPE {saved_total} counter\n")));
    assert!(prometheus.contains("# TYPE imagesvc_build_info gauge\n"));
}
