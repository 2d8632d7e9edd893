//! Measures for how long the service has processed no picture although it was asked to.
//!
//! The time from one answer to the next would be simpler. But a source may be slow, and the files of this
//! machine may be unreadable for hours, without any fault of the service.

use std::time::Duration;

use tokio::time::Instant;

use super::classify::Sign;

/// Whether the service is silent (processes no picture although it is asked to), and since when.
#[derive(Debug)]
pub(super) struct Silence {
    /// When the service last processed a picture. Before the first one, this is when the run began.
    last_processed: Instant,
    /// Since when the service is silent. `None` if it is not.
    since: Option<Instant>,
}

impl Silence {
    /// No silence yet.
    pub(super) fn new() -> Self {
        Self { last_processed: Instant::now(), since: None }
    }

    /// Adds the sign of an attempt that began at `started` and ends now.
    pub(super) fn add(&mut self, sign: Sign, started: Instant) {
        match sign {
            Sign::Processed => *self = Self::new(),
            Sign::NotProcessed => {
                // The service may have processed other pictures during this attempt.
                let since = started.max(self.last_processed);
                self.since = Some(self.since.map_or(since, |earlier| earlier.min(since)));
            }
            Sign::Nothing => {}
        }
    }

    /// Ends the silence, although no picture was processed. For callers that have nothing to send.
    pub(super) fn end(&mut self) {
        self.since = None;
    }

    /// How long the silence has lasted. Zero if there is none.
    pub(super) fn length(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_silence_lasts_from_sending_an_unprocessed_picture_until_one_is_processed() {
        let mut silence = Silence::new();
        advance(1000 * SECOND).await;
        let first_start = Instant::now();
        assert_eq!(silence.length(), Duration::ZERO, "nothing was sent");
        advance(10 * SECOND).await;
        let second_start = Instant::now();
        // Two attempts begin at each of these starts.
        advance(10 * SECOND).await;
        silence.add(Sign::NotProcessed, second_start);
        assert_eq!(silence.length(), 10 * SECOND);
        silence.add(Sign::NotProcessed, first_start);
        assert_eq!(silence.length(), 20 * SECOND);
        silence.add(Sign::Processed, second_start);
        assert_eq!(silence.length(), Duration::ZERO);
        // This attempt began before a picture was processed. Only the 5 s since then count.
        advance(5 * SECOND).await;
        silence.add(Sign::NotProcessed, first_start);
        assert_eq!(silence.length(), 5 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unsent_picture_does_not_change_the_silence_and_the_method_end_ends_it() {
        let mut silence = Silence::new();
        let started = Instant::now();
        advance(1000 * SECOND).await;
        silence.add(Sign::Nothing, started);
        assert_eq!(silence.length(), Duration::ZERO);
        silence.add(Sign::NotProcessed, started);
        silence.add(Sign::Nothing, started);
        assert_eq!(silence.length(), 1000 * SECOND);
        silence.end();
        assert_eq!(silence.length(), Duration::ZERO);
    }
}
