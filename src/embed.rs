//! Turns a picture into its embedding and pays NVIDIA for each picture only once: known embeddings
//! come from a cache, and equal pictures that arrive at the same time share one call.
//!
//! A request first looks in `cache`. If nothing is there, `single_flight` lets it join a running
//! call for the same picture or lead a new one. The call itself (`call`) prepares the picture as
//! `plan` chooses and sends it; a queue bounds how many calls run at once. Each call runs in a task
//! of its own, so that a client that disconnects neither fails the other waiters nor wastes what
//! the call costs.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::{
    decoder::Decoder,
    fair_queue::FairQueue,
    image::Picture,
    nvidia::{self, Reservation},
    sha256::Sha256,
    shares::{ClientNetwork, SharePermit},
    spool::Staging,
    telemetry::Metrics,
};
use cache::{Cache, CacheKey};
use circuit_breaker::CircuitBreaker;
use single_flight::{LeadGuard, Role, SingleFlight};

mod cache;
mod call;
mod circuit_breaker;
mod embedding;
mod error;
mod plan;
mod settings;
mod single_flight;

pub use embedding::{Embedding, Prepared, Provenance};
pub use error::Error;
pub use settings::{ASSET_MEMORY, CallSettings, LargeImages, OUTAGE_MEMORY, Settings};

/// How long a request waits for its call beyond the deadline. The call has the same deadline, and
/// its error says more precisely what took too long.
const GRACE: Duration = Duration::from_millis(50);

/// How long the look-up on disk may take. If the disk hangs, it is better to call NVIDIA.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// What computes the embeddings. The cache never returns an embedding of one source for another.
#[derive(Debug, Clone)]
pub struct Source {
    /// The model's name in answers.
    pub model: &'static str,
    /// The endpoint that computes the embeddings.
    pub endpoint: String,
}

/// A picture to be embedded.
#[derive(Debug, Clone)]
pub struct Job {
    /// The picture.
    pub picture: Picture,
    /// SHA-256 of its bytes.
    pub sha256: Sha256,
    /// The client that sent the picture.
    pub client: ClientNetwork,
    /// Whether a cached embedding may be returned.
    pub cache_mode: CacheMode,
    /// When the answer must be ready.
    pub deadline: Instant,
    /// What the picture occupies until both its request and its call have ended.
    pub permits: Arc<PicturePermits>,
}

/// The permits that a picture holds while it is at work.
#[derive(Debug)]
pub struct PicturePermits {
    /// Its permit to be at work.
    pub at_work: SharePermit,
    /// The memory for its bytes.
    pub memory: SharePermit,
}

/// Whether a cached embedding may be returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// A cached or shared embedding is fine.
    Use,
    /// The request makes a call of its own.
    Bypass,
}

/// How a call ended, shared by all who wait for it.
type Outcome = Result<Embedding, Arc<Error>>;

/// Turns pictures into embeddings. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Cache,
    calls: SingleFlight<CacheKey, Outcome>,
    /// Bounds the calls to NVIDIA that run at once, and shares them among clients.
    queue: FairQueue,
    decoder: Decoder,
    /// Holds re-encoded pictures that are too large to be sent inline.
    staging: Staging,
    /// Open while uploads do not work.
    upload_breaker: CircuitBreaker,
    nvidia: nvidia::Client,
    settings: CallSettings,
    background: TaskTracker,
    metrics: Arc<Metrics>,
}

impl Embedder {
    /// Creates an embedder that calls NVIDIA through `nvidia`, in tasks on `background`.
    pub fn new(
        nvidia: nvidia::Client,
        decoder: Decoder,
        staging: Staging,
        settings: &Settings,
        source: &Source,
        background: TaskTracker,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            cache: Cache::new(settings, source),
            calls: SingleFlight::default(),
            queue: FairQueue::new(settings.call.max_concurrency, 0, 0),
            decoder,
            staging,
            upload_breaker: CircuitBreaker::default(),
            nvidia,
            settings: settings.call.clone(),
            background,
            metrics,
        }))
    }

    /// The largest picture that is sent inline, in bytes.
    pub fn largest_inline(&self) -> usize {
        self.0.settings.largest_inline()
    }

    /// The memory that one picture needs on its way, in bytes.
    pub fn inline_memory(&self) -> u64 {
        self.0.settings.inline_memory()
    }

    /// How long a picture that this client sends now will probably wait for its call.
    pub fn expected_wait(&self, client: ClientNetwork) -> Duration {
        self.0.queue.expected_wait(client, 1)
    }

    /// The most calls that one batch makes at once: three quarters of all, so that other pictures
    /// of the same client find a permit.
    pub fn calls_of_a_batch(&self) -> usize {
        (self.0.settings.max_concurrency * 3 / 4).max(1)
    }

    /// Returns a cached embedding, if there is one and the cache may be used.
    pub async fn look_up(&self, sha256: Sha256, cache_mode: CacheMode) -> Option<Embedding> {
        let found = self.0.look_up(&self.0.cache.key(sha256), cache_mode).await?;
        Some(self.count_lookup(found, true, cache_mode))
    }

    /// Reserves calls for a client's pictures, all or none.
    ///
    /// # Errors
    /// [`Error`] if the pace or the queue leaves no time for them before the deadline.
    pub fn reserve(
        &self,
        client: ClientNetwork,
        count: usize,
        deadline: Instant,
    ) -> Result<Reservation, Error> {
        self.0.reserve(client, count, deadline)
    }

    /// The most calls, up to `at_most`, that the pace could ever allow one client within `time`.
    pub fn largest_reservation(&self, at_most: usize, time: Duration) -> usize {
        self.0.nvidia.largest_reservation(at_most, time)
    }

    /// How many pictures wait for a call.
    pub fn waiting(&self) -> usize {
        self.0.queue.waiting()
    }

    /// The state of the key according to NVIDIA's last answer.
    pub fn key_state(&self) -> nvidia::KeyState {
        self.0.nvidia.key_state()
    }

    /// Returns the embedding of a picture before its deadline. A call that it makes uses the
    /// reservation, or reserves one itself.
    ///
    /// # Errors
    /// [`Error`]; all who waited for the same call share it.
    pub async fn embed(
        &self,
        job: Job,
        mut reservation: Option<Reservation>,
    ) -> Result<Embedding, Arc<Error>> {
        let (key, deadline) = (self.0.cache.key(job.sha256), job.deadline);
        // With less than a quarter of its time left, a request does not start a call of its own.
        let last_call = deadline - deadline.saturating_duration_since(Instant::now()) / 4;
        loop {
            if let Some(found) = self.look_up_in_memory(&job, &key) {
                return Ok(found);
            }
            let role = match job.cache_mode {
                CacheMode::Use => self.0.calls.join_or_lead(key),
                CacheMode::Bypass => self.0.calls.lead_alone(),
            };
            let (completion, leads) = match role {
                Role::Join(completion) => (completion, false),
                Role::Lead(completion, guard) => {
                    self.spawn_call(job.clone(), key, reservation.take(), guard);
                    (completion, true)
                }
            };
            let outcome = match timeout_at(deadline + GRACE, completion).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(Arc::new(Error::CallPanicked)),
                Err(_) => Err(Arc::new(Error::QueueTimeout("a call to NVIDIA"))),
            };
            match outcome {
                // Somebody else's call failed in a way that a call of this request may not.
                Err(error)
                    if !leads && error.another_call_may_succeed() && Instant::now() < last_call => {
                }
                Err(error) => return Err(error),
                Ok(embedding) => return Ok(self.count_lookup(embedding, leads, job.cache_mode)),
            }
        }
    }

    fn look_up_in_memory(&self, job: &Job, key: &CacheKey) -> Option<Embedding> {
        match job.cache_mode {
            CacheMode::Use => {
                let found = self.0.cache.get_from_memory(key)?;
                Some(self.count_lookup(found, true, job.cache_mode))
            }
            CacheMode::Bypass => None,
        }
    }

    fn count_lookup(&self, embedding: Embedding, leads: bool, cache_mode: CacheMode) -> Embedding {
        let embedding = if leads { embedding } else { embedding.shared() };
        let outcome = match cache_mode {
            CacheMode::Use => embedding.provenance.name(),
            CacheMode::Bypass => "bypass",
        };
        self.0.metrics.cache_lookups.with([outcome]).inc();
        embedding
    }

    /// Makes the call in a task that owns everything it needs.
    fn spawn_call(
        &self,
        job: Job,
        key: CacheKey,
        reservation: Option<Reservation>,
        guard: LeadGuard<CacheKey, Outcome>,
    ) {
        let inner = Arc::clone(&self.0);
        let call = async move {
            let outcome = inner.look_up_or_call(&job, &key, reservation).await;
            drop(job);
            let new = outcome.clone().ok().filter(|found| found.provenance == Provenance::Nvidia);
            if let Some(new) = &new {
                inner.cache.insert_in_memory(key, new);
            }
            if let Err(error) = &outcome {
                if guard.is_abandoned() {
                    tracing::info!(%error, "a call failed after all its requests had left");
                }
                return guard.fail(outcome);
            }
            // Nobody waits for the disk. But until the vector is written there, others can still
            // join this call.
            let _entry = guard.complete(outcome);
            if let Some(new) = new {
                inner.cache.write_to_disk(key, &new).await;
            }
        };
        self.0.background.spawn(call.in_current_span());
    }
}

impl Inner {
    async fn look_up(&self, key: &CacheKey, cache_mode: CacheMode) -> Option<Embedding> {
        match cache_mode {
            CacheMode::Use => timeout(LOOKUP_TIMEOUT, self.cache.look_up(key)).await.ok()?,
            CacheMode::Bypass => None,
        }
    }

    async fn look_up_or_call(
        &self,
        job: &Job,
        key: &CacheKey,
        reservation: Option<Reservation>,
    ) -> Outcome {
        // Another call may have ended since the request looked in memory.
        if let Some(found) = self.look_up(key, job.cache_mode).await {
            return Ok(found);
        }
        let reservation = match reservation {
            Some(reservation) => reservation,
            None => self.reserve(job.client, 1, job.deadline)?,
        };
        self.call(&job.picture, reservation, job.deadline).await.map_err(Arc::new)
    }
}

#[cfg(test)]
mod tests;
