//! The slots for pictures that are with NVIDIA, and how long the line before them takes.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

/// So many pictures may be with NVIDIA at once; the others wait in line, first come first served.
#[derive(Debug)]
pub(super) struct Slots {
    free: Semaphore,
    count: usize,
    waiting: AtomicUsize,
    /// For how long a slot is taken, smoothed, in microseconds.
    typical: AtomicU64,
}

/// A slot that is taken, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    since: Instant,
    _permit: SemaphorePermit<'a>,
}

/// One who waits in line.
struct Waiting<'a>(&'a AtomicUsize);

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self {
            free: Semaphore::new(count),
            count,
            waiting: AtomicUsize::new(0),
            typical: AtomicU64::new(0),
        }
    }

    /// Waits for a slot; `None` when there is no time left to use it: what would be asked for would
    /// be paid for, and come too late.
    pub(super) async fn take(&self, deadline: Instant) -> Option<Slot<'_>> {
        let waiting = Waiting::new(&self.waiting);
        let permit = timeout_at(deadline, self.free.acquire()).await.ok()?.ok()?;
        drop(waiting);
        let slot = Slot { slots: self, since: Instant::now(), _permit: permit };
        (slot.since + self.typical() < deadline).then_some(slot)
    }

    /// How many wait in line.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How long the line before a newcomer is likely to take, by how long slots are taken of late.
    pub(super) fn expected_wait(&self) -> Duration {
        let ahead = self.waiting();
        if ahead == 0 && self.free.available_permits() > 0 {
            return Duration::ZERO;
        }
        self.typical().mul_f64((ahead + 1) as f64 / self.count as f64)
    }

    /// How long slots are taken of late.
    fn typical(&self) -> Duration {
        Duration::from_micros(self.typical.load(Ordering::Relaxed))
    }

    fn note(&self, taken: Duration) {
        let taken = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX / 8);
        let smooth = |typical: u64| Some(typical - typical / 8 + taken / 8);
        // Always `Some`: it cannot fail.
        let _ = self.typical.fetch_update(Ordering::Relaxed, Ordering::Relaxed, smooth);
    }
}

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots.note(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_foreseen_from_the_line_and_from_how_long_slots_are_taken() {
        let slots = Slots::new(2);
        let deadline = Instant::now() + Duration::from_secs(3600);
        for _ in 0..100 {
            let _slot = slots.take(deadline).await.unwrap();
            tokio::time::advance(Duration::from_secs(4)).await;
        }
        assert_eq!(slots.expected_wait(), Duration::ZERO, "slots are free");
        let _taken = (slots.take(deadline).await, slots.take(deadline).await);
        assert_eq!(slots.expected_wait().as_secs_f64().round(), 2.0, "one of two ends in 2 s");
        let mut line: Vec<_> = (0..3).map(|_| Box::pin(slots.take(deadline))).collect();
        for waiting in &mut line {
            assert!(futures_util::poll!(waiting).is_pending());
        }
        assert_eq!((slots.waiting(), slots.expected_wait().as_secs_f64().round()), (3, 8.0));
        drop(line);
        assert_eq!(slots.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_beyond_the_deadline() {
        let slots = Slots::new(1);
        let started = Instant::now();
        let deadline = started + Duration::from_secs(5);
        let taken = slots.take(deadline).await.unwrap();
        assert!(slots.take(deadline).await.is_none());
        assert_eq!((started.elapsed().as_secs(), slots.waiting()), (5, 0));
        drop(taken);
        assert!(slots.take(deadline).await.is_none(), "free, and too late");
    }
}
