//! The log: lines on standard error, as text or JSON.
//!
//! Whoever reads the log may stall: a pager, a blocking log driver, a journal on a hung disk. That
//! must not stop the service, so a thread of its own writes lines from a bounded queue, and lines
//! that do not fit are dropped and counted.

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
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The most lines in the queue. A line has about 300 bytes, rarely a few thousand.
const WAITING_LINES: usize = 4096;

/// How long closing the log may take.
const CLOSING_TIME: Duration = Duration::from_millis(1500);

/// The thread that writes the lines while the log is open.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// How many lines were dropped; empty until the log is opened.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Levels by module, as `tracing-subscriber` reads them.
    pub filter: String,
    /// The format of a line.
    pub format: Format,
}

/// The format of a line.
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
    // A word that is not a level would be taken as a module's name, and silence everything else.
    let is_level = |word: &str| word.trim().parse::<LevelFilter>().is_ok();
    let is_clear = text.split(',').all(|directive| directive.contains('=') || is_level(directive));
    match EnvFilter::builder().parse(text) {
        Ok(_) if is_clear => Ok(text.to_owned()),
        _ => Err("is not a log filter; write error, warn, info, debug or imagesvc=debug".into()),
    }
}

/// Opens the log on standard error, once for the process; a second call does nothing. From then on
/// panics are logged, too: Rust's own panic message would block if nobody reads standard error.
pub fn open(settings: &Settings) {
    let filter = EnvFilter::builder().parse_lossy(&settings.filter);
    let terminal = io::stderr().is_terminal();
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING_LINES)
        .thread_name("log")
        .finish(io::stderr());
    let dropped = writer.error_counter();
    let registry = tracing_subscriber::registry().with(filter);
    let started = match settings.format {
        Format::Text => registry.with(text(writer, terminal)).try_init(),
        Format::Auto if terminal => registry.with(text(writer, terminal)).try_init(),
        Format::Auto | Format::Json => {
            let layer = fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false);
            registry.with(layer.with_writer(writer)).try_init()
        }
    };
    // Tests start several services in one process; they share the first one's log.
    if started.is_ok() && DROPPED.set(dropped).is_ok() {
        panic::set_hook(Box::new(|panic| {
            let location = panic.location().map(tracing::field::display);
            tracing::error!(location, panic = panic_text(panic.payload()), "a thread panicked");
        }));
        *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }
}

/// Writes the waiting lines for at most 1.5 s, then closes the log. Later lines are lost. Blocks the thread.
pub fn close() {
    let Some(writer) = WRITER.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let (done, closed) = mpsc::channel();
    // On a thread of its own, because dropping the writer may block for ever if nobody reads the
    // log.
    let closing = thread::Builder::new().spawn(move || {
        drop(writer);
        let _ = done.send(()); // the receiver may have timed out
    });
    if closing.is_ok() {
        let _ = closed.recv_timeout(CLOSING_TIME); // whatever is not written by then is lost
    }
}

/// Lines that were dropped because the queue was full.
pub(super) fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// A panic's message.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("of an unknown kind")
}

fn text<S>(writer: NonBlocking, colours: bool) -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fmt::layer().compact().with_ansi(colours).with_target(false).with_writer(writer)
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
