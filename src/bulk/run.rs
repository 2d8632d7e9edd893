//! The run: sends the rows of the sources, and decides what happens after each answer.

use std::time::Duration;

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    attempt::attempt,
    classify::{Action, MAX_PAUSE},
    client::{Embedded, ServiceClient},
    error::{BulkError, Outcome},
    feeder::{Fed, Feeder},
    interrupt::Interrupt,
    item::{Failure, Item, NAME_TAKEN},
    json_object,
    lanes::{Job, Lanes},
    progress::{Progress, Tally},
    writer::{Closed, Writer},
};

/// The most attempts of a picture. Refusals because the service is busy do not count.
const MAX_ATTEMPTS: u32 = 5;

/// How long the service may be unreachable or refuse every picture before the run stops.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(900);

/// How a run works.
#[derive(Debug)]
pub(super) struct Plan {
    pub concurrency: usize,
    pub per_host: usize,
    /// The model of the service. An answer of another model stops the run.
    pub model: String,
}

/// A run.
#[derive(Debug)]
pub(super) struct Run {
    plan: Plan,
    client: ServiceClient,
    writer: Writer,
    lanes: Lanes,
    calls: JoinSet<(Job, Result<Embedded, Action>)>,
    tally: Tally,
    progress: Progress,
    /// The number of rows that were taken from the sources.
    taken: u64,
    /// Until when nothing is sent, because the service is busy.
    pause: Option<Instant>,
    /// When a picture last succeeded or failed.
    last_result: Instant,
    /// Why no further rows are sent.
    stop_reason: Option<String>,
}

impl Run {
    pub(super) fn new(plan: Plan, client: ServiceClient, writer: Writer) -> Self {
        Self {
            lanes: Lanes::new(plan.per_host),
            plan,
            client,
            writer,
            calls: JoinSet::new(),
            tally: Tally::default(),
            progress: Progress::start(),
            taken: 0,
            pause: None,
            last_result: Instant::now(),
            stop_reason: None,
        }
    }

    /// Sends all rows, and writes the summary.
    pub(super) async fn send_all(
        mut self,
        feeder: Feeder,
        interrupt: &mut Interrupt,
    ) -> Result<Outcome, BulkError> {
        match self.send_rows(feeder, interrupt).await {
            Ok(is_interrupted) => self.finish(is_interrupted).await,
            Err(error) => {
                self.writer.finish().await.map_err(BulkError::Write)?;
                Err(error)
            }
        }
    }

    /// Sends all rows. Returns whether a signal has ended this.
    async fn send_rows(
        &mut self,
        mut feeder: Feeder,
        interrupt: &mut Interrupt,
    ) -> Result<bool, BulkError> {
        let mut has_more = true;
        let mut is_interrupted = false;
        let mut ticker = interval(self.progress.interval());
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_stopping = is_interrupted || self.stop_reason.is_some();
            if !is_stopping {
                self.start_calls().await;
            }
            let is_sent = !has_more && self.lanes.is_empty();
            if self.calls.is_empty() && (is_stopping || is_sent) {
                break;
            }
            let wake = self.next_wake();
            tokio::select! {
                fed = feeder.rows.recv(), if has_more && !is_stopping && self.lanes.has_room() => {
                    match fed {
                        Some(Fed::Row(item)) => self.take(*item).await?,
                        Some(Fed::Broken(reason)) => {
                            has_more = false;
                            if self.taken == 0 {
                                return Err(BulkError::Source(reason));
                            }
                            self.tally.add_failure(&reason, &Failure::permanent("unreadable_source", "the rest of this source was not read"));
                        }
                        None => has_more = false,
                    }
                }
                Some(call) = self.calls.join_next(), if !self.calls.is_empty() => {
                    self.finish_call(call).await;
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() && !is_stopping => {}
                _ = ticker.tick() => {
                    self.tally.skipped = feeder.skipped();
                    let total = if has_more { None } else { Some(self.taken) };
                    self.progress.update(&self.tally, total);
                    self.check_service();
                }
                () = interrupt.wait(), if !is_interrupted => {
                    is_interrupted = true;
                    self.progress.say(&format!(
                        "interrupted: waiting for {} running requests; interrupt again to stop at once",
                        self.calls.len()
                    ));
                    interrupt.exit_at_the_next();
                }
            }
        }
        self.tally.skipped = feeder.skipped();
        Ok(is_interrupted)
    }

    async fn finish(self, is_interrupted: bool) -> Result<Outcome, BulkError> {
        let written = self.writer.finish().await;
        self.progress.finish(&self.tally);
        if let Some(reason) = &self.stop_reason {
            super::progress::say(&format!("stopped: {reason}"));
        }
        let failures = written.map_err(BulkError::Write)?;
        if let Some(path) = failures {
            super::progress::say(&format!("the failures are in {}", path.display()));
        }
        Ok(match self.tally.failed {
            _ if is_interrupted => Outcome::Interrupted,
            _ if self.stop_reason.is_some() => Outcome::Stopped,
            0 => Outcome::AllEmbedded,
            _ => Outcome::SomeFailed,
        })
    }

    /// Queues a row, or writes why it has no picture.
    async fn take(&mut self, item: Item) -> Result<(), BulkError> {
        self.taken += 1;
        match &item.picture {
            Ok(_) => self.lanes.push(Job::new(item)),
            // If the first row has the name, all rows probably have it.
            Err(failure) if failure.code == NAME_TAKEN && self.taken == 1 => {
                return Err(BulkError::Source(failure.detail.clone()));
            }
            Err(failure) => {
                let failure = failure.clone();
                self.fail(item, failure).await;
            }
        }
        Ok(())
    }

    /// Starts as many calls as may run now.
    async fn start_calls(&mut self) {
        let now = Instant::now();
        while let Some((job, failure)) = self.lanes.take_hopeless(now, MAX_PAUSE) {
            self.fail(job.item, failure).await;
        }
        if self.pause.is_some_and(|end| end > now) {
            return;
        }
        self.pause = None;
        while self.calls.len() < self.plan.concurrency {
            let Some(job) = self.lanes.take(now) else { return };
            self.calls.spawn(attempt(self.client.clone(), job));
        }
    }

    /// When the next pause ends.
    fn next_wake(&self) -> Option<Instant> {
        match self.pause {
            Some(end) => Some(end),
            None if self.calls.len() < self.plan.concurrency => self.lanes.next_end_of_pause(),
            None => None,
        }
    }

    async fn finish_call(&mut self, call: Result<(Job, Result<Embedded, Action>), JoinError>) {
        let (job, result) = match call {
            Ok(finished) => finished,
            Err(error) => return self.stop(format!("a task panicked: {error}")),
        };
        let lane = job.lane();
        match result {
            Ok(embedded) => self.succeed(job.item, embedded).await,
            Err(action) => self.handle_error(job, &lane, action).await,
        }
        self.lanes.finish(&lane);
    }

    async fn succeed(&mut self, item: Item, embedded: Embedded) {
        self.last_result = Instant::now();
        let Embedded { fields, model, is_cached } = embedded;
        if model != self.plan.model {
            let expected = &self.plan.model;
            return self
                .stop(format!("the service now computes vectors of {model}, not {expected}"));
        }
        self.tally.embedded += 1;
        self.tally.cached += u64::from(is_cached);
        let line = json_object::append(&item.object, &fields) + "\n";
        let written = self.writer.row(item.identity, line).await;
        self.stop_if_closed(written);
    }

    async fn handle_error(&mut self, mut job: Job, lane: &str, action: Action) {
        let now = Instant::now();
        match action {
            Action::Fail(failure) => self.fail(job.item, failure).await,
            Action::PauseService(_, pause) => {
                let end = now + pause;
                self.pause = Some(self.pause.map_or(end, |known| known.max(end)));
                self.lanes.push_again(job);
            }
            Action::TryAgain(failure) => {
                job.attempts += 1;
                self.try_again(job, failure, now).await;
            }
            Action::PauseHost(failure, pause) => {
                self.lanes.pause(lane, now + pause, failure.clone());
                job.attempts += 1;
                // The pause takes the place of the wait before the next attempt.
                self.try_again(job, failure, now + pause).await;
            }
            Action::StopRun(failure) => {
                self.stop(failure.detail.clone());
                self.fail(job.item, failure).await;
            }
        }
    }

    /// Queues a picture again, unless it has failed too often or for too long.
    async fn try_again(&mut self, job: Job, failure: Failure, earliest: Instant) {
        let is_late = job.deadline.is_some_and(|deadline| earliest >= deadline);
        if job.attempts >= MAX_ATTEMPTS || is_late {
            self.fail(job.item, failure).await;
        } else {
            self.lanes.push_again(job);
        }
    }

    async fn fail(&mut self, item: Item, failure: Failure) {
        self.last_result = Instant::now();
        self.tally.add_failure(&item.label, &failure);
        let written = self.writer.failure(item, failure).await;
        self.stop_if_closed(written);
    }

    /// Stops the run if the service has processed no picture for a long time.
    fn check_service(&mut self) {
        let is_waiting = !self.lanes.is_empty() || !self.calls.is_empty();
        if self.pause.is_none() || !is_waiting {
            return;
        }
        if self.last_result.elapsed() > SERVICE_TIMEOUT {
            let minutes = SERVICE_TIMEOUT.as_secs() / 60;
            self.stop(format!("the service has processed no picture for {minutes} minutes"));
        }
    }

    fn stop_if_closed(&mut self, written: Result<(), Closed>) {
        if written.is_err() {
            self.stop("the output cannot be written".into());
        }
    }

    fn stop(&mut self, reason: String) {
        self.stop_reason.get_or_insert(reason);
    }
}
