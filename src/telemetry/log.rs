//! The log: lines on standard error, as text or JSON.
//!
//! The program that reads the log may stall, for example a pager, a blocking log driver, or a journal
//! on a hanging disk. The service must not wait for this program. Therefore a separate thread writes
//! the lines from a bounded queue. If the queue is full, new lines are dropped and counted.

use std::{
    any::Any,
    io::{self, IsTerminal},
    panic,
    sync::{Mutex, OnceLock, PoisonError, mpsc},
    thread,
    time::Duration,
};

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt,
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use super::traces::TRACES;

/// The most lines in the queue. A typical line has 300 bytes; few have more than a thousand.
const MAX_QUEUED_LINES: usize = 4096;

/// How long writing the queued lines may take when the log is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);

/// The guard of the thread that writes the lines; `None` while the log is not open. Dropping the guard
/// writes the queued lines and ends the thread.
static WRITER_GUARD: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// The number of dropped lines; empty before the log is opened.
static DROPPED_LINES: OnceLock<ErrorCounter> = OnceLock::new();

/// Settings of the log.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The levels of modules, in the syntax of `tracing-subscriber`'s `EnvFilter`.
    pub filter: String,
    /// The format of the lines.
    pub format: Format,
}

/// The format of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text, for people.
    Text,
    /// JSON, for machines.
    Json,
}

impl Format {
    /// Parses a format.
    ///
    /// # Errors
    /// A message that continues a sentence that begins with the setting's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be auto, text or json".into()),
        }
    }
}

/// Checks a filter, and returns it unchanged.
///
/// # Errors
/// A message that continues a sentence that begins with the setting's name.
pub fn parse_filter(text: &str) -> Result<String, String> {
    // If a single word is not a level, `EnvFilter` reads it as a module's name. Such a word is more likely
    // a misspelt level.
    let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
    let is_unambiguous =
        text.split(',').all(|directive| directive.contains('=') || is_level(directive));
    match EnvFilter::builder().parse(text) {
        Ok(_) if is_unambiguous => Ok(text.to_owned()),
        _ => Err("is not a log filter; write error, warn, info, debug or imagesvc=debug".into()),
    }
}

/// Whether traces are exported, in a build that can export them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceExport {
    /// Export traces if the environment names a collector.
    On,
    /// Do not export traces.
    Off,
}

/// Opens the log on standard error, and starts to export traces if `trace_export` allows it. A second
/// call in the same process does nothing. While the log is open, panics are logged instead of printed,
/// because printing would block if the program that reads standard error stalls.
pub fn open(settings: &Settings, trace_export: TraceExport) {
    // The spans of traces are not for the log, whatever its level is.
    let filter = EnvFilter::builder().parse_lossy(format!("{},{TRACES}=off", settings.filter));
    let is_terminal = io::stderr().is_terminal();
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_QUEUED_LINES)
        .thread_name("log")
        .finish(io::stderr());
    let dropped_lines = writer.error_counter();
    let opened = match settings.format {
        Format::Text => start(text_layer(writer, is_terminal), filter, trace_export),
        Format::Auto if is_terminal => start(text_layer(writer, is_terminal), filter, trace_export),
        Format::Auto | Format::Json => {
            let layer = fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false);
            start(layer.with_writer(writer), filter, trace_export)
        }
    };
    // Tests start several services in one process. These share the log that was opened first.
    if opened.is_ok() && DROPPED_LINES.set(dropped_lines).is_ok() {
        panic::set_hook(Box::new(|panic| {
            let location = panic.location().map(tracing::field::display);
            tracing::error!(location, panic = panic_text(panic.payload()), "a thread panicked");
        }));
        *WRITER_GUARD.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }
}

/// Starts to log with a layer that writes lines, and to export traces.
#[cfg(feature = "otlp")]
fn start<L>(lines: L, filter: EnvFilter, trace_export: TraceExport) -> Result<(), TryInitError>
where
    L: Layer<Registry> + Send + Sync,
{
    let exporter = match trace_export {
        TraceExport::On => super::otlp::layer(),
        TraceExport::Off => Ok(None),
    };
    let registry = tracing_subscriber::registry();
    match exporter {
        // `filter` excludes the spans of traces, so it must not apply to the exporter.
        Ok(Some(exporter)) => registry.with(lines.with_filter(filter)).with(exporter).try_init(),
        Ok(None) => registry.with(lines).with(filter).try_init(),
        Err(error) => {
            let started = registry.with(lines).with(filter).try_init();
            let cause = crate::causes::causes(&error).last().map(ToString::to_string);
            tracing::error!(%error, cause, "traces are not exported");
            started
        }
    }
}

/// Starts to log with a layer that writes lines.
#[cfg(not(feature = "otlp"))]
fn start<L>(lines: L, filter: EnvFilter, _trace_export: TraceExport) -> Result<(), TryInitError>
where
    L: Layer<Registry> + Send + Sync,
{
    tracing_subscriber::registry().with(lines).with(filter).try_init()
}

/// Sends the last spans of traces, writes the queued lines, and closes the log. Spans that are not
/// sent within 2 s and lines that are not written within 1.5 s are lost. Later lines are lost, too.
/// Blocks the thread.
pub fn close() {
    #[cfg(feature = "otlp")]
    super::otlp::close();
    let guard = WRITER_GUARD.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(guard) = guard else { return };
    let (done, closed) = mpsc::channel();
    // If the thread that writes the lines is blocked, dropping the guard prints to standard output. This may
    // block for ever, too. Therefore another thread drops the guard.
    let closing = thread::Builder::new().spawn(move || {
        drop(guard);
        let _ = done.send(()); // fails if the receiver has timed out
    });
    if closing.is_ok() {
        let _ = closed.recv_timeout(CLOSE_TIMEOUT);
    }
}

/// The number of lines that were dropped because the queue was full.
pub(super) fn dropped_lines() -> u64 {
    DROPPED_LINES.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

/// The text of a panic.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("(no text)")
}

fn text_layer<S>(writer: NonBlocking, has_colors: bool) -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fmt::layer().compact().with_ansi(has_colors).with_target(false).with_writer(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_may_contain_only_levels_and_modules_with_a_level() {
        for text in ["info", "WARN", "off", "imagesvc=debug", "warn,imagesvc=trace,hyper=info"] {
            assert_eq!(parse_filter(text).as_deref(), Ok(text));
        }
        for text in ["warning", "imagesvc", "info,verbose", "imagesvc=loud", "=", "a=b=c"] {
            assert!(parse_filter(text).is_err(), "{text}");
        }
    }
}
