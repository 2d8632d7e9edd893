//! Writes embeddings to the disk, one thread for all: what comes while it is at work waits in a
//! line, and is its next batch. A disk that does not keep up costs calls, not memory.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::oneshot, task::spawn_blocking};
use tokio_util::task::TaskTracker;

use super::{Disk, Key, Stored};

/// The most embeddings that wait: some 20 KB each, where the memory does not hold them anyway.
const LONGEST_LINE: usize = 32;

/// The only one who writes to the disk.
pub(super) struct Writer {
    disk: Arc<Disk>,
    line: Mutex<Line>,
    background: TaskTracker,
}

#[derive(Default)]
struct Line {
    waiting: Vec<Entry>,
    is_served: bool,
}

struct Entry {
    key: Key,
    stored: Stored,
    /// Dropped when the entry is written, or lost.
    done: oneshot::Sender<()>,
}

impl Writer {
    /// A writer whose batches run on `background`.
    pub(super) fn new(disk: Arc<Disk>, background: TaskTracker) -> Arc<Self> {
        Arc::new(Self { disk, line: Mutex::default(), background })
    }

    /// Writes an embedding, or does not when too many wait already; ends when it is done.
    pub(super) async fn write(self: &Arc<Self>, key: Key, stored: Stored) {
        let (done, is_done) = oneshot::channel();
        let is_served = {
            let mut line = self.line();
            if line.waiting.len() == LONGEST_LINE {
                tracing::debug!("an embedding is not kept on disk: too many wait for it");
                return;
            }
            line.waiting.push(Entry { key, stored, done });
            mem::replace(&mut line.is_served, true)
        };
        if !is_served {
            self.background.spawn(Arc::clone(self).serve_line());
        }
        // Nothing is ever sent.
        let _ = is_done.await;
    }

    async fn serve_line(self: Arc<Self>) {
        while let Some(batch) = self.next_batch() {
            let disk = Arc::clone(&self.disk);
            let write = move || {
                for Entry { key, stored, done } in batch {
                    disk.write(&key, &stored);
                    drop(done);
                }
            };
            if let Err(error) = spawn_blocking(write).await {
                tracing::error!(%error, "a thread of the cache died");
            }
        }
    }

    fn next_batch(&self) -> Option<Vec<Entry>> {
        let mut line = self.line();
        line.is_served = !line.waiting.is_empty();
        line.is_served.then(|| mem::take(&mut line.waiting))
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // The line is whole whatever panicked elsewhere.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use futures_util::future::join_all;
    use tokio::time::timeout;

    use super::super::tests::embedding;
    use super::*;

    fn writer(folder: &std::path::Path) -> (Arc<Disk>, Arc<Writer>) {
        let disk = Arc::new(Disk::new(folder.join("vectors"), 1 << 30));
        (Arc::clone(&disk), Writer::new(disk, TaskTracker::new()))
    }

    #[tokio::test]
    async fn all_that_come_at_once_are_on_disk_when_their_writes_end() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, writer) = writer(folder.path());
        let keys: Vec<Key> = (0..LONGEST_LINE as u8).map(|n| [n; 32]).collect();
        join_all(keys.iter().map(|key| async {
            writer.write(*key, super::super::stored(&embedding("0.5"))).await;
            assert!(disk.read(key).is_some());
        }))
        .await;
        let is_idle = async { writer.background.wait().await };
        writer.background.close();
        timeout(Duration::from_secs(60), is_idle).await.unwrap();
        assert!(!writer.line().is_served);
    }

    #[tokio::test]
    async fn what_finds_the_line_full_is_given_up_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, writer) = writer(folder.path());
        // Nobody serves the line.
        writer.line().is_served = true;
        let mut waiting: Vec<_> = (0..LONGEST_LINE)
            .map(|n| {
                let key = [u8::try_from(n).unwrap(); 32];
                Box::pin(writer.write(key, super::super::stored(&embedding("0.5"))))
            })
            .collect();
        for write in &mut waiting {
            assert!(futures_util::poll!(write).is_pending());
        }
        writer.write([255; 32], super::super::stored(&embedding("0.5"))).await;
        assert!(disk.read(&[255; 32]).is_none());
        assert!(!fs::exists(folder.path().join("vectors")).unwrap());

        Arc::clone(&writer).serve_line().await;
        join_all(waiting).await;
        assert!(disk.read(&[0; 32]).is_some());
    }
}
