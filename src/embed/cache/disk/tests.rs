//! Tests of the cache on disk.

use std::time::Duration;

use tempfile::TempDir;

use super::{
    super::tests::{embedding_of, key_of},
    *,
};
use crate::{disk_space::FreeSpace, embed::Prepared};

/// A cached embedding of a shrunk picture. All its numbers are `number`.
fn cached(number: &str) -> CachedEmbedding {
    CachedEmbedding { prepared: Prepared::Shrunk, ..(&embedding_of(number)).into() }
}

fn new_disk(max_bytes: u64) -> (TempDir, Disk) {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(&folder, max_bytes);
    (folder, disk)
}

/// Opens the cache in a subfolder of `folder`.
fn open(folder: &TempDir, max_bytes: u64) -> Disk {
    let space = DiskSpace::new(folder.path().to_owned(), 0);
    Disk::new(folder.path().join(".vectors"), max_bytes, space)
}

/// The size on disk of one vector's file.
fn file_size() -> u64 {
    size_on_disk(encode(&key_of(0), &cached("0.5")).len() as u64)
}

/// The size of all files on disk.
fn total_size(disk: &Disk) -> u64 {
    let entries_of =
        |folder: &Path| entries(folder).unwrap().map(Result::unwrap).collect::<Vec<_>>();
    let folders = entries_of(&disk.folder);
    let files = folders.iter().flat_map(|folder| entries_of(&folder.path()));
    files.map(|file| size_on_disk(file.metadata().unwrap().len())).sum()
}

/// Sets the modification time of a key's file to `seconds` seconds before now.
fn set_age(disk: &Disk, key: &CacheKey, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    File::options().append(true).open(disk.path(key)).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_vector_is_read_exactly_as_it_was_written() {
    let (_folder, disk) = new_disk(1 << 20);
    disk.write(&key_of(0xab), &cached("-0.10e-2"));
    let read = disk.read(&key_of(0xab)).unwrap();
    assert_eq!(read.vector.json().get(), cached("-0.10e-2").vector.json().get());
    assert_eq!(read.prepared, Prepared::Shrunk);
    assert!(disk.read(&key_of(0xac)).is_none());
    let name = "ab".repeat(32);
    let text = fs::read_to_string(disk.folder.join("ab").join(name)).unwrap();
    assert!(text.starts_with("imagesvc-vector 2 shrunk "), "{text:.60}");
}

#[test]
fn a_vector_that_replaces_another_does_not_increase_the_used_bytes() {
    // With the lower limit, the old file is removed before the new one is written.
    for max_bytes in [file_size(), 10 * file_size()] {
        let (_folder, disk) = new_disk(max_bytes);
        for number in ["0.1", "0.2", "0.3"] {
            disk.write(&key_of(1), &cached(number));
            let read = disk.read(&key_of(1)).unwrap();
            assert_eq!(read.vector.json().get(), cached(number).vector.json().get());
        }
        assert_eq!((*disk.used_bytes(), total_size(&disk)), (Some(file_size()), file_size()));
    }
}

#[test]
fn after_a_clean_up_the_cache_knows_which_files_do_not_exist() {
    let (folder, disk) = new_disk(2 * file_size());
    disk.write(&key_of(1), &cached("0.5"));
    let disk = open(&folder, 2 * file_size());
    let may_contain = || [1, 2, 3].map(|n| disk.may_contain(&key_of(n)));
    assert_eq!(may_contain(), [true, true, true]);
    disk.clean_up();
    assert_eq!(may_contain(), [true, false, false]);
    disk.write(&key_of(2), &cached("0.5"));
    // This write would exceed the limit. So old files are removed until all files, with the new one,
    // take at most seven eighths of the limit: only the new one stays.
    disk.write(&key_of(3), &cached("0.5"));
    assert_eq!(may_contain(), [false, false, true]);
}

#[test]
fn a_file_with_the_content_of_another_key_is_ignored() {
    let (_folder, disk) = new_disk(1 << 20);
    disk.write(&key_of(1), &cached("0.5"));
    let other = disk.path(&key_of(2));
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::copy(disk.path(&key_of(1)), other).unwrap();
    assert!(disk.read(&key_of(2)).is_none());
}

#[test]
fn the_oldest_files_are_removed_when_the_limit_is_reached() {
    let (_folder, disk) = new_disk(file_size() * 10);
    for n in 0..30u8 {
        disk.write(&key_of(n), &cached("0.5"));
        set_age(&disk, &key_of(n), 1000 - u64::from(n));
        let total = total_size(&disk);
        assert!(total <= file_size() * 10, "{total}");
        assert_eq!(*disk.used_bytes(), Some(total));
        assert!(disk.read(&key_of(n)).is_some(), "the newest file must stay");
    }
    let rest: Vec<_> = (0..30u8).filter(|n| disk.read(&key_of(*n)).is_some()).collect();
    // If a write would exceed the limit, old files are removed until all files, with the new one, take at
    // most seven eighths of the limit.
    assert!(rest.len() >= 8, "too many files were removed; the rest is {rest:?}");
    let newest: Vec<_> = (30 - rest.len() as u8..30).collect();
    assert_eq!(rest, newest);
}

#[test]
fn files_that_the_cache_did_not_write_are_not_counted_and_not_removed() {
    let (folder, disk) = new_disk(file_size() * 2);
    disk.write(&key_of(0xab), &cached("0.5"));
    // None of these names consists of 64 hexadecimal digits.
    let names = ["notes.txt", &"g".repeat(64), &"ab".repeat(31), &"+1".repeat(32)];
    for name in names {
        fs::write(disk.path(&key_of(0xab)).with_file_name(name), "x".repeat(100_000)).unwrap();
    }
    let reopened = open(&folder, file_size() * 2);
    reopened.clean_up();
    assert_eq!(*reopened.used_bytes(), Some(file_size()));
    assert!(reopened.read(&key_of(0xab)).is_some());
    assert!(names.iter().all(|name| disk.path(&key_of(0xab)).with_file_name(name).exists()));
    // A name that the cache itself writes is recognized.
    let parsed_name = Sha256::from_hex(key_of(0xab).to_string().as_bytes());
    assert_eq!(parsed_name.map(CacheKey), Some(key_of(0xab)));
}

#[test]
fn no_vector_is_written_if_the_limit_is_smaller_than_one_vector() {
    let (_folder, disk) = new_disk(100);
    disk.write(&key_of(1), &cached("0.5"));
    assert_eq!(total_size(&disk), 0);
}

#[test]
fn a_clean_up_removes_unfinished_files_and_enforces_a_lowered_limit() {
    let (folder, disk) = new_disk(file_size() * 10);
    for n in 0..10u8 {
        disk.write(&key_of(n), &cached("0.5"));
        set_age(&disk, &key_of(n), 1000 - u64::from(n));
    }
    fs::write(disk.folder.join(STAGING_FOLDER).join("0"), "unfinished").unwrap();
    let disk = open(&folder, file_size() * 3);
    disk.clean_up();
    // Unlike a write, a clean-up removes no more files than necessary.
    assert_eq!(total_size(&disk), file_size() * 3);
    assert!((7..10u8).all(|n| disk.read(&key_of(n)).is_some()));
    assert!(entries(&disk.folder.join(STAGING_FOLDER)).unwrap().next().is_none());
}

#[test]
fn a_cache_whose_folder_was_unusable_works_again_without_a_restart() {
    let (_folder, disk) = new_disk(1 << 20);
    fs::write(&disk.folder, "a file where the folder should be").unwrap();
    disk.clean_up();
    disk.write(&key_of(1), &cached("0.5"));
    assert!(disk.read(&key_of(1)).is_none());
    assert!(disk.is_failing.load(Ordering::Relaxed));
    fs::remove_file(&disk.folder).unwrap();
    disk.write(&key_of(1), &cached("0.5"));
    assert!(disk.read(&key_of(1)).is_some());
    assert!(!disk.is_failing.load(Ordering::Relaxed));
    // The cache also works if somebody removes the folder.
    fs::remove_dir_all(&disk.folder).unwrap();
    disk.write(&key_of(1), &cached("0.5"));
    assert!(disk.read(&key_of(1)).is_some());
}

#[test]
fn a_folder_in_place_of_a_file_is_ignored() {
    let (_folder, disk) = new_disk(1 << 20);
    fs::create_dir_all(disk.path(&key_of(1))).unwrap();
    assert!(disk.read(&key_of(1)).is_none());
    disk.write(&key_of(1), &cached("0.5"));
    assert!(disk.read(&key_of(1)).is_none());
    disk.write(&key_of(2), &cached("0.5"));
    assert!(disk.read(&key_of(2)).is_some());
}

#[test]
fn no_vector_is_written_into_the_reserve_of_the_disk() {
    const RESERVE: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".vectors");
    // In addition to the reserve, the disk has space for three vectors.
    let capacity = 3 * file_size();
    let measured_path = path.clone();
    let space = DiskSpace::with_measure(path.clone(), RESERVE, move |_| {
        let folders = fs::read_dir(&measured_path).into_iter().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        let used: u64 =
            files.map(|file| size_on_disk(file.unwrap().metadata().unwrap().len())).sum();
        Ok(FreeSpace { bytes: RESERVE + capacity - used, inodes: None })
    });
    // A picture on the same disk is being received, and holds a permit for the space of one vector.
    let mut picture = space.empty_permit();
    picture.blocking_grow_to(file_size()).unwrap();
    let disk = Disk::new(path, 1 << 30, space);
    for n in 0..3 {
        disk.write(&key_of(n), &cached("0.5"));
    }
    assert_eq!(total_size(&disk), 2 * file_size());
    assert!(disk.read(&key_of(1)).is_some() && disk.read(&key_of(2)).is_none());
    drop(picture);
    disk.write(&key_of(2), &cached("0.5"));
    assert!(disk.read(&key_of(2)).is_some());
}
