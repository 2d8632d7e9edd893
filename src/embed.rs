//! From a picture to its embedding, paid once: what was asked before is remembered, and what is
//! being asked is shared.
//!
//! The path: `cache`, then `single_flight` (one call for all who want the same), and in the call
//! itself `ask` (by the choice of `plan`, so many pictures at once). A call runs in a task of its
//! own: a client that leaves neither fails the others nor wastes it.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::{
    decoder::Decoder,
    fair_queue::FairQueue,
    image::Picture,
    nvidia,
    sha256::Sha256,
    shares::{ClientNetwork, Share},
    spool::Staging,
    telemetry::Metrics,
};
use cache::{Cache, CacheKey};
use circuit_breaker::CircuitBreaker;
use single_flight::{Leader, Role, SingleFlight};

mod ask;
mod cache;
mod circuit_breaker;
mod embedding;
mod error;
mod plan;
mod settings;
mod single_flight;

pub use embedding::{Embedding, Prepared, Provenance};
pub use error::Error;
pub use settings::{ASSET_MEMORY, AskSettings, LargeImages, OUTAGE_MEMORY, Settings};

/// How much longer than its deadline a request waits for its call: the call ends by the same
/// deadline, and says better why.
const GRACE: Duration = Duration::from_millis(50);

/// How long the cache's disk may take: a call is better than a disk that hangs.
const LOOK_UP_TIME: Duration = Duration::from_secs(1);

/// Who computes the embeddings: those of one source are never given out as another's.
#[derive(Debug, Clone)]
pub struct Source {
    /// The model, as answers say it.
    pub model: &'static str,
    /// Where it is asked.
    pub address: String,
}

/// A picture whose embedding is wanted.
#[derive(Debug, Clone)]
pub struct Job {
    /// The picture.
    pub picture: Picture,
    /// SHA-256 of its bytes.
    pub sha256: Sha256,
    /// Who wants it.
    pub client: ClientNetwork,
    /// Whether an older answer will do.
    pub freshness: Freshness,
    /// When the answer must be there.
    pub deadline: Instant,
    /// What the picture occupies, until its request and its call have both ended.
    pub held: Arc<Held>,
}

/// What a picture at work occupies.
#[derive(Debug)]
pub struct Held {
    /// Its turn among the pictures at work.
    pub turn: Share,
    /// The memory for its bytes.
    pub memory: Share,
}

/// Whether an older answer will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It will.
    Any,
    /// NVIDIA is asked anew, for this request alone.
    Anew,
}

/// How a call ended, for everybody who waits for it.
type Outcome = Result<Embedding, Arc<Error>>;

/// Turns pictures into embeddings. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Cache,
    calls: SingleFlight<CacheKey, Outcome>,
    /// For the permits to ask NVIDIA.
    queue: FairQueue,
    decoder: Decoder,
    /// Where re-encoded pictures are that do not fit inline.
    staging: Staging,
    /// Open while uploads do not work.
    uploads: CircuitBreaker,
    nvidia: nvidia::Client,
    settings: AskSettings,
    background: TaskTracker,
    metrics: Arc<Metrics>,
}

impl Embedder {
    /// An embedder on top of a client; calls run on `background`.
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
            queue: FairQueue::new(settings.ask.max_concurrency, 0, 0),
            decoder,
            staging,
            uploads: CircuitBreaker::default(),
            nvidia,
            settings: settings.ask.clone(),
            background,
            metrics,
        }))
    }

    /// The largest picture that goes inline, in bytes.
    pub fn largest_inline(&self) -> usize {
        self.0.settings.largest_inline()
    }

    /// The memory that one picture takes on its way, in bytes.
    pub fn inline_memory(&self) -> u64 {
        self.0.settings.inline_memory()
    }

    /// How long a client's picture that comes now is likely to wait for a call.
    pub fn expected_wait(&self, client: ClientNetwork) -> Duration {
        self.0.queue.expected_wait(client)
    }

    /// How many pictures wait for a call.
    pub fn waiting(&self) -> usize {
        self.0.queue.waiting()
    }

    /// What NVIDIA last thought of the key.
    pub fn key_state(&self) -> nvidia::KeyState {
        self.0.nvidia.key_state()
    }

    /// The embedding of a picture, before its deadline.
    ///
    /// # Errors
    /// [`Error`]; shared by all who waited for the same call.
    pub async fn embed(&self, job: Job) -> Result<Embedding, Arc<Error>> {
        let (key, deadline) = (self.0.cache.key(job.sha256), job.deadline);
        // Below a quarter of its time, a request does not begin a call of its own any more.
        let last_call = deadline - deadline.saturating_duration_since(Instant::now()) / 4;
        loop {
            if let Some(found) = self.remembered(&job, &key) {
                return Ok(found);
            }
            let role = match job.freshness {
                Freshness::Any => self.0.calls.join_or_lead(key),
                Freshness::Anew => self.0.calls.lead_alone(),
            };
            let (completion, leads) = match role {
                Role::Joins(completion) => (completion, false),
                Role::Leads(completion, leader) => {
                    self.spawn_call(job.clone(), key, leader);
                    (completion, true)
                }
            };
            let outcome = match timeout_at(deadline + GRACE, completion).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(Arc::new(Error::CallDied)),
                Err(_) => Err(Arc::new(Error::Busy("a call to NVIDIA"))),
            };
            match outcome {
                // That of another's call, not of ours.
                Err(error) if !leads && error.is_of_the_call() && Instant::now() < last_call => {}
                Err(error) => return Err(error),
                Ok(embedding) => return Ok(self.counted(embedding, leads, job.freshness)),
            }
        }
    }

    fn remembered(&self, job: &Job, key: &CacheKey) -> Option<Embedding> {
        match job.freshness {
            Freshness::Any => {
                let found = self.0.cache.in_memory(key)?;
                Some(self.counted(found, true, job.freshness))
            }
            Freshness::Anew => None,
        }
    }

    fn counted(&self, embedding: Embedding, leads: bool, freshness: Freshness) -> Embedding {
        let embedding = match embedding.provenance {
            Provenance::Asked if !leads => {
                Embedding { provenance: Provenance::Shared, tries: 0, ..embedding }
            }
            _ => embedding,
        };
        let outcome = match freshness {
            Freshness::Any => embedding.provenance.name(),
            Freshness::Anew => "bypass",
        };
        self.0.metrics.cache_lookups.with([outcome]).inc();
        embedding
    }

    /// Makes the call in a task of its own, which owns all that it needs.
    fn spawn_call(&self, job: Job, key: CacheKey, leader: Leader<CacheKey, Outcome>) {
        let inner = Arc::clone(&self.0);
        let call = async move {
            let outcome = inner.look_up_or_ask(&job, &key).await;
            drop(job);
            let news = outcome.clone().ok().filter(|found| found.provenance == Provenance::Asked);
            if let Some(news) = &news {
                inner.cache.keep_in_memory(key, news);
            }
            if let Err(error) = &outcome {
                if leader.is_alone() {
                    tracing::info!(%error, "a call failed that nobody waited for any more");
                }
                return leader.fail(outcome);
            }
            // Nobody waits for the disk; but until it is written there, this call is the answer.
            let _entry = leader.complete(outcome);
            if let Some(news) = news {
                inner.cache.keep_on_disk(key, &news).await;
            }
        };
        self.0.background.spawn(call.in_current_span());
    }
}

impl Inner {
    async fn look_up_or_ask(&self, job: &Job, key: &CacheKey) -> Outcome {
        // Again: between the first look and the start of this call another one may have ended.
        if job.freshness == Freshness::Any
            && let Ok(Some(found)) = timeout(LOOK_UP_TIME, self.cache.look_up(key)).await
        {
            return Ok(found);
        }
        self.ask(&job.picture, job.client, job.deadline).await.map_err(Arc::new)
    }
}

#[cfg(test)]
mod tests;
