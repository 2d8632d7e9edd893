//! Saved files after kills, on full disks, and with few free inodes.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use imagesvc::disk_space::{DiskSpace, FreeSpace, Inodes};
use sha2::{Digest, Sha256};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use crate::support::{
    Config, FakeNvidia, ROCKET, ServiceProcess, TestApp, assert_problem, noise_png, post_head,
    report_skip, tiny, variant, wait_for,
};

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The names in a folder, except hidden ones.
fn visible_names(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|name| !name.starts_with('.')).collect()
}

/// Waits until a folder is empty. The service deletes the staging file of a refused picture only
/// after it has answered.
async fn wait_until_empty(folder: &Path) {
    let is_empty = async || names(folder).is_empty();
    wait_for("the folder of staging files", Duration::from_secs(10), is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_kills_leave_only_whole_files() {
    let nvidia = FakeNvidia::healthy().await;
    let folder = tempfile::tempdir().unwrap();
    let downloads = folder.path().join("downloads");
    // The first picture stays in memory until it is saved. The second is too large for that: its
    // bytes go to a staging file as they arrive.
    let pictures = [ROCKET.to_vec(), noise_png(400, 300)];
    let digests: HashSet<_> = pictures.iter().map(Sha256::digest).collect();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let service = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
        let staging_files = names(&downloads.join(".incoming"));
        assert!(
            staging_files.is_empty(),
            "the service should delete old staging files at start: {staging_files:?}"
        );
        let mut uploads = JoinSet::new();
        for n in 0..6 {
            let request = service.upload_request(&client, &pictures[n % 2]);
            // The kill may come before or after the answer.
            uploads.spawn(async move { drop(request.send().await) });
        }
        tokio::time::sleep(Duration::from_micros(random.u64(0..30_000))).await;
        service.kill();
        while uploads.join_next().await.is_some() {}
    }
    let saved = visible_names(&downloads);
    assert!(
        saved.len() > 20,
        "more than 20 pictures should be saved before a kill, but only {} were",
        saved.len()
    );
    for name in saved {
        let bytes = std::fs::read(downloads.join(&name)).unwrap();
        assert!(
            digests.contains(&Sha256::digest(&bytes)),
            "{name} with {} bytes should be a whole picture",
            bytes.len()
        );
    }
}

/// A small file system. It is unmounted when this value is dropped.
struct SmallDisk {
    mount_point: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts the file system. If that is not allowed, prints that the test is skipped, and returns
    /// `None`. In CI, panics instead.
    fn mount(options: &str) -> Option<Self> {
        let mount_point = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(mount_point.path());
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self { mount_point });
        }
        report_skip("permission to mount a small disk");
        None
    }

    /// The downloads folder on this disk.
    fn downloads(&self) -> PathBuf {
        self.mount_point.path().join("downloads")
    }

    /// Starts a service whose downloads folder is on this disk.
    async fn start_app(&self, nvidia: &FakeNvidia) -> TestApp {
        let downloads = self.downloads();
        let app = TestApp::builder(nvidia);
        app.setting("IMAGESVC_DOWNLOADS_DIR", downloads.to_str().unwrap()).start().await
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.mount_point.path()).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_uploads_are_refused_and_leave_no_files() {
    // There is space for about six copies of ROCKET, which has 113 KB. The test uploads ten. `TestApp` sets
    // `IMAGESVC_MIN_FREE_BYTES` to 0, so the service may fill the disk.
    let Some(disk) = SmallDisk::mount("size=700k") else { return };
    let nvidia = FakeNvidia::healthy().await;
    let app = disk.start_app(&nvidia).await;
    let large = noise_png(600, 500); // 900 KB
    for answer in [app.upload(&large, "large.png").await, app.base64(&large).await] {
        assert_problem(&answer, 507, "storage_full");
    }
    let (mut saved_count, mut refused_count) = (0, 0);
    for _ in 0..10 {
        let answer = app.upload(ROCKET, "rocket.jpg").await;
        if answer.status == 200 {
            saved_count += 1;
        } else {
            assert_problem(&answer, 507, "storage_full");
            refused_count += 1;
        }
        assert_eq!(app.get("/health").await.status, 200);
    }
    assert!(
        saved_count > 2 && refused_count > 2,
        "saved: {saved_count}, refused: {refused_count}; both should be more than 2"
    );
    let downloads = disk.downloads();
    wait_until_empty(&downloads.join(".incoming")).await;
    let saved = visible_names(&downloads);
    assert_eq!(saved.len(), saved_count);
    assert!(saved.iter().all(|name| std::fs::read(downloads.join(name)).unwrap() == ROCKET));
    app.stop().await;
}

/// The disk space that the service must leave free on a simulated disk, in bytes.
const RESERVE: u64 = 20 << 20;

/// Simulates a disk with space for `capacity` bytes besides the reserve. The disk contains only the
/// downloads folder. `least_free` gets the lowest number of free bytes that the service measured.
fn simulate_disk(config: &mut Config, capacity: u64, least_free: &Arc<AtomicU64>) {
    let least_free = Arc::clone(least_free);
    let space = DiskSpace::with_measure(config.store.folder.clone(), RESERVE, move |folder| {
        let bytes = (RESERVE + capacity).saturating_sub(folder_size(folder));
        least_free.fetch_min(bytes, Ordering::SeqCst);
        Ok(FreeSpace { bytes, inodes: None })
    });
    config.embed.cache_space = space.clone();
    config.store.space = space;
}

/// The size of all files in a folder and its subfolders, in bytes. The size of each file is rounded
/// up to whole blocks.
fn folder_size(folder: &Path) -> u64 {
    // Files and folders may disappear while this function reads them.
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let sizes = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() {
            folder_size(&entry.path())
        } else {
            metadata.len().next_multiple_of(4096)
        })
    });
    sizes.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_uploads_never_use_the_disk_reserve_and_are_refused_without_free_space() {
    const CAPACITY: u64 = 8 << 20;
    let least_free = Arc::new(AtomicU64::new(u64::MAX));
    let shared_least_free = Arc::clone(&least_free);
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .configure(move |config| simulate_disk(config, CAPACITY, &shared_least_free))
        .start()
        .await;
    let large = noise_png(1000, 700); // 2.1 MB
    // The eight large pictures alone would need twice the capacity.
    let pictures: Vec<_> =
        (0..16).map(|n| if n % 2 == 0 { variant(&large, n) } else { variant(ROCKET, n) }).collect();
    let mut answers = Vec::new();
    // The second round starts with the files of the first on the disk.
    for _ in 0..2 {
        let uploads = pictures.iter().map(|picture| app.upload(picture, "a.png"));
        answers.extend(join_all(uploads).await);
    }
    let saved_count = answers.iter().filter(|answer| answer.status == 200).count();
    for refused in answers.iter().filter(|answer| answer.status != 200) {
        assert_problem(refused, 507, "storage_full");
    }
    assert!(
        saved_count > 2 && saved_count < answers.len(),
        "some pictures should be saved and some refused, but {saved_count} were saved"
    );
    assert_eq!(app.saved().len(), saved_count);
    wait_until_empty(&app.folder().join(".incoming")).await;
    let used = folder_size(app.folder());
    assert!(used <= CAPACITY, "at most {CAPACITY} bytes should be used, not {used}");
    assert!(
        least_free.load(Ordering::SeqCst) >= RESERVE,
        "the reserve should stay free, but only {least_free:?} bytes were free"
    );
}

#[tokio::test]
async fn a_declared_length_reserves_no_disk_space() {
    const CAPACITY: u64 = 4 << 20;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| simulate_disk(config, CAPACITY, &Arc::default()))
        .start()
        .await;
    // Each of these requests declares a body of 20 MiB, more than is free, and sends none of it. None is
    // refused, because only bytes that have arrived reserve space.
    let mut open_connections = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        let head = post_head("/vectorize-image-upload", 20 << 20, "");
        stream.write_all(&head).await.unwrap();
        open_connections.push(stream);
    }
    // The request for the metrics is in flight, too.
    app.wait_for(|value| value("imagesvc_requests_in_flight") > 20.0).await;
    // This picture has 2.1 MB, about half of the capacity.
    app.upload(&noise_png(1000, 700), "a.png").await.assert_success();
}

#[tokio::test]
async fn vectors_are_not_cached_on_a_disk_with_only_the_reserve_free() {
    let nvidia = FakeNvidia::healthy().await;
    let picture = tiny(1);
    let app = TestApp::builder(&nvidia)
        // There is space for one block: the picture takes it, and nothing is left for its vector.
        .configure(|config| simulate_disk(config, 4096, &Arc::default()))
        .start()
        .await;
    app.upload(&picture, "a.png").await.assert_success();
    assert!(!app.folder().join(".vectors").exists());
    // The service may write a vector after it has answered, but not after it has stopped.
    let folder = app.stop().await;
    assert!(!folder.path().join(".vectors").exists());
}

#[tokio::test]
async fn uploads_are_refused_and_the_service_is_not_ready_only_if_few_inodes_are_free() {
    let nvidia = FakeNvidia::healthy().await;
    // One inode in a hundred must stay free: 100 of these 10,000. Some file systems have no fixed
    // number of inodes, so they report no number (`None`).
    for (inodes, status, reasons) in [
        (Some(Inodes { free: 90, total: 10_000 }), 507, &["inodes_under_reserve"][..]),
        (Some(Inodes { free: 110, total: 10_000 }), 200, &[]),
        (None, 200, &[]),
    ] {
        let app = TestApp::builder(&nvidia)
            .configure(move |config| {
                let folder = config.store.folder.clone();
                config.store.space = DiskSpace::with_measure(folder, 0, move |_| {
                    Ok(FreeSpace { bytes: 1 << 30, inodes })
                });
            })
            .start()
            .await;
        let answer = app.upload(ROCKET, "rocket.jpg").await;
        assert_eq!(answer.status, status, "{inodes:?}");
        let ready = app.get("/ready").await;
        assert_eq!(ready.json()["reasons"], serde_json::json!(reasons), "{inodes:?}");
        assert_eq!(ready.status, if reasons.is_empty() { 200 } else { 503 });
    }
}

#[tokio::test]
async fn on_a_disk_with_no_free_inode_uploads_are_refused_and_the_service_is_not_ready() {
    let Some(disk) = SmallDisk::mount("size=10m,nr_inodes=200") else { return };
    let nvidia = FakeNvidia::healthy().await;
    let app = disk.start_app(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.assert_success();
    // Creates empty files until the disk has no inode left.
    let mut count = 0;
    while std::fs::write(disk.mount_point.path().join(count.to_string()), "").is_ok() {
        count += 1;
    }
    // The service itself uses some of the 200 inodes.
    assert!((100..200).contains(&count), "there should be 100 to 199 free inodes, not {count}");
    assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 507, "storage_full");
    let ready = app.get("/ready").await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["reasons"], serde_json::json!(["inodes_under_reserve"]));
    app.stop().await;
}
