//! Receives, saves and embeds pictures. All routes use this pipeline.
//!
//! Receiving a picture means to spool its bytes and to read its header. The picture is then saved
//! and embedded at the same time.
//!
//! The pipeline is independent of HTTP. Its caller passes a stream of bytes, and turns an [`Error`]
//! into a response.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::{JoinError, spawn_blocking},
    time::Instant,
};

use crate::{
    bucket::Operation,
    embed::{self, CacheMode, Embedder, Embedding, Job, PicturePermits},
    image::{self, Content, Format, Picture, probe},
    sha256::Sha256,
    shares::{ClientNetwork, NotEnoughUnits, SharePermit, Shares},
    spool::{self, Spooled},
    store::{self, SavedGuard, Store},
    telemetry::{Metrics, Readings, in_span, span},
    valkey::Valkey,
};

use admission::MEMORY_STEP;
use when_saved::WhenSaved;

mod admission;
mod batch;
mod when_saved;

pub use admission::{
    Admission, Limits, OverloadReason, max_request_memory, memory_limit, pictures_at_work_limit,
};
pub use batch::{BatchError, BatchOptions, OnError};

/// Why a picture got no embedding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service is overloaded.
    #[error("overloaded: {0:?}")]
    Overloaded(OverloadReason),
    /// The picture has too many bytes.
    #[error("the picture has more than {limit} bytes")]
    TooManyBytes {
        /// The most bytes allowed.
        limit: u64,
        /// The picture's size in bytes, if it is known.
        size: Option<u64>,
    },
    /// The bytes are not a picture that this service accepts.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The picture could not be saved.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The header can be read, but the picture cannot be decoded.
    #[error("{0}")]
    Undecodable(#[source] Arc<embed::Error>),
    /// The picture could not be embedded.
    #[error("{error}")]
    Embed {
        /// The cause, shared by all requests that waited for the same call to NVIDIA.
        #[source]
        error: Arc<embed::Error>,
        /// The saved file. `None` if the picture was not saved, or if its file is removed again.
        saved: Option<Saved>,
    },
    /// The batch needs more calls to NVIDIA than the limit on calls per minute ever allows within a
    /// request's time.
    #[error(
        "the batch has {new_pictures} new pictures; the limit on calls per minute allows {max}"
    )]
    BatchTooLarge {
        /// The number of pictures that are not in the cache.
        new_pictures: usize,
        /// The most new pictures that the limit allows in one batch.
        max: usize,
    },
    /// A blocking task panicked. This is a bug.
    #[error("a blocking task of the pipeline panicked")]
    Panicked(#[from] JoinError),
}

/// The pipeline: its parts and its limits. All requests share one pipeline.
#[derive(Debug)]
pub struct Pipeline {
    /// Saves pictures.
    pub store: Store,
    /// Embeds pictures.
    pub embedder: Embedder,
    /// The limits of a request.
    pub limits: Limits,
    /// Limits the memory of all requests together, in bytes: for bodies, and then for preparing and
    /// sending the pictures.
    pub memory: Shares,
    /// Limits how many spooled pictures are at work: their headers are read, or they are saved or embedded.
    pub at_work: Shares,
    /// The Valkey that replicas share, if there is one.
    pub valkey: Option<Valkey>,
    /// The service's metrics.
    pub metrics: Arc<Metrics>,
}

/// A received picture and its permits.
#[derive(Debug)]
pub struct Received {
    /// The picture, with its format and size from the header.
    pub picture: Picture,
    client: ClientNetwork,
    spooled: Spooled,
    permits: Arc<PicturePermits>,
    /// When the answer must be ready: [`Limits::request_timeout`] after the picture's last byte.
    deadline: Instant,
}

impl Received {
    fn job(&self, cache_mode: CacheMode) -> Job {
        Job {
            picture: self.picture.clone(),
            sha256: self.spooled.sha256,
            client: self.client,
            cache_mode,
            looked_in_bucket_at: None,
            deadline: self.deadline,
            permits: Arc::clone(&self.permits),
        }
    }
}

/// A picture whose bytes have all arrived, and the permit for the memory that it needs until it is
/// embedded.
#[derive(Debug)]
struct SpooledPicture {
    client: ClientNetwork,
    spooled: Spooled,
    memory: SharePermit,
}

/// An embedded picture.
#[derive(Debug)]
pub struct Vectorized {
    /// The saved file; `None` in [`SaveMode::Discard`].
    pub saved: Option<Saved>,
    /// The picture's format.
    pub format: Format,
    /// Its width in pixels, before its orientation is applied.
    pub width: u32,
    /// Its height in pixels, before its orientation is applied.
    pub height: u32,
    /// Its length in bytes.
    pub len: u64,
    /// SHA-256 of the picture's bytes.
    pub sha256: Sha256,
    /// The embedding.
    pub embedding: Embedding,
    /// Retention does not remove the saved file before this guard is dropped. Dropping the guard removes
    /// the file unless the guard was confirmed.
    guard: Option<SavedGuard>,
}

/// Whether a picture is saved or only embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveMode {
    /// Save the picture.
    Save,
    /// Do not save the picture, and remove its staging file.
    Discard,
}

/// Whether a saved file stays if the request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileMode {
    /// It stays, unless the picture cannot be decoded.
    Final,
    /// For a batch with [`OnError::FailBatch`]: it is removed if the batch fails or is dropped.
    Provisional,
}

/// A saved picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The file's name.
    pub saved_as: String,
}

impl Saved {
    /// The path in answers. It always begins with `downloads/`, even if the folder is elsewhere.
    pub fn path(&self) -> String {
        format!("downloads/{}", self.saved_as)
    }
}

impl Pipeline {
    /// Receives an admitted picture. Spools its bytes as they arrive, waits until the picture may
    /// be at work, and reads the header.
    ///
    /// # Errors
    /// The stream's own error, or an [`Error`]: there are too many bytes, too little memory or
    /// disk space is free, too many pictures are at work, or the bytes are not a picture. No file
    /// remains after an error.
    pub fn receive<E: From<Error>>(
        &self,
        admission: Admission,
        bytes: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> impl Future<Output = Result<Received, E>> {
        in_span(span!("receive"), self.receive_steps(admission, bytes))
    }

    async fn receive_steps<E: From<Error>>(
        &self,
        admission: Admission,
        bytes: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Received, E> {
        let client = admission.client();
        let spooled = self.spool(client, bytes).await?;
        let deadline = Instant::now() + self.limits.request_timeout;
        let at_work = self.wait_for_permit(client).await?;
        Ok(self.read_header(spooled, at_work, deadline).await?)
    }

    /// Embeds a received picture, and saves it in [`SaveMode::Save`].
    ///
    /// # Errors
    /// An [`Error`] if the picture cannot be saved, decoded or embedded.
    pub async fn embed(
        &self,
        received: Received,
        cache_mode: CacheMode,
        save_mode: SaveMode,
    ) -> Result<Vectorized, Error> {
        let mut job = received.job(cache_mode);
        let embed = async |when_saved: WhenSaved| {
            if self.store.bucket().is_some() {
                job.looked_in_bucket_at = Some(Instant::now());
                if let Some(found) = self.embedder.look_up(job.sha256, cache_mode).await {
                    return Ok(found);
                }
                // A bucket fails more often than a disk. NVIDIA must not be paid for a picture that
                // cannot be saved.
                when_saved.wait().await; // also ends if the picture is not to be saved
            }
            self.embedder.embed(job, None).await
        };
        self.save_and_embed(received, embed, save_mode, FileMode::Final).await
    }

    /// Runs `embed`. In [`SaveMode::Save`], also saves the received picture at the same time.
    async fn save_and_embed(
        &self,
        received: Received,
        embed: impl AsyncFnOnce(WhenSaved) -> Result<Embedding, Arc<embed::Error>>,
        save_mode: SaveMode,
        file_mode: FileMode,
    ) -> Result<Vectorized, Error> {
        let Received { picture, spooled, permits: permits_for_file, deadline, .. } = received;
        let (sha256, len) = (spooled.sha256, picture.content.len());
        let (saved_sender, when_saved) = oneshot::channel();
        let save = async {
            let guard = match save_mode {
                SaveMode::Save => {
                    let save = self.store.save(spooled, picture.format, deadline, permits_for_file);
                    let mut guard = in_span(span!("save"), save).await?;
                    if file_mode == FileMode::Final {
                        guard.confirm();
                        self.metrics.record_saved(len);
                    }
                    Some(guard)
                }
                // The staging file is removed while the picture is still being embedded, so that no
                // file remains if the process is killed. The embedder has the file open and can
                // still read it.
                SaveMode::Discard => {
                    let discard = move || {
                        spooled.discard();
                        drop(permits_for_file);
                    };
                    spawn_blocking(discard).await?;
                    None
                }
            };
            // Tells `embed` that the picture is saved or discarded. Fails if `embed` has already ended.
            let _ = saved_sender.send(());
            Ok::<_, Error>(guard)
        };
        // If saving fails, the request fails at once. If embedding fails, saving continues.
        let embed = embed(WhenSaved::new(when_saved));
        let (guard, embedded) = tokio::try_join!(save, async { Ok(embed.await) })?;
        let saved = guard.as_ref().map(|guard| Saved { saved_as: guard.name().to_owned() });
        let Picture { format, width, height, .. } = picture;
        match (embedded, file_mode) {
            (Ok(embedding), _) => {
                Ok(Vectorized { saved, format, width, height, len, sha256, embedding, guard })
            }
            // The picture cannot be decoded, so its file is removed. Dropping `guard` removes a
            // provisional one.
            (Err(error), _) if error.picture_is_undecodable() => {
                if let (Some(saved), FileMode::Final) = (saved, file_mode) {
                    self.store.remove(saved.saved_as).await;
                }
                Err(Error::Undecodable(error))
            }
            (Err(error), FileMode::Final) => Err(Error::Embed { error, saved }),
            (Err(error), FileMode::Provisional) => Err(Error::Embed { error, saved: None }),
        }
    }

    /// Reads the values of [`Readings`]. Must be called inside the Tokio runtime.
    pub async fn readings(&self) -> Readings {
        let space = self.store.free_space().await.ok();
        let works = |operation| self.store.bucket().map(|bucket| bucket.works(operation));
        Readings {
            free_bytes: space.map(|space| space.bytes),
            free_inodes: space.and_then(|space| space.inodes).map(|inodes| inodes.free),
            bucket_writable: works(Operation::Write),
            bucket_readable: works(Operation::Read),
            valkey_usable: self.valkey.as_ref().map(Valkey::works),
            replicas: self.valkey.as_ref().map(Valkey::replicas),
            call_limit: self.embedder.call_limit().map(|limit| limit as u64),
            buffered_bytes: self.memory.in_use(),
            pictures_at_work: self.at_work.in_use(),
            pictures_waiting: self.embedder.waiting() as u64,
            tasks: Handle::current().metrics().num_alive_tasks() as u64,
        }
    }

    /// Spools a picture as its bytes arrive.
    async fn spool<E: From<Error>>(
        &self,
        client: ClientNetwork,
        bytes: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<SpooledPicture, E> {
        let max_bytes = self.limits.max_image_bytes;
        let max_bytes_in_memory = self.embedder.largest_inline();
        let mut memory = self.memory.empty_permit(client);
        let mut spool = self.store.spool(max_bytes_in_memory);
        let mut bytes = std::pin::pin!(bytes);
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk?;
            let received = spool.received() + chunk.len() as u64;
            if received > max_bytes {
                return Err(Error::TooManyBytes { limit: max_bytes, size: None }.into());
            }
            // A picture that is too large to be sent inline goes to a staging file. Then only one chunk
            // and a small buffer are in memory.
            let is_in_memory = received <= max_bytes_in_memory as u64;
            let needed = if is_in_memory { received } else { MEMORY_STEP };
            memory.grow_to(needed).map_err(no_memory)?;
            spool.write(&chunk).await.map_err(spool_error)?;
            // Shrinks the permit if the write has moved the picture from memory to a staging file.
            memory.shrink_to(needed);
        }
        let spooled = spool.finish().await.map_err(spool_error)?;
        // From now on, the permit is for the memory that preparing and sending the picture may need.
        memory.grow_to(self.embedder.inline_memory()).map_err(no_memory)?;
        Ok(SpooledPicture { client, spooled, memory })
    }

    /// Waits for a permit that lets one picture of the client be at work. Other requests may have
    /// taken the last permits after this request was admitted. The wait takes at most half of the
    /// request timeout, because the work needs the other half.
    async fn wait_for_permit(&self, client: ClientNetwork) -> Result<SharePermit, Error> {
        let wait_deadline = Instant::now() + self.limits.request_timeout / 2;
        let at_work = self.at_work.take(client, 1, wait_deadline).await;
        at_work.map_err(|_| Error::Overloaded(OverloadReason::AtWork))
    }

    /// Reads the header of a picture that has its permits.
    async fn read_header(
        &self,
        picture: SpooledPicture,
        at_work: SharePermit,
        deadline: Instant,
    ) -> Result<Received, Error> {
        let SpooledPicture { client, spooled, memory } = picture;
        let (content, max_pixels) = (spooled.content.clone(), self.limits.max_image_pixels);
        let picture = match content {
            Content::Memory(_) => probe(content, max_pixels)?,
            Content::File(..) => spawn_blocking(move || probe(content, max_pixels)).await??,
        };
        let permits = Arc::new(PicturePermits { at_work, memory });
        Ok(Received { picture, client, spooled, permits, deadline })
    }
}

fn no_memory(_: NotEnoughUnits) -> Error {
    Error::Overloaded(OverloadReason::Memory)
}

/// The staging file is in the store's folder, so an error of the spool counts as an error of the store.
fn spool_error(error: spool::Error) -> Error {
    store::Error::from(error).into()
}
