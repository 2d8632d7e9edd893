//! The spans of traces: what a request does, and how long each step takes.
//!
//! Spans have a target of their own, which the log's filter always excludes. So they do not change
//! the log, and cost next to nothing if nobody collects them. Only a build with the feature `otlp`
//! can export them.

use futures_util::TryFutureExt;
use tracing::{Instrument, Span};

/// The target of all spans of traces.
pub(crate) const TRACES: &str = "traces";

/// The name of the span of a request. Every other span is exported only inside such a span.
pub(crate) const REQUEST_SPAN: &str = "http_request";

/// The field with the outcome of a span, as `tracing-opentelemetry` names it.
const STATUS: &str = "otel.status_code";

/// Creates a span of a trace from a name and fields. The span also has the field `STATUS`, which
/// `mark_failed` may set later. Fields are named as in OpenTelemetry's semantic conventions, where these
/// define them.
macro_rules! span {
    ($name:expr $(, $($fields:tt)+)?) => {
        tracing::debug_span!(
            target: $crate::telemetry::TRACES,
            $name,
            otel.status_code = tracing::field::Empty
            $(, $($fields)+)?
        )
    };
}

pub(crate) use span;

/// Runs `work` in a span, and marks the span as failed if `work` returns an error. This is not an
/// `async fn`, because its future would contain `work` twice, and make the futures of all requests larger.
pub(crate) fn in_span<T, E>(
    span: Span,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    work.instrument(span.clone()).inspect_err(move |_| mark_failed(&span))
}

/// Marks a span as failed.
pub(crate) fn mark_failed(span: &Span) {
    span.record(STATUS, "error");
}

/// Continues the trace of a client in a build with the feature `otlp`. Does nothing in this build, which
/// cannot export spans.
#[cfg(not(feature = "otlp"))]
pub(crate) fn continue_trace(_span: &Span, _trace_id: &str, _parent_id: &str, _is_sampled: bool) {}
