//! Writes embeddings to the disk on one thread. Whatever arrives during a write becomes the next
//! batch. A bounded queue means that a slow disk costs calls to NVIDIA and not memory.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use super::{CacheKey, CachedEmbedding, Disk};

/// The most embeddings that wait. Each takes about 20 KB unless the memory level holds it anyway.
const LONGEST_QUEUE: usize = 32;

/// The only writer to the disk.
pub(super) struct Writer(mpsc::Sender<Entry>);

struct Entry {
    key: CacheKey,
    cached: CachedEmbedding,
    /// Dropped once the entry is written or lost.
    done: oneshot::Sender<()>,
}

impl Writer {
    /// Starts the writer, which first cleans up the disk. Call it inside the runtime.
    pub(super) fn start(disk: Arc<Disk>) -> Self {
        let (queue, entries) = mpsc::channel(LONGEST_QUEUE);
        // Nobody waits for this task; each write waits for its own entry.
        drop(tokio::spawn(serve(disk, entries)));
        Self(queue)
    }

    /// Writes an embedding, unless too many are waiting. Returns once it is done.
    pub(super) async fn write(&self, key: CacheKey, cached: CachedEmbedding) {
        let (done, is_done) = oneshot::channel();
        if self.0.try_send(Entry { key, cached, done }).is_err() {
            tracing::debug!("an embedding is not cached on disk: the queue is full");
            return;
        }
        // The channel carries no value: it closes when the entry is done.
        let _ = is_done.await;
    }
}

async fn serve(disk: Arc<Disk>, mut entries: mpsc::Receiver<Entry>) {
    run(&disk, Disk::clean_up).await;
    loop {
        let mut batch = Vec::new();
        if entries.recv_many(&mut batch, LONGEST_QUEUE).await == 0 {
            return;
        }
        run(&disk, move |disk| {
            for Entry { key, cached, done } in batch {
                disk.write(&key, &cached);
                drop(done);
            }
        })
        .await;
    }
}

async fn run(disk: &Arc<Disk>, work: impl FnOnce(&Disk) + Send + 'static) {
    let disk = Arc::clone(disk);
    if let Err(error) = spawn_blocking(move || work(&disk)).await {
        tracing::error!(%error, "a thread of the cache panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use futures_util::{future::join_all, poll};

    use super::{
        super::{
            cached,
            tests::{embedding, key},
        },
        *,
    };
    use crate::disk_space::DiskSpace;

    fn disk(folder: &Path) -> Arc<Disk> {
        let space = DiskSpace::new(folder.to_owned(), 0);
        Arc::new(Disk::new(folder.join("vectors"), 1 << 30, space))
    }

    #[tokio::test]
    async fn entries_that_arrive_together_are_on_disk_when_their_writes_return() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let writer = Writer::start(Arc::clone(&disk));
        let keys: Vec<CacheKey> = (0..LONGEST_QUEUE as u8).map(key).collect();
        join_all(keys.iter().map(|key| async {
            writer.write(*key, cached(&embedding("0.5"))).await;
            assert!(disk.read(key).is_some());
        }))
        .await;
    }

    #[tokio::test]
    async fn an_entry_that_finds_the_queue_full_is_dropped_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let (queue, entries) = mpsc::channel(LONGEST_QUEUE);
        let writer = Writer(queue);
        let mut waiting: Vec<_> = (0..LONGEST_QUEUE as u8)
            .map(|n| Box::pin(writer.write(key(n), cached(&embedding("0.5")))))
            .collect();
        for write in &mut waiting {
            assert!(poll!(write).is_pending());
        }
        writer.write(key(255), cached(&embedding("0.5"))).await;
        assert!(!fs::exists(folder.path().join("vectors")).unwrap());

        drop(tokio::spawn(serve(Arc::clone(&disk), entries)));
        join_all(waiting).await;
        assert!(disk.read(&key(0)).is_some() && disk.read(&key(255)).is_none());
    }

    #[tokio::test]
    async fn a_dead_writer_keeps_nobody_waiting() {
        let (queue, entries) = mpsc::channel(LONGEST_QUEUE);
        let writer = Writer(queue);
        let mut waiting = Box::pin(writer.write(key(1), cached(&embedding("0.5"))));
        assert!(poll!(&mut waiting).is_pending());
        drop(entries);
        waiting.await;
        writer.write(key(2), cached(&embedding("0.5"))).await;
    }
}
