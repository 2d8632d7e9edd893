use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{super::tests::key, *};
use crate::{disk_space::FreeSpace, nvidia::DIMENSIONS};

fn stored(number: &str) -> Stored {
    let text = format!("[{}]", [number; DIMENSIONS].join(", "));
    let raw = RawValue::from_string(text).unwrap();
    Stored { vector: Vector::check(&raw).unwrap(), prepared: Prepared::Shrunk, valid_until: None }
}

fn disk(limit: u64) -> (TempDir, Disk) {
    let folder = tempfile::tempdir().unwrap();
    let disk = open(&folder, limit);
    (folder, disk)
}

fn open(folder: &TempDir, limit: u64) -> Disk {
    let space = DiskSpace::new(folder.path().to_owned(), 0);
    Disk::new(folder.path().join(".vectors"), limit, space)
}

/// What a vector of `stored` takes.
fn size() -> u64 {
    whole_blocks(encode(&key(0), &stored("0.5")).len() as u64)
}

fn total(disk: &Disk) -> u64 {
    let all = |folder: &Path| entries(folder).unwrap().map(Result::unwrap).collect::<Vec<_>>();
    let folders = all(&disk.folder);
    let files = folders.iter().flat_map(|folder| all(&folder.path()));
    files.map(|file| whole_blocks(file.metadata().unwrap().len())).sum()
}

/// Makes a file older.
fn age(disk: &Disk, key: &CacheKey, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    File::options().append(true).open(disk.path(key)).unwrap().set_modified(time).unwrap();
}

#[test]
fn what_is_written_is_read_to_the_letter() {
    let (_folder, disk) = disk(1 << 20);
    disk.write(&key(0xab), &stored("-0.10e-2"));
    let read = disk.read(&key(0xab)).unwrap();
    assert_eq!(read.vector.json().get(), stored("-0.10e-2").vector.json().get());
    assert_eq!(read.prepared, Prepared::Shrunk);
    assert!(disk.read(&key(0xac)).is_none());
    let name = "ab".repeat(32);
    let text = fs::read_to_string(disk.folder.join("ab").join(name)).unwrap();
    assert!(text.starts_with("imagesvc-vector 2 shrunk "), "{text:.60}");
}

#[test]
fn a_newer_vector_replaces_the_older_and_counts_once() {
    for limit in [size(), 10 * size()] {
        let (_folder, disk) = disk(limit);
        for number in ["0.1", "0.2", "0.3"] {
            disk.write(&key(1), &stored(number));
            let read = disk.read(&key(1)).unwrap();
            assert_eq!(read.vector.json().get(), stored(number).vector.json().get());
        }
        assert_eq!((*disk.lock(), total(&disk)), (Some(size()), size()));
    }
}

#[test]
fn what_is_not_there_is_not_looked_for_once_the_folder_was_looked_through() {
    let (folder, disk) = disk(2 * size());
    disk.write(&key(1), &stored("0.5"));
    age(&disk, &key(1), 60);
    let disk = open(&folder, 2 * size());
    let held = |keys: &[u8]| keys.iter().map(|n| disk.may_hold(&key(*n))).collect::<Vec<_>>();
    assert_eq!(held(&[1, 2, 3]), [true, true, true]);
    disk.tidy();
    assert_eq!(held(&[1, 2, 3]), [true, false, false]);
    disk.write(&key(2), &stored("0.5"));
    disk.write(&key(3), &stored("0.5")); // in place of the oldest
    assert_eq!(held(&[1, 2, 3]), [false, false, true]);
}

#[test]
fn a_file_under_another_name_is_none() {
    let (_folder, disk) = disk(1 << 20);
    disk.write(&key(1), &stored("0.5"));
    let other = disk.path(&key(2));
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::copy(disk.path(&key(1)), other).unwrap();
    assert!(disk.read(&key(2)).is_none());
}

proptest! {
    #[test]
    fn any_change_of_a_byte_and_any_cut_is_noticed(
        at in any::<proptest::sample::Index>(), change in 1u8..=255, cut in any::<bool>(),
    ) {
        let whole = encode(&key(3), &stored("0.125"));
        let mut bytes = whole.clone();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= change }
        prop_assert!(decode(&key(3), &bytes).is_none());
        prop_assert!(decode(&key(3), &whole).is_some());
    }

    #[test]
    fn garbage_is_no_vector(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(decode(&key(3), &bytes).is_none());
        let framed = [MAGIC.as_bytes(), b" ", &bytes].concat();
        prop_assert!(decode(&key(3), &framed).is_none());
    }
}

#[test]
fn the_limit_holds_and_the_oldest_go_first() {
    let (_folder, disk) = disk(size() * 10);
    for n in 0..30u8 {
        disk.write(&key(n), &stored("0.5"));
        age(&disk, &key(n), 1000 - u64::from(n));
        let total = total(&disk);
        assert!(total <= size() * 10, "{total}");
        assert_eq!(*disk.lock(), Some(total));
        assert!(disk.read(&key(n)).is_some(), "the newest stays");
    }
    let kept: Vec<_> = (0..30u8).filter(|n| disk.read(&key(*n)).is_some()).collect();
    assert!(kept.len() >= 8, "{kept:?}");
    assert_eq!(kept, (30 - kept.len() as u8..30).collect::<Vec<_>>(), "the newest");
}

#[test]
fn what_somebody_else_put_there_is_neither_counted_nor_removed() {
    let (folder, disk) = disk(size() * 2);
    disk.write(&key(0xab), &stored("0.5"));
    let strange = ["notes.txt", &"g".repeat(64), &"ab".repeat(31), &"+1".repeat(32)];
    for name in strange {
        fs::write(disk.path(&key(0xab)).with_file_name(name), "x".repeat(100_000)).unwrap();
    }
    let again = open(&folder, size() * 2);
    again.tidy();
    assert_eq!(*again.lock(), Some(size()));
    assert!(again.read(&key(0xab)).is_some());
    assert!(strange.iter().all(|name| disk.path(&key(0xab)).with_file_name(name).exists()));
    let read = Sha256::from_hex(key(0xab).to_string().as_bytes());
    assert_eq!(read.map(CacheKey), Some(key(0xab)));
}

#[test]
fn a_limit_below_one_vector_keeps_none() {
    let (_folder, disk) = disk(100);
    disk.write(&key(1), &stored("0.5"));
    assert_eq!(total(&disk), 0);
}

#[test]
fn a_lower_limit_after_a_restart_and_leftovers_are_tidied() {
    let (folder, disk) = disk(size() * 10);
    for n in 0..10u8 {
        disk.write(&key(n), &stored("0.5"));
        age(&disk, &key(n), 1000 - u64::from(n));
    }
    fs::write(disk.folder.join(STAGED).join("0"), "half").unwrap();
    let disk = open(&folder, size() * 3);
    disk.tidy();
    assert_eq!(total(&disk), size() * 3);
    assert!((7..10u8).all(|n| disk.read(&key(n)).is_some()));
    assert!(entries(&disk.folder.join(STAGED)).unwrap().next().is_none());
}

#[test]
fn a_folder_that_cannot_be_used_costs_nothing_but_the_cache() {
    let (_folder, disk) = disk(1 << 20);
    fs::write(&disk.folder, "a file where the folder should be").unwrap();
    disk.tidy();
    disk.write(&key(1), &stored("0.5"));
    assert!(disk.read(&key(1)).is_none());
    assert!(disk.fails.load(Ordering::Relaxed));
    // It heals by itself.
    fs::remove_file(&disk.folder).unwrap();
    disk.write(&key(1), &stored("0.5"));
    assert!(disk.read(&key(1)).is_some());
    assert!(!disk.fails.load(Ordering::Relaxed));
    // Also from being emptied meanwhile.
    fs::remove_dir_all(&disk.folder).unwrap();
    disk.write(&key(1), &stored("0.5"));
    assert!(disk.read(&key(1)).is_some());
}

#[test]
fn a_folder_in_the_place_of_a_file_is_none() {
    let (_folder, disk) = disk(1 << 20);
    fs::create_dir_all(disk.path(&key(1))).unwrap();
    assert!(disk.read(&key(1)).is_none());
    disk.write(&key(1), &stored("0.5"));
    assert!(disk.read(&key(1)).is_none());
    disk.write(&key(2), &stored("0.5"));
    assert!(disk.read(&key(2)).is_some());
}

#[test]
fn no_vector_is_written_into_the_disks_reserve() {
    const RESERVE: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".vectors");
    // A disk with room for three of them.
    let room = 3 * size();
    let counted = path.clone();
    let space = DiskSpace::with_question(path.clone(), RESERVE, move |_| {
        let folders = fs::read_dir(&counted).into_iter().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        let used: u64 =
            files.map(|file| whole_blocks(file.unwrap().metadata().unwrap().len())).sum();
        Ok(FreeSpace { bytes: RESERVE + room - used, inodes: None })
    });
    // Pictures share the disk, and one that is being received has room of its own.
    let mut picture = space.promise();
    picture.grow_to_blocking(size()).unwrap();
    let disk = Disk::new(path, 1 << 30, space);
    for n in 0..3 {
        disk.write(&key(n), &stored("0.5"));
    }
    assert_eq!(total(&disk), 2 * size());
    assert!(disk.read(&key(1)).is_some() && disk.read(&key(2)).is_none());
    drop(picture);
    disk.write(&key(2), &stored("0.5"));
    assert!(disk.read(&key(2)).is_some());
}
