//! Reads the sources on a thread of its own, and passes on the rows that the output does not contain, up to
//! the limit on rows.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tokio::sync::mpsc;

use super::{
    counter::Counter,
    item::{Item, ItemReader},
    output::Existing,
    selection::{Selected, Selection},
    source,
};

/// The most rows that wait in the channel. The run takes them from there into its own queue.
const MAX_WAITING: usize = 64;

/// What the thread sends to the run.
#[derive(Debug)]
pub(super) enum SourceEvent {
    Row(Box<Item>),
    /// A source cannot be read to its end, for this reason. The next source follows.
    Broken(String),
}

/// The thread that reads the sources, seen from the run.
#[derive(Debug)]
pub(super) struct Feeder {
    /// The channel closes after the last event.
    pub events: mpsc::Receiver<SourceEvent>,
    skipped: Arc<AtomicU64>,
    counter: Counter,
    limit: Option<u64>,
}

impl Feeder {
    /// A feeder whose events are sent by a test.
    #[cfg(test)]
    pub(super) fn of(events: mpsc::Receiver<SourceEvent>) -> Self {
        let reader = ItemReader { location_field: None, id_field: None, prefix: String::new() };
        // The rows of standard input are not counted, so nothing is read here.
        let counter = Counter::start(vec!["-".into()], reader).unwrap();
        Self { events, skipped: Arc::default(), counter, limit: None }
    }

    /// Starts the thread. At most `limit` rows are passed on.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(super) fn start(
        sources: Vec<PathBuf>,
        reader: ItemReader,
        existing: Existing,
        limit: Option<u64>,
    ) -> io::Result<Self> {
        let (sender, events) = mpsc::channel(MAX_WAITING);
        let counter = Counter::start(sources.clone(), reader.clone())?;
        let skipped = Arc::new(AtomicU64::new(0));
        let thread_skipped = Arc::clone(&skipped);
        // The handle is dropped: nothing can wait for the thread, which may read standard input for ever.
        thread::Builder::new().name("sources".into()).spawn(move || {
            let mut selection = Selection::new(existing, limit);
            // Returns whether it wants more rows.
            let mut sink = |item: Item| match selection.select(item.identity) {
                Selected::Skip => {
                    thread_skipped.fetch_add(1, Ordering::Relaxed);
                    true
                }
                // Happens only if the limit is 0. A higher limit ends the reading when its last row is sent.
                Selected::LimitReached => false,
                Selected::Send => {
                    let is_sent = sender.blocking_send(SourceEvent::Row(Box::new(item))).is_ok();
                    is_sent && selection.wants_more()
                }
            };
            for path in sources {
                let wants_more = match source::read_one(&path, &reader, &mut sink) {
                    Ok(wants_more) => wants_more,
                    Err(error) => {
                        sender.blocking_send(SourceEvent::Broken(error.to_string())).is_ok()
                    }
                };
                if !wants_more {
                    return;
                }
            }
        })?;
        Ok(Self { events, skipped, counter, limit })
    }

    /// The number of rows so far that were not passed on, because the output contains them.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// The expected number of rows that the whole run skips or passes on. `None` until the counter has
    /// counted all rows. With a limit, this number may grow: skipped rows do not count toward the limit.
    pub(super) fn total(&self) -> Option<u64> {
        let rows = self.counter.rows()?;
        Some(match self.limit {
            Some(limit) => rows.min(self.skipped().saturating_add(limit)),
            None => rows,
        })
    }
}
