//! Asks NVIDIA for the embedding of one picture: chooses what it is given, and how.
//!
//! JPEG and PNG go as they are, the other formats as JPEG. What fits goes inline; what does not is
//! uploaded, and where uploads do not work it is shrunk until it fits. A picture is decoded before
//! it takes its permit for NVIDIA: none is held that is not used.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Embedding, Error, Origin, Prepared};
use crate::{
    decoder::{self, Decoder},
    fair_queue::FairQueue,
    image::{Content, Format, Picture, Target},
    nvidia::{self, Attempts, InlineImage, Vector},
    shares::ClientNetwork,
    spool::{Spooled, Staging},
};

/// How long a refusal of uploads is remembered.
pub const ASSET_MEMORY: Duration = Duration::from_secs(600);

/// How long it is remembered that uploads failed without being refused: an outage may be short.
pub const OUTAGE_MEMORY: Duration = Duration::from_secs(60);

/// What NVIDIA is given, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is done with pictures that do not fit inline.
    pub large_images: LargeImages,
    /// The base64 text of an inline picture is shorter than this, in characters.
    pub inline_limit: usize,
    /// Pictures that are with NVIDIA at once.
    pub max_concurrency: usize,
    /// How long a refusal of uploads is remembered.
    pub asset_memory: Duration,
    /// How long an outage of uploads is remembered.
    pub outage_memory: Duration,
}

impl Settings {
    /// The memory that one picture takes on its way, in bytes: as it came, re-encoded, and as an
    /// inline body.
    pub fn inline_memory(&self) -> u64 {
        (2 * InlineImage::largest(self.inline_limit) + self.inline_limit) as u64
    }
}

/// What is done with pictures that do not fit inline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LargeImages {
    /// They are uploaded; where that is refused, shrunk.
    Asset,
    /// They are shrunk.
    Shrink,
}

/// Asks for embeddings, so many at once.
#[derive(Debug)]
pub(super) struct Asker {
    nvidia: nvidia::Client,
    settings: Settings,
    queue: FairQueue,
    decoder: Decoder,
    /// Where re-encoded pictures are that do not fit inline.
    staging: Staging,
    /// Until when nothing is uploaded.
    no_uploads_until: Mutex<Option<Instant>>,
}

/// How sending a picture ended.
enum Sent {
    Embedded(Vector),
    /// Uploads do not work.
    Refused(nvidia::Error),
    /// It does not fit inline, and is not to be uploaded.
    TooLarge,
}

impl Asker {
    pub(super) fn new(
        nvidia: nvidia::Client,
        decoder: Decoder,
        staging: Staging,
        settings: Settings,
    ) -> Self {
        Self {
            nvidia,
            queue: FairQueue::new(settings.max_concurrency, 0, 0),
            decoder,
            staging,
            no_uploads_until: Mutex::new(None),
            settings,
        }
    }

    /// The largest picture that goes inline, in bytes.
    pub(super) fn largest_inline(&self) -> usize {
        InlineImage::largest(self.settings.inline_limit)
    }

    /// The memory that one picture takes on its way, in bytes.
    pub(super) fn inline_memory(&self) -> u64 {
        self.settings.inline_memory()
    }

    /// How long a client's picture that comes now is likely to wait for NVIDIA.
    pub(super) fn expected_wait(&self, client: ClientNetwork) -> Duration {
        self.queue.expected_wait(client)
    }

    /// How many pictures wait for NVIDIA.
    pub(super) fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// What NVIDIA last thought of the key.
    pub(super) fn key_state(&self) -> nvidia::KeyState {
        self.nvidia.key_state()
    }

    /// Computes the embedding before the deadline.
    ///
    /// # Errors
    /// [`Error`]
    pub(super) async fn ask(
        &self,
        picture: &Picture,
        client: ClientNetwork,
        deadline: Instant,
    ) -> Result<Embedding, Error> {
        let mut attempts = self.nvidia.begin(client, deadline)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if self.queue.expected_wait(client) > left {
            return Err(Error::LineTooLong);
        }
        let (sent, prepared) = match picture.format {
            Format::Jpeg | Format::Png => {
                let prepared = Prepared::Original;
                let sent = self.send(&picture.content, picture.format, prepared, &mut attempts);
                (sent.await?, prepared)
            }
            Format::WebP | Format::Gif | Format::Bmp | Format::Tiff => {
                let encoded = self.encode(picture, client, Target::Converted, deadline).await?;
                let prepared = Prepared::Jpeg;
                let sent = self.send(&encoded.content, Format::Jpeg, prepared, &mut attempts);
                (sent.await?, prepared)
            }
        };
        let refusal = match sent {
            Sent::Embedded(vector) => return Ok(asked(vector, prepared, &attempts)),
            Sent::Refused(refusal) => Some(refusal),
            Sent::TooLarge => None,
        };
        if let Some(outage) = refusal.as_ref().filter(|refusal| !refusal.is_refusal()) {
            self.spare_uploads(outage, self.settings.outage_memory);
        }
        let target = Target::Shrunk { max_len: self.largest_inline() };
        let encoded = self.encode(picture, client, target, deadline).await?;
        let prepared = Prepared::Shrunk;
        let sent = self.send(&encoded.content, Format::Jpeg, prepared, &mut attempts).await?;
        if let Some(refusal) = refusal.filter(nvidia::Error::is_refusal) {
            // Only now: a picture that NVIDIA takes in no way says nothing of uploads.
            self.spare_uploads(&refusal, self.settings.asset_memory);
        }
        match sent {
            Sent::Embedded(vector) => Ok(asked(vector, prepared, &attempts)),
            Sent::Refused(refusal) => Err(refusal.into()),
            Sent::TooLarge => Err(Error::StillTooLarge),
        }
    }

    /// Sends bytes that NVIDIA reads, by the way that fits their size, once it is their turn.
    async fn send(
        &self,
        content: &Content,
        format: Format,
        prepared: Prepared,
        attempts: &mut Attempts<'_>,
    ) -> Result<Sent, Error> {
        let media_type = format.media_type();
        let inline = match content {
            Content::Memory(bytes) if bytes.len() <= self.largest_inline() => Some(bytes),
            _ if prepared == Prepared::Shrunk || !self.may_upload() => return Ok(Sent::TooLarge),
            _ => None,
        };
        let permit = self.queue.take_in_time(attempts.client, attempts.deadline).await;
        let Some(_permit) = permit else { return Err(Error::Busy("a call to NVIDIA")) };
        if let Some(bytes) = inline {
            let image = InlineImage::new(media_type, bytes);
            return Ok(Sent::Embedded(self.nvidia.infer(&image, attempts).await?));
        }
        match self.infer_uploaded(media_type, content, attempts).await {
            Ok(vector) => Ok(Sent::Embedded(vector)),
            Err(failure) if failure.is_about_uploads() => Ok(Sent::Refused(failure)),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn infer_uploaded(
        &self,
        media_type: &str,
        content: &Content,
        attempts: &mut Attempts<'_>,
    ) -> Result<Vector, nvidia::Error> {
        // An upload that hangs shall leave the time to do without.
        let by = attempts.halfway();
        let asset = self.nvidia.upload(media_type, content, attempts, by).await?;
        self.nvidia.infer_asset(&asset, attempts).await
    }

    /// Re-encodes a picture. What fits inline is in memory, what does not is in a staging file.
    async fn encode(
        &self,
        picture: &Picture,
        client: ClientNetwork,
        target: Target,
        deadline: Instant,
    ) -> Result<Spooled, decoder::Error> {
        let spool = self.staging.spool(self.largest_inline());
        self.decoder.decode(picture, client, target, deadline, spool).await
    }

    fn may_upload(&self) -> bool {
        let until = *self.no_uploads_until.lock().unwrap_or_else(PoisonError::into_inner);
        self.settings.large_images == LargeImages::Asset
            && until.is_none_or(|until| until <= Instant::now())
    }

    /// Does without uploads for a while.
    fn spare_uploads(&self, failure: &nvidia::Error, memory: Duration) {
        tracing::warn!(
            error = %failure,
            spared_s = memory.as_secs(),
            "NVIDIA does not take uploads: large pictures are shrunk instead"
        );
        *self.no_uploads_until.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now() + memory);
    }
}

fn asked(vector: Vector, prepared: Prepared, attempts: &Attempts<'_>) -> Embedding {
    Embedding { vector, prepared, origin: Origin::Asked, tries: attempts.inferences() }
}
