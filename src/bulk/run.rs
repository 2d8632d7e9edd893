//! Runs `embed`: sends the rows of the sources, and decides what happens after each answer.

use std::time::Duration;

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    attempt::attempt,
    classify::{Action, MAX_PAUSE, Sign},
    client::{Embedded, ServiceClient},
    error::{BulkError, Outcome},
    feeder::{Feeder, SourceEvent},
    interrupt::Interrupt,
    item::{Failure, Item, NAME_TAKEN},
    json_object,
    lanes::{Job, Lanes},
    progress::{Progress, write_line},
    silence::Silence,
    tally::Tally,
    window::Window,
    writer::{Closed, Writer},
};

/// The run stops if the service was asked to process pictures, and has processed none for longer than this.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(900);

/// The parameters of a run.
#[derive(Debug)]
pub(super) struct Plan {
    /// The most requests at once.
    pub concurrency: usize,
    /// The most requests at once for pictures of one host.
    pub per_host: usize,
    /// The model of the service. An answer of another model stops the run.
    pub model: String,
}

/// A pause of the service, in which nothing is sent. The pauses of single hosts are in [`Lanes`].
#[derive(Debug)]
struct Pause {
    end: Instant,
    /// Why nothing is sent, for the progress.
    note: String,
}

/// A run of `embed`, and its state.
#[derive(Debug)]
pub(super) struct Run {
    plan: Plan,
    client: ServiceClient,
    writer: Writer,
    /// The rows that wait to be sent, in a lane for each host.
    lanes: Lanes,
    /// How many requests may run at once.
    window: Window,
    /// The requests that run now.
    requests: JoinSet<(Job, Result<Embedded, Action>)>,
    tally: Tally,
    progress: Progress,
    /// The number of rows that the feeder has passed on.
    received: u64,
    /// Set while the service is busy or unreachable.
    pause: Option<Pause>,
    /// For how long the service has processed no picture.
    silence: Silence,
    /// Why no further rows are sent.
    stop_reason: Option<String>,
}

impl Run {
    /// A run that has sent nothing yet.
    pub(super) fn new(
        plan: Plan,
        client: ServiceClient,
        writer: Writer,
        progress: Progress,
    ) -> Self {
        Self {
            lanes: Lanes::new(plan.per_host),
            window: Window::new(plan.concurrency),
            plan,
            client,
            writer,
            requests: JoinSet::new(),
            tally: Tally::default(),
            progress,
            received: 0,
            pause: None,
            silence: Silence::new(),
            stop_reason: None,
        }
    }

    /// Sends all rows, and prints the summary.
    ///
    /// # Errors
    /// The first row already has a field that `embed` adds, a source breaks and no source has a row, or the
    /// output cannot be written.
    pub(super) async fn send_all(
        mut self,
        feeder: Feeder,
        interrupt: &mut Interrupt,
    ) -> Result<Outcome, BulkError> {
        match self.send_rows(feeder, interrupt).await {
            Ok(is_interrupted) => self.finish(is_interrupted).await,
            Err(error) => {
                self.progress.remove_bar();
                self.writer.finish().await.map_err(BulkError::Write)?;
                Err(error)
            }
        }
    }

    /// Sends rows until none is left or the run ends early. Returns whether a signal has interrupted the run.
    async fn send_rows(
        &mut self,
        mut feeder: Feeder,
        interrupt: &mut Interrupt,
    ) -> Result<bool, BulkError> {
        // Whether the feeder may send further events.
        let mut has_more = true;
        let (mut is_interrupted, mut broken) = (false, None);
        let mut ticker = interval(self.progress.interval());
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_stopping = is_interrupted || self.stop_reason.is_some();
            if !is_stopping {
                self.start_requests().await;
            }
            let has_rows_left = has_more || !self.lanes.is_empty();
            if self.requests.is_empty() && (is_stopping || !has_rows_left) {
                break;
            }
            let pause_end = self.next_end_of_pause();
            tokio::select! {
                event = feeder.events.recv(),
                    if has_more && !is_stopping && self.lanes.has_space() =>
                {
                    match event {
                        Some(SourceEvent::Row(item)) => self.queue(*item).await?,
                        Some(SourceEvent::Broken(reason)) => {
                            self.tally.add_broken_source(&reason);
                            broken.get_or_insert(reason);
                        }
                        None => has_more = false,
                    }
                }
                Some(finished) = self.requests.join_next(), if !self.requests.is_empty() => {
                    self.finish_request(finished).await;
                }
                // The next iteration sends what the pause held back.
                () = sleep_until(pause_end.unwrap_or_else(Instant::now)),
                    if pause_end.is_some() && !is_stopping => {}
                _ = ticker.tick() => {
                    self.show_progress(&feeder, has_more);
                    self.check_service();
                }
                () = interrupt.wait(), if !is_interrupted => {
                    is_interrupted = true;
                    // A second signal ends the process at once, so the bar could not be removed then.
                    self.progress.remove_bar();
                    write_line(&format!(
                        "interrupted: waiting for {} running requests; interrupt again to stop at once",
                        self.requests.len()
                    ));
                    interrupt.exit_at_next_signal();
                }
            }
        }
        self.tally.skipped = feeder.skipped();
        match broken {
            // There was no row, so the command ends as if it could not start.
            Some(reason) if self.received + self.tally.skipped == 0 => {
                Err(BulkError::Source(reason))
            }
            _ => Ok(is_interrupted),
        }
    }

    /// Shows the counts. `has_more` is whether the feeder may send further rows.
    fn show_progress(&mut self, feeder: &Feeder, has_more: bool) {
        self.tally.skipped = feeder.skipped();
        let total = match has_more {
            true => feeder.total(),
            false => Some(self.received + self.tally.skipped),
        };
        let note = match (&self.stop_reason, &self.pause) {
            (Some(_), _) => Some("stopping"),
            (None, Some(pause)) => Some(&*pause.note),
            (None, None) => None,
        };
        self.progress.update(&self.tally, total, note);
    }

    /// Waits until the rows and the failures are written, and prints the summary.
    async fn finish(self, is_interrupted: bool) -> Result<Outcome, BulkError> {
        let written = self.writer.finish().await;
        self.progress.finish(&self.tally);
        let failures_path = written.map_err(BulkError::Write)?;
        if let Some(path) = failures_path {
            write_line(&format!("the failures are in {}", path.display()));
        }
        if let Some(reason) = &self.stop_reason {
            write_line(&format!("stopped: {reason} Run the same command again to continue."));
        } else if is_interrupted {
            write_line("interrupted: run the same command again to continue");
        }
        // An interruption decides the exit code, even if there is a stop reason, too.
        Ok(match self.tally.failed {
            _ if is_interrupted => Outcome::Interrupted,
            _ if self.stop_reason.is_some() => Outcome::Stopped,
            0 => Outcome::Success,
            _ => Outcome::SomeFailed,
        })
    }

    /// Queues a row, or writes why it has no picture.
    ///
    /// # Errors
    /// The first row already has a field with the same name as a field that `embed` adds.
    async fn queue(&mut self, item: Item) -> Result<(), BulkError> {
        self.received += 1;
        match &item.picture {
            Ok(_) => self.lanes.push(Job::new(item)),
            // If the first row has such a field, all rows probably have it.
            Err(failure) if failure.code == NAME_TAKEN && self.received == 1 => {
                return Err(BulkError::Source(failure.detail.clone()));
            }
            Err(failure) => {
                let failure = failure.clone();
                self.fail(item, failure).await;
            }
        }
        Ok(())
    }

    /// Sends as many rows as may be sent now. Fails the rows whose host has demanded too long a pause.
    async fn start_requests(&mut self) {
        let now = Instant::now();
        while let Some((job, failure)) = self.lanes.take_paused_too_long(now, MAX_PAUSE) {
            self.fail(job.item, failure).await;
        }
        if self.pause.as_ref().is_some_and(|pause| pause.end > now) {
            return;
        }
        self.pause = None;
        while self.requests.len() < self.window.size() {
            let Some(mut job) = self.lanes.take(now) else { return };
            job.halvings_at_start = self.window.halvings();
            self.requests.spawn(attempt(self.client.clone(), job));
        }
    }

    /// When the service's pause ends. If it has none, when the next pause of a host ends. `None` if there
    /// is no pause. While the window is full, the pauses of hosts are ignored: another row can then be
    /// sent only when a request ends.
    fn next_end_of_pause(&self) -> Option<Instant> {
        match &self.pause {
            Some(pause) => Some(pause.end),
            None if self.requests.len() < self.window.size() => self.lanes.next_end_of_pause(),
            None => None,
        }
    }

    /// Handles the result of a request that has ended.
    async fn finish_request(
        &mut self,
        finished: Result<(Job, Result<Embedded, Action>), JoinError>,
    ) {
        let (job, result) = match finished {
            Ok(job_and_result) => job_and_result,
            Err(error) => return self.stop(format!("A task panicked: {error}.")),
        };
        let lane = job.lane_name();
        let sign = result.as_ref().map_or_else(Action::sign, |_| Sign::Processed);
        self.silence.add(sign, job.started);
        match result {
            Ok(embedded) => {
                self.lanes.host_answered(&lane);
                // The request that succeeded is no longer in `requests`, but counts as running.
                self.window.grow_after_success(self.requests.len() + 1);
                self.succeed(job.item, embedded).await;
            }
            Err(action) => self.handle_error(job, &lane, action).await,
        }
        self.lanes.job_ended(&lane);
    }

    /// Writes a row with its vector, unless the vector is of another model.
    async fn succeed(&mut self, item: Item, embedded: Embedded) {
        let Embedded { fields, model, is_cached } = embedded;
        if model != self.plan.model {
            let expected = &self.plan.model;
            return self
                .stop(format!("The service now computes vectors of {model}, not {expected}."));
        }
        self.tally.embedded += 1;
        self.tally.cached += u64::from(is_cached);
        let line = json_object::append(&item.object, &fields) + "\n";
        let written = self.writer.write_row(item.identity, line).await;
        self.stop_if_closed(written);
    }

    /// Does what an error demands.
    async fn handle_error(&mut self, mut job: Job, lane: &str, action: Action) {
        let now = Instant::now();
        match action {
            Action::NotSent(failure) => self.fail(job.item, failure).await,
            Action::Fail(failure) => {
                // The picture is at fault, not its host: usually, the host has answered.
                self.lanes.host_answered(lane);
                self.fail(job.item, failure).await;
            }
            Action::PauseService(failure, pause) => {
                self.window.halve_after_refusal(job.halvings_at_start);
                self.pause_service(&failure, now + pause);
                // This is not a failed attempt, because the picture itself may be good.
                self.lanes.push_again(job);
            }
            Action::TryAgain(failure) => {
                job.attempts.add_failure();
                self.try_again(job, failure, now).await;
            }
            Action::HostFailed(failure) => {
                job.attempts.add_failure();
                let may_try_again = self.lanes.host_failed(lane);
                match may_try_again {
                    true => self.try_again(job, failure, now).await,
                    false => self.fail(job.item, failure).await,
                }
            }
            Action::PauseHost(failure, pause) => {
                self.lanes.pause(lane, now + pause, failure.clone());
                job.attempts.add_failure();
                // The next attempt starts when the pause and the backoff of this failure are both over.
                self.try_again(job, failure, now + pause).await;
            }
            Action::StopRun(failure) => {
                self.stop(failure.detail.clone());
                self.fail(job.item, failure).await;
            }
        }
    }

    /// Sends nothing until `end`, or until the end of the current pause if that is later.
    fn pause_service(&mut self, failure: &Failure, end: Instant) {
        if self.pause.as_ref().is_none_or(|pause| pause.end < end) {
            let note = format!("waiting for the service ({})", failure.code);
            self.pause = Some(Pause { end, note });
        }
    }

    /// Queues a picture again, unless it has failed too often or for too long. Its next attempt cannot
    /// start before `earliest`.
    async fn try_again(&mut self, job: Job, failure: Failure, earliest: Instant) {
        if job.attempts.may_continue(earliest) {
            self.lanes.push_again(job);
        } else {
            self.fail(job.item, failure).await;
        }
    }

    /// Counts a failure, and writes the row with it.
    async fn fail(&mut self, item: Item, failure: Failure) {
        self.tally.add_failure(&item.label, &failure);
        let written = self.writer.write_failure(item, failure).await;
        self.stop_if_closed(written);
    }

    /// Stops the run if the service has processed no picture for longer than [`SERVICE_TIMEOUT`].
    fn check_service(&mut self) {
        if self.lanes.is_empty() && self.requests.is_empty() {
            // There is nothing to send, because the source is slow.
            self.silence.end();
        } else if self.silence.length() > SERVICE_TIMEOUT {
            let minutes = SERVICE_TIMEOUT.as_secs() / 60;
            self.stop(format!("The service has processed no picture for {minutes} minutes."));
        }
    }

    fn stop_if_closed(&mut self, written: Result<(), Closed>) {
        if written.is_err() {
            self.stop("The output cannot be written.".into());
        }
    }

    /// From now on, no further rows are sent. The run ends when the running requests have ended.
    fn stop(&mut self, reason: String) {
        if self.stop_reason.is_none() {
            self.progress.console().write_line(&format!("stopping: {reason}"));
            self.stop_reason = Some(reason);
        }
    }
}

#[cfg(test)]
mod tests;
