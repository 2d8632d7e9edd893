//! Settings for turning pictures into embeddings.

use std::{path::PathBuf, time::Duration};

use crate::{disk_space::DiskSpace, nvidia::InlineImage};

/// How long nothing is uploaded after NVIDIA refused an upload. During this time, large pictures
/// are shrunk.
pub const REFUSED_UPLOAD_PAUSE: Duration = Duration::from_secs(600);

/// How long nothing is uploaded after an upload failed for another reason. This is shorter, because
/// an outage may end soon.
pub const FAILED_UPLOAD_PAUSE: Duration = Duration::from_secs(60);

/// Settings for turning pictures into embeddings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How pictures are prepared and sent.
    pub call: CallSettings,
    /// The most memory for cached vectors, in bytes; 0 turns the cache in memory off.
    pub cache_memory: u64,
    /// The most disk space for cached vectors, in bytes; 0 turns the cache on disk off.
    pub cache_disk: u64,
    /// The folder for cached vectors.
    pub cache_folder: PathBuf,
    /// Reserves space on the disk of `cache_folder`.
    pub cache_space: DiskSpace,
}

/// How pictures are prepared and sent.
#[derive(Debug, Clone)]
pub struct CallSettings {
    /// What happens to pictures that are too large to go inline.
    pub large_images: LargeImages,
    /// The Base64 text of an inline picture is shorter than this number of characters.
    pub inline_limit: usize,
    /// The longest picture that is sent to NVIDIA, in bytes. This also limits re-encoded pictures,
    /// which may be longer than their originals.
    pub max_image_bytes: u64,
    /// The most calls to NVIDIA at once.
    pub max_concurrency: usize,
    /// [`REFUSED_UPLOAD_PAUSE`], except in tests.
    pub refused_upload_pause: Duration,
    /// [`FAILED_UPLOAD_PAUSE`], except in tests.
    pub failed_upload_pause: Duration,
}

/// What happens to pictures that are too large to go inline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LargeImages {
    /// They are uploaded as assets. If uploads do not work, they are shrunk.
    Asset,
    /// They are always shrunk.
    Shrink,
}

impl CallSettings {
    /// The largest picture that is sent inline, in bytes.
    pub fn largest_inline(&self) -> usize {
        InlineImage::largest_picture(self.inline_limit)
    }

    /// The most calls that one batch makes at once: three quarters of the calls that may run at
    /// once. The rest is for other pictures of the same client. (Among clients, the queue shares the calls.)
    pub fn max_concurrent_calls_per_batch(&self) -> usize {
        (self.max_concurrency * 3 / 4).max(1)
    }

    /// The most memory that one picture needs until its inline request has been sent, in bytes: for
    /// the original, for the JPEG made from the original, and for the request. An original or a JPEG
    /// that is larger than [`Self::largest_inline`] is in a file instead.
    pub fn inline_memory(&self) -> u64 {
        (2 * self.largest_inline() + self.inline_limit) as u64
    }
}
