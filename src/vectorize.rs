//! The way of every picture, whichever route it came by: spool, probe, then save and embed at the
//! same time.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use crate::{
    budget::{Budget, Reserved},
    config::Limits,
    embed::{Embedder, Embedding, Freshness, Held, Job},
    error::{Error, Saved, Shed},
    image::{Content, Picture, probe},
    spool::Spooled,
    store::{self, SavedFile, Store},
    telemetry::{Metrics, Readings},
};

/// The path that the three routes share.
#[derive(Debug)]
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
    /// [`Error::Store`] without room on the disk; [`Error::Overloaded`] when too many pictures are
    /// at work, when those that wait for NVIDIA would take half of this one's time (whoever is let
    /// in must also be served), or when too much memory is in use.
    pub fn admit(&self, body_bytes: u64) -> Result<Admission, Error> {
        self.store.check_room()?;
        if self.at_work.available_permits() == 0 {
            return Err(self.shed(Shed::AtWork));
        }
        if self.embedder.expected_wait() > self.limits.request_timeout / 2 {
            return Err(self.shed(Shed::Line));
        }
        let reserved = self.buffers.try_reserve(body_bytes + self.embedder.inline_memory());
        reserved.map(Admission).map_err(|_| self.shed(Shed::Memory))
    }

    /// Receives, saves and embeds a picture.
    ///
    /// # Errors
    /// What the stream says, or what is wrong with the picture, the disk or NVIDIA.
    pub async fn vectorize(
        &self,
        admission: Admission,
        bytes: impl Stream<Item = Result<Bytes, Error>> + Send,
        freshness: Freshness,
    ) -> Result<Vectorized, Error> {
        let Admission(memory) = admission;
        let spooled = self.spool(bytes).await?;
        let deadline = Instant::now() + self.limits.request_timeout;
        // Received it is, although others may have come in between: it waits for its turn, as
        // long as there is time for what comes then.
        let patience = Instant::now() + self.limits.request_timeout / 2;
        let turn = timeout_at(patience, Arc::clone(&self.at_work).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(self.shed(Shed::AtWork)) };
        let picture = self.probe(spooled.content.clone()).await?;
        let (sha256, size) = (spooled.sha256, picture.content.len());

        let save = self.save(spooled, picture.format.extension(), deadline);
        let held = Arc::new(Held { turn, memory });
        let embed = self.embedder.embed(Job {
            picture: picture.clone(),
            sha256,
            freshness,
            deadline,
            held,
        });
        // A picture that cannot be saved is not worth waiting for; one that cannot be embedded
        // still is saved, and the error says where.
        let (file, embedded) = tokio::try_join!(save, async { Ok(embed.await) })?;
        let saved = Saved { saved_as: file.name().to_owned() };
        self.metrics.saved_bytes(size);
        match embedded {
            Ok(embedding) => Ok(Vectorized { saved, picture, sha256, embedding }),
            // Only the decoder could tell that this is no picture: it leaves no file either.
            Err(error) if error.is_about_the_picture() => {
                self.store.remove(saved.saved_as).await?;
                Err(Error::Undecodable(error))
            }
            Err(error) => Err(Error::Embed { error, saved }),
        }
    }

    /// What the metrics read off when they are asked for, within the runtime.
    pub fn readings(&self) -> Readings {
        Readings {
            free_bytes: self.store.free_bytes().ok(),
            pictures_at_work: (self.limits.max_in_flight - self.at_work.available_permits()) as u64,
            pictures_waiting: self.embedder.waiting() as u64,
            tasks: Handle::current().metrics().num_alive_tasks() as u64,
        }
    }

    fn shed(&self, reason: Shed) -> Error {
        self.metrics.shed(reason.name());
        Error::Overloaded(reason)
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
            spool.write(&chunk).await.map_err(store::Error::from)?;
        }
        Ok(spool.finish().await.map_err(store::Error::from)?)
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
    ) -> Result<SavedFile, Error> {
        let save = self.store.save(spooled, extension);
        Ok(timeout_at(deadline, save).await.unwrap_or(Err(store::Error::Timeout))?)
    }
}
