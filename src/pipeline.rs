//! The one path of every picture, whichever way it came: it is received (spooled and probed), then
//! saved and embedded at the same time.
//!
//! Nothing here knows HTTP: who calls gives a stream of bytes, and makes of an [`Error`] what its own
//! callers understand.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{
    runtime::Handle,
    task::{JoinError, spawn_blocking},
    time::Instant,
};

use crate::{
    embed::{self, Embedder, Embedding, Freshness, Held, Job},
    image::{self, Content, Picture, probe},
    sha256::Sha256,
    shares::{ClientNetwork, Full, Share, Shares},
    spool::{self, Spooled},
    store::{self, Store},
    telemetry::{Metrics, Readings},
};

use admission::STEP;

mod admission;

pub use admission::{Admission, Limits, Shed, largest_request, shared_memory};

/// Why there is no embedding of a picture.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too much is going on; nothing was begun.
    #[error("shed: {0:?}")]
    Overloaded(Shed),
    /// The picture has too many bytes.
    #[error("the picture has more than {limit} bytes")]
    TooManyBytes {
        /// Bytes allowed.
        limit: u64,
        /// Its size, where it is known.
        size: Option<u64>,
    },
    /// The bytes are not a picture that can be used.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The picture could not be saved.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Decoding showed that the bytes are not a picture that can be used.
    #[error("{0}")]
    Undecodable(#[source] Arc<embed::Error>),
    /// The picture is saved, if it was to be, but there is no embedding.
    #[error("{error}")]
    Embed {
        /// Why not: shared with others who wanted the same.
        #[source]
        error: Arc<embed::Error>,
        /// Where the picture is, if it was to be kept.
        saved: Option<Saved>,
    },
    /// A thread died: a bug.
    #[error("the thread that reads headers died")]
    Died(#[from] JoinError),
}

/// The path that all requests share.
#[derive(Debug)]
pub struct Pipeline {
    /// Where pictures are saved.
    pub store: Store,
    /// Who turns pictures into embeddings.
    pub embedder: Embedder,
    /// What a request may ask for.
    pub limits: Limits,
    /// Bytes of memory for bodies, all requests together.
    pub memory: Shares,
    /// Received pictures that are at work.
    pub at_work: Shares,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// A picture that was received, and what it occupies.
#[derive(Debug)]
pub struct Received {
    /// What the picture is.
    pub picture: Picture,
    client: ClientNetwork,
    spooled: Spooled,
    held: Held,
    /// When the answer must be there: the time runs from when the picture is whole.
    deadline: Instant,
}

/// What became of a picture.
#[derive(Debug)]
pub struct Vectorized {
    /// The saved file, if the picture was to be kept.
    pub saved: Option<Saved>,
    /// What the picture is.
    pub picture: Picture,
    /// SHA-256 of its bytes.
    pub sha256: Sha256,
    /// Its embedding.
    pub embedding: Embedding,
}

/// Whether a picture is saved, or only embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// It is saved.
    Saved,
    /// Nothing of it is left once it is embedded.
    Dropped,
}

/// A saved picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The file's name.
    pub saved_as: String,
}

impl Saved {
    /// The path as clients know it, wherever the folder lies.
    pub fn path(&self) -> String {
        format!("downloads/{}", self.saved_as)
    }
}

impl Pipeline {
    /// Receives an admitted picture: spools its bytes as they come, and reads its header once it is
    /// whole and its turn has come.
    ///
    /// # Errors
    /// What the stream says; [`Error`] where there are too many bytes, no memory for them or no
    /// turn, and where they are no picture. It then leaves no file.
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
        // Received it is, although others may have come in between: it waits for its turn, as
        // long as there is time for what comes then.
        let patience = Instant::now() + self.limits.request_timeout / 2;
        let turn = self.at_work.take(client, 1, patience).await;
        let turn = turn.map_err(|_| Error::Overloaded(Shed::AtWork))?;
        let picture = self.probe(spooled.content.clone()).await?;
        Ok(Received { picture, client, spooled, held: Held { turn, memory }, deadline })
    }

    /// Embeds a picture that was received, and saves it if it is to be kept.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn embed(
        &self,
        received: Received,
        freshness: Freshness,
        keeping: Keeping,
    ) -> Result<Vectorized, Error> {
        let Received { picture, client, spooled, held, deadline } = received;
        let (sha256, size) = (spooled.sha256, picture.content.len());
        let held = Arc::new(held);
        let held_by_file = Arc::clone(&held);
        let save = async {
            match keeping {
                Keeping::Saved => {
                    let extension = picture.format.extension();
                    let save = self.store.save(spooled, extension, deadline, held_by_file);
                    Ok::<_, Error>(Some(save.await?))
                }
                // Before the call ends, so that not even a kill leaves the file: what reads the
                // picture has it open.
                Keeping::Dropped => {
                    let discard = move || {
                        spooled.discard();
                        drop(held_by_file);
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
            freshness,
            deadline,
            held,
        });
        // A picture that cannot be saved is not worth waiting for; one that cannot be embedded
        // still is saved, and the error says where.
        let (file, embedded) = tokio::try_join!(save, async { Ok(embed.await) })?;
        let saved = file.as_ref().map(|file| Saved { saved_as: file.name().to_owned() });
        if saved.is_some() {
            self.metrics.saved_bytes(size);
        }
        match embedded {
            Ok(embedding) => Ok(Vectorized { saved, picture, sha256, embedding }),
            // Only the decoder could tell that this is no picture: it leaves no file either.
            Err(error) if error.is_about_the_picture() => {
                if let Some(saved) = saved {
                    self.store.remove(saved.saved_as).await;
                }
                Err(Error::Undecodable(error))
            }
            Err(error) => Err(Error::Embed { error, saved }),
        }
    }

    /// What the metrics read off when they are asked for, within the runtime.
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
        memory: &mut Share,
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
            let kept = if received <= keep as u64 { received } else { STEP };
            memory.grow_to(kept).map_err(no_memory)?;
            spool.write(&chunk).await.map_err(not_spooled)?;
            memory.shrink_to(kept); // what became too large is in its file now
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
    Error::Overloaded(Shed::Memory)
}

/// The spool lies in the store's folder: what goes wrong there, goes wrong with saving.
fn not_spooled(error: spool::Error) -> Error {
    store::Error::from(error).into()
}
