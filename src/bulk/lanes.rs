//! Queues the rows that are to be sent. The queue has a lane for each host, so that one host does not
//! delay the pictures of others. All files and all invalid URLs have one lane together.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use quick_cache::unsync::Cache;
use tokio::time::Instant;

use super::{
    item::{Failure, Identity, Item, Picture},
    retry::Attempts,
};

/// The time from the start of a picture's first attempt to its deadline: see [`Attempts`].
const PICTURE_TIMEOUT: Duration = Duration::from_secs(900);

/// With this many rows in the queue, no new row is added.
const MAX_ROWS: usize = 10_000;

/// With this many bytes of rows in the queue, no new row is added.
const MAX_BYTES: usize = 32 << 20;

/// Once a host has failed this often since its last answer, its pictures that fail are not tried again.
/// Otherwise, a long list with a host that no longer exists would keep the run busy for days.
const MAX_CONSECUTIVE_FAILURES: u32 = 20;

/// The failures of at most this many hosts are counted. If more hosts fail, some counts are lost, and
/// the pictures of these hosts are tried more often.
const MAX_FAILED_HOSTS: usize = 10_000;

/// A row that is to be sent, for the first time or again.
#[derive(Debug)]
pub(super) struct Job {
    pub item: Item,
    /// The earlier attempts.
    pub attempts: Attempts,
    /// The value of [`Window::halvings`](super::window::Window::halvings) when the latest attempt started.
    pub halvings_at_start: u64,
    /// When the latest attempt started. Before the first attempt, when the job was created.
    pub started: Instant,
}

impl Job {
    /// A job without attempts.
    pub(super) fn new(item: Item) -> Self {
        let attempts = Attempts::within(PICTURE_TIMEOUT);
        Self { item, attempts, halvings_at_start: 0, started: Instant::now() }
    }

    fn bytes(&self) -> usize {
        self.item.object.len() + size_of::<Self>()
    }

    /// The name of the job's lane: the URL's host and port, or empty for a file. An invalid URL has an empty
    /// host, too: the service refuses it.
    pub(super) fn lane_name(&self) -> String {
        match &self.item.picture {
            Ok(Picture::Url { host, .. }) => host.clone(),
            // No job has an `Err`: without a picture, there is nothing to send.
            Ok(Picture::File(_)) | Err(_) => String::new(),
        }
    }
}

/// The jobs of one host, or those without a host.
#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Job>,
    running: usize,
    /// Whether the lane is in [`Lanes::ready`].
    is_ready: bool,
    /// The end of the host's pause, and the failure with which the host demanded it.
    pause: Option<(Instant, Failure)>,
}

/// All lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: HashMap<String, Lane>,
    /// The lanes that have a job which may start now. The lane at the front has been ready for longest.
    ready: VecDeque<String>,
    /// The lanes that are paused, by the end of the pause.
    paused: BTreeSet<(Instant, String)>,
    /// How often each host has failed since its last answer. This outlives the lane, because the next
    /// picture of the host may be far down the list.
    failures: Cache<Identity, u32>,
    per_host: usize,
    rows: usize,
    bytes: usize,
}

impl Lanes {
    /// Lanes in which at most `per_host` jobs of one host run at once.
    pub(super) fn new(per_host: usize) -> Self {
        Self {
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            paused: BTreeSet::new(),
            failures: Cache::new(MAX_FAILED_HOSTS),
            per_host,
            rows: 0,
            bytes: 0,
        }
    }

    /// Whether another row may be added.
    pub(super) fn has_space(&self) -> bool {
        self.rows < MAX_ROWS && self.bytes < MAX_BYTES
    }

    /// Whether no job is queued.
    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds a new job behind the others of its lane.
    pub(super) fn push(&mut self, job: Job) {
        self.insert(job, VecDeque::push_back);
    }

    /// Adds a job that has run before, ahead of the others of its lane.
    pub(super) fn push_again(&mut self, job: Job) {
        self.insert(job, VecDeque::push_front);
    }

    fn insert(&mut self, job: Job, push: fn(&mut VecDeque<Job>, Job)) {
        let name = job.lane_name();
        self.rows += 1;
        self.bytes += job.bytes();
        push(&mut self.lanes.entry(name.clone()).or_default().queue, job);
        self.update(&name);
    }

    /// Takes the next job that may start now. The caller calls [`Self::job_ended`] when it has ended.
    pub(super) fn take(&mut self, now: Instant) -> Option<Job> {
        self.end_pauses(now);
        let name = self.ready.pop_front()?;
        let lane = self.lanes.get_mut(&name)?;
        let job = lane.queue.pop_front()?;
        lane.running += 1;
        lane.is_ready = false;
        self.rows -= 1;
        self.bytes -= job.bytes();
        self.update(&name);
        Some(job)
    }

    /// Reports that a job of this lane has ended.
    pub(super) fn job_ended(&mut self, name: &str) {
        if let Some(lane) = self.lanes.get_mut(name) {
            lane.running -= 1;
        }
        self.update(name);
    }

    /// Reports that the host of this lane has failed. Returns whether the picture for which it failed may
    /// be tried again.
    pub(super) fn host_failed(&mut self, name: &str) -> bool {
        let host = Identity::of(name);
        let failures = self.failures.get(&host).map_or(1, |earlier| earlier.saturating_add(1));
        self.failures.insert(host, failures);
        failures < MAX_CONSECUTIVE_FAILURES
    }

    /// Reports that the host of this lane has answered.
    pub(super) fn host_answered(&mut self, name: &str) {
        self.failures.remove(&Identity::of(name));
    }

    /// Starts no job of this lane's host until `end`, or until the end of its current pause if that is
    /// later.
    pub(super) fn pause(&mut self, name: &str, end: Instant, failure: Failure) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        if let Some((current_end, _)) = &lane.pause {
            if *current_end >= end {
                return;
            }
            self.paused.remove(&(*current_end, name.to_owned()));
        }
        lane.pause = Some((end, failure));
        lane.is_ready = false;
        self.paused.insert((end, name.to_owned()));
        self.ready.retain(|ready| ready != name);
    }

    /// Takes a queued job whose host stays paused for `too_long` or more: the caller must not start it.
    /// Returns the job with the failure of the host.
    pub(super) fn take_paused_too_long(
        &mut self,
        now: Instant,
        too_long: Duration,
    ) -> Option<(Job, Failure)> {
        let (_, name) = self
            .paused
            .range((now + too_long, String::new())..)
            .find(|(_, name)| self.lanes.get(name).is_some_and(|lane| !lane.queue.is_empty()))?;
        let name = name.clone();
        let lane = self.lanes.get_mut(&name)?;
        let job = lane.queue.pop_front()?;
        self.rows -= 1;
        self.bytes -= job.bytes();
        let failure = lane.pause.as_ref()?.1.clone();
        Some((job, failure))
    }

    /// When the first of the hosts' pauses ends. `None` if no host is paused.
    pub(super) fn next_end_of_pause(&self) -> Option<Instant> {
        self.paused.first().map(|(end, _)| *end)
    }

    /// Ends the pauses whose time is over.
    fn end_pauses(&mut self, now: Instant) {
        while let Some((end, name)) = self.paused.pop_first() {
            if end > now {
                self.paused.insert((end, name));
                return;
            }
            if let Some(lane) = self.lanes.get_mut(&name) {
                lane.pause = None;
            }
            self.update(&name);
        }
    }

    /// Adds a lane to the ready lanes if it has become ready. Removes a lane that has no job and no pause.
    fn update(&mut self, name: &str) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        if lane.queue.is_empty() && lane.running == 0 && lane.pause.is_none() {
            self.lanes.remove(name);
            return;
        }
        let has_host = !name.is_empty();
        let may_start = lane.pause.is_none() && (!has_host || lane.running < self.per_host);
        if !lane.queue.is_empty() && may_start && !lane.is_ready {
            lane.is_ready = true;
            self.ready.push_back(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::item::ItemReader, *};

    /// A job of the lane `a:80` if the URL is `http://a/…`.
    fn job(url: &str) -> Job {
        let reader = ItemReader { location_field: None, id_field: None, prefix: String::new() };
        Job::new(reader.plain(Picture::parse(url)))
    }

    fn any_failure() -> Failure {
        Failure::permanent("download_failed", "busy")
    }

    /// Takes all jobs that may start, and returns their labels.
    fn take_all(lanes: &mut Lanes, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| lanes.take(now)).map(|job| job.item.label).collect()
    }

    #[test]
    fn at_most_two_jobs_of_a_host_run_at_once_and_jobs_of_others_overtake_the_rest() {
        let now = Instant::now();
        let mut lanes = Lanes::new(2);
        for url in ["http://a/1", "http://a/2", "http://a/3", "http://b/1", "file.jpg"] {
            lanes.push(job(url));
        }
        assert_eq!(
            take_all(&mut lanes, now),
            ["http://a/1", "http://b/1", "file.jpg", "http://a/2"]
        );
        assert_eq!(lanes.rows, 1);
        lanes.job_ended("a:80");
        assert_eq!(take_all(&mut lanes, now), ["http://a/3"]);
        // The lanes of the four jobs that still run. The name is empty for the job without a host.
        for name in ["a:80", "a:80", "b:80", ""] {
            lanes.job_ended(name);
        }
        assert!(lanes.is_empty() && lanes.lanes.is_empty() && lanes.bytes == 0);
    }

    #[test]
    fn a_paused_host_delays_no_other_and_resumes_with_the_job_that_has_run_before() {
        let now = Instant::now();
        let mut lanes = Lanes::new(1);
        lanes.push(job("http://a/1"));
        let taken = lanes.take(now).unwrap();
        lanes.push(job("http://a/2"));
        lanes.push(job("http://b/1"));
        lanes.pause("a:80", now + Duration::from_secs(5), any_failure());
        lanes.push_again(taken);
        lanes.job_ended("a:80");
        assert_eq!(take_all(&mut lanes, now), ["http://b/1"]);
        assert_eq!(lanes.next_end_of_pause(), Some(now + Duration::from_secs(5)));
        assert_eq!(take_all(&mut lanes, now + Duration::from_secs(5)), ["http://a/1"]);
        assert_eq!(lanes.next_end_of_pause(), None);
    }

    #[test]
    fn pictures_of_a_host_that_keeps_failing_are_not_tried_again_until_the_host_answers() {
        let mut lanes = Lanes::new(1);
        for _ in 1..MAX_CONSECUTIVE_FAILURES {
            assert!(lanes.host_failed("a:80"));
        }
        assert!(!lanes.host_failed("a:80") && !lanes.host_failed("a:80"));
        assert!(lanes.host_failed("b:80"), "the failures of another host should not count");
        lanes.host_answered("a:80");
        assert!(lanes.host_failed("a:80"));
    }

    #[test]
    fn failures_of_a_host_are_still_counted_after_its_lane_is_removed() {
        let now = Instant::now();
        let mut lanes = Lanes::new(1);
        let mut fail_next_picture = || {
            lanes.push(job("http://a/1"));
            lanes.take(now).unwrap();
            let may_try_again = lanes.host_failed("a:80");
            lanes.job_ended("a:80");
            assert!(lanes.lanes.is_empty(), "the lane should be removed");
            may_try_again
        };
        for _ in 1..MAX_CONSECUTIVE_FAILURES {
            assert!(fail_next_picture());
        }
        assert!(!fail_next_picture());
    }

    #[test]
    fn the_failures_of_a_limited_number_of_hosts_are_counted() {
        let mut lanes = Lanes::new(1);
        for n in 0..MAX_FAILED_HOSTS {
            lanes.host_failed(&n.to_string());
        }
        assert_eq!(lanes.failures.len(), MAX_FAILED_HOSTS);
        for n in 0..MAX_FAILED_HOSTS {
            lanes.host_failed(&format!("{n}.example.com"));
        }
        assert!(lanes.failures.len() <= MAX_FAILED_HOSTS, "{}", lanes.failures.len());
    }

    #[test]
    fn only_jobs_of_a_host_that_is_paused_for_too_long_are_taken() {
        let now = Instant::now();
        let mut lanes = Lanes::new(1);
        for url in ["http://a/1", "http://a/2", "http://b/1"] {
            lanes.push(job(url));
        }
        lanes.pause("a:80", now + Duration::from_secs(3600), any_failure());
        // The job of this host stays: its pause is short enough.
        lanes.pause("b:80", now + Duration::from_secs(5), any_failure());
        let too_long = Duration::from_secs(300);
        assert!(lanes.take_paused_too_long(now, too_long).is_some());
        assert!(lanes.take_paused_too_long(now, too_long).is_some());
        assert!(lanes.take_paused_too_long(now, too_long).is_none());
        assert_eq!(lanes.rows, 1);
    }
}
