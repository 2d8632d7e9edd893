//! Power cuts and full disks.

use std::{collections::HashSet, path::Path, process::Command, time::Duration};

use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::support::{Child, FakeNvidia, ROCKET, TestApp, assert_problem, noise_png};

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_power_cuts_leave_whole_files_alone() {
    let nvidia = FakeNvidia::well().await;
    let folder = tempfile::tempdir().unwrap();
    let downloads = folder.path().join("downloads");
    // One that stays in memory until it is saved, and one that is spooled.
    let pictures = [ROCKET.to_vec(), noise_png(400, 300)];
    let known: HashSet<_> = pictures.iter().map(Sha256::digest).collect();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let child = Child::start_with(&nvidia, folder.path(), &[]);
        assert!(names(&downloads.join(".incoming")).is_empty(), "the start has cleaned up");
        let mut uploads = JoinSet::new();
        for n in 0..6 {
            let request = child.upload_request(&client, &pictures[n % 2]);
            // Whether it gets an answer is a matter of luck.
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

/// A small file system of its own; unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Nothing where mounting is not allowed.
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_leaves_nothing_and_keeps_the_service_alive() {
    let Some(disk) = SmallDisk::mount("700k") else {
        println!("skipped: only root can mount a small disk");
        return;
    };
    let nvidia = FakeNvidia::well().await;
    let downloads = disk.0.path().join("downloads");
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_DOWNLOADS_DIR", downloads.to_str().unwrap())
        .start()
        .await;
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
    assert!(names(&downloads.join(".incoming")).is_empty());
    let kept: Vec<_> =
        names(&downloads).into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(kept.len(), saved);
    assert!(kept.iter().all(|name| std::fs::read(downloads.join(name)).unwrap() == ROCKET));
    app.stop().await;
}
