//! Turns a picture into its embedding and pays NVIDIA for each picture only once: known embeddings
//! come from a cache, and equal pictures that arrive at the same time share one call.
//!
//! A request first looks in `cache`. If the embedding is not cached, `single_flight` lets the
//! request join a running call for the same picture, or lead a new call (`lead`). If replicas share a
//! bucket and a Valkey, `lease` decides which of them calls. The call (`call`) prepares the picture as
//! `plan` chooses, and sends it. A queue limits how many calls run at once.
//!
//! Each call runs in a task of its own. If a client disconnects, its call still runs to completion:
//! other requests may have joined the call, and the embedding is cached.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::{
    bucket::Bucket,
    decoder::Decoder,
    fair_queue::FairQueue,
    image::Picture,
    nvidia::{self, Reservation},
    sha256::Sha256,
    shares::{ClientNetwork, SharePermit},
    spool::Staging,
    telemetry::Metrics,
    valkey::Valkey,
};
use cache::{Cache, CacheKey};
use circuit_breaker::CircuitBreaker;
use single_flight::{Role, SingleFlight};

mod cache;
mod call;
mod circuit_breaker;
mod embedding;
mod error;
mod lead;
mod lease;
mod plan;
mod settings;
mod single_flight;

pub use embedding::{Embedding, Prepared, Provenance};
pub use error::Error;
pub use settings::{
    CallSettings, FAILED_UPLOAD_PAUSE, LargeImages, REFUSED_UPLOAD_PAUSE, Settings,
};

/// How long after the deadline a request still waits for the outcome of its call. A call that the
/// request leads has the same deadline. The call's error says more precisely what took too long.
const GRACE: Duration = Duration::from_millis(50);

/// How long the look-up on disk may take. After that, the embedding counts as missing on disk.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// The model and endpoint that compute the embeddings. The cache never returns the embedding of
/// another source.
#[derive(Debug, Clone)]
pub struct Source {
    /// The model's name, as answers contain it.
    pub model: &'static str,
    /// The URL of the endpoint.
    pub endpoint: String,
}

/// A picture to be embedded.
#[derive(Debug, Clone)]
pub struct Job {
    /// The picture.
    pub picture: Picture,
    /// SHA-256 of the picture's bytes.
    pub sha256: Sha256,
    /// The client that sent the picture.
    pub client: ClientNetwork,
    /// Whether a cached embedding may be returned.
    pub cache_mode: CacheMode,
    /// When the request began to look for the embedding in the bucket, if it did.
    pub looked_in_bucket_at: Option<Instant>,
    /// When the embedding must be ready.
    pub deadline: Instant,
    /// The picture's permits. They are released when both the request and the call have ended.
    pub permits: Arc<PicturePermits>,
}

/// The permits that a picture holds while it is processed.
#[derive(Debug)]
pub struct PicturePermits {
    /// Counts the picture towards the limit of pictures that are processed at once.
    pub at_work: SharePermit,
    /// Counts the picture's memory towards the limit of memory for bodies.
    pub memory: SharePermit,
}

/// Whether a cached embedding may be returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// The request may get a cached embedding, or the embedding of a running call.
    Use,
    /// The request always makes a call of its own.
    Bypass,
}

/// How a call ended; all requests that wait for the call get a clone.
type Outcome = Result<Embedding, Arc<Error>>;

/// Turns pictures into embeddings. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Cache,
    /// The running calls, which other requests can join.
    calls: SingleFlight<CacheKey, Outcome>,
    /// Limits how many calls to NVIDIA run at once, and shares them fairly among clients.
    queue: FairQueue,
    decoder: Decoder,
    /// The folder for re-encoded pictures that are too large to be sent inline.
    staging: Staging,
    /// Open while uploads to NVIDIA do not work.
    upload_breaker: CircuitBreaker,
    nvidia: nvidia::Client,
    /// Decides which replica makes a call. `None` unless there are both a Valkey and a bucket: replicas
    /// find each other's vectors only in the bucket.
    valkey: Option<Valkey>,
    settings: CallSettings,
    /// Tracks the tasks that make the calls.
    background: TaskTracker,
    metrics: Arc<Metrics>,
}

/// What an [`Embedder`] works with.
#[derive(Debug)]
pub struct Parts {
    /// Calls NVIDIA.
    pub nvidia: nvidia::Client,
    /// Decodes pictures that NVIDIA does not accept as they are.
    pub decoder: Decoder,
    /// The folder for re-encoded pictures that are too large to be sent inline.
    pub staging: Staging,
    /// The bucket whose vectors all replicas share, if there is one.
    pub bucket: Option<Bucket>,
    /// The Valkey that replicas share, if there is one.
    pub valkey: Option<Valkey>,
    /// Tracks the tasks that make the calls.
    pub background: TaskTracker,
    /// The service's metrics.
    pub metrics: Arc<Metrics>,
}

impl Embedder {
    /// Creates an embedder.
    pub fn new(parts: Parts, settings: &Settings, source: &Source) -> Self {
        let Parts { nvidia, decoder, staging, bucket, valkey, background, metrics } = parts;
        let valkey = valkey.filter(|_| bucket.is_some());
        Self(Arc::new(Inner {
            cache: Cache::new(settings, source, bucket),
            calls: SingleFlight::default(),
            // The queue manages no memory (0, 0): its jobs need only permits.
            queue: FairQueue::new(settings.call.max_concurrency, 0, 0),
            decoder,
            staging,
            upload_breaker: CircuitBreaker::default(),
            nvidia,
            valkey,
            settings: settings.call.clone(),
            background,
            metrics,
        }))
    }

    /// The largest picture that is sent inline, in bytes.
    pub fn largest_inline(&self) -> usize {
        self.0.settings.largest_inline()
    }

    /// The most memory that one picture needs until its inline request has been sent, in bytes.
    pub fn inline_memory(&self) -> u64 {
        self.0.settings.inline_memory()
    }

    /// How long a new picture of this client is expected to wait for its call.
    pub fn expected_wait(&self, client: ClientNetwork) -> Duration {
        self.0.queue.expected_wait(client)
    }

    /// The most calls that one batch makes at once: three quarters of the calls that may run at
    /// once. The rest is for other pictures of the same client. (Among clients, the queue shares the calls.)
    pub fn max_concurrent_calls_per_batch(&self) -> usize {
        self.0.settings.max_concurrent_calls_per_batch()
    }

    /// Looks in memory, on disk and in the bucket, unless the request bypasses the cache. Takes at most
    /// two seconds: one for a hanging disk, and one for the bucket.
    pub async fn look_up(&self, sha256: Sha256, cache_mode: CacheMode) -> Option<Embedding> {
        let key = self.0.cache.key(sha256);
        let found = match self.0.look_up_locally(&key, cache_mode).await {
            Some(found) => found,
            None if cache_mode == CacheMode::Bypass => return None,
            None => self.0.cache.look_up_in_bucket(&key).await?,
        };
        Some(self.count_and_return(found, cache_mode))
    }

    /// Reserves one call for each of a client's `count` pictures. Reserves either all calls or
    /// none.
    ///
    /// # Errors
    /// [`Error`] if the limit on calls per minute or the queue would delay the last call past the
    /// deadline.
    pub fn reserve(
        &self,
        client: ClientNetwork,
        count: usize,
        deadline: Instant,
    ) -> Result<Reservation, Error> {
        self.0.reserve(client, count, deadline)
    }

    /// The number of calls, at most `at_most`, that the limit on calls per minute allows one client
    /// within `time` if no other client makes calls.
    pub fn largest_reservation(&self, at_most: usize, time: Duration) -> usize {
        self.0.nvidia.largest_reservation(at_most, time)
    }

    /// The most calls per minute that this replica may make now: see [`nvidia::Client::call_limit`].
    pub fn call_limit(&self) -> Option<usize> {
        self.0.nvidia.call_limit()
    }

    /// The number of pictures that wait for a call.
    pub fn waiting(&self) -> usize {
        self.0.queue.waiting() + self.0.nvidia.waiting()
    }

    /// The state of the API key.
    pub fn key_state(&self) -> nvidia::KeyState {
        self.0.nvidia.key_state()
    }

    /// Returns the embedding of a picture before the job's deadline. Looks in memory first. The task that
    /// leads a new call also looks on disk, and in the bucket if there is a Valkey. If that task must call
    /// NVIDIA, it uses `reservation`. If `reservation` is `None`, it reserves the call first.
    ///
    /// # Errors
    /// [`Error`], shared by all requests that waited for the same call.
    pub async fn embed(
        &self,
        job: Job,
        mut reservation: Option<Reservation>,
    ) -> Result<Embedding, Arc<Error>> {
        let (key, deadline) = (self.0.cache.key(job.sha256), job.deadline);
        // If the call that a request joined fails in the last quarter of the request's time, the
        // request does not start another call.
        let latest_start = deadline - deadline.saturating_duration_since(Instant::now()) / 4;
        loop {
            if let Some(found) = self.look_up_in_memory(&job, &key) {
                return Ok(found);
            }
            let role = match job.cache_mode {
                CacheMode::Use => self.0.calls.join_or_lead(key),
                CacheMode::Bypass => self.0.calls.lead_alone(),
            };
            let (completion, is_leader) = match role {
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
            let error = match outcome {
                Ok(embedding) => {
                    let embedding =
                        if is_leader { embedding } else { embedding.without_own_call() };
                    return Ok(self.count_and_return(embedding, job.cache_mode));
                }
                Err(error) => error,
            };
            let may_try_again = !is_leader && error.another_call_may_succeed();
            if !may_try_again || Instant::now() >= latest_start {
                return Err(error);
            }
        }
    }

    fn look_up_in_memory(&self, job: &Job, key: &CacheKey) -> Option<Embedding> {
        match job.cache_mode {
            CacheMode::Use => {
                let found = self.0.cache.get_from_memory(key)?;
                Some(self.count_and_return(found, job.cache_mode))
            }
            CacheMode::Bypass => None,
        }
    }

    /// Counts an embedding in the metrics, by its provenance or as `bypass`. Returns it unchanged.
    fn count_and_return(&self, embedding: Embedding, cache_mode: CacheMode) -> Embedding {
        let outcome = match cache_mode {
            CacheMode::Use => embedding.provenance.name(),
            CacheMode::Bypass => "bypass",
        };
        self.0.metrics.returned_embeddings.with([outcome]).inc();
        embedding
    }
}

impl Inner {
    /// Looks in memory and on disk, if the cache may be used.
    async fn look_up_locally(&self, key: &CacheKey, cache_mode: CacheMode) -> Option<Embedding> {
        match cache_mode {
            CacheMode::Use => {
                timeout(LOOKUP_TIMEOUT, self.cache.look_up_locally(key)).await.ok()?
            }
            CacheMode::Bypass => None,
        }
    }
}

#[cfg(test)]
mod tests;
