//! Writes embeddings to the disk in batches, one after the other. Each batch blocks one thread.
//! Embeddings that arrive while a batch is written form the next batch. They wait in a queue of
//! limited length. While it is full because the disk is slow, further embeddings are not written.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use super::{CacheKey, CachedEmbedding, Disk};

/// At most this many embeddings wait in the queue. Each takes about 20 KB of memory, or almost none
/// if the cache in memory contains the same embedding.
const MAX_QUEUE_LEN: usize = 32;

/// The only writer to the cache's [`Disk`].
pub(super) struct Writer(mpsc::Sender<Entry>);

/// An embedding in the queue.
struct Entry {
    key: CacheKey,
    cached: CachedEmbedding,
    /// Dropped when the writer has finished with the entry.
    done: oneshot::Sender<()>,
}

impl Writer {
    /// Starts the writer, which first cleans up the disk. Call this inside the Tokio runtime.
    pub(super) fn start(disk: Arc<Disk>) -> Self {
        let (queue, entries) = mpsc::channel(MAX_QUEUE_LEN);
        // Dropping the handle does not stop the task. Dropping the `Writer` does.
        drop(tokio::spawn(write_entries(disk, entries)));
        Self(queue)
    }

    /// Writes an embedding. Returns when the embedding is written, or when it is clear that it will
    /// not be written. Returns at once if the queue is full.
    pub(super) async fn write(&self, key: CacheKey, cached: CachedEmbedding) {
        // Always an error: the channel closes without a message.
        let _ = self.enqueue(key, cached).await;
    }

    /// Adds an embedding to the queue. The returned channel closes when the writer has finished with
    /// the embedding. If the queue is full, the embedding is dropped, and the channel is closed.
    pub(super) fn enqueue(&self, key: CacheKey, cached: CachedEmbedding) -> oneshot::Receiver<()> {
        let (done, when_done) = oneshot::channel();
        if let Err(error) = self.0.try_send(Entry { key, cached, done }) {
            tracing::debug!(%error, "an embedding is not cached on disk");
        }
        when_done
    }
}

/// Cleans up the disk, then writes the embeddings in the queue until the writer is dropped.
async fn write_entries(disk: Arc<Disk>, mut entries: mpsc::Receiver<Entry>) {
    run_on_thread(&disk, Disk::clean_up).await;
    loop {
        let mut batch = Vec::new();
        if entries.recv_many(&mut batch, MAX_QUEUE_LEN).await == 0 {
            return;
        }
        run_on_thread(&disk, move |disk| {
            for Entry { key, cached, done } in batch {
                disk.write(&key, &cached);
                drop(done);
            }
        })
        .await;
    }
}

/// Runs `work` on a thread that may block. If `work` panics, only logs that.
async fn run_on_thread(disk: &Arc<Disk>, work: impl FnOnce(&Disk) + Send + 'static) {
    let disk = Arc::clone(disk);
    if let Err(error) = spawn_blocking(move || work(&disk)).await {
        tracing::error!(%error, "a thread that writes cached embeddings panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use futures_util::{future::join_all, poll};

    use super::{
        super::tests::{embedding_of, key_of},
        *,
    };
    use crate::disk_space::DiskSpace;

    fn cached() -> CachedEmbedding {
        (&embedding_of("0.5")).into()
    }

    fn open_disk(folder: &Path) -> Arc<Disk> {
        let (max_bytes, min_free_bytes) = (1 << 30, 0);
        let space = DiskSpace::new(folder.to_owned(), min_free_bytes);
        Arc::new(Disk::new(folder.join("vectors"), max_bytes, space))
    }

    #[tokio::test]
    async fn a_write_returns_when_its_embedding_is_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open_disk(folder.path());
        let writer = Writer::start(Arc::clone(&disk));
        let keys: Vec<CacheKey> = (0..MAX_QUEUE_LEN as u8).map(key_of).collect();
        join_all(keys.iter().map(|key| async {
            writer.write(*key, cached()).await;
            assert!(disk.read(key).is_some());
        }))
        .await;
    }

    #[tokio::test]
    async fn an_embedding_is_dropped_at_once_if_the_queue_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open_disk(folder.path());
        let (queue, entries) = mpsc::channel(MAX_QUEUE_LEN);
        // Until `write_entries` runs, nothing takes entries from the queue.
        let writer = Writer(queue);
        let mut waiting: Vec<_> =
            (0..MAX_QUEUE_LEN as u8).map(|n| Box::pin(writer.write(key_of(n), cached()))).collect();
        for write in &mut waiting {
            assert!(poll!(write).is_pending());
        }
        let key_of_dropped = key_of(255);
        writer.write(key_of_dropped, cached()).await; // returns, although nothing is written yet
        assert!(!fs::exists(folder.path().join("vectors")).unwrap());

        drop(tokio::spawn(write_entries(Arc::clone(&disk), entries)));
        join_all(waiting).await;
        assert!(disk.read(&key_of(0)).is_some() && disk.read(&key_of_dropped).is_none());
    }

    #[tokio::test]
    async fn a_write_returns_if_the_task_that_writes_has_ended() {
        let (queue, entries) = mpsc::channel(MAX_QUEUE_LEN);
        let writer = Writer(queue);
        let mut waiting = Box::pin(writer.write(key_of(1), cached()));
        assert!(poll!(&mut waiting).is_pending());
        drop(entries); // as at the end of the task
        waiting.await;
        writer.write(key_of(2), cached()).await;
    }
}
