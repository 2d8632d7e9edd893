//! Traces: the spans that a collector receives by OTLP.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use tokio::{net::TcpListener, sync::watch};

use crate::support::{
    FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, ServiceProcess, converted, embedding, tiny,
};

/// The id of the client's trace.
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// The id of the client's span, which is the parent of the service's first span.
const PARENT_ID: &str = "00f067aa0ba902b7";

/// A span as the collector received it.
#[derive(Debug)]
struct ReceivedSpan {
    span: Span,
    attributes: BTreeMap<String, String>,
}

impl ReceivedSpan {
    fn name(&self) -> &str {
        &self.span.name
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    fn has_failed(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
    }

    fn is_within(&self, other: &Self) -> bool {
        self.span.start_time_unix_nano >= other.span.start_time_unix_nano
            && self.span.end_time_unix_nano <= other.span.end_time_unix_nano
    }
}

/// A collector that accepts every batch.
async fn collector() -> FakeServer {
    FakeServer::start(|request, _| {
        assert_eq!(request.line(), "POST /v1/traces");
        assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
        Reply::new(200, &[], "")
    })
    .await
}

/// All spans that a collector received, and the resource of the last batch.
fn spans(collector: &FakeServer) -> (Vec<ReceivedSpan>, BTreeMap<String, String>) {
    let (mut spans, mut resource) = (Vec::new(), BTreeMap::new());
    for request in collector.received() {
        let batch = ExportTraceServiceRequest::decode(&*request.body).unwrap();
        for part in batch.resource_spans {
            resource = texts(&part.resource.unwrap().attributes);
            for span in part.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(ReceivedSpan { attributes: texts(&span.attributes), span });
            }
        }
    }
    (spans, resource)
}

/// The values of attributes as texts, by the attributes' names.
fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.clone().unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => panic!("an attribute has an unusual type: {attribute:?} {other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

/// Asserts that exactly one span has this name, and returns it.
fn only_span<'a>(spans: &'a [ReceivedSpan], name: &str) -> &'a ReceivedSpan {
    let with_name: Vec<_> = spans.iter().filter(|span| span.name() == name).collect();
    assert_eq!(with_name.len(), 1, "there should be one span {name}: {spans:#?}");
    with_name[0]
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_of_a_request_is_a_span_in_the_trace_of_the_client() {
    let nvidia = FakeNvidia::healthy().await;
    let collector = collector().await;
    let picture_server = FakeServer::serving(&converted(ROCKET, image_rs::ImageFormat::WebP)).await;
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, allowed) = (collector.url(""), picture_server.address.to_string());
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collector-token"),
        ("IMAGESVC_FETCH_ALLOW", allowed.as_str()),
        ("IMAGESVC_API_KEYS", "planted-client-key-0123456789"),
        ("IMAGESVC_LOG", "trace"),
    ];
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = service
        .url_request(&client, &picture_server.url("/photo?planted=query"))
        .bearer_auth("planted-client-key-0123456789")
        .header("traceparent", format!("00-{TRACE_ID}-{PARENT_ID}-01"))
        .header("x-request-id", "traced")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    client.get(service.url("/health")).send().await.unwrap();
    let (status, log) = service.stop();
    assert_eq!(status.code(), Some(0));

    let (spans, resource) = spans(&collector);
    assert_eq!(resource["service.name"], "imagesvc");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    let request = only_span(&spans, "POST /vectorize-image");
    assert_eq!(hex(&request.span.parent_span_id), PARENT_ID);
    assert_eq!(request.span.kind(), SpanKind::Server);
    assert_eq!(request.attribute("http.request.method"), Some("POST"));
    assert_eq!(request.attribute("http.route"), Some("/vectorize-image"));
    assert_eq!(request.attribute("http.response.status_code"), Some("200"));
    assert_eq!(request.attribute("imagesvc.request_id"), Some("traced"));
    assert_eq!(request.attribute("error.type"), None);
    for (name, parent) in [
        ("receive", "POST /vectorize-image"),
        ("save", "POST /vectorize-image"),
        ("embed", "POST /vectorize-image"),
        ("decode", "embed"),
        ("queue", "embed"),
        ("infer", "embed"),
    ] {
        let (span, parent) = (only_span(&spans, name), only_span(&spans, parent));
        assert_eq!(span.span.parent_span_id, parent.span.span_id, "{name}");
        // `embed` may end after its parent, because it writes the vector to the cache after the answer.
        assert!(span.is_within(parent) || name == "embed", "{name} should be within its parent");
    }
    let call = only_span(&spans, "infer");
    assert_eq!(call.span.kind(), SpanKind::Client);
    assert_eq!(call.attribute("http.request.method"), Some("POST"));
    assert_eq!(call.attribute("server.address"), Some("127.0.0.1"));
    assert_eq!(call.attribute("http.response.status_code"), Some("200"));
    assert_eq!(spans.len(), 7, "the health check and the decoder's self-test should have no span");
    for span in &spans {
        assert_eq!(hex(&span.span.trace_id), TRACE_ID, "{span:?}");
        assert!(!span.has_failed() && span.span.events.is_empty(), "{span:?}");
        let text = format!("{span:?}");
        for secret in ["planted", "nvapi", "/photo", "Bearer"] {
            assert!(!text.contains(secret), "a span must not contain {secret}: {text}");
        }
    }
    for request in collector.received() {
        assert_eq!(request.header("authorization"), Some("Bearer collector-token"));
    }
    for request in nvidia.received().into_iter().chain(picture_server.received()) {
        let headers = format!("{:?}", request.headers);
        assert!(!headers.contains("traceparent") && !headers.contains(TRACE_ID), "{headers}");
    }
    let log = log.join("\n");
    assert!(!log.contains("collector-token"), "the log must not contain the collector's headers");
    // Inside the service, the span of a request is named `http_request`, and spans have `otel.` fields.
    for name in ["\"receive\"", "\"embed\"", "\"queue\"", "http_request", "otel."] {
        assert!(!log.contains(name), "the log must not contain the spans of traces: {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_steps_have_a_span_with_the_reason() {
    let nvidia =
        FakeNvidia::scripted(|_, nth| Reply::status(if nth == 0 { 503 } else { 402 })).await;
    let collector = collector().await;
    let folder = tempfile::tempdir().unwrap();
    let endpoint = collector.url("/v1/traces");
    let settings = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str()),
        ("OTEL_SERVICE_NAME", "pictures-eu"),
    ];
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let refused = service.upload_request(&client, ROCKET).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    let unknown = client.get(service.url("/no/such/path?query=1")).send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    service.stop();

    let (spans, resource) = spans(&collector);
    assert_eq!(resource["service.name"], "pictures-eu");
    let request = only_span(&spans, "POST /vectorize-image-upload");
    assert!(request.has_failed());
    assert!(request.span.parent_span_id.is_empty(), "the client sent no trace");
    assert_eq!(request.attribute("http.response.status_code"), Some("503"));
    assert_eq!(request.attribute("error.type"), Some("embedding_exhausted"));
    let calls: Vec<_> = spans.iter().filter(|span| span.name() == "infer").collect();
    let error_types: Vec<_> = calls.iter().map(|call| call.attribute("error.type")).collect();
    assert_eq!(error_types, [Some("503"), Some("402")], "each call should have a span");
    assert!(calls.iter().all(|call| call.has_failed()));
    assert!(!only_span(&spans, "save").has_failed());
    // An error of the client is no failure of the service.
    let unknown = only_span(&spans, "GET");
    assert!(!unknown.has_failed());
    assert_eq!(unknown.attribute("error.type"), Some("not_found"));
    assert_ne!(unknown.span.trace_id, request.span.trace_id);
    assert!(!format!("{spans:?}").contains("such"), "an unknown path must not be exported");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_the_client_does_not_record_is_not_exported() {
    let nvidia = FakeNvidia::healthy().await;
    let collector = collector().await;
    let folder = tempfile::tempdir().unwrap();
    let endpoint = collector.url("");
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (n, traceparent) in [
        // The flags at the end are 00, so the client does not record this trace.
        (1, format!("00-{TRACE_ID}-{PARENT_ID}-00")),
        // The flags are 01, so the client records this trace.
        (2, format!("00-{TRACE_ID}-{PARENT_ID}-01")),
        // The version ff is invalid, so the service ignores the header and begins a trace.
        (3, format!("ff-{TRACE_ID}-{PARENT_ID}-01")),
    ] {
        let request = service.upload_request(&client, &tiny(n)).header("x-request-id", n);
        let response = request.header("traceparent", traceparent).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
    service.stop();
    let (spans, _) = spans(&collector);
    let requests = spans.iter().filter(|span| span.span.kind() == SpanKind::Server);
    let ids: BTreeMap<_, _> = requests
        .map(|span| (span.attribute("imagesvc.request_id").unwrap(), hex(&span.span.trace_id)))
        .collect();
    assert_eq!(ids.keys().copied().collect::<Vec<_>>(), ["2", "3"]);
    assert_eq!(ids["2"], TRACE_ID);
    assert_ne!(ids["3"], TRACE_ID);
    assert_eq!(spans.iter().filter(|span| span.name() == "save").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_span_of_a_disconnected_client_is_exported_while_the_call_still_runs() {
    let (release, _) = watch::channel(false);
    let release_reply = release.clone();
    let nvidia = FakeNvidia::scripted(move |_, _| embedding().held_until(&release_reply)).await;
    let collector = collector().await;
    let folder = tempfile::tempdir().unwrap();
    let endpoint = collector.url("");
    // Spans are exported every 10 ms.
    let settings =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "10")];
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let upload = tokio::spawn(service.upload_request(&client, ROCKET).send());
    nvidia.wait_for(1).await;
    upload.abort(); // disconnects the client
    // The request's span arrives although the call still runs.
    let is_request = |span: &ReceivedSpan| span.span.kind() == SpanKind::Server;
    let mut batches = 1;
    while !spans(&collector).0.iter().any(is_request) {
        collector.wait_for(batches).await;
        batches += 1;
    }
    let first_spans = spans(&collector).0;
    let request = only_span(&first_spans, "POST /vectorize-image-upload");
    assert_eq!(request.attribute("error.type"), Some("client_disconnected"));
    assert!(first_spans.iter().all(|span| span.name() != "infer"));
    release.send_replace(true);
    service.stop();
    let all_spans = spans(&collector).0;
    let request = only_span(&all_spans, "POST /vectorize-image-upload");
    let call = only_span(&all_spans, "infer");
    assert_eq!(call.span.trace_id, request.span.trace_id);
    assert!(call.span.end_time_unix_nano > request.span.end_time_unix_nano);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusing_or_silent_collector_delays_no_request_and_a_refusal_is_logged_once() {
    let nvidia = FakeNvidia::healthy().await;
    // This collector accepts connections, but never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://user:planted@{}", silent.local_addr().unwrap());
    let refusing = FakeServer::start(|_, _| Reply::status(403)).await;
    let refusing_url = refusing.url("");
    // The silent collector causes no warning: the first would come after 10 s, and the service stops
    // earlier.
    for (endpoint, warnings) in [(silent_url, 0), (refusing_url, 1)] {
        let folder = tempfile::tempdir().unwrap();
        // Spans are exported every 10 ms.
        let settings =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "10")];
        let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let started = Instant::now();
        for n in 1..=5 {
            let response = service.upload_request(&client, &tiny(n)).send().await.unwrap();
            assert_eq!(response.status(), 200);
            // The refusing collector gets several batches, but the log must contain only one warning.
            if warnings > 0 {
                refusing.wait_for(n).await;
            }
        }
        // A request that waited for the silent collector would take 10 s.
        assert!(started.elapsed() < Duration::from_secs(8), "requests must not wait");
        // A stop waits for the silent collector for at most 2 s.
        let stopped = Instant::now();
        let (status, log) = service.stop();
        assert_eq!(status.code(), Some(0));
        assert!(stopped.elapsed() < Duration::from_secs(7), "the stop must not wait for long");
        let log_text = log.join("\n");
        let logged = log.iter().filter(|line| line.contains("does not accept traces")).count();
        assert_eq!(logged, warnings, "{log_text}");
        assert!(!log_text.contains("planted"), "the log must not contain the collector's password");
        assert_eq!(log_text.contains("status 403"), warnings == 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_traces_are_exported_if_the_endpoint_is_missing_or_invalid_or_if_traces_are_disabled() {
    let nvidia = FakeNvidia::healthy().await;
    let collector = collector().await;
    let endpoint = collector.url("");
    let disabled =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_SDK_DISABLED", "true")];
    let wrong = [("OTEL_EXPORTER_OTLP_ENDPOINT", "not a planted url")];
    for (settings, has_error) in [(&[][..], false), (&disabled, false), (&wrong, true)] {
        let folder = tempfile::tempdir().unwrap();
        let service = ServiceProcess::start_with(&nvidia, folder.path(), settings);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = service.upload_request(&client, HUBBLE).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let (_, log) = service.stop();
        let errors: Vec<_> = log.iter().filter(|line| line.contains("not exported")).collect();
        assert_eq!(errors.len(), usize::from(has_error), "{log:?}");
        assert!(!log.join("").contains("planted"));
    }
    assert_eq!(collector.count(), 0);
}
