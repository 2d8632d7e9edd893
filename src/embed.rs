//! From a picture to its embedding: chooses what NVIDIA is given, and how.
//!
//! JPEG and PNG go as they are, the other formats as JPEG. What fits goes inline; what does not is
//! uploaded, and where uploads do not work it is shrunk until it fits.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
    time::{Instant, timeout_at},
};

use crate::{
    budget::{self, Budget, Reserved},
    image::{self, Content, Format, Picture, Target},
    nvidia::{self, Inferred, InlineImage, Vector, Verdict},
};

/// How long a refusal of uploads is remembered.
pub const ASSET_MEMORY: Duration = Duration::from_secs(600);

/// How a picture becomes an embedding.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is done with pictures that do not fit inline.
    pub large_images: LargeImages,
    /// The base64 text of an inline picture is shorter than this, in characters.
    pub inline_limit: usize,
    /// Pictures that are with NVIDIA at once.
    pub max_concurrency: usize,
    /// Memory for decoding, all pictures together, in bytes.
    pub max_decode_bytes: u64,
    /// How long a refusal of uploads is remembered.
    pub asset_memory: Duration,
}

impl Settings {
    /// The memory that one picture takes on its way, in bytes: as it came, and as an inline body.
    pub fn inline_memory(&self) -> u64 {
        (InlineImage::largest(self.inline_limit) + self.inline_limit) as u64
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

/// A picture's embedding.
#[derive(Debug)]
pub struct Embedding {
    /// The numbers.
    pub vector: Vector,
    /// What NVIDIA was given.
    pub prepared: Prepared,
    /// Inference calls that it took.
    pub tries: u32,
}

/// Why there is no embedding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The picture cannot be decoded.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// NVIDIA does not give one.
    #[error(transparent)]
    Nvidia(#[from] nvidia::Error),
    /// The deadline passed before the picture's turn came.
    #[error("the deadline passed while waiting for {0}")]
    Busy(&'static str),
    /// The smallest JPEG of the picture does not fit inline.
    #[error("the picture cannot be made small enough")]
    StillTooLarge,
    /// A decoder panicked.
    #[error("the decoder died")]
    Died(#[from] JoinError),
}

/// Turns pictures into embeddings. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    nvidia: nvidia::Client,
    settings: Settings,
    slots: Semaphore,
    decoding: Budget,
    assets_refused: Mutex<Option<Instant>>,
}

/// How sending a picture ended.
enum Sent {
    Embedded(Embedding),
    /// Uploads are refused.
    Refused(nvidia::Error),
    /// It does not fit inline, and is not to be uploaded.
    TooLarge,
}

/// A re-encoded picture, with the part of the decode budget that its bytes take.
struct Encoded {
    jpeg: Content,
    _reserved: Reserved,
}

impl Embedder {
    /// An embedder on top of a client.
    pub fn new(nvidia: nvidia::Client, settings: Settings) -> Self {
        Self(Arc::new(Inner {
            nvidia,
            slots: Semaphore::new(settings.max_concurrency),
            decoding: Budget::new(settings.max_decode_bytes),
            assets_refused: Mutex::new(None),
            settings,
        }))
    }

    /// The largest picture that goes inline, in bytes.
    pub fn largest_inline(&self) -> usize {
        InlineImage::largest(self.0.settings.inline_limit)
    }

    /// The memory that one picture takes on its way, in bytes.
    pub fn inline_memory(&self) -> u64 {
        self.0.settings.inline_memory()
    }

    /// What NVIDIA last thought of the key.
    pub fn key_state(&self) -> nvidia::KeyState {
        self.0.nvidia.key_state()
    }

    /// Computes the embedding before the deadline.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn embed(&self, picture: &Picture, deadline: Instant) -> Result<Embedding, Error> {
        let slot = timeout_at(deadline, self.0.slots.acquire()).await;
        let Ok(Ok(_slot)) = slot else { return Err(Error::Busy("a call to NVIDIA")) };
        let sent = match picture.format {
            Format::Jpeg | Format::Png => {
                self.send(&picture.content, picture.format, Prepared::Original, deadline).await?
            }
            Format::WebP | Format::Gif | Format::Bmp | Format::Tiff => {
                let encoded = self.encode(picture, Target::Converted, deadline).await?;
                self.send(&encoded.jpeg, Format::Jpeg, Prepared::Jpeg, deadline).await?
            }
        };
        let refusal = match sent {
            Sent::Embedded(embedding) => return Ok(embedding),
            Sent::Refused(refusal) => Some(refusal),
            Sent::TooLarge => None,
        };
        // What was encoded above is dropped by now: it would hold memory that this waits for.
        let target = Target::Shrunk { max_len: self.largest_inline() };
        let encoded = self.encode(picture, target, deadline).await?;
        let sent = self.send(&encoded.jpeg, Format::Jpeg, Prepared::Shrunk, deadline).await?;
        if let Some(refusal) = refusal {
            // Only now: a picture that NVIDIA takes in no way says nothing of uploads.
            self.note_refusal(&refusal);
        }
        match sent {
            Sent::Embedded(embedding) => Ok(embedding),
            Sent::Refused(refusal) => Err(refusal.into()),
            Sent::TooLarge => Err(Error::StillTooLarge),
        }
    }

    /// Sends bytes that NVIDIA reads, by the way that fits their size.
    async fn send(
        &self,
        content: &Content,
        format: Format,
        prepared: Prepared,
        deadline: Instant,
    ) -> Result<Sent, nvidia::Error> {
        let media_type = format.media_type();
        let inferred = match content {
            Content::Memory(bytes) if bytes.len() <= self.largest_inline() => {
                self.0.nvidia.infer(&InlineImage::new(media_type, bytes), deadline).await?
            }
            _ if prepared == Prepared::Shrunk || !self.may_upload() => return Ok(Sent::TooLarge),
            _ => match self.infer_uploaded(media_type, content, deadline).await {
                Ok(inferred) => inferred,
                Err(refusal) if refusal.verdict == Verdict::NoAssets => {
                    return Ok(Sent::Refused(refusal));
                }
                Err(failure) => return Err(failure),
            },
        };
        Ok(Sent::Embedded(Embedding { vector: inferred.vector, prepared, tries: inferred.tries }))
    }

    async fn infer_uploaded(
        &self,
        media_type: &str,
        content: &Content,
        deadline: Instant,
    ) -> Result<Inferred, nvidia::Error> {
        let asset = self.0.nvidia.upload(media_type, content, deadline).await?;
        self.0.nvidia.infer_asset(&asset, deadline).await
    }

    /// Re-encodes off the async threads, within the memory that all decodes share.
    async fn encode(
        &self,
        picture: &Picture,
        target: Target,
        deadline: Instant,
    ) -> Result<Encoded, Error> {
        let asked = picture.clone();
        let cost = spawn_blocking(move || target.cost(&asked)).await??;
        let mut reserved = match self.0.decoding.reserve(cost, deadline).await {
            Ok(reserved) => reserved,
            Err(budget::Error::TooLarge { wanted, total }) => {
                return Err(image::Error::TooMuchToDecode { needed: wanted, limit: total }.into());
            }
            Err(budget::Error::Exhausted) => return Err(Error::Busy("memory to decode in")),
        };
        let picture = picture.clone();
        // The reservation goes along: the thread works on when nobody waits for it any more.
        spawn_blocking(move || {
            let jpeg = target.encode(&picture, cost)?;
            reserved.shrink_to(jpeg.len() as u64);
            Ok(Encoded { jpeg: Content::Memory(jpeg.into()), _reserved: reserved })
        })
        .await?
    }

    fn may_upload(&self) -> bool {
        let refused = *self.0.assets_refused.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.settings.large_images == LargeImages::Asset
            && refused.is_none_or(|at| at.elapsed() >= self.0.settings.asset_memory)
    }

    fn note_refusal(&self, refusal: &nvidia::Error) {
        tracing::warn!(
            error = %refusal,
            spared_s = self.0.settings.asset_memory.as_secs(),
            "NVIDIA does not take uploads: large pictures are shrunk instead"
        );
        *self.0.assets_refused.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now());
    }
}
