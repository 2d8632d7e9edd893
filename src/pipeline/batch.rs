//! Embeds a batch: several pictures in one request. Each picture takes the same steps as a single one.
//!
//! When the bytes of all pictures have arrived, each picture needs a permit of `Pipeline::at_work`. A batch
//! waits only for its first permit. If the permits for its other pictures are not free by then, the batch
//! fails. If batches waited for further permits, two of them could wait for each other's permits forever.
//!
//! The pictures of a batch are embedded concurrently, and equal pictures share one embedding. A batch
//! uses at most three quarters of the concurrent calls to NVIDIA, so that other requests can make calls.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    pin::pin,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, Stream, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared, ready},
    stream,
};
use tokio::time::Instant;

use super::{
    Admission, Error, FileMode, OverloadReason, Pipeline, Received, SaveMode, SpooledPicture,
    Vectorized, when_saved::WhenSaved,
};
use crate::{
    embed::{self, CacheMode, Embedding},
    nvidia::Reservation,
    sha256::Sha256,
    shares::ClientNetwork,
};

/// At most this many pictures of a batch are received, or looked up in the cache, at the same time.
const PICTURES_AT_ONCE: usize = 8;

/// What the client requested for a batch.
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
    /// The batch continues. Its result contains the error in place of the picture.
    ReportItem,
}

/// Why a batch failed.
#[derive(Debug)]
pub struct BatchError<E> {
    /// The position of the failed picture, or `None` if the error is not about a single picture.
    pub index: Option<usize>,
    /// The cause.
    pub error: E,
}

impl<E> From<E> for BatchError<E> {
    fn from(error: E) -> Self {
        Self { index: None, error }
    }
}

/// A value or an error for each picture, in the order of the request.
type PerPicture<T, E> = Vec<Result<T, E>>;

/// An embedding that was found in the cache or will be computed. Equal pictures share it.
type SharedEmbedding = Shared<BoxFuture<'static, Result<Embedding, Arc<embed::Error>>>>;

/// A received picture and its embedding, which may not be computed yet.
struct PlannedPicture {
    received: Received,
    embedding: SharedEmbedding,
    /// Whether an equal picture precedes this picture in the batch.
    is_repeated: bool,
}

/// Why a step of the batch, such as reading the headers, failed for one picture.
enum StepError<E> {
    /// The picture's own error.
    Picture(E),
    /// The service is overloaded, so the whole batch fails.
    Batch(E),
}

impl<E: From<Error>> From<Error> for StepError<E> {
    fn from(error: Error) -> Self {
        match error {
            Error::Overloaded(_) => Self::Batch(error.into()),
            error => Self::Picture(error.into()),
        }
    }
}

impl Pipeline {
    /// Receives, saves and embeds the pictures of a batch. `sources` contains, for each picture,
    /// the stream of its bytes, or the error because of which it has none. With
    /// [`OnError::FailBatch`], each returned value is `Ok`.
    ///
    /// # Errors
    /// With [`OnError::FailBatch`], the error of the picture that fails first. With either [`OnError`]:
    /// [`Error::Overloaded`] if permits or memory are exhausted; [`Error::BatchTooLarge`] if even the
    /// whole request timeout is too short for the calls to NVIDIA; [`Error::Embed`] if the deadline is too
    /// close for them.
    pub async fn embed_batch<E, S>(
        &self,
        admission: Admission,
        sources: PerPicture<S, E>,
        options: BatchOptions,
    ) -> Result<PerPicture<Vectorized, E>, BatchError<E>>
    where
        E: From<Error> + Send,
        S: Stream<Item = Result<Bytes, E>> + Send,
    {
        let (client, on_error) = (admission.client(), options.on_error);
        // With `FailBatch`, an error that is already known is returned before any picture is fetched.
        let sources = collect_in_order(stream::iter(numbered(sources)), on_error).await?;
        let spooled = self.spool_all(client, sources, on_error).await?;
        // As for a single picture, the request timeout starts after the last byte.
        let deadline = Instant::now() + self.limits.request_timeout;
        let received = self.read_headers(client, spooled, deadline, on_error).await?;
        let planned = self.plan_all(client, received, deadline, options.cache_mode).await?;
        self.finish_all(planned, deadline, options).await
    }

    /// Spools the bytes of all pictures.
    async fn spool_all<E, S>(
        &self,
        client: ClientNetwork,
        sources: PerPicture<S, E>,
        on_error: OnError,
    ) -> Result<PerPicture<SpooledPicture, E>, BatchError<E>>
    where
        E: From<Error> + Send,
        S: Stream<Item = Result<Bytes, E>> + Send,
    {
        let spool = |(index, source): (usize, Result<S, StepError<E>>)| async move {
            match source {
                Ok(bytes) => {
                    let bytes = bytes.map_err(StepError::Picture);
                    (index, self.spool(client, bytes).await)
                }
                Err(error) => (index, Err(error)),
            }
        };
        let steps = stream::iter(numbered(sources)).map(spool);
        collect_in_order(steps.buffer_unordered(PICTURES_AT_ONCE), on_error).await
    }

    /// Acquires a permit for each picture, and reads the headers of the pictures.
    async fn read_headers<E: From<Error>>(
        &self,
        client: ClientNetwork,
        spooled: PerPicture<SpooledPicture, E>,
        deadline: Instant,
        on_error: OnError,
    ) -> Result<PerPicture<Received, E>, BatchError<E>> {
        let count = spooled.iter().flatten().count() as u64;
        let mut permits = match count {
            0 => self.at_work.empty_permit(client),
            _ => self.wait_for_permit(client).await.map_err(E::from)?,
        };
        permits.grow_to(count).map_err(|_| E::from(Error::Overloaded(OverloadReason::AtWork)))?;
        let steps = numbered(spooled).map(|(index, spooled)| {
            // A picture that has failed gets an empty permit.
            let permit = permits.split(u64::from(spooled.is_ok()));
            async move {
                match spooled {
                    Ok(spooled) => {
                        let received = self.read_header(spooled, permit, deadline).await;
                        (index, received.map_err(StepError::from))
                    }
                    Err(error) => (index, Err(error)),
                }
            }
        });
        collect_in_order(stream::iter(steps).buffer_unordered(PICTURES_AT_ONCE), on_error).await
    }

    /// Looks all pictures up in the cache, and reserves calls to NVIDIA for those that are not in
    /// it.
    async fn plan_all<E: From<Error>>(
        &self,
        client: ClientNetwork,
        received: PerPicture<Received, E>,
        deadline: Instant,
        cache_mode: CacheMode,
    ) -> Result<PerPicture<PlannedPicture, E>, BatchError<E>> {
        let pictures = received.iter().flatten();
        let distinct: HashSet<Sha256> = pictures.map(|received| received.spooled.sha256).collect();
        let distinct_count = distinct.len();
        // If there is a bucket, `Embedder::look_up` also looks there.
        let looked_in_bucket_at = Instant::now();
        let look_up = |sha256| async move {
            let embedding = self.embedder.look_up(sha256, cache_mode).await?;
            Some((sha256, embedding))
        };
        let looked_up = stream::iter(distinct).map(look_up).buffer_unordered(PICTURES_AT_ONCE);
        // `look_up` returns `None` for a picture that is not in the cache.
        let cached: HashMap<_, _> = looked_up.filter_map(ready).collect().await;
        let new_pictures = distinct_count - cached.len();
        let mut reservation = self.reserve(client, new_pictures, deadline).map_err(E::from)?;

        let mut embeddings = HashMap::<Sha256, SharedEmbedding>::new();
        let mut plan = |received: Received| {
            let sha256 = received.spooled.sha256;
            let (embedding, is_repeated) = match embeddings.entry(sha256) {
                Entry::Occupied(entry) => (entry.get().clone(), true),
                Entry::Vacant(entry) => {
                    let embedding = match cached.get(&sha256) {
                        Some(embedding) => ready(Ok(embedding.clone())).boxed(),
                        None => {
                            let embedder = self.embedder.clone();
                            let mut job = received.job(cache_mode);
                            job.looked_in_bucket_at = Some(looked_in_bucket_at);
                            let reservation = Some(reservation.split_one());
                            async move { embedder.embed(job, reservation).await }.boxed()
                        }
                    };
                    (entry.insert(embedding.shared()).clone(), false)
                }
            };
            PlannedPicture { received, embedding, is_repeated }
        };
        Ok(received.into_iter().map(|received| received.map(&mut plan)).collect())
    }

    /// Reserves a call for each picture of a batch that is not in the cache. `new_pictures` is the
    /// number of these pictures.
    fn reserve(
        &self,
        client: ClientNetwork,
        new_pictures: usize,
        deadline: Instant,
    ) -> Result<Reservation, Error> {
        self.embedder.reserve(client, new_pictures, deadline).map_err(|error| {
            // A batch that does not fit into the whole timeout cannot succeed later either.
            let time = self.limits.request_timeout;
            let max = self.embedder.largest_reservation(new_pictures, time);
            if max < new_pictures {
                Error::BatchTooLarge { new_pictures, max }
            } else {
                Error::Embed { error: Arc::new(error), saved: None }
            }
        })
    }

    /// Saves and embeds all pictures.
    async fn finish_all<E: From<Error>>(
        &self,
        planned: PerPicture<PlannedPicture, E>,
        deadline: Instant,
        options: BatchOptions,
    ) -> Result<PerPicture<Vectorized, E>, BatchError<E>> {
        let finish = |(index, planned): (usize, Result<PlannedPicture, StepError<E>>)| async move {
            match planned {
                Ok(planned) => {
                    let finished = self.finish(planned, deadline, options).await;
                    (index, finished.map_err(StepError::from))
                }
                Err(error) => (index, Err(error)),
            }
        };
        let steps = stream::iter(numbered(planned)).map(finish);
        let steps = steps.buffer_unordered(self.embedder.max_concurrent_calls_per_batch());
        let mut finished = collect_in_order(steps, options.on_error).await?;
        for vectorized in finished.iter_mut().flatten() {
            self.confirm(vectorized);
        }
        Ok(finished)
    }

    /// Saves and embeds one picture.
    async fn finish(
        &self,
        planned: PlannedPicture,
        deadline: Instant,
        options: BatchOptions,
    ) -> Result<Vectorized, Error> {
        let PlannedPicture { received, embedding, is_repeated } = planned;
        // The pictures before this one may have taken all the time.
        if Instant::now() >= deadline {
            let error = Arc::new(embed::Error::QueueTimeout("a call to NVIDIA"));
            return Err(Error::Embed { error, saved: None });
        }
        let embed = async |when_saved: WhenSaved| {
            // With a bucket, NVIDIA is called only after the picture is saved, as for a single picture:
            // a call for a picture that cannot be saved would be paid for nothing.
            if self.store.bucket().is_some() {
                when_saved.wait().await;
            }
            let embedding = embedding.await?;
            Ok(if is_repeated { embedding.without_own_call() } else { embedding })
        };
        let file_mode = match options.on_error {
            OnError::FailBatch => FileMode::Provisional,
            OnError::ReportItem => FileMode::Final,
        };
        self.save_and_embed(received, embed, options.save_mode, file_mode).await
    }

    /// Makes a provisional file stay. A final file is already confirmed.
    fn confirm(&self, vectorized: &mut Vectorized) {
        if let Some(guard) = &mut vectorized.guard
            && !guard.is_confirmed()
        {
            guard.confirm();
            self.metrics.record_saved(vectorized.len);
        }
    }
}

/// Adds the position of each picture, and wraps its error in [`StepError::Picture`].
fn numbered<T, E>(
    values: PerPicture<T, E>,
) -> impl Iterator<Item = (usize, Result<T, StepError<E>>)> {
    let values = values.into_iter().enumerate();
    values.map(|(index, value)| (index, value.map_err(StepError::Picture)))
}

/// Collects the results of a step as they arrive, and sorts them by position. Returns early with an
/// error of the whole batch. With [`OnError::FailBatch`], also returns early with the first error of a
/// picture that arrives.
async fn collect_in_order<T, E>(
    steps: impl Stream<Item = (usize, Result<T, StepError<E>>)>,
    on_error: OnError,
) -> Result<PerPicture<T, E>, BatchError<E>> {
    let mut steps = pin!(steps);
    let mut results = Vec::new();
    while let Some((index, result)) = steps.next().await {
        results.push((
            index,
            match result {
                Ok(value) => Ok(value),
                Err(StepError::Batch(error)) => return Err(BatchError { index: None, error }),
                Err(StepError::Picture(error)) if on_error == OnError::FailBatch => {
                    return Err(BatchError { index: Some(index), error });
                }
                Err(StepError::Picture(error)) => Err(error),
            },
        ));
    }
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}
