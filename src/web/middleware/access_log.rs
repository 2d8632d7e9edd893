//! The access log: assigns each request an id, logs one line for it, and counts it in the metrics.
//!
//! This layer also writes the bodies of error responses, because these contain the request's id.

use std::{error::Error as StdError, sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, Span, field::Empty};

use super::{
    request_id::{REQUEST_ID, request_id},
    trace_context::TraceContext,
};
use crate::{
    causes::causes,
    server::{Peer, TrustedProxies},
    telemetry::{InFlightGuard, Metrics, REQUEST_SPAN, continue_trace, mark_failed, span},
    web::error::{Error, ErrorExtension, PROBLEM_JSON, X_SHOULD_RETRY, is_retry_useless},
};

/// The status in the log and the metrics if the client disconnected before the response. nginx uses
/// the same number.
const CLIENT_DISCONNECTED: u16 = 499;

/// The route in the log and the metrics if no route has the request's path.
const NO_ROUTE: &str = "none";

/// The field of a trace's span that contains an error's code, or `client_disconnected`.
const ERROR_TYPE: &str = "error.type";

/// Fields that a handler adds to the request's log line. The handler attaches them to its response.
#[derive(Debug, Clone, Default)]
pub(in crate::web) struct LogFields {
    /// The name of the saved file.
    pub saved_as: Option<String>,
    /// How many pictures a batch has.
    pub pictures: Option<usize>,
    /// How many pictures of a batch failed.
    pub failed_pictures: Option<usize>,
    /// The size of the picture, or of all pictures of a batch, in bytes.
    pub size_bytes: Option<u64>,
    /// Where the embedding came from: NVIDIA, a cache level, or another request's call.
    pub cache: Option<&'static str>,
    /// The number of inference calls, retries included.
    pub attempts: Option<u32>,
}

/// The state of the layer. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::web) struct AccessLog {
    /// The metrics that count requests.
    pub metrics: Arc<Metrics>,
    /// The proxies whose `X-Forwarded-For` is trusted.
    pub proxies: TrustedProxies,
}

/// The layer. The module's documentation describes it.
pub(in crate::web) async fn access_log(
    State(AccessLog { metrics, proxies }): State<AccessLog>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let route =
        request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, |path| path.as_str()).to_owned();
    // A client may send any text as the method, so unknown methods are logged as `other`.
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known,
        _ => "other",
    }
    .to_owned();
    let path = request.uri().path().to_owned();
    let peer = request.extensions().get::<Peer>();
    let client = peer.map(|Peer(peer)| proxies.client(peer.ip(), request.headers()));
    if let Some(client) = client {
        // Other layers and the handlers read the client's address from here.
        request.extensions_mut().insert(client);
    }
    let trace = TraceContext::of(request.headers());
    let trace_span = trace_span(&method, &route, &id, trace.as_ref());
    let mut entry = Entry {
        _in_flight: metrics.start_request(),
        metrics,
        method,
        route,
        id,
        trace,
        trace_span: trace_span.clone(),
        client: client.map(|client| client.0.to_string()),
        started: Instant::now(),
        is_written: false,
    };
    let log_span = tracing::info_span!("request", request_id = %entry.id);

    // A call to NVIDIA may outlive its request, and keeps the innermost span until the call ends. If
    // that span were `trace_span`, the request would seem to last as long as the call. So `log_span`
    // is innermost. A child would keep `trace_span` open, too. So `log_span` is not its child: it is
    // created before `trace_span` is entered.
    let mut response = next.run(request).instrument(log_span).instrument(trace_span).await;

    let error = response.extensions_mut().remove::<ErrorExtension>();
    if let Some(error) = &error {
        response = with_error_body(response, error, &entry.id, &path);
    }
    if let Ok(id) = HeaderValue::try_from(&entry.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let fields = response.extensions_mut().remove::<LogFields>().unwrap_or_default();
    entry.write(response.status(), &fields, error.as_ref().map(|error| &*error.0));
    response
}

/// Adds the body of an error to its response. Headers such as `Allow` and `Retry-After` are
/// retained.
fn with_error_body(
    mut response: Response,
    error: &ErrorExtension,
    id: &str,
    path: &str,
) -> Response {
    // A problem contains only strings and numbers, so serializing it never fails.
    let mut body = serde_json::to_vec(&error.problem(id, path)).unwrap_or_default();
    body.push(b'\n'); // for readability in a terminal
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    if is_retry_useless(&error.0) {
        headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    *response.body_mut() = Body::from(body);
    response
}

/// Creates a request's span for the traces. If the client sent a trace, the span is part of that
/// trace. Returns a disabled span for a route that is polled. Neither the span nor the log contains
/// the path, because a path may be any text.
fn trace_span(method: &str, route: &str, id: &str, trace: Option<&TraceContext>) -> Span {
    if is_polled(route) {
        return Span::none();
    }
    let route = Some(route).filter(|route| *route != NO_ROUTE);
    let span = span!(
        REQUEST_SPAN,
        otel.name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}")),
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        url.scheme = "http",
        imagesvc.request_id = id,
        http.response.status_code = Empty,
        "error.type" = Empty,
    );
    if let Some(TraceContext { trace_id, span_id, is_sampled }) = trace {
        continue_trace(&span, trace_id, span_id, *is_sampled);
    }
    span
}

/// Whether health checks and scrapers request this route every few seconds.
fn is_polled(route: &str) -> bool {
    matches!(route, "/health" | "/ready" | "/metrics")
}

/// A request's line in the log. If the client disconnects, the request's future is dropped, and
/// `drop` writes the line.
struct Entry {
    _in_flight: InFlightGuard,
    metrics: Arc<Metrics>,
    method: String,
    route: String,
    id: String,
    trace: Option<TraceContext>,
    trace_span: Span,
    client: Option<String>,
    started: Instant,
    is_written: bool,
}

impl Entry {
    /// The ids of the client's trace and span, if the client sent them.
    fn trace_ids(&self) -> (Option<&str>, Option<&str>) {
        self.trace.as_ref().map(|trace| (&*trace.trace_id, &*trace.span_id)).unzip()
    }

    /// Writes the line, counts the request in the metrics, and records its outcome in its trace's span.
    fn write(&mut self, status: StatusCode, fields: &LogFields, error: Option<&Error>) {
        self.is_written = true;
        let status = status.as_u16();
        let elapsed = self.started.elapsed();
        self.metrics.record_request(&self.route, status, elapsed);
        if let Some(reason) = error.and_then(Error::overload_reason) {
            self.metrics.record_shed(reason.name());
        }
        let saved_before_error = error.and_then(Error::saved).map(|saved| saved.saved_as.as_str());
        self.trace_span.record("http.response.status_code", i64::from(status));
        if let Some(error) = error {
            self.trace_span.record(ERROR_TYPE, error.code().as_str());
        }
        if status >= 500 {
            mark_failed(&self.trace_span);
        }
        let (trace_id, span_id) = self.trace_ids();
        macro_rules! log_line {
            ($level:ident) => {
                tracing::$level!(
                    method = self.method,
                    route = self.route,
                    status,
                    duration_ms = elapsed.as_secs_f64() * 1000.0,
                    request_id = self.id,
                    trace_id,
                    span_id,
                    client = self.client,
                    saved_as = fields.saved_as.as_deref().or(saved_before_error),
                    pictures = fields.pictures,
                    failed_pictures = fields.failed_pictures,
                    size_bytes = fields.size_bytes,
                    cache = fields.cache,
                    attempts = fields.attempts.or(error.and_then(Error::attempts)),
                    code = error.map(|error| error.code().as_str()),
                    error = error.map(|error| with_causes(error)),
                    "request"
                )
            };
        }
        match status {
            500 => log_line!(error),
            // 501 is not a warning, because it means that the client sent a wrong request.
            502.. => log_line!(warn),
            _ if error.is_none() && is_polled(&self.route) => log_line!(debug),
            _ => log_line!(info),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.is_written {
            let elapsed = self.started.elapsed();
            let (trace_id, span_id) = self.trace_ids();
            self.metrics.record_request(&self.route, CLIENT_DISCONNECTED, elapsed);
            self.trace_span.record(ERROR_TYPE, "client_disconnected");
            tracing::info!(
                method = self.method,
                route = self.route,
                status = CLIENT_DISCONNECTED,
                duration_ms = elapsed.as_secs_f64() * 1000.0,
                request_id = self.id,
                trace_id,
                span_id,
                client = self.client,
                "request: the client disconnected"
            );
        }
    }
}

/// The messages of an error and of its causes in one line.
pub(in crate::web) fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        let cause = cause.to_string();
        // A transparent error has the message of its cause. That message must not appear twice.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
