//! Reads a value from the system with a function that may be slow or hang. At most one thread reads
//! the value at a time, and all callers share its result.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

/// Reads a value, and shares the latest reading. The reading may still be running.
#[derive(Debug)]
pub(crate) struct Sampler<T>(Mutex<Option<Reading<T>>>);

#[derive(Debug, Clone)]
struct Reading<T> {
    started_at: Instant,
    /// `None` while the thread is reading. If the thread panicked, the channel is closed and still
    /// contains `None`.
    value: watch::Receiver<Option<T>>,
}

/// The value was not read in time, or the reading thread panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system does not answer")]
pub(crate) struct NoAnswer;

impl<T> Default for Sampler<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone + Send + Sync + 'static> Sampler<T> {
    /// Returns the value that `read` returns. `read` may block. If a reading is still running, or has a
    /// value and started less than `max_age` ago, returns that reading's value, and does not call `read`.
    ///
    /// # Errors
    /// [`NoAnswer`] if `read` panics, or if the reading takes longer than `timeout`, counted from the start
    /// of the reading. If a reading hangs, callers that come after this time get the error at once.
    pub(crate) async fn sample(
        &self,
        max_age: Duration,
        timeout: Duration,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let Reading { started_at, mut value } = self.latest_or_new(max_age, read);
        match timeout_at(started_at + timeout, value.wait_for(Option::is_some)).await {
            Ok(Ok(value)) => value.clone().ok_or(NoAnswer),
            Ok(Err(_)) | Err(_) => Err(NoAnswer),
        }
    }

    fn latest_or_new(
        &self,
        max_age: Duration,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Reading<T> {
        // The reading stays valid even if a holder of the lock panicked.
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = &*latest
            && (reading.is_running() || reading.has_value_younger_than(max_age))
        {
            return reading.clone();
        }
        let (sender, value) = watch::channel(None);
        let reading = Reading { started_at: Instant::now(), value };
        // The thread may hang for ever, so callers wait for the channel and not for the thread.
        drop(spawn_blocking(move || sender.send_replace(Some(read()))));
        latest.insert(reading).clone()
    }
}

impl<T> Reading<T> {
    fn is_running(&self) -> bool {
        // `has_changed` returns an error if the channel is closed.
        self.value.borrow().is_none() && self.value.has_changed().is_ok()
    }

    fn has_value_younger_than(&self, max_age: Duration) -> bool {
        self.value.borrow().is_some() && self.started_at.elapsed() < max_age
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use futures_util::{future::join_all, poll};

    use super::*;

    const MAX_AGE: Duration = Duration::from_secs(1);
    const TIMEOUT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn callers_within_the_maximum_age_share_one_reading() {
        let (sampler, reads) = (Sampler::default(), Arc::new(AtomicUsize::new(0)));
        // Each reading returns the number of earlier readings.
        let read = || {
            let reads = Arc::clone(&reads);
            sampler.sample(MAX_AGE, TIMEOUT, move || reads.fetch_add(1, Ordering::Relaxed))
        };
        let values = join_all((0..100).map(|_| read())).await;
        assert!(values.iter().all(|value| *value == Ok(0)));
        tokio::time::advance(MAX_AGE - Duration::from_millis(1)).await;
        assert_eq!(read().await, Ok(0));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(read().await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_reading_blocks_one_thread_and_delays_no_caller_after_the_timeout() {
        let sampler = Sampler::default();
        let (release, wait_for_release) = mpsc::channel::<()>();
        let first = sampler.sample(MAX_AGE, TIMEOUT, move || wait_for_release.recv().is_ok());
        let mut first = Box::pin(first);
        assert!(poll!(&mut first).is_pending());
        tokio::time::advance(TIMEOUT).await;
        assert_eq!(first.await, Err(NoAnswer));
        let sample_again = || {
            sampler.sample(MAX_AGE, TIMEOUT, || panic!("no reading should start while one hangs"))
        };
        for _ in 0..100 {
            assert_eq!(poll!(Box::pin(sample_again())), std::task::Poll::Ready(Err(NoAnswer)));
        }
        // The reading started longer than `MAX_AGE` ago. So after its end, the next caller starts a new one.
        release.send(()).unwrap();
        while sampler.0.lock().unwrap().as_ref().unwrap().is_running() {
            tokio::task::yield_now().await;
        }
        assert_eq!(sampler.sample(MAX_AGE, TIMEOUT, || false).await, Ok(false));
    }

    #[tokio::test]
    async fn a_new_reading_starts_after_a_reading_that_panicked() {
        let sampler = Sampler::default();
        assert_eq!(
            sampler.sample(MAX_AGE, TIMEOUT, || panic!("a panic of the test")).await,
            Err(NoAnswer)
        );
        assert_eq!(sampler.sample(MAX_AGE, TIMEOUT, || 7).await, Ok(7));
    }
}
