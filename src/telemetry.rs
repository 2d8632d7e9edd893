//! The log and the metrics.

mod causes;
mod exposition;
mod log;
mod metrics;

pub(crate) use causes::causes;
pub use exposition::Exposition;
pub(crate) use log::panic_text;
pub use log::{Format, Settings, close as close_log, open as open_log, parse_filter};
pub use metrics::{InFlightGuard, Metrics, Readings};
