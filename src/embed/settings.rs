//! Settings for turning pictures into embeddings.

use std::{path::PathBuf, time::Duration};

use crate::{disk_space::DiskSpace, nvidia::InlineImage};

/// How long large pictures are shrunk after NVIDIA refused an upload.
pub const ASSET_MEMORY: Duration = Duration::from_secs(600);

/// How long large pictures are shrunk after an upload failed without being refused; shorter,
/// because an outage may end soon.
pub const OUTAGE_MEMORY: Duration = Duration::from_secs(60);

/// Settings for turning pictures into embeddings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How pictures are prepared and sent.
    pub call: CallSettings,
    /// Memory for cached vectors, in bytes; 0 turns this cache off.
    pub cache_memory: u64,
    /// Disk space for cached vectors, in bytes; 0 turns this cache off.
    pub cache_disk: u64,
    /// The folder for cached vectors.
    pub cache_folder: PathBuf,
    /// The room on the folder's disk.
    pub cache_space: DiskSpace,
}

/// How pictures are prepared and sent.
#[derive(Debug, Clone)]
pub struct CallSettings {
    /// What happens to pictures that are too large to go inline.
    pub large_images: LargeImages,
    /// The Base64 text of an inline picture is shorter than this, in characters.
    pub inline_limit: usize,
    /// The longest picture that is sent to NVIDIA, in bytes. A re-encoded picture may be longer
    /// than the original.
    pub max_image_bytes: u64,
    /// The most calls to NVIDIA at once.
    pub max_concurrency: usize,
    /// How long large pictures are shrunk after NVIDIA refused an upload.
    pub asset_memory: Duration,
    /// How long large pictures are shrunk after an upload failed.
    pub outage_memory: Duration,
}

/// What happens to pictures that are too large to go inline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LargeImages {
    /// They are uploaded, and shrunk only where that does not work.
    Asset,
    /// They are always shrunk.
    Shrink,
}

impl CallSettings {
    /// The largest picture that is sent inline, in bytes.
    pub fn largest_inline(&self) -> usize {
        InlineImage::largest_picture(self.inline_limit)
    }

    /// The memory that one picture needs on its way, in bytes: for the original, for its JPEG, and
    /// for the inline request.
    pub fn inline_memory(&self) -> u64 {
        (2 * self.largest_inline() + self.inline_limit) as u64
    }
}
