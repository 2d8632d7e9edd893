//! Settings for saving pictures, and for removing old ones.

use std::{path::PathBuf, time::Duration};

use super::{
    parse,
    reader::Reader,
    setting::{OptionalSetting, Setting},
};
use crate::{
    disk_space::DiskSpace,
    store::{Retention, Settings},
};

pub(super) const DOWNLOADS_DIR: Setting<PathBuf> = Setting::new(
    "IMAGESVC_DOWNLOADS_DIR",
    "downloads",
    parse::path,
    "The folder in which pictures are saved",
);

pub(super) const MIN_FREE_BYTES: Setting<u64> = Setting::new(
    "IMAGESVC_MIN_FREE_BYTES",
    "256MiB",
    parse::size,
    "The disk space that always stays free; 1 % of the inodes (at most 10,000) also stay free",
);

pub(super) const DOWNLOADS_MAX_AGE: OptionalSetting<Duration> = OptionalSetting::new(
    "IMAGESVC_DOWNLOADS_MAX_AGE",
    parse::age,
    "Remove saved pictures that are older than this (for example 90days); without it, pictures stay",
);

pub(super) const DOWNLOADS_MAX_BYTES: OptionalSetting<u64> = OptionalSetting::new(
    "IMAGESVC_DOWNLOADS_MAX_BYTES",
    parse::max_saved_bytes,
    "When the saved pictures together exceed this size (for example 50GiB), remove the oldest; without it, pictures stay",
);

/// Reads the settings for saving pictures.
pub(super) fn resolve(reader: &mut Reader<'_>) -> Settings {
    let folder = reader.value(&DOWNLOADS_DIR);
    Settings {
        space: DiskSpace::new(folder.clone(), reader.value(&MIN_FREE_BYTES)),
        folder,
        retention: Retention {
            max_age: reader.optional(&DOWNLOADS_MAX_AGE),
            max_bytes: reader.optional(&DOWNLOADS_MAX_BYTES),
        },
    }
}
