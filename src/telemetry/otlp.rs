//! Exports the spans of traces to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! OpenTelemetry's SDK reads its own standard variables, which operators know: the endpoint, headers,
//! the sampler, the size of batches. Without an endpoint, nothing is exported. A thread of the SDK
//! sends the spans from a bounded queue; spans that do not fit into the queue are dropped. So a
//! collector that is slow or down delays no request.

use std::{
    env,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use opentelemetry::{
    Context as TraceContext, KeyValue,
    trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
    },
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tokio::runtime::{self, Runtime};
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::dynamic_filter_fn, layer::Context, registry::LookupSpan};

use super::traces::{REQUEST_SPAN, TRACES};
use crate::{causes::causes, http_client::Trust};

/// The variables with the collector's address. The first one has precedence.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// The variables that can name the service.
const SERVICE_NAME_VARIABLES: [&str; 2] = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"];

/// The name of the tracer, and of the service if no variable names it.
const SERVICE_NAME: &str = "imagesvc";

/// How long sending one batch may take. This is OpenTelemetry's default.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long sending the last spans may take when the process ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The most bytes that are read of a collector's answer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Exports the spans; empty if none are exported.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A variable is wrong. The SDK's error is not kept, because it may quote a URL with a password.
    #[error("an endpoint or another of the variables OTEL_EXPORTER_OTLP_* is invalid")]
    Variables,
    /// TLS cannot be set up.
    #[error("cannot set up the HTTP client")]
    HttpClient(#[from] reqwest::Error),
    /// The runtime of [`Sender`] cannot be built.
    #[error("cannot set up the exporter")]
    Runtime(#[from] std::io::Error),
}

/// Returns the layer that collects the spans of traces, and starts to export them. Returns `None` if
/// no endpoint is set, or if `OTEL_SDK_DISABLED` is true.
///
/// # Errors
/// [`Error`]
pub(super) fn layer<S>() -> Result<Option<impl Layer<S>>, Error>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let is_set = |name: &&str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_disabled =
        env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    if is_disabled || !ENDPOINTS.iter().any(is_set) {
        return Ok(None);
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Sender::new()?)
        .build()
        .map_err(|_| Error::Variables)?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource())
        .build();
    let tracer = provider.tracer(SERVICE_NAME);
    // Tests start several services in one process, but only the first layer is used. So only its
    // provider is kept.
    let _ = PROVIDER.set(provider);
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_level(false)
        .with_target(false)
        .with_threads(false)
        .with_location(false)
        .with_tracked_inactivity(false);
    Ok(Some(layer.with_filter(dynamic_filter_fn(is_exported))))
}

/// Whether a span is exported. Spans outside of requests, such as those of the decoder's self-test,
/// are not exported: each would be a trace of its own.
fn is_exported<S>(metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    // `lookup_current` finds only exported spans, so it finds none outside of a request.
    metadata.is_span()
        && metadata.target() == TRACES
        && (metadata.name() == REQUEST_SPAN || context.lookup_current().is_some())
}

/// What the spans say about the service. The SDK adds `OTEL_RESOURCE_ATTRIBUTES`.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    let names_service = |name: &&str| {
        env::var(name).is_ok_and(|value| match *name {
            "OTEL_RESOURCE_ATTRIBUTES" => value.contains("service.name="),
            _ => !value.is_empty(),
        })
    };
    if SERVICE_NAME_VARIABLES.iter().any(names_service) {
        builder.build()
    } else {
        builder.with_service_name(SERVICE_NAME).build()
    }
}

/// Sends the last spans, and stops exporting. Spans that are not sent within 2 s are lost. Blocks the
/// thread.
pub(super) fn close() {
    if let Some(provider) = PROVIDER.get() {
        // This fails if sending fails, which `Sender` has logged, or if the timeout has passed.
        let _ = provider.shutdown_with_timeout(CLOSE_TIMEOUT);
    }
}

/// Continues a client's trace with `span`, which must not have been entered yet. The ids are hexadecimal.
pub(crate) fn continue_trace(span: &Span, trace_id: &str, parent_id: &str, is_sampled: bool) {
    let ids = (TraceId::from_hex(trace_id), SpanId::from_hex(parent_id));
    let (Ok(trace_id), Ok(parent_id)) = ids else { return };
    let flags = TraceFlags::default().with_sampled(is_sampled);
    let parent = SpanContext::new(trace_id, parent_id, flags, true, TraceState::NONE);
    // This fails if nothing is exported, or if the span itself is not exported.
    let _ = span.set_parent(TraceContext::new().with_remote_span_context(parent));
}

/// Sends batches with the service's own HTTP client, so that there is no second TLS library. Uses no
/// proxy: the service uses one only for NVIDIA.
#[derive(Debug)]
struct Sender {
    http: reqwest::Client,
    /// Runs `send` on the SDK's thread, which does not belong to the service's runtime.
    runtime: Runtime,
    /// Whether the last batch was not accepted.
    is_failing: AtomicBool,
}

impl Sender {
    fn new() -> Result<Self, Error> {
        let http = Trust::probe().client_builder().no_proxy().timeout(SEND_TIMEOUT).build()?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { http, runtime, is_failing: AtomicBool::new(false) })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, reqwest::Error> {
        let mut response = self.http.execute(request.try_into()?).await?;
        let mut answer = Response::new(Bytes::new());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = response.headers().clone();
        let mut body = BytesMut::new();
        while body.len() < MAX_ANSWER_BYTES
            && let Some(chunk) = response.chunk().await?
        {
            body.extend_from_slice(&chunk[..chunk.len().min(MAX_ANSWER_BYTES - body.len())]);
        }
        *answer.body_mut() = body.freeze();
        Ok(answer)
    }

    /// Logs when sending begins to fail, and when it works again, but not each failure.
    fn record(&self, failure: Option<&str>) {
        let was_failing = self.is_failing.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(error) if !was_failing => {
                tracing::warn!(
                    error,
                    "the collector does not accept traces: they are lost for now"
                );
            }
            None if was_failing => tracing::info!("the collector accepts traces again"),
            Some(_) | None => {}
        }
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        match self.runtime.block_on(self.send(request)) {
            Ok(answer) => {
                let status = answer.status();
                let refusal = (!status.is_success()).then(|| format!("status {}", status.as_u16()));
                self.record(refusal.as_deref());
                Ok(answer)
            }
            Err(error) => {
                // The URL may contain a password.
                let error = error.without_url();
                let cause = causes(&error).last().map(ToString::to_string);
                self.record(Some(&cause.unwrap_or_else(|| error.to_string())));
                Err(error.into())
            }
        }
    }
}
