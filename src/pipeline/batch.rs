//! A batch: several pictures in one request, on the same path as single ones.
//!
//! A batch waits for its first permit only, and fails if the others are not free then: two batches
//! that wait for each other's permits would never end. Its pictures run side by side, equal ones
//! share one embedding, and a quarter of the calls to NVIDIA is left to other requests.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, Shared, join_all, ready},
    stream,
};
use tokio::time::Instant;

use super::{
    Admission, Error, OverloadReason, Pipeline, Received, SaveMode, SpooledPicture, Vectorized,
};
use crate::{
    embed::{self, CacheMode, Embedding},
    nvidia::Reservation,
    sha256::Sha256,
    shares::ClientNetwork,
};

/// How many pictures of a batch are received, or looked up in the cache, side by side.
const RECEIVED_AT_ONCE: usize = 8;

/// What a client wants of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchOptions {
    /// Whether cached embeddings may be returned.
    pub cache_mode: CacheMode,
    /// Whether the pictures are saved.
    pub save_mode: SaveMode,
    /// What happens if a picture fails.
    pub on_error: OnError,
}

/// What happens if a picture of a batch fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The batch fails, and none of its pictures is saved.
    FailBatch,
    /// The batch goes on, and reports the error in the picture's place.
    ReportItem,
}

/// Why a batch failed.
#[derive(Debug)]
pub struct BatchError<E> {
    /// The position of the picture that failed; `None` if the whole batch did.
    pub index: Option<usize>,
    /// The cause.
    pub error: E,
}

impl<E> From<E> for BatchError<E> {
    fn from(error: E) -> Self {
        Self { index: None, error }
    }
}

/// What became of each picture, in the order of the request.
type Outcomes<T, E> = Vec<Result<T, E>>;

/// An embedding that was found in the cache or will be computed. Equal pictures share it.
type SharedEmbedding = Shared<BoxFuture<'static, Result<Embedding, Arc<embed::Error>>>>;

/// A received picture and its embedding.
struct Task {
    received: Received,
    embedding: SharedEmbedding,
    /// Whether an equal picture precedes it in the batch.
    is_repeated: bool,
}

impl Pipeline {
    /// Receives, saves and embeds the pictures of a batch. `sources` are their bytes, or the reason
    /// why there are none. Returns the outcomes in the same order; with [`OnError::FailBatch`] all
    /// of them are successes.
    ///
    /// # Errors
    /// With [`OnError::FailBatch`] the first error of any picture; in any case the lack of a
    /// permit, of memory or of time for the whole batch.
    pub async fn embed_batch<E, S>(
        &self,
        admission: Admission,
        sources: Outcomes<S, E>,
        options: BatchOptions,
    ) -> Result<Outcomes<Vectorized, E>, BatchError<E>>
    where
        E: From<Error> + Send,
        S: Stream<Item = Result<Bytes, E>> + Send,
    {
        let client = admission.client();
        let sources = check(sources, options.on_error)?;
        let spooled = self.spool_all(client, sources, options.on_error).await?;
        let deadline = Instant::now() + self.limits.request_timeout;
        let received = self.start_all(client, spooled, deadline, options.on_error).await?;
        let tasks = self.plan_all(client, received, deadline, options.cache_mode).await?;
        self.finish_all(tasks, options).await
    }

    async fn spool_all<E, S>(
        &self,
        client: ClientNetwork,
        sources: Outcomes<S, E>,
        on_error: OnError,
    ) -> Result<Outcomes<SpooledPicture, E>, BatchError<E>>
    where
        E: From<Error> + Send,
        S: Stream<Item = Result<Bytes, E>> + Send,
    {
        let spool = |(index, source): (usize, Result<S, E>)| async move {
            match source {
                Ok(bytes) => (index, self.spool(client, bytes).await),
                Err(error) => (index, Err(error)),
            }
        };
        let running = stream::iter(sources).enumerate().map(spool);
        collect(running.buffer_unordered(RECEIVED_AT_ONCE), on_error).await
    }

    /// Takes the permits and the memory of all pictures, and reads their headers.
    async fn start_all<E: From<Error>>(
        &self,
        client: ClientNetwork,
        spooled: Outcomes<SpooledPicture, E>,
        deadline: Instant,
        on_error: OnError,
    ) -> Result<Outcomes<Received, E>, BatchError<E>> {
        let count = spooled.iter().filter(|spooled| spooled.is_ok()).count() as u64;
        let mut at_work = self.at_work.empty(client);
        if count > 0 {
            at_work = self.wait_for_permit(client).await.map_err(E::from)?;
        }
        let rest = at_work.grow_to(count);
        rest.map_err(|_| E::from(Error::Overloaded(OverloadReason::AtWork)))?;
        let mut received = Vec::with_capacity(spooled.len());
        for spooled in spooled {
            received.push(match spooled {
                Ok(spooled) => match self.start(spooled, at_work.split(1), deadline).await {
                    Err(error @ Error::Overloaded(_)) => return Err(E::from(error).into()),
                    started => started.map_err(E::from),
                },
                Err(error) => Err(error),
            });
        }
        check(received, on_error)
    }

    /// Looks all pictures up in the cache, and reserves calls to NVIDIA for the others.
    async fn plan_all<E: From<Error>>(
        &self,
        client: ClientNetwork,
        received: Outcomes<Received, E>,
        deadline: Instant,
        cache_mode: CacheMode,
    ) -> Result<Outcomes<Task, E>, BatchError<E>> {
        let pictures = received.iter().flatten();
        let distinct: HashSet<Sha256> = pictures.map(|received| received.spooled.sha256).collect();
        let count = distinct.len();
        let look_up = |sha256| async move {
            Some((sha256, self.embedder.look_up(sha256, cache_mode).await?))
        };
        let looked_up = stream::iter(distinct).map(look_up).buffer_unordered(RECEIVED_AT_ONCE);
        let found: HashMap<_, _> = looked_up.filter_map(ready).collect().await;
        let mut reservation =
            self.reserve(client, count - found.len(), deadline).map_err(E::from)?;

        let mut embeddings = HashMap::<Sha256, SharedEmbedding>::new();
        let mut plan = |received: Received| {
            let sha256 = received.spooled.sha256;
            let (embedding, is_repeated) = match embeddings.entry(sha256) {
                Entry::Occupied(entry) => (entry.get().clone(), true),
                Entry::Vacant(entry) => {
                    let embedding = match found.get(&sha256) {
                        Some(found) => ready(Ok(found.clone())).boxed(),
                        None => {
                            let embedder = self.embedder.clone();
                            let job = received.job(cache_mode);
                            let reservation = Some(reservation.split_one());
                            async move { embedder.embed(job, reservation).await }.boxed()
                        }
                    };
                    (entry.insert(embedding.shared()).clone(), false)
                }
            };
            Task { received, embedding, is_repeated }
        };
        Ok(received.into_iter().map(|received| received.map(&mut plan)).collect())
    }

    /// Reserves calls for the pictures of a batch that are not in the cache.
    fn reserve(
        &self,
        client: ClientNetwork,
        fresh: usize,
        deadline: Instant,
    ) -> Result<Reservation, Error> {
        self.embedder.reserve(client, fresh, deadline).map_err(|error| {
            let largest = self.embedder.largest_reservation(fresh, self.limits.request_timeout);
            if largest < fresh {
                Error::BatchTooLarge { fresh, largest }
            } else {
                Error::Embed { error: Arc::new(error), saved: None }
            }
        })
    }

    /// Saves and embeds all pictures.
    async fn finish_all<E: From<Error>>(
        &self,
        tasks: Outcomes<Task, E>,
        options: BatchOptions,
    ) -> Result<Outcomes<Vectorized, E>, BatchError<E>> {
        let saved_files = SavedFiles::default();
        let finish = |(index, task): (usize, Result<Task, E>)| {
            let saved_files = &saved_files;
            async move {
                match task {
                    Ok(task) => {
                        let outcome = self.finish(task, options, saved_files).await;
                        (index, outcome.map_err(E::from))
                    }
                    Err(error) => (index, Err(error)),
                }
            }
        };
        let running = stream::iter(tasks).enumerate().map(finish);
        let running = running.buffer_unordered(self.embedder.calls_of_a_batch());
        let outcomes = collect(running, options.on_error).await;
        if outcomes.is_err() {
            let names = saved_files.take().into_iter();
            join_all(names.map(|name| self.store.remove(name))).await;
        }
        outcomes
    }

    async fn finish(
        &self,
        task: Task,
        options: BatchOptions,
        saved_files: &SavedFiles,
    ) -> Result<Vectorized, Error> {
        let Task { received, embedding, is_repeated } = task;
        let embed = async {
            let embedding = embedding.await?;
            Ok(if is_repeated { embedding.shared() } else { embedding })
        };
        let on_saved = |name: &str| saved_files.add(name);
        let done = self.save_and_embed(received, embed, options.save_mode, on_saved).await;
        match (done, options.on_error) {
            // The file is about to be removed.
            (Err(Error::Embed { error, .. }), OnError::FailBatch) => {
                Err(Error::Embed { error, saved: None })
            }
            (done, _) => done,
        }
    }
}

/// The names of the files that a batch has saved so far. If the batch fails, no client learns of
/// them, and they are removed.
#[derive(Debug, Default)]
struct SavedFiles(Mutex<Vec<String>>);

impl SavedFiles {
    fn add(&self, name: &str) {
        self.names().push(name.to_owned());
    }

    fn take(&self) -> Vec<String> {
        mem::take(&mut self.names())
    }

    fn names(&self) -> MutexGuard<'_, Vec<String>> {
        // The list stays consistent even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails if an outcome is an error and errors fail the batch.
fn check<T, E>(
    outcomes: Outcomes<T, E>,
    on_error: OnError,
) -> Result<Outcomes<T, E>, BatchError<E>> {
    if on_error == OnError::ReportItem {
        return Ok(outcomes);
    }
    let outcomes = outcomes.into_iter().enumerate().map(|(index, outcome)| match outcome {
        Ok(done) => Ok(Ok(done)),
        Err(error) => Err(BatchError { index: Some(index), error }),
    });
    outcomes.collect()
}

/// Collects outcomes as they come, and puts them in order. Fails with the first error if errors
/// fail the batch.
async fn collect<T, E>(
    running: impl Stream<Item = (usize, Result<T, E>)>,
    on_error: OnError,
) -> Result<Outcomes<T, E>, BatchError<E>> {
    let mut running = pin!(running);
    let mut done = Vec::new();
    while let Some((index, outcome)) = running.next().await {
        match outcome {
            Err(error) if on_error == OnError::FailBatch => {
                return Err(BatchError { index: Some(index), error });
            }
            outcome => done.push((index, outcome)),
        }
    }
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, outcome)| outcome).collect())
}
