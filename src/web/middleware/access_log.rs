//! The outermost layer: gives each request an id, writes its line to the log, counts it, and
//! turns errors into their answers.

use std::{error::Error as StdError, sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use tracing::Instrument;

use super::{
    request_id::{REQUEST_ID, request_id},
    trace_context::TraceContext,
};
use crate::{
    server::{Peer, TrustedProxies},
    telemetry::{InFlightGuard, Metrics, causes},
    web::error::{Error, Failure, PROBLEM_JSON},
};

/// The status that the log and the metrics give a request whose client left: as nginx does.
const CLIENT_LEFT: u16 = 499;

/// What a handler knows of its request and the log should tell.
#[derive(Debug, Clone, Default)]
pub(in crate::web) struct Facts {
    /// The saved file.
    pub saved_as: Option<String>,
    /// The picture's size.
    pub size_bytes: Option<u64>,
    /// Where the embedding comes from.
    pub cache: Option<&'static str>,
    /// Inference calls that were made.
    pub attempts: Option<u32>,
}

/// What the layer needs. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::web) struct AccessLog {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Whose word on a client's address is believed.
    pub proxies: TrustedProxies,
}

/// The layer: see the module.
pub(in crate::web) async fn access_log(
    State(AccessLog { metrics, proxies }): State<AccessLog>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let route =
        request.extensions().get::<MatchedPath>().map_or("none", |path| path.as_str()).to_owned();
    // A method may be of any length: only those that are known are worth a word.
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known,
        _ => "other",
    }
    .to_owned();
    let peer = request.extensions().get::<Peer>();
    let client = peer.map(|Peer(peer)| proxies.client(peer.ip(), request.headers()));
    if let Some(client) = client {
        request.extensions_mut().insert(client);
    }
    let mut record = Record {
        _in_flight: metrics.start_request(),
        metrics,
        method,
        route,
        id,
        trace: TraceContext::of(request.headers()),
        client: client.map(|client| client.0.to_string()),
        started: Instant::now(),
        done: false,
    };
    let span = tracing::info_span!("request", request_id = %record.id);

    let mut response = next.run(request).instrument(span).await;

    let failure = response.extensions_mut().remove::<Failure>();
    if let Some(failure) = &failure {
        response = answer(failure, response, &record.id);
    }
    if let Ok(id) = HeaderValue::try_from(&record.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let facts = response.extensions_mut().remove::<Facts>().unwrap_or_default();
    record.end(response.status(), &facts, failure.as_ref());
    response
}

/// An error's answer. The headers that it brought (Allow, Retry-After) stand.
fn answer(failure: &Failure, mut response: Response, id: &str) -> Response {
    // Strings and numbers alone: it always serializes.
    let mut body = serde_json::to_vec(&failure.problem(id)).unwrap_or_default();
    body.push(b'\n'); // for people at a terminal
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    *response.body_mut() = Body::from(body);
    response
}

/// A request's line in the log. Written also when the client leaves and the request is dropped.
struct Record {
    _in_flight: InFlightGuard,
    metrics: Arc<Metrics>,
    method: String,
    route: String,
    id: String,
    trace: Option<TraceContext>,
    client: Option<String>,
    started: Instant,
    done: bool,
}

impl Record {
    /// The ids of the caller's trace and span, where it told them.
    fn trace(&self) -> (Option<&str>, Option<&str>) {
        self.trace.as_ref().map(|trace| (&*trace.trace_id, &*trace.span_id)).unzip()
    }

    fn end(&mut self, status: StatusCode, facts: &Facts, failure: Option<&Failure>) {
        self.done = true;
        let status = status.as_u16();
        let elapsed = self.started.elapsed();
        self.metrics.record_request(&self.route, status, elapsed);
        let error = failure.map(|failure| &*failure.0);
        if let Some(shed) = error.and_then(Error::shed) {
            self.metrics.record_shed(shed.name());
        }
        let saved = error.and_then(Error::saved).map(|saved| saved.saved_as.as_str());
        let (trace_id, span_id) = self.trace();
        macro_rules! line {
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
                    saved_as = facts.saved_as.as_deref().or(saved),
                    size_bytes = facts.size_bytes,
                    cache = facts.cache,
                    attempts = facts.attempts.or(error.and_then(Error::attempts)),
                    code = error.map(|error| error.code().as_str()),
                    error = error.map(|error| chain(error)),
                    "request"
                )
            };
        }
        match status {
            500 => line!(error),
            // 501 is the client's doing.
            502.. => line!(warn),
            // Scrapers and probes ask every few seconds.
            _ if failure.is_none()
                && matches!(self.route.as_str(), "/health" | "/ready" | "/metrics") =>
            {
                line!(debug);
            }
            _ => line!(info),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.done {
            let elapsed = self.started.elapsed();
            let (trace_id, span_id) = self.trace();
            self.metrics.record_request(&self.route, CLIENT_LEFT, elapsed);
            tracing::info!(
                method = self.method,
                route = self.route,
                status = CLIENT_LEFT,
                duration_ms = elapsed.as_secs_f64() * 1000.0,
                request_id = self.id,
                trace_id,
                span_id,
                client = self.client,
                "request: the client left"
            );
        }
    }
}

/// An error and its causes, in one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        let cause = cause.to_string();
        // Transparent wrappers say the same twice.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
