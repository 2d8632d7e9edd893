//! Power cuts, full disks and a lack of inodes.

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
    Child, Config, FakeNvidia, ROCKET, TestApp, assert_problem, noise_png, post_head, tiny, variant,
};

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Waits until a folder is empty: the service removes the staging files of refused pictures after
/// the answer.
async fn wait_until_empty(folder: &Path) {
    let empty = async {
        while !names(folder).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), empty).await;
    assert!(waited.is_ok(), "{:?} stay", names(folder));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_kills_leave_only_whole_files() {
    let nvidia = FakeNvidia::healthy().await;
    let folder = tempfile::tempdir().unwrap();
    let downloads = folder.path().join("downloads");
    // One stays in memory until it is saved, the other goes to a staging file.
    let pictures = [ROCKET.to_vec(), noise_png(400, 300)];
    let known: HashSet<_> = pictures.iter().map(Sha256::digest).collect();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let child = Child::start_with(&nvidia, folder.path(), &[]);
        assert!(names(&downloads.join(".incoming")).is_empty(), "the start removes leftovers");
        let mut uploads = JoinSet::new();
        for n in 0..6 {
            let request = child.upload_request(&client, &pictures[n % 2]);
            // The kill decides whether there is an answer.
            uploads.spawn(async move { drop(request.send().await) });
        }
        tokio::time::sleep(Duration::from_micros(random.u64(0..30_000))).await;
        child.kill();
        while uploads.join_next().await.is_some() {}
    }
    let saved: Vec<_> =
        names(&downloads).into_iter().filter(|name| !name.starts_with('.')).collect();
    assert!(saved.len() > 20, "{} were saved", saved.len());
    for name in saved {
        let bytes = std::fs::read(downloads.join(&name)).unwrap();
        assert!(
            known.contains(&Sha256::digest(&bytes)),
            "{name} of {} bytes is not whole",
            bytes.len()
        );
    }
}

/// A small file system, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts the file system. If that is not allowed, prints that the test is skipped.
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(folder.path());
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        println!("skipped: only root can mount a small disk");
        None
    }

    /// The downloads folder of a service on this disk.
    fn downloads(&self) -> PathBuf {
        self.0.path().join("downloads")
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
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_uploads_are_refused_and_leave_no_files() {
    let Some(disk) = SmallDisk::mount("size=700k") else { return };
    let nvidia = FakeNvidia::healthy().await;
    let app = disk.start_app(&nvidia).await;
    let large = noise_png(600, 500); // 900 KB
    for answer in [app.upload(&large, "large.png").await, app.base64(&large).await] {
        assert_problem(&answer, 507, "storage_full");
    }
    let (mut saved, mut full) = (0, 0);
    for _ in 0..10 {
        let answer = app.upload(ROCKET, "rocket.jpg").await;
        match answer.status {
            200 => saved += 1,
            _ => {
                assert_problem(&answer, 507, "storage_full");
                full += 1;
            }
        }
        assert_eq!(app.get("/health").await.status, 200);
    }
    assert!(saved > 2 && full > 2, "{saved} saved, {full} refused");
    let downloads = disk.downloads();
    wait_until_empty(&downloads.join(".incoming")).await;
    let kept: Vec<_> =
        names(&downloads).into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(kept.len(), saved);
    assert!(kept.iter().all(|name| std::fs::read(downloads.join(name)).unwrap() == ROCKET));
    app.stop().await;
}

/// The disk space that must stay free in the tests below.
const RESERVE: u64 = 20 << 20;

/// Simulates a disk with `room` bytes beside the reserve, less what is in the folder. Records in
/// `least` how little was ever free.
fn limit_room(config: &mut Config, room: u64, least: &Arc<AtomicU64>) {
    let least = Arc::clone(least);
    let space = DiskSpace::with_measure(config.store.folder.clone(), RESERVE, move |folder| {
        let bytes = (RESERVE + room).saturating_sub(size_of(folder));
        least.fetch_min(bytes, Ordering::SeqCst);
        Ok(FreeSpace { bytes, inodes: None })
    });
    config.embed.cache_space = space.clone();
    config.store.space = space;
}

/// The bytes of all files in a folder and its subfolders, rounded up to whole blocks.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| match entry.metadata().ok()? {
        about if about.is_dir() => Some(size_of(&entry.path())),
        about => Some(about.len().next_multiple_of(4096)),
    });
    sizes.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_uploads_never_use_the_reserve_and_are_refused_without_free_space() {
    const ROOM: u64 = 8 << 20;
    let least = Arc::new(AtomicU64::new(u64::MAX));
    let seen = Arc::clone(&least);
    let nvidia = FakeNvidia::with_uploads(|_| None).await;
    let app = TestApp::builder(&nvidia)
        .configure(move |config| limit_room(config, ROOM, &seen))
        .start()
        .await;
    let large = noise_png(1000, 700); // 2.1 MB
    let pictures: Vec<_> =
        (0..16).map(|n| if n % 2 == 0 { variant(&large, n) } else { variant(ROCKET, n) }).collect();
    let mut answers = Vec::new();
    for pictures in [&pictures[..], &pictures[..]] {
        let uploads = pictures.iter().map(|picture| app.upload(picture, "a.png"));
        answers.extend(join_all(uploads).await);
    }
    let saved = answers.iter().filter(|answer| answer.status == 200).count();
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_problem(answer, 507, "storage_full");
    }
    assert!(saved > 2 && saved < answers.len(), "{saved} saved");
    assert_eq!(app.saved().len(), saved);
    wait_until_empty(&app.folder().join(".incoming")).await;
    let used = size_of(app.folder());
    assert!(used <= ROOM, "{used} bytes");
    assert!(least.load(Ordering::SeqCst) >= RESERVE, "{least:?}");
}

#[tokio::test]
async fn a_declared_length_reserves_no_disk_space() {
    const ROOM: u64 = 4 << 20;
    let nvidia = FakeNvidia::with_uploads(|_| None).await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| limit_room(config, ROOM, &Arc::default()))
        .start()
        .await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        let head = post_head("/vectorize-image-upload", 20 << 20, "");
        stream.write_all(&head).await.unwrap();
        idle.push(stream);
    }
    app.wait_for(|value| value("imagesvc_requests_in_flight") > 20.0).await;
    app.upload(&noise_png(1000, 700), "a.png").await.vector();
}

#[tokio::test]
async fn vectors_are_not_cached_if_only_the_reserve_is_free() {
    let nvidia = FakeNvidia::healthy().await;
    let picture = tiny(1);
    let app = TestApp::builder(&nvidia)
        // room for the picture, but not for its vector
        .configure(|config| limit_room(config, 4096, &Arc::default()))
        .start()
        .await;
    app.upload(&picture, "a.png").await.vector();
    assert!(!app.folder().join(".vectors").exists());
    let folder = app.stop().await;
    assert!(!folder.path().join(".vectors").exists());
}

#[tokio::test]
async fn with_few_free_inodes_uploads_are_refused_and_the_service_is_not_ready() {
    let nvidia = FakeNvidia::healthy().await;
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
async fn on_a_disk_without_inodes_uploads_are_refused_and_the_service_is_not_ready() {
    let Some(disk) = SmallDisk::mount("size=10m,nr_inodes=200") else { return };
    let nvidia = FakeNvidia::healthy().await;
    let app = disk.start_app(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.vector();
    let mut made = 0;
    while std::fs::write(disk.0.path().join(made.to_string()), "").is_ok() {
        made += 1;
    }
    assert!((100..200).contains(&made), "{made}");
    assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 507, "storage_full");
    let ready = app.get("/ready").await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["reasons"], serde_json::json!(["inodes_under_reserve"]));
    app.stop().await;
}
