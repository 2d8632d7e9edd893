//! A folder with as much in it as years leave behind.

use std::{
    fs::{self, File},
    path::Path,
};

const PICTURES: u64 = 100_000;
const VECTORS: u64 = 50_000;

/// What a file of the cache holds, in bytes.
const VECTOR: u64 = 19_000;

/// Makes pictures and cached vectors, with names and lengths as the service gives them. They hold
/// nothing: the service looks into no file that nobody asks for.
pub fn fill(downloads: &Path) {
    fs::create_dir_all(downloads).unwrap();
    for n in 0..PICTURES {
        let name = format!("0191f0a0-0000-7000-8000-{n:012x}.jpg");
        File::create(downloads.join(name)).unwrap().set_len(34 * 1024).unwrap();
    }
    let vectors = downloads.join(".vectors");
    for folder in 0..256 {
        fs::create_dir_all(vectors.join(format!("{folder:02x}"))).unwrap();
    }
    for n in 0..VECTORS {
        let folder = n % 256;
        let name = format!("{folder:02x}/{folder:02x}{n:014x}{:048x}", 0);
        File::create(vectors.join(name)).unwrap().set_len(VECTOR).unwrap();
    }
    // As with every folder that is measured.
    rustix::fs::sync();
}
