//! Logs and metrics.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

mod causes;
mod metrics;

pub(crate) use causes::causes;
pub use metrics::{InFlight, Metrics, Readings};

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Levels by module, as `tracing-subscriber` reads them.
    pub filter: String,
    /// How a line looks.
    pub format: Format,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Format {
    /// Reads a format.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be auto, text or json".into()),
        }
    }
}

/// Checks a filter.
///
/// # Errors
/// What is wrong with it.
pub fn parse_filter(text: &str) -> Result<String, String> {
    // A bare word that is no level would be taken for a module's name, and silence everything else.
    let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
    let is_clear = text.split(',').all(|directive| directive.contains('=') || is_level(directive));
    match EnvFilter::builder().parse(text) {
        Ok(_) if is_clear => Ok(text.to_owned()),
        _ => Err("is no log filter; write error, warn, info, debug or imagesvc=debug".into()),
    }
}

/// Starts logging to standard error, once for the process; a second call changes nothing.
pub fn init(settings: &Settings) {
    let filter = EnvFilter::builder().parse_lossy(&settings.filter);
    let terminal = std::io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(filter);
    let started = match settings.format {
        Format::Text => registry.with(text(terminal)).try_init(),
        Format::Auto if terminal => registry.with(text(terminal)).try_init(),
        Format::Auto | Format::Json => {
            let layer = fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false);
            registry.with(layer.with_writer(std::io::stderr)).try_init()
        }
    };
    // Tests start several services in one process; the first one's log stands.
    drop(started);
}

fn text<S>(colours: bool) -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fmt::layer().compact().with_ansi(colours).with_target(false).with_writer(std::io::stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_levels_of_modules() {
        for text in ["info", "WARN", "off", "imagesvc=debug", "warn,imagesvc=trace,hyper=info"] {
            assert_eq!(parse_filter(text).as_deref(), Ok(text));
        }
        for text in ["warning", "imagesvc", "info,verbose", "imagesvc=loud", "=", "a=b=c"] {
            assert!(parse_filter(text).is_err(), "{text}");
        }
    }
}
