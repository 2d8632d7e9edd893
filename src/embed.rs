//! From a picture to its embedding, paid once: what was asked before is remembered, and what is
//! being asked is shared.
//!
//! The way: `cache`, then `flights` (one call for all who want the same), and in the call itself `ask`
//! (what NVIDIA is given, so many pictures at once). A call runs in a task of its own: a client that
//! leaves neither fails the others nor wastes it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::{
    decoder::{self, Decoder},
    image::Picture,
    nvidia::{self, Vector},
    shares::{ClientNetwork, Share},
    spool::Staging,
    telemetry::Metrics,
};
use ask::Asker;
use cache::{Cache, Key};
use flights::{Boarding, Flights, Leader};

mod ask;
mod cache;
mod flights;

pub use ask::{ASSET_MEMORY, LargeImages, OUTAGE_MEMORY, Settings as AskSettings};

/// How much longer than its deadline a request waits for its call: the call ends by the same
/// deadline, and says better why.
const GRACE: Duration = Duration::from_millis(50);

/// How long the cache's disk may take: a call is better than a disk that hangs.
const LOOK_UP_TIME: Duration = Duration::from_secs(1);

/// How a picture becomes an embedding.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What NVIDIA is given, and how.
    pub ask: AskSettings,
    /// Memory for vectors, in bytes; 0 is none.
    pub cache_memory: u64,
    /// Disk for vectors, in bytes; 0 is none.
    pub cache_disk: u64,
    /// The folder of the vectors on disk.
    pub cache_folder: PathBuf,
}

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
    pub sha256: [u8; 32],
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

/// What NVIDIA was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// The picture's own bytes.
    Original,
    /// The picture as a JPEG of the same size.
    Jpeg,
    /// The picture as a smaller JPEG.
    Shrunk,
}

impl Prepared {
    const ALL: [Self; 3] = [Self::Original, Self::Jpeg, Self::Shrunk];

    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Jpeg => "jpeg",
            Self::Shrunk => "shrunk",
        }
    }
}

/// Where an embedding comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was asked for now.
    Asked,
    /// Another request asked for it at the same time.
    Shared,
    /// The cache's memory.
    Memory,
    /// The cache's disk.
    Disk,
}

impl Origin {
    /// The name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asked => "miss",
            Self::Shared => "shared",
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

/// A picture's embedding. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// The numbers.
    pub vector: Vector,
    /// What NVIDIA was given.
    pub prepared: Prepared,
    /// Where it comes from.
    pub origin: Origin,
    /// Inference calls that it took.
    pub tries: u32,
}

/// Why there is no embedding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// NVIDIA does not give one.
    #[error(transparent)]
    Nvidia(#[from] nvidia::Error),
    /// The deadline passed before the picture's turn came.
    #[error("the deadline passed while waiting for {0}")]
    Busy(&'static str),
    /// Those who wait for a call already would take all the time that there is.
    #[error("the line before NVIDIA is too long")]
    LineTooLong,
    /// The smallest JPEG of the picture does not fit inline.
    #[error("the picture cannot be made small enough")]
    StillTooLarge,
    /// The picture was not decoded.
    #[error(transparent)]
    Decoder(#[from] decoder::Error),
    /// The task of the call panicked.
    #[error("the call's task died")]
    CallDied,
}

impl Error {
    /// Whether only the time of whoever asked was up.
    fn is_about_time(&self) -> bool {
        match self {
            Self::Busy(_)
            | Self::LineTooLong
            | Self::Decoder(decoder::Error::Busy | decoder::Error::Timeout) => true,
            Self::Nvidia(error) => error.lacks_time,
            _ => false,
        }
    }

    /// Whether the picture itself is to blame: only decoding it could tell.
    pub fn is_about_the_picture(&self) -> bool {
        matches!(self, Self::Decoder(decoder::Error::Image(error)) if error.is_about_the_picture())
    }

    /// How long NVIDIA asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Nvidia(error) => error.retry_after,
            _ => None,
        }
    }

    /// Inference calls that were made in vain.
    pub fn tries(&self) -> Option<u32> {
        match self {
            Self::Nvidia(error) => Some(error.tries),
            _ => None,
        }
    }
}

/// How a call ended, for everybody who waits for it.
type Outcome = Result<Embedding, Arc<Error>>;

/// Turns pictures into embeddings. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asker: Asker,
    cache: Cache,
    flights: Flights<Key, Outcome>,
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
            asker: Asker::new(nvidia, decoder, staging, settings.ask.clone()),
            cache: Cache::new(settings, source),
            flights: Flights::default(),
            background,
            metrics,
        }))
    }

    /// The largest picture that goes inline, in bytes.
    pub fn largest_inline(&self) -> usize {
        self.0.asker.largest_inline()
    }

    /// The memory that one picture takes on its way, in bytes.
    pub fn inline_memory(&self) -> u64 {
        self.0.asker.inline_memory()
    }

    /// How long a client's picture that comes now is likely to wait for a call.
    pub fn expected_wait(&self, client: ClientNetwork) -> Duration {
        self.0.asker.expected_wait(client)
    }

    /// How many pictures wait for a call.
    pub fn waiting(&self) -> usize {
        self.0.asker.waiting()
    }

    /// What NVIDIA last thought of the key.
    pub fn key_state(&self) -> nvidia::KeyState {
        self.0.asker.key_state()
    }

    /// The embedding of a picture, before its deadline.
    ///
    /// # Errors
    /// [`Error`]; shared by all who waited for the same call.
    pub async fn embed(&self, job: Job) -> Result<Embedding, Arc<Error>> {
        let (key, deadline) = (self.0.cache.key(&job.sha256), job.deadline);
        // Below a quarter of its time, a request does not begin a call of its own any more.
        let last_call = deadline - deadline.saturating_duration_since(Instant::now()) / 4;
        loop {
            if let Some(found) = self.remembered(&job, &key) {
                return Ok(found);
            }
            let (flight, leads) = match self.board(&job, key) {
                Boarding::Joined(flight) => (flight, false),
                Boarding::Leads(flight, leader) => {
                    self.launch(job.clone(), key, leader);
                    (flight, true)
                }
            };
            let outcome = match timeout_at(deadline + GRACE, flight).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(Arc::new(Error::CallDied)),
                Err(_) => Err(Arc::new(Error::Busy("a call to NVIDIA"))),
            };
            match outcome {
                // Another's time was up, not ours.
                Err(error) if !leads && error.is_about_time() && Instant::now() < last_call => {}
                Err(error) => return Err(error),
                Ok(embedding) => return Ok(self.counted(embedding, leads, job.freshness)),
            }
        }
    }

    fn remembered(&self, job: &Job, key: &Key) -> Option<Embedding> {
        match job.freshness {
            Freshness::Any => {
                let found = self.0.cache.in_memory(key)?;
                Some(self.counted(found, true, job.freshness))
            }
            Freshness::Anew => None,
        }
    }

    fn board(&self, job: &Job, key: Key) -> Boarding<Key, Outcome> {
        match job.freshness {
            Freshness::Any => self.0.flights.board(key),
            Freshness::Anew => self.0.flights.alone(),
        }
    }

    fn counted(&self, embedding: Embedding, leads: bool, freshness: Freshness) -> Embedding {
        let embedding = match embedding.origin {
            Origin::Asked if !leads => Embedding { origin: Origin::Shared, tries: 0, ..embedding },
            _ => embedding,
        };
        let outcome = match freshness {
            Freshness::Any => embedding.origin.name(),
            Freshness::Anew => "bypass",
        };
        self.0.metrics.cache_lookups.with([outcome]).inc();
        embedding
    }

    /// Makes the call in a task of its own, which owns all that it needs.
    fn launch(&self, job: Job, key: Key, leader: Leader<Key, Outcome>) {
        let embedder = self.clone();
        let call = async move {
            let Inner { cache, .. } = &*embedder.0;
            let outcome = embedder.look_up_or_ask(&job, &key).await;
            drop(job);
            let news = outcome.clone().ok().filter(|found| found.origin == Origin::Asked);
            if let Some(news) = &news {
                cache.keep_in_memory(key, news);
            }
            if let Err(error) = &outcome {
                if leader.is_alone() {
                    tracing::info!(%error, "a call failed that nobody waited for any more");
                }
                return leader.fail(outcome);
            }
            // Nobody waits for the disk; but until it is written there, this call is the answer.
            let _seat = leader.land(outcome);
            if let Some(news) = news {
                cache.keep_on_disk(key, &news).await;
            }
        };
        self.0.background.spawn(call.in_current_span());
    }

    async fn look_up_or_ask(&self, job: &Job, key: &Key) -> Outcome {
        // Again: between the first look and the start of this call another one may have ended.
        if job.freshness == Freshness::Any
            && let Ok(Some(found)) = timeout(LOOK_UP_TIME, self.0.cache.look_up(key)).await
        {
            return Ok(found);
        }
        self.0.asker.ask(&job.picture, job.client, job.deadline).await.map_err(Arc::new)
    }
}
