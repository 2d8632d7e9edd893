//! Reads the sources on a thread of its own, and passes on the rows that the output does not contain.

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
    source,
};

/// The most rows that wait to be taken. The queue of the run comes after them.
const MAX_WAITING: usize = 64;

/// What the thread passes on.
#[derive(Debug)]
pub(super) enum Fed {
    Row(Box<Item>),
    /// A source that cannot be read to its end. Nothing follows.
    Broken(String),
}

/// The rows of the sources.
#[derive(Debug)]
pub(super) struct Feeder {
    /// Yields `None` after the last row.
    pub rows: mpsc::Receiver<Fed>,
    skipped: Arc<AtomicU64>,
    counter: Counter,
    limit: Option<u64>,
}

impl Feeder {
    /// Rows that a test sends.
    #[cfg(test)]
    pub(super) fn of(rows: mpsc::Receiver<Fed>) -> Self {
        let reader = ItemReader { location_field: None, id_field: None, prefix: String::new() };
        let counter = Counter::start(vec!["-".into()], reader).unwrap();
        Self { rows, skipped: Arc::default(), counter, limit: None }
    }

    /// Starts the thread. At most `limit` rows are passed on.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(super) fn start(
        sources: Vec<PathBuf>,
        reader: ItemReader,
        mut existing: Existing,
        limit: Option<u64>,
    ) -> io::Result<Self> {
        let (sender, rows) = mpsc::channel(MAX_WAITING);
        let counter = Counter::start(sources.clone(), reader.clone())?;
        let skipped = Arc::new(AtomicU64::new(0));
        let thread_skipped = Arc::clone(&skipped);
        // Nothing waits for the thread's end: reading standard input may block for ever.
        thread::Builder::new().name("sources".into()).spawn(move || {
            let mut left = limit.unwrap_or(u64::MAX);
            let mut sink = |item: Item| {
                if existing.take(item.identity) {
                    thread_skipped.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
                if left == 0 {
                    return false;
                }
                left -= 1;
                sender.blocking_send(Fed::Row(Box::new(item))).is_ok() && left > 0
            };
            if let Err(error) = source::read(&sources, &reader, &mut sink) {
                // Fails if the run has ended.
                let _ = sender.blocking_send(Fed::Broken(error.to_string()));
            }
        })?;
        Ok(Self { rows, skipped, counter, limit })
    }

    /// The number of rows that the output contained already.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// The number of rows that are skipped or passed on until the end, if it is known already.
    pub(super) fn total(&self) -> Option<u64> {
        let rows = self.counter.rows()?;
        Some(match self.limit {
            Some(limit) => rows.min(self.skipped().saturating_add(limit)),
            None => rows,
        })
    }
}
