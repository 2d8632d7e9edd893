//! Where pictures are saved, and how long they are kept.

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

pub(super) const DOWNLOADS_DIR: Setting<PathBuf> =
    Setting::new("IMAGESVC_DOWNLOADS_DIR", "downloads", parse::path, "Where pictures are saved");

pub(super) const MIN_FREE_BYTES: Setting<u64> = Setting::new(
    "IMAGESVC_MIN_FREE_BYTES",
    "256MiB",
    parse::size,
    "Free disk that is never used up; of the inodes, one in a hundred stays free as well",
);

pub(super) const DOWNLOADS_MAX_AGE: Optional<Duration> = Optional::new(
    "IMAGESVC_DOWNLOADS_MAX_AGE",
    parse::age,
    "Remove saved pictures that are older (90days)",
);

pub(super) const DOWNLOADS_MAX_BYTES: Optional<u64> = Optional::new(
    "IMAGESVC_DOWNLOADS_MAX_BYTES",
    parse::positive_size,
    "Remove the oldest saved pictures beyond this (50GiB)",
);

/// Where pictures are saved.
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
