//! Writes rows and failures on a thread of its own, since a disk or a pipe may block.

use std::{
    io::{self, Write},
    path::PathBuf,
    thread::{self, JoinHandle},
};

use tokio::sync::mpsc;

use super::{
    failures::{self, Failures},
    item::{Failure, Identity, Item, ItemReader},
    output::Appender,
    progress::Console,
};

/// The most rows and failures that wait to be written.
const MAX_WAITING: usize = 64;

/// Where rows and failures are written.
#[derive(Debug)]
pub(super) enum Target {
    /// The output file and the file of failures beside it.
    Files(Appender, Failures),
    /// Rows on standard output, and failures on standard error. The `ItemReader` adds the value of
    /// `--prefix` to the name of a failure's field `error`.
    Standard(ItemReader),
}

/// What the thread writes: a row with its vector, or a failure.
#[derive(Debug)]
enum Entry {
    Row(Identity, String),
    Failure(Box<Item>, Failure),
}

/// The thread that writes.
#[derive(Debug)]
pub(super) struct Writer {
    entries: mpsc::Sender<Entry>,
    thread: JoinHandle<io::Result<Option<PathBuf>>>,
}

/// The thread has ended because of an error, which [`Writer::finish`] returns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closed;

impl Writer {
    /// Starts the thread. With [`Target::Standard`], failures are written to `console`.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(super) fn start(target: Target, console: Console) -> io::Result<Self> {
        let (entries, received) = mpsc::channel(MAX_WAITING);
        let thread = thread::Builder::new().name("output".into());
        let thread = thread.spawn(move || write(target, &console, received))?;
        Ok(Self { entries, thread })
    }

    /// Gives the thread a row to write. Waits for space in the channel, but not until the row is written.
    pub(super) async fn write_row(&self, identity: Identity, line: String) -> Result<(), Closed> {
        self.entries.send(Entry::Row(identity, line)).await.map_err(|_| Closed)
    }

    /// Gives the thread a failure to write. Waits for space in the channel, but not until it is written.
    pub(super) async fn write_failure(&self, item: Item, failure: Failure) -> Result<(), Closed> {
        let entry = Entry::Failure(Box::new(item), failure);
        self.entries.send(entry).await.map_err(|_| Closed)
    }

    /// Waits until everything is written. Returns the path of the file of failures if there is one.
    ///
    /// # Errors
    /// A row or a failure could not be written.
    pub(super) async fn finish(self) -> io::Result<Option<PathBuf>> {
        drop(self.entries);
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        joined.map_err(|_| io::Error::other("the thread panicked"))?
    }
}

/// Writes the entries until [`Writer::finish`] closes the channel. Returns the path of the file of
/// failures if there is one.
fn write(
    target: Target,
    console: &Console,
    mut entries: mpsc::Receiver<Entry>,
) -> io::Result<Option<PathBuf>> {
    match target {
        Target::Files(mut rows, mut failures) => {
            while let Some(entry) = entries.blocking_recv() {
                match entry {
                    Entry::Row(identity, line) => {
                        rows.append(&line)?;
                        failures.remove_earlier(identity);
                    }
                    Entry::Failure(item, failure) => failures.add(&item, &failure)?,
                }
            }
            failures.finish()
        }
        Target::Standard(reader) => {
            while let Some(entry) = entries.blocking_recv() {
                match entry {
                    Entry::Row(_, line) => {
                        let mut output = io::stdout().lock();
                        output.write_all(line.as_bytes())?;
                        output.flush()?;
                    }
                    Entry::Failure(item, failure) => {
                        console.write_json(&failures::row(&item, &failure, &reader));
                    }
                }
            }
            Ok(None)
        }
    }
}
