//! How a picture becomes an embedding: what NVIDIA is given, and what is remembered.

use super::{parse, reader::Reader, row::Setting};
use crate::{
    embed::{ASSET_MEMORY, CallSettings, LargeImages, OUTAGE_MEMORY, Settings},
    pipeline::Limits,
    store,
};

pub(super) const LARGE_IMAGES: Setting<LargeImages> = Setting::new(
    "NVIDIA_LARGE_IMAGES",
    "asset",
    large_images,
    "asset: upload large pictures (shrink if refused); shrink: never upload",
);

pub(super) const INLINE_LIMIT: Setting<usize> = Setting::new(
    "NVIDIA_INLINE_LIMIT",
    "200000",
    // Below the minimum even a thumbnail would not fit; NVIDIA's own bound is the default.
    |text| parse::number(text, 20_000..=200_000),
    "Base64 characters from which a picture counts as large",
);

pub(super) const MAX_CONCURRENCY: Setting<usize> = Setting::new(
    "NVIDIA_MAX_CONCURRENCY",
    "32",
    |text| parse::number(text, 1..=1024),
    "Pictures with NVIDIA at once",
);

pub(super) const CACHE_MEMORY: Setting<u64> = Setting::new(
    "IMAGESVC_CACHE_MEMORY",
    "64MiB",
    parse::size,
    "Vectors kept in memory; 0 turns it off",
);

pub(super) const CACHE_DISK: Setting<u64> = Setting::new(
    "IMAGESVC_CACHE_DISK",
    "1GiB",
    parse::size,
    "Vectors kept on disk; 0 turns it off",
);

/// How a picture becomes an embedding. Vectors on disk stand in a folder under that of the pictures,
/// and share its disk with them.
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
            asset_memory: ASSET_MEMORY,
            outage_memory: OUTAGE_MEMORY,
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
