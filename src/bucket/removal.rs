//! Removes objects that nobody needs, in the background.
//!
//! Usually, a client was told that the picture in such an object is not saved. To make this true, a removal
//! waits for up to an hour while the bucket fails.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    Bucket,
    error::{Error, Operation},
};

/// At most this many calls of [`Bucket::remove`] wait or run. Each takes about 1 KB of memory.
const MAX_REMOVALS: usize = 10_000;

/// At most this many requests to remove an object run at once.
const MAX_REQUESTS: usize = 8;

/// How long one removal may take, with all attempts and the wait while the bucket fails. An object is
/// removed once or twice: see [`RemovalTime`].
const MAX_TIME: Duration = Duration::from_secs(60 * 60);

/// The pause between two attempts of a removal, and between two checks whether the bucket works or the
/// service stops.
const PAUSE: Duration = Duration::from_secs(1);

/// When an object is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalTime {
    /// Now: the object exists.
    Now,
    /// Two seconds after the call of [`Bucket::remove`], and again 28 seconds after the first removal: the
    /// object may still be on its way to the bucket.
    Later,
}

impl RemovalTime {
    /// The pauses before the one or two removals, in seconds.
    fn pauses(self) -> &'static [u64] {
        match self {
            Self::Now => &[0],
            Self::Later => &[2, 28],
        }
    }
}

/// The limits that all removals share.
#[derive(Debug)]
pub(super) struct Removals {
    /// How many calls of [`Bucket::remove`] wait or run.
    count: AtomicUsize,
    /// Each request to remove an object takes a permit.
    permits: Arc<Semaphore>,
}

impl Default for Removals {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), permits: Arc::new(Semaphore::new(MAX_REQUESTS)) }
    }
}

impl Bucket {
    /// Removes an object in the background, once or twice: see [`RemovalTime`]. Each removal waits while the
    /// bucket fails, for at most an hour. If the service stops during this wait, makes one more attempt.
    pub fn remove(&self, path: String, time: RemovalTime) -> JoinHandle<()> {
        let bucket = self.clone();
        self.0.background.spawn(async move {
            let others = bucket.0.removals.count.fetch_add(1, Ordering::Relaxed);
            if others >= MAX_REMOVALS {
                log_remaining_object(&path, "too many removals wait");
            } else {
                bucket.remove_once_or_twice(&path, time).await;
            }
            bucket.0.removals.count.fetch_sub(1, Ordering::Relaxed);
        })
    }

    async fn remove_once_or_twice(&self, path: &str, time: RemovalTime) {
        for (nth, pause) in time.pauses().iter().enumerate() {
            self.sleep_unless_stopping(Duration::from_secs(*pause)).await;
            // If the service is stopping, the pause was cut short. A second removal would come too
            // early to help.
            if nth > 0 && self.is_stopping() {
                return;
            }
            if let Err(error) = self.remove_when_bucket_works(path).await {
                return log_remaining_object(path, error);
            }
        }
    }

    /// Tries to remove an object, until an attempt succeeds or is refused, or [`MAX_TIME`] has passed.
    /// While the service is stopping, makes only one attempt.
    async fn remove_when_bucket_works(&self, path: &str) -> Result<(), Error> {
        let deadline = Instant::now() + MAX_TIME;
        loop {
            // For removals, `works` is always true. So this asks about writes: a bucket that accepts no
            // writes is likely to accept no removals either.
            while !self.works(Operation::Write) && !self.is_stopping() && Instant::now() < deadline
            {
                self.sleep_unless_stopping(PAUSE).await;
            }
            // The semaphore is never closed, so this always gets a permit.
            let permit = self.0.removals.permits.acquire().await;
            let removed = self.request(Operation::Remove, path, None, None).await;
            drop(permit);
            match removed {
                Ok(_) => return Ok(()),
                Err(error)
                    if error.is_refusal() || self.is_stopping() || Instant::now() >= deadline =>
                {
                    return Err(error);
                }
                Err(_) => self.sleep_unless_stopping(PAUSE).await,
            }
        }
    }

    /// Sleeps, but returns within a second if the service stops.
    async fn sleep_unless_stopping(&self, duration: Duration) {
        let end = Instant::now() + duration;
        while !self.is_stopping() && Instant::now() < end {
            sleep(PAUSE.min(end - Instant::now())).await;
        }
    }

    fn is_stopping(&self) -> bool {
        self.0.background.is_closed()
    }
}

fn log_remaining_object(path: &str, cause: impl fmt::Display) {
    tracing::warn!(%cause, path, "an object that nobody needs remains in the bucket");
}
