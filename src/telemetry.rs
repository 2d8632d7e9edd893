//! The log, the metrics and the spans of traces.

mod exposition;
mod log;
mod metrics;
#[cfg(feature = "otlp")]
mod otlp;
mod readings;
mod traces;

pub use exposition::Exposition;
pub(crate) use log::panic_text;
pub use log::{Format, Settings, TraceExport, close as close_log, open as open_log, parse_filter};
pub use metrics::{InFlightGuard, Metrics};
#[cfg(feature = "otlp")]
pub(crate) use otlp::continue_trace;
pub use readings::Readings;
#[cfg(not(feature = "otlp"))]
pub(crate) use traces::continue_trace;
pub(crate) use traces::{REQUEST_SPAN, TRACES, in_span, mark_failed, span};
