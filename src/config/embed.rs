//! Settings for embedding: how pictures are sent to NVIDIA, and how vectors are cached.

use super::{parse, reader::Reader, setting::Setting};
use crate::{
    embed::{CallSettings, FAILED_UPLOAD_PAUSE, LargeImages, REFUSED_UPLOAD_PAUSE, Settings},
    pipeline::Limits,
    store,
};

pub(super) const LARGE_IMAGES: Setting<LargeImages> = Setting::new(
    "NVIDIA_LARGE_IMAGES",
    "asset",
    parse_large_images,
    "asset: upload large pictures, and shrink them if uploads fail; shrink: always shrink them",
);

pub(super) const INLINE_LIMIT: Setting<usize> = Setting::new(
    "NVIDIA_INLINE_LIMIT",
    "200000",
    // With a limit below 20,000, large pictures might be shrunk to thumbnails.
    // NVIDIA refuses texts of 200,000 characters or more.
    |text| parse::number(text, 20_000..=200_000),
    "Pictures whose Base64 text has at least this many characters count as large",
);

pub(super) const MAX_CONCURRENCY: Setting<usize> = Setting::new(
    "NVIDIA_MAX_CONCURRENCY",
    "32",
    |text| parse::number(text, 1..=1024),
    "The most calls to NVIDIA at once",
);

pub(super) const CACHE_MEMORY: Setting<u64> = Setting::new(
    "IMAGESVC_CACHE_MEMORY",
    "64MiB",
    parse::size,
    "The most memory for cached vectors; 0 turns the cache in memory off",
);

pub(super) const CACHE_DISK: Setting<u64> = Setting::new(
    "IMAGESVC_CACHE_DISK",
    "1GiB",
    parse::size,
    "The most disk space for cached vectors; 0 turns the cache on disk off",
);

/// Reads the settings for embedding. The cache's folder is inside the downloads folder, so the store's
/// `space` also grants the space for cached vectors.
pub(super) fn resolve(
    reader: &mut Reader<'_>,
    store: &store::Settings,
    limits: &Limits,
) -> Settings {
    Settings {
        call: CallSettings {
            large_images: reader.value(&LARGE_IMAGES),
            inline_limit: reader.value(&INLINE_LIMIT),
            max_image_bytes: limits.max_image_bytes,
            max_concurrency: reader.value(&MAX_CONCURRENCY),
            refused_upload_pause: REFUSED_UPLOAD_PAUSE,
            failed_upload_pause: FAILED_UPLOAD_PAUSE,
        },
        cache_memory: reader.value(&CACHE_MEMORY),
        cache_disk: reader.value(&CACHE_DISK),
        cache_folder: store.folder.join(".vectors"),
        cache_space: store.space.clone(),
    }
}

fn parse_large_images(text: &str) -> Result<LargeImages, String> {
    match text {
        "asset" => Ok(LargeImages::Asset),
        "shrink" => Ok(LargeImages::Shrink),
        _ => Err("must be asset or shrink".into()),
    }
}
