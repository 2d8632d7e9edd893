//! A question to the system that may take long, or for ever: it is asked on one thread at a time,
//! however many want to know, and all of them get that one answer.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

/// The latest answer, or the question that is being asked.
#[derive(Debug)]
pub(crate) struct Sampler<T>(Mutex<Option<Asked<T>>>);

#[derive(Debug, Clone)]
struct Asked<T> {
    begun: Instant,
    /// Nothing, until there is an answer. Closed without one when the thread died.
    answer: watch::Receiver<Option<T>>,
}

/// The system does not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system does not answer")]
pub(crate) struct NoAnswer;

impl<T> Default for Sampler<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone + Send + Sync + 'static> Sampler<T> {
    /// The answer to a question that blocks: one that was asked less than `max_age` ago, or is being
    /// asked, else a new one.
    ///
    /// # Errors
    /// [`NoAnswer`], so long after the question was asked: who comes later does not wait again.
    pub(crate) async fn sample(
        &self,
        max_age: Duration,
        patience: Duration,
        question: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let Asked { begun, mut answer } = self.latest(max_age, question);
        let answered = timeout_at(begun + patience, answer.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(answer)) => answer.clone().ok_or(NoAnswer),
            Ok(Err(_)) | Err(_) => Err(NoAnswer),
        }
    }

    fn latest(&self, max_age: Duration, question: impl FnOnce() -> T + Send + 'static) -> Asked<T> {
        // What is locked is whole whatever panicked elsewhere.
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = &*latest
            && (asked.is_running() || asked.is_younger_than(max_age))
        {
            return asked.clone();
        }
        let (to_all, answer) = watch::channel(None);
        let asked = Asked { begun: Instant::now(), answer };
        // Nobody waits for the thread itself: it may hang for ever.
        drop(spawn_blocking(move || to_all.send_replace(Some(question()))));
        latest.insert(asked).clone()
    }
}

impl<T> Asked<T> {
    fn is_running(&self) -> bool {
        self.answer.borrow().is_none() && self.answer.has_changed().is_ok()
    }

    fn is_younger_than(&self, max_age: Duration) -> bool {
        self.answer.borrow().is_some() && self.begun.elapsed() < max_age
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
    const PATIENCE: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_within_the_age_share_one_answer() {
        let (sampler, asked) = (Sampler::default(), Arc::new(AtomicUsize::new(0)));
        let ask = || {
            let asked = Arc::clone(&asked);
            sampler.sample(AGE, PATIENCE, move || asked.fetch_add(1, Ordering::Relaxed))
        };
        let answers = join_all((0..100).map(|_| ask())).await;
        assert!(answers.iter().all(|answer| *answer == Ok(0)));
        tokio::time::advance(AGE - Duration::from_millis(1)).await;
        assert_eq!(ask().await, Ok(0));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(ask().await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_hangs_takes_one_thread_and_keeps_only_the_first_waiting() {
        let sampler = Sampler::default();
        let (release, hanging) = mpsc::channel::<()>();
        let first = sampler.sample(AGE, PATIENCE, move || hanging.recv().is_ok());
        let mut first = Box::pin(first);
        assert!(poll!(&mut first).is_pending());
        tokio::time::advance(PATIENCE).await;
        assert_eq!(first.await, Err(NoAnswer));
        let again = || sampler.sample(AGE, PATIENCE, || panic!("a second thread"));
        for _ in 0..100 {
            assert_eq!(poll!(Box::pin(again())), std::task::Poll::Ready(Err(NoAnswer)));
        }
        // When the system answers after all, the next question is asked.
        release.send(()).unwrap();
        while sampler.0.lock().unwrap().as_ref().unwrap().is_running() {
            tokio::task::yield_now().await;
        }
        assert_eq!(sampler.sample(AGE, PATIENCE, || false).await, Ok(false));
    }

    #[tokio::test]
    async fn a_question_that_dies_is_asked_anew() {
        let sampler = Sampler::default();
        assert_eq!(sampler.sample(AGE, PATIENCE, || panic!("of the test")).await, Err(NoAnswer));
        assert_eq!(sampler.sample(AGE, PATIENCE, || 7).await, Ok(7));
    }
}
