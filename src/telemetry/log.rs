//! The log: lines to standard error, as text or JSON.
//!
//! A reader of the log may stall: a pager, a blocking log driver, a journal on a hung disk. That must
//! stop nothing, so lines are written by a thread of their own from a bounded queue. What does not
//! fit is dropped, and counted.

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

/// Lines that wait to be written. One has some 300 bytes, seldom a few thousand.
const WAITING_LINES: usize = 4096;

/// How long closing the log may take.
const CLOSING_TIME: Duration = Duration::from_millis(1500);

/// Who writes the lines, while the log is open.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// How many lines were dropped; empty before the log is started.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

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

/// Starts logging to standard error, once for the process; a second call changes nothing. From now
/// on panics are lines of the log, too: what writes them else waits for the reader.
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
    // Tests start several services in one process; the first one's log stands.
    if started.is_ok() && DROPPED.set(dropped).is_ok() {
        panic::set_hook(Box::new(|panic| {
            let location = panic.location().map(tracing::field::display);
            tracing::error!(location, panic = panic_text(panic.payload()), "a thread panicked");
        }));
        *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }
}

/// Writes the lines that still wait, for 1.5 s at most, and closes the log: what is logged
/// afterwards is lost. Blocks.
pub fn close() {
    let Some(writer) = WRITER.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let (done, closed) = mpsc::channel();
    // On a thread of its own: where nobody reads the log, dropping the writer may wait for ever.
    let closing = thread::Builder::new().spawn(move || {
        drop(writer);
        let _ = done.send(()); // nobody waits any more
    });
    if closing.is_ok() {
        let _ = closed.recv_timeout(CLOSING_TIME); // what is not written by then is lost
    }
}

/// Lines that were dropped because nobody read those before them.
pub(super) fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// What a panic says.
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
