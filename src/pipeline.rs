//! The path that every picture takes, whichever route it came by: it is received (spooled, and its
//! header read), then saved and embedded at the same time.
//!
//! Nothing here knows HTTP: a caller passes a stream of bytes, and turns an [`Error`] into what its
//! own clients understand.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{
    runtime::Handle,
    task::{JoinError, spawn_blocking},
    time::Instant,
};

use crate::{
    embed::{self, CacheMode, Embedder, Embedding, Job, PicturePermits},
    image::{self, Content, Picture, probe},
    sha256::Sha256,
    shares::{ClientNetwork, Full, SharePermit, Shares},
    spool::{self, Spooled},
    store::{self, Store},
    telemetry::{Metrics, Readings},
};

use admission::MEMORY_STEP;

mod admission;

pub use admission::{Admission, Limits, OverloadReason, largest_request, shared_memory};

/// Why a picture got no embedding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service is overloaded, and refused the picture before any work began.
    #[error("overloaded: {0:?}")]
    Overloaded(OverloadReason),
    /// The picture has too many bytes.
    #[error("the picture has more than {limit} bytes")]
    TooManyBytes {
        /// The most bytes allowed.
        limit: u64,
        /// The picture's size, where it is known.
        size: Option<u64>,
    },
    /// The bytes are not a picture that can be used.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The picture could not be saved.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Only decoding showed that the bytes are not a picture that can be used.
    #[error("{0}")]
    Undecodable(#[source] Arc<embed::Error>),
    /// The picture could not be embedded. It is saved if that was asked for.
    #[error("{error}")]
    Embed {
        /// The cause, shared by all requests that waited for the same call.
        #[source]
        error: Arc<embed::Error>,
        /// The saved file, if the picture was to be saved.
        saved: Option<Saved>,
    },
    /// A thread panicked, which is a bug.
    #[error("the thread that reads headers panicked")]
    Panicked(#[from] JoinError),
}

/// What all requests share.
#[derive(Debug)]
pub struct Pipeline {
    /// Saves pictures.
    pub store: Store,
    /// Embeds pictures.
    pub embedder: Embedder,
    /// The limits of a request.
    pub limits: Limits,
    /// Memory for bodies, shared by all requests, in bytes.
    pub memory: Shares,
    /// Bounds the received pictures that are at work.
    pub at_work: Shares,
    /// The service's metrics.
    pub metrics: Arc<Metrics>,
}

/// A received picture, with the permits that it holds.
#[derive(Debug)]
pub struct Received {
    /// The picture and what its header says.
    pub picture: Picture,
    client: ClientNetwork,
    spooled: Spooled,
    permits: PicturePermits,
    /// When the answer must be ready. The time runs from the picture's last byte.
    deadline: Instant,
}

/// The result for one picture.
#[derive(Debug)]
pub struct Vectorized {
    /// The saved file, if the picture was to be saved.
    pub saved: Option<Saved>,
    /// The picture and what its header says.
    pub picture: Picture,
    /// SHA-256 of its bytes.
    pub sha256: Sha256,
    /// Its embedding.
    pub embedding: Embedding,
}

/// Whether a picture is saved or only embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveMode {
    /// Save the picture.
    Save,
    /// Leave no file behind.
    Discard,
}

/// A saved picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The file's name.
    pub saved_as: String,
}

impl Saved {
    /// The path that clients see, wherever the folder is.
    pub fn path(&self) -> String {
        format!("downloads/{}", self.saved_as)
    }
}

impl Pipeline {
    /// Receives an admitted picture: spools its bytes as they arrive. Once they are complete, waits
    /// for a permit and reads the header.
    ///
    /// # Errors
    /// The stream's own error, or an [`Error`] if there are too many bytes, no memory or permit is
    /// free, or the bytes are not a picture. No file is left behind.
    pub async fn receive<E: From<Error>>(
        &self,
        admission: Admission,
        bytes: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Received, E> {
        let client = admission.client();
        let mut memory = self.memory.empty(client);
        let spooled = self.spool(bytes, &mut memory).await?;
        memory.grow_to(self.embedder.inline_memory()).map_err(no_memory)?;
        let deadline = Instant::now() + self.limits.request_timeout;
        // The picture was admitted, but others may have arrived first. It waits for a permit while
        // enough time is left for the work itself.
        let wait_deadline = Instant::now() + self.limits.request_timeout / 2;
        let at_work = self.at_work.take(client, 1, wait_deadline).await;
        let at_work = at_work.map_err(|_| Error::Overloaded(OverloadReason::AtWork))?;
        let picture = self.probe(spooled.content.clone()).await?;
        Ok(Received {
            picture,
            client,
            spooled,
            permits: PicturePermits { at_work, memory },
            deadline,
        })
    }

    /// Embeds a received picture, and saves it if that is asked for.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn embed(
        &self,
        received: Received,
        cache_mode: CacheMode,
        save_mode: SaveMode,
    ) -> Result<Vectorized, Error> {
        let Received { picture, client, spooled, permits, deadline } = received;
        let (sha256, size) = (spooled.sha256, picture.content.len());
        let permits = Arc::new(permits);
        let permits_for_file = Arc::clone(&permits);
        let save = async {
            match save_mode {
                SaveMode::Save => {
                    let extension = picture.format.extension();
                    let save = self.store.save(spooled, extension, deadline, permits_for_file);
                    Ok::<_, Error>(Some(save.await?))
                }
                // The file is removed before the call ends, so that not even a kill leaves it
                // behind. Whoever still reads the picture has the file open.
                SaveMode::Discard => {
                    let discard = move || {
                        spooled.discard();
                        drop(permits_for_file);
                    };
                    spawn_blocking(discard).await?;
                    Ok(None)
                }
            }
        };
        let embed = self.embedder.embed(Job {
            picture: picture.clone(),
            sha256,
            client,
            cache_mode,
            deadline,
            permits,
        });
        // If a picture cannot be saved, nobody waits for its embedding. If it cannot be embedded,
        // it stays saved, and the error says where.
        let (file, embedded) = tokio::try_join!(save, async { Ok(embed.await) })?;
        let saved = file.as_ref().map(|file| Saved { saved_as: file.name().to_owned() });
        if saved.is_some() {
            self.metrics.record_saved(size);
        }
        match embedded {
            Ok(embedding) => Ok(Vectorized { saved, picture, sha256, embedding }),
            // Only the decoder could tell that this is not a picture. No file of it is kept either.
            Err(error) if error.is_about_the_picture() => {
                if let Some(saved) = saved {
                    self.store.remove(saved.saved_as).await;
                }
                Err(Error::Undecodable(error))
            }
            Err(error) => Err(Error::Embed { error, saved }),
        }
    }

    /// What the metrics need to be read now. Call it inside the runtime.
    pub async fn readings(&self) -> Readings {
        let free = self.store.free_space().await.ok();
        Readings {
            free_bytes: free.map(|free| free.bytes),
            free_inodes: free.and_then(|free| free.inodes).map(|inodes| inodes.free),
            buffered_bytes: self.memory.in_use(),
            pictures_at_work: self.at_work.in_use(),
            pictures_waiting: self.embedder.waiting() as u64,
            tasks: Handle::current().metrics().num_alive_tasks() as u64,
        }
    }

    async fn spool<E: From<Error>>(
        &self,
        bytes: impl Stream<Item = Result<Bytes, E>>,
        memory: &mut SharePermit,
    ) -> Result<Spooled, E> {
        let limit = self.limits.max_image_bytes;
        let keep = self.embedder.largest_inline();
        let mut spool = self.store.spool(keep);
        let mut bytes = std::pin::pin!(bytes);
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk?;
            let received = spool.received() + chunk.len() as u64;
            if received > limit {
                return Err(Error::TooManyBytes { limit, size: None }.into());
            }
            let kept = if received <= keep as u64 { received } else { MEMORY_STEP };
            memory.grow_to(kept).map_err(no_memory)?;
            spool.write(&chunk).await.map_err(not_spooled)?;
            memory.shrink_to(kept); // bytes beyond `kept` are in the staging file by now
        }
        Ok(spool.finish().await.map_err(not_spooled)?)
    }

    async fn probe(&self, content: Content) -> Result<Picture, Error> {
        let limit = self.limits.max_image_pixels;
        match content {
            Content::Memory(_) => Ok(probe(content, limit)?),
            Content::File(..) => Ok(spawn_blocking(move || probe(content, limit)).await??),
        }
    }
}

fn no_memory(_: Full) -> Error {
    Error::Overloaded(OverloadReason::Memory)
}

/// The spool is in the store's folder, so its errors count as errors of saving.
fn not_spooled(error: spool::Error) -> Error {
    store::Error::from(error).into()
}
