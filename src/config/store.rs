//! Settings of the store: where pictures are saved, and how long they are kept.

use std::{path::PathBuf, time::Duration};

use super::{
    parse,
    reader::Reader,
    row::{Optional, Setting},
};
use crate::{
    disk_space::DiskSpace,
    store::{Retention, Settings},
};

pub(super) const DOWNLOADS_DIR: Setting<PathBuf> = Setting::new(
    "IMAGESVC_DOWNLOADS_DIR",
    "downloads",
    parse::path,
    "The folder that pictures are saved in",
);

pub(super) const MIN_FREE_BYTES: Setting<u64> = Setting::new(
    "IMAGESVC_MIN_FREE_BYTES",
    "256MiB",
    parse::size,
    "Disk space that stays free; one inode in a hundred stays free as well",
);

pub(super) const DOWNLOADS_MAX_AGE: Optional<Duration> = Optional::new(
    "IMAGESVC_DOWNLOADS_MAX_AGE",
    parse::age,
    "Remove saved pictures that are older than this (90days)",
);

pub(super) const DOWNLOADS_MAX_BYTES: Optional<u64> = Optional::new(
    "IMAGESVC_DOWNLOADS_MAX_BYTES",
    parse::positive_size,
    "Remove the oldest saved pictures when all together exceed this size (50GiB)",
);

/// Reads the settings of the store.
pub(super) fn resolve(read: &mut Reader<'_>, downloads: PathBuf) -> Settings {
    Settings {
        space: DiskSpace::new(downloads.clone(), read.value(&MIN_FREE_BYTES)),
        folder: downloads,
        retention: Retention {
            max_age: read.optional(&DOWNLOADS_MAX_AGE),
            max_bytes: read.optional(&DOWNLOADS_MAX_BYTES),
        },
    }
}
