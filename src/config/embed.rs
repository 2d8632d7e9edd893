//! Settings of embedding: what is sent to NVIDIA, and what is cached.

use super::{parse, reader::Reader, row::Setting};
use crate::{
    embed::{REFUSED_UPLOAD_PAUSE, CallSettings, LargeImages, FAILED_UPLOAD_PAUSE, Settings},
    pipeline::Limits,
    store,
};

pub(super) const LARGE_IMAGES: Setting<LargeImages> = Setting::new(
    "NVIDIA_LARGE_IMAGES",
    "asset",
    large_images,
    "asset: upload large pictures, and shrink them if NVIDIA refuses; shrink: never upload",
);

pub(super) const INLINE_LIMIT: Setting<usize> = Setting::new(
    "NVIDIA_INLINE_LIMIT",
    "200000",
    // A lower limit would be too small for a thumbnail; NVIDIA's own limit is the default.
    |text| parse::number(text, 20_000..=200_000),
    "Pictures with this many Base64 characters or more count as large",
);

pub(super) const MAX_CONCURRENCY: Setting<usize> = Setting::new(
    "NVIDIA_MAX_CONCURRENCY",
    "32",
    |text| parse::number(text, 1..=1024),
    "The most pictures that are sent to NVIDIA at once",
);

pub(super) const CACHE_MEMORY: Setting<u64> = Setting::new(
    "IMAGESVC_CACHE_MEMORY",
    "64MiB",
    parse::size,
    "Size of the vectors' cache in memory; 0 turns it off",
);

pub(super) const CACHE_DISK: Setting<u64> = Setting::new(
    "IMAGESVC_CACHE_DISK",
    "1GiB",
    parse::size,
    "Size of the vectors' cache on disk; 0 turns it off",
);

/// Reads the settings of embedding. The cache on disk is a folder inside the pictures' folder, so
/// both share the reserve of free disk space.
pub(super) fn resolve(
    read: &mut Reader<'_>,
    pictures: &store::Settings,
    limits: &Limits,
) -> Settings {
    Settings {
        call: CallSettings {
            large_images: read.value(&LARGE_IMAGES),
            inline_limit: read.value(&INLINE_LIMIT),
            max_image_bytes: limits.max_image_bytes,
            max_concurrency: read.value(&MAX_CONCURRENCY),
            refused_upload_pause: REFUSED_UPLOAD_PAUSE,
            failed_upload_pause: FAILED_UPLOAD_PAUSE,
        },
        cache_memory: read.value(&CACHE_MEMORY),
        cache_disk: read.value(&CACHE_DISK),
        cache_folder: pictures.folder.join(".vectors"),
        cache_space: pictures.space.clone(),
    }
}

fn large_images(text: &str) -> Result<LargeImages, String> {
    match text {
        "asset" => Ok(LargeImages::Asset),
        "shrink" => Ok(LargeImages::Shrink),
        _ => Err("must be asset or shrink".into()),
    }
}
