//! The way of every picture, whichever route it came by: spool, probe, then save and embed at the
//! same time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use crate::{
    budget::{Budget, Reserved},
    config::Limits,
    embed::{self, Embedder, Embedding},
    error::{Error, Saved},
    image::{Content, Picture, probe},
    store::{self, Spooled, Store},
    telemetry::Metrics,
};

/// How long a request waits for memory before it is turned away.
const ADMISSION_WAIT: Duration = Duration::from_secs(10);
/// A body from which on it does not wait, in bytes.
const LARGE_BODY: u64 = 1 << 20;

/// The path that the three routes share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vectorizer {
    /// Where pictures are saved.
    pub store: Store,
    /// Who turns pictures into embeddings.
    pub embedder: Embedder,
    /// What a request may ask for.
    pub limits: Limits,
    /// Memory for bodies, all requests together.
    pub buffers: Budget,
    /// Received pictures that are at work.
    pub at_work: Arc<Semaphore>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Memory that a request may use, and room on the disk: taken before its body is read.
#[derive(Debug)]
pub struct Admission(Reserved);

/// What became of a picture.
#[derive(Debug)]
pub struct Vectorized {
    /// The saved file.
    pub saved: Saved,
    /// What the picture is.
    pub picture: Picture,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// Its embedding.
    pub embedding: Embedding,
}

impl Admission {
    /// Takes out the part for the body, to be given back as soon as the body is dropped.
    pub fn split_body(&mut self, body_bytes: u64) -> Option<Reserved> {
        self.0.split_off(body_bytes)
    }
}

impl Vectorizer {
    /// Admits a request that holds so many bytes of its body in memory at once, beside what every
    /// picture takes: a copy of a small one, and its inline body.
    ///
    /// # Errors
    /// [`Error::Store`] without room on the disk, [`Error::Overloaded`] when too much memory is in
    /// use. For a small share of it a request waits a while. A large one is turned away: while it
    /// waited first in the line, nobody else would get any.
    pub async fn admit(&self, body_bytes: u64) -> Result<Admission, Error> {
        self.store.check_room()?;
        if self.at_work.available_permits() == 0 {
            return Err(Error::Overloaded("pictures at work"));
        }
        let wait = if body_bytes > LARGE_BODY { Duration::ZERO } else { ADMISSION_WAIT };
        let bytes = body_bytes + self.embedder.inline_memory();
        let reserved = self.buffers.reserve_within(bytes, wait).await;
        reserved.map(Admission).map_err(|_| Error::Overloaded("memory for bodies"))
    }

    /// Receives, saves and embeds a picture.
    ///
    /// # Errors
    /// What the stream says, or what is wrong with the picture, the disk or NVIDIA.
    pub async fn vectorize(
        &self,
        admission: Admission,
        bytes: impl Stream<Item = Result<Bytes, Error>> + Send,
    ) -> Result<Vectorized, Error> {
        let Admission(_reserved) = admission;
        let spooled = self.spool(bytes).await?;
        let deadline = Instant::now() + self.limits.request_timeout;
        // Received it is, although others may have come in between: it waits for its turn.
        let turn = timeout_at(deadline, self.at_work.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Error::Overloaded("pictures at work")) };
        let picture = self.probe(spooled.content.clone()).await?;
        let (sha256, size) = (spooled.sha256, picture.content.len());

        let save = self.save(spooled, picture.format.extension(), deadline);
        let embed = self.embedder.embed(&picture, deadline);
        // A picture that cannot be saved is not worth waiting for; one that cannot be embedded
        // still is saved, and the error says where.
        let (saved, embedded) = tokio::try_join!(save, async { Ok(embed.await) })?;
        self.metrics.saved_bytes(size);
        match embedded {
            Ok(embedding) => Ok(Vectorized { saved, picture, sha256, embedding }),
            // Only the decoder could tell that this is no picture: it leaves no file either.
            Err(embed::Error::Image(error)) if error.is_about_the_picture() => {
                self.store.remove(saved.saved_as).await?;
                Err(error.into())
            }
            Err(error) => Err(Error::Embed { error, saved }),
        }
    }

    async fn spool(
        &self,
        bytes: impl Stream<Item = Result<Bytes, Error>>,
    ) -> Result<Spooled, Error> {
        let limit = self.limits.max_image_bytes;
        let mut spool = self.store.spool(self.embedder.largest_inline());
        let mut bytes = std::pin::pin!(bytes);
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk?;
            if spool.received() + chunk.len() as u64 > limit {
                return Err(Error::TooManyBytes { limit, size: None });
            }
            spool.write(&chunk).await?;
        }
        Ok(spool.finish().await?)
    }

    async fn probe(&self, content: Content) -> Result<Picture, Error> {
        let limit = self.limits.max_image_pixels;
        match content {
            Content::Memory(_) => Ok(probe(content, limit)?),
            Content::File(..) => {
                Ok(spawn_blocking(move || probe(content, limit)).await.map_err(Error::died)??)
            }
        }
    }

    async fn save(
        &self,
        spooled: Spooled,
        extension: &'static str,
        deadline: Instant,
    ) -> Result<Saved, Error> {
        let save = spooled.save(extension);
        let name = timeout_at(deadline, save).await.unwrap_or(Err(store::Error::Timeout))?;
        Ok(Saved { saved_as: name })
    }
}
