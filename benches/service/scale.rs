//! Fills a downloads folder with as many files as it may contain after long use.

use std::{
    fs::{self, File},
    path::Path,
};

/// The number of saved pictures.
const PICTURES: u64 = 100_000;

/// The size of a saved picture's file, in bytes.
const PICTURE_BYTES: u64 = 34 * 1024;

/// The number of cached vectors.
const VECTORS: u64 = 50_000;

/// The size of a cached vector's file, in bytes.
const VECTOR_BYTES: u64 = 19_000;

/// Creates files with the names and sizes of saved pictures and cached vectors. The files contain only
/// zeros and are sparse, because the service reads only the files that a request needs.
pub fn fill(downloads: &Path) {
    fs::create_dir_all(downloads).unwrap();
    for n in 0..PICTURES {
        let name = format!("0191f0a0-0000-7000-8000-{n:012x}.jpg");
        File::create(downloads.join(name)).unwrap().set_len(PICTURE_BYTES).unwrap();
    }
    let vectors = downloads.join(".vectors");
    // The cache uses a subfolder for each first byte of a vector's key.
    for folder in 0..256 {
        fs::create_dir_all(vectors.join(format!("{folder:02x}"))).unwrap();
    }
    for n in 0..VECTORS {
        let folder = n % 256;
        let name = format!("{folder:02x}/{folder:02x}{n:014x}{:048x}", 0);
        File::create(vectors.join(name)).unwrap().set_len(VECTOR_BYTES).unwrap();
    }
    // These writes must not slow down the next measurement.
    rustix::fs::sync();
}
