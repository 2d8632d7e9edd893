//! Reads a value from the system that may take long or hang. At most one thread reads at a time,
//! however many callers want the value, and all of them share the result.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

/// The latest reading, which may still be running.
#[derive(Debug)]
pub(crate) struct Sampler<T>(Mutex<Option<Reading<T>>>);

#[derive(Debug, Clone)]
struct Reading<T> {
    started: Instant,
    /// `None` until the value is there. Closed without a value if the thread panicked.
    answer: watch::Receiver<Option<T>>,
}

/// The system did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system does not answer")]
pub(crate) struct NoAnswer;

impl<T> Default for Sampler<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone + Send + Sync + 'static> Sampler<T> {
    /// Returns the value that `read` gets from the system; `read` may block. A reading that started
    /// less than `max_age` ago, or is still running, is shared; otherwise a new one starts.
    ///
    /// # Errors
    /// [`NoAnswer`] once the reading has run for `timeout`. Later callers do not wait again.
    pub(crate) async fn sample(
        &self,
        max_age: Duration,
        timeout: Duration,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let Reading { started, mut answer } = self.latest(max_age, read);
        let answered = timeout_at(started + timeout, answer.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(answer)) => answer.clone().ok_or(NoAnswer),
            Ok(Err(_)) | Err(_) => Err(NoAnswer),
        }
    }

    fn latest(&self, max_age: Duration, read: impl FnOnce() -> T + Send + 'static) -> Reading<T> {
        // The reading stays valid even if a holder of the lock panicked.
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = &*latest
            && (reading.is_running() || reading.is_younger_than(max_age))
        {
            return reading.clone();
        }
        let (to_all, answer) = watch::channel(None);
        let reading = Reading { started: Instant::now(), answer };
        // Nobody waits for the thread itself, which may hang for ever.
        drop(spawn_blocking(move || to_all.send_replace(Some(read()))));
        latest.insert(reading).clone()
    }
}

impl<T> Reading<T> {
    fn is_running(&self) -> bool {
        self.answer.borrow().is_none() && self.answer.has_changed().is_ok()
    }

    fn is_younger_than(&self, max_age: Duration) -> bool {
        self.answer.borrow().is_some() && self.started.elapsed() < max_age
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

    const AGE: Duration = Duration::from_secs(1);
    const TIMEOUT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn callers_within_the_maximum_age_share_one_reading() {
        let (sampler, reads) = (Sampler::default(), Arc::new(AtomicUsize::new(0)));
        let read = || {
            let reads = Arc::clone(&reads);
            sampler.sample(AGE, TIMEOUT, move || reads.fetch_add(1, Ordering::Relaxed))
        };
        let answers = join_all((0..100).map(|_| read())).await;
        assert!(answers.iter().all(|answer| *answer == Ok(0)));
        tokio::time::advance(AGE - Duration::from_millis(1)).await;
        assert_eq!(read().await, Ok(0));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(read().await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_that_hangs_takes_one_thread_and_keeps_only_its_first_caller_waiting() {
        let sampler = Sampler::default();
        let (release, hanging) = mpsc::channel::<()>();
        let first = sampler.sample(AGE, TIMEOUT, move || hanging.recv().is_ok());
        let mut first = Box::pin(first);
        assert!(poll!(&mut first).is_pending());
        tokio::time::advance(TIMEOUT).await;
        assert_eq!(first.await, Err(NoAnswer));
        let again = || sampler.sample(AGE, TIMEOUT, || panic!("a second thread"));
        for _ in 0..100 {
            assert_eq!(poll!(Box::pin(again())), std::task::Poll::Ready(Err(NoAnswer)));
        }
        // Once the system has answered, the next caller starts a new reading.
        release.send(()).unwrap();
        while sampler.0.lock().unwrap().as_ref().unwrap().is_running() {
            tokio::task::yield_now().await;
        }
        assert_eq!(sampler.sample(AGE, TIMEOUT, || false).await, Ok(false));
    }

    #[tokio::test]
    async fn after_a_reading_that_panics_a_new_one_starts() {
        let sampler = Sampler::default();
        assert_eq!(sampler.sample(AGE, TIMEOUT, || panic!("of the test")).await, Err(NoAnswer));
        assert_eq!(sampler.sample(AGE, TIMEOUT, || 7).await, Ok(7));
    }
}
