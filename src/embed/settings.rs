//! The settings of how a picture becomes an embedding.

use std::{path::PathBuf, time::Duration};

use crate::{disk_space::DiskSpace, nvidia::InlineImage};

/// How long a refusal of uploads is remembered.
pub const ASSET_MEMORY: Duration = Duration::from_secs(600);

/// How long it is remembered that uploads failed without being refused: an outage may be short.
pub const OUTAGE_MEMORY: Duration = Duration::from_secs(60);

/// How a picture becomes an embedding.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What NVIDIA is given, and how.
    pub ask: AskSettings,
    /// Memory for vectors, in bytes; 0 is none.
    pub cache_memory: u64,
    /// Disk for vectors, in bytes; 0 is none.
    pub cache_disk: u64,
    /// The folder of the vectors on disk.
    pub cache_folder: PathBuf,
    /// The disk that it is on, and what stays free there.
    pub cache_space: DiskSpace,
}

/// What NVIDIA is given, and how.
#[derive(Debug, Clone)]
pub struct AskSettings {
    /// What is done with pictures that do not fit inline.
    pub large_images: LargeImages,
    /// The base64 text of an inline picture is shorter than this, in characters.
    pub inline_limit: usize,
    /// The longest picture that NVIDIA is given, in bytes: one that is converted may become longer.
    pub max_image_bytes: u64,
    /// Pictures that are with NVIDIA at once.
    pub max_concurrency: usize,
    /// How long a refusal of uploads is remembered.
    pub asset_memory: Duration,
    /// How long an outage of uploads is remembered.
    pub outage_memory: Duration,
}

/// What is done with pictures that do not fit inline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LargeImages {
    /// They are uploaded; where that is refused, shrunk.
    Asset,
    /// They are shrunk.
    Shrink,
}

impl AskSettings {
    /// The largest picture that goes inline, in bytes.
    pub fn largest_inline(&self) -> usize {
        InlineImage::largest(self.inline_limit)
    }

    /// The memory that one picture takes on its way, in bytes: as it came, re-encoded, and as an
    /// inline body.
    pub fn inline_memory(&self) -> u64 {
        (2 * self.largest_inline() + self.inline_limit) as u64
    }
}
