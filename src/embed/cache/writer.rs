//! Writes embeddings to the disk, one thread for all: what comes while it is at work is its next
//! batch. A disk that does not keep up costs calls, not memory.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use super::{CacheKey, Disk, Stored};

/// The most embeddings that wait: some 20 KB each, where the memory does not hold them anyway.
const LONGEST_QUEUE: usize = 32;

/// The only one who writes to the disk.
pub(super) struct Writer(mpsc::Sender<Entry>);

struct Entry {
    key: CacheKey,
    stored: Stored,
    /// Dropped when the entry is written, or lost.
    done: oneshot::Sender<()>,
}

impl Writer {
    /// Tidies the disk first; must be made within the runtime.
    pub(super) fn start(disk: Arc<Disk>) -> Self {
        let (queue, entries) = mpsc::channel(LONGEST_QUEUE);
        // Nobody waits for its end: whoever waits for an entry does.
        drop(tokio::spawn(serve(disk, entries)));
        Self(queue)
    }

    /// Writes an embedding, or does not when too many wait already; ends when it is done.
    pub(super) async fn write(&self, key: CacheKey, stored: Stored) {
        let (done, is_done) = oneshot::channel();
        if self.0.try_send(Entry { key, stored, done }).is_err() {
            tracing::debug!("an embedding is not kept on disk: too many wait for it");
            return;
        }
        // Nothing is ever sent.
        let _ = is_done.await;
    }
}

async fn serve(disk: Arc<Disk>, mut entries: mpsc::Receiver<Entry>) {
    run(&disk, Disk::tidy).await;
    loop {
        let mut batch = Vec::new();
        if entries.recv_many(&mut batch, LONGEST_QUEUE).await == 0 {
            return;
        }
        run(&disk, move |disk| {
            for Entry { key, stored, done } in batch {
                disk.write(&key, &stored);
                drop(done);
            }
        })
        .await;
    }
}

async fn run(disk: &Arc<Disk>, work: impl FnOnce(&Disk) + Send + 'static) {
    let disk = Arc::clone(disk);
    if let Err(error) = spawn_blocking(move || work(&disk)).await {
        tracing::error!(%error, "a thread of the cache died");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use futures_util::{future::join_all, poll};

    use super::{
        super::{
            stored,
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
    async fn all_that_come_at_once_are_on_disk_when_their_writes_end() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let writer = Writer::start(Arc::clone(&disk));
        let keys: Vec<CacheKey> = (0..LONGEST_QUEUE as u8).map(key).collect();
        join_all(keys.iter().map(|key| async {
            writer.write(*key, stored(&embedding("0.5"))).await;
            assert!(disk.read(key).is_some());
        }))
        .await;
    }

    #[tokio::test]
    async fn what_finds_the_queue_full_is_given_up_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let (queue, entries) = mpsc::channel(LONGEST_QUEUE);
        let writer = Writer(queue);
        let mut waiting: Vec<_> = (0..LONGEST_QUEUE as u8)
            .map(|n| Box::pin(writer.write(key(n), stored(&embedding("0.5")))))
            .collect();
        for write in &mut waiting {
            assert!(poll!(write).is_pending());
        }
        writer.write(key(255), stored(&embedding("0.5"))).await;
        assert!(!fs::exists(folder.path().join("vectors")).unwrap());

        drop(tokio::spawn(serve(Arc::clone(&disk), entries)));
        join_all(waiting).await;
        assert!(disk.read(&key(0)).is_some() && disk.read(&key(255)).is_none());
    }

    #[tokio::test]
    async fn a_writer_that_died_keeps_nobody_waiting() {
        let (queue, entries) = mpsc::channel(LONGEST_QUEUE);
        let writer = Writer(queue);
        let mut waiting = Box::pin(writer.write(key(1), stored(&embedding("0.5"))));
        assert!(poll!(&mut waiting).is_pending());
        drop(entries);
        waiting.await;
        writer.write(key(2), stored(&embedding("0.5"))).await;
    }
}
