//! The cache: if the same picture is sent again, NVIDIA is not called again.

use std::{fs, path::PathBuf, time::Duration};

use futures_util::future::join_all;
use tempfile::TempDir;

use crate::support::{
    Answer, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, ServiceProcess, TestApp, embedding_of,
    metric, picture_number, tiny, variant, wait_for,
};

/// NVIDIA's reply with an embedding of 1536 equal values: for the number 3, each is `3.5e-3`.
pub fn embedding_filled_with(number: usize) -> Reply {
    embedding_of(&format!("[{}]", vec![format!("{number}.5e-3"); 1536].join(",")))
}

/// Whether the answer contains the vector that [`embedding_filled_with`] creates for this number.
pub fn is_filled_with(answer: &Answer, number: usize) -> bool {
    let expected: f64 = format!("{number}.5e-3").parse().unwrap();
    answer.vector().iter().all(|value| *value == expected)
}

/// The paths of the vectors on disk. They are in the subfolders whose names have two characters.
fn vector_files(app: &TestApp) -> Vec<PathBuf> {
    // Vectors are written after the answer, so the folder may not exist yet.
    let Ok(entries) = fs::read_dir(app.folder().join(".vectors")) else { return Vec::new() };
    let folders = entries.map(|entry| entry.unwrap().path());
    folders
        .filter(|folder| folder.file_name().unwrap().len() == 2)
        .flat_map(|folder| fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()))
        .collect()
}

/// Uploads a picture, and asserts that the answer has a vector and this value of the header
/// `x-cache`: `hit` or `miss`.
pub async fn assert_x_cache(app: &TestApp, picture: &[u8], x_cache: &str) -> Answer {
    let answer = app.upload(picture, "a.jpg").await;
    answer.assert_success();
    assert_eq!(answer.header("x-cache"), x_cache);
    answer
}

#[tokio::test]
async fn on_every_route_for_one_picture_a_repeated_picture_is_a_cache_hit_and_is_saved_again() {
    let picture_server = FakeServer::serving(ROCKET).await;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    let first = assert_x_cache(&app, ROCKET, "miss").await;
    for repeated in [
        app.upload(ROCKET, "b.jpg").await,
        app.base64(ROCKET).await,
        app.by_url(&picture_server.url("/")).await,
    ] {
        assert_eq!(repeated.header("x-cache"), "hit");
        assert_eq!(repeated.vector(), first.vector());
        assert_eq!(repeated.prepared(), "original");
        assert_ne!(repeated.saved_as(), first.saved_as());
    }
    assert_eq!(nvidia.count(), 1);
    assert_eq!(app.saved().len(), 4);
    // For the cache, a picture with the same pixels but other bytes is another picture.
    assert_x_cache(&app, &variant(ROCKET, 1), "miss").await;
    let metrics = app.get("/metrics").await.text();
    assert_eq!(metric(&metrics, "imagesvc_cache_lookups_total{outcome=\"memory\"}"), 3.0);
    assert_eq!(metric(&metrics, "imagesvc_cache_lookups_total{outcome=\"miss\"}"), 2.0);
}

#[tokio::test]
async fn a_cache_hit_reports_how_its_picture_was_prepared_and_another_preparation_is_a_miss() {
    let nvidia = FakeNvidia::healthy().await;
    // HUBBLE is too large to be sent inline. NVIDIA_LARGE_IMAGES decides whether it is shrunk or
    // uploaded.
    let shrinking_service = || TestApp::builder(&nvidia).setting("NVIDIA_LARGE_IMAGES", "shrink");
    let app = shrinking_service().start().await;
    for x_cache in ["miss", "hit"] {
        assert_eq!(assert_x_cache(&app, HUBBLE, x_cache).await.prepared(), "shrunk");
    }
    // The hit of a new service with the same folder comes from the disk.
    let app = shrinking_service().folder(app.stop().await).start().await;
    assert_eq!(assert_x_cache(&app, HUBBLE, "hit").await.prepared(), "shrunk");
    // By default, HUBBLE is uploaded. Its vector is then another one, so the cache's key depends on
    // NVIDIA_LARGE_IMAGES.
    let app = TestApp::builder(&nvidia).folder(app.stop().await).start().await;
    assert_eq!(assert_x_cache(&app, HUBBLE, "miss").await.prepared(), "original");
}

#[tokio::test]
async fn a_vector_is_a_cache_hit_while_it_is_still_being_written_to_disk() {
    let nvidia =
        FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
    // Without the cache in memory, only a vector that is being written or is on disk can be a hit.
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_CACHE_MEMORY", "0").start().await;
    // Many pictures, because some vectors are already on disk when their picture is sent again.
    for n in 0..100 {
        assert_x_cache(&app, &tiny(n), "miss").await;
        assert!(is_filled_with(&assert_x_cache(&app, &tiny(n), "hit").await, n));
    }
}

#[tokio::test]
async fn at_start_the_cache_removes_unfinished_files_and_keeps_its_vectors() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    assert_x_cache(&app, ROCKET, "miss").await;
    let folder = app.stop().await;
    // The cache writes each vector to a file in `.staged` first. The file's name is a number.
    let staging_folder = folder.path().join(".vectors/.staged");
    fs::write(staging_folder.join("17"), "half a vector").unwrap();
    let app = TestApp::builder(&nvidia).folder(folder).start().await;
    let is_empty = async || fs::read_dir(&staging_folder).unwrap().next().is_none();
    wait_for("the removal of the unfinished file", Duration::from_secs(20), is_empty).await;
    assert_x_cache(&app, ROCKET, "hit").await;
}

#[tokio::test]
async fn the_cache_returns_its_vectors_after_a_restart() {
    let nvidia =
        FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
    let app = TestApp::start(&nvidia).await;
    for n in 1..=5 {
        assert!(is_filled_with(&assert_x_cache(&app, &tiny(n), "miss").await, n));
    }
    let folder = app.stop().await;
    let app = TestApp::builder(&nvidia).folder(folder).start().await;
    for n in 1..=5 {
        assert!(is_filled_with(&assert_x_cache(&app, &tiny(n), "hit").await, n));
    }
    assert_eq!(nvidia.count(), 5);
    let metrics = app.get("/metrics").await.text();
    assert_eq!(metric(&metrics, "imagesvc_cache_lookups_total{outcome=\"disk\"}"), 5.0);
}

#[tokio::test]
async fn a_vector_from_one_inference_url_is_not_returned_for_another_url() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    assert_x_cache(&app, ROCKET, "miss").await;
    let folder = app.stop().await;
    // This fake has another port, and therefore another inference URL.
    let other_nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&other_nvidia).folder(folder).start().await;
    assert_x_cache(&app, ROCKET, "miss").await;
    assert_eq!(other_nvidia.count(), 1);
}

#[tokio::test]
async fn the_cache_separates_the_vectors_of_the_sandbox_from_those_of_nvidia() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let from_nvidia = assert_x_cache(&app, ROCKET, "miss").await;
    let app = TestApp::sandbox().folder(app.stop().await).start().await;
    let from_sandbox = assert_x_cache(&app, ROCKET, "miss").await;
    assert_eq!(from_sandbox.json()["model"], "sandbox/perceptual");
    assert_ne!(from_sandbox.vector(), from_nvidia.vector());
    // Both vectors are in the same folder now.
    let app = TestApp::sandbox().folder(app.stop().await).start().await;
    assert_eq!(assert_x_cache(&app, ROCKET, "hit").await.vector(), from_sandbox.vector());
    let app = TestApp::builder(&nvidia).folder(app.stop().await).start().await;
    assert_eq!(assert_x_cache(&app, ROCKET, "hit").await.vector(), from_nvidia.vector());
    assert_eq!(nvidia.count(), 1);
}

#[tokio::test]
async fn without_a_cache_every_picture_is_sent_to_nvidia() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_CACHE_MEMORY", "0")
        .setting("IMAGESVC_CACHE_DISK", "0")
        .start()
        .await;
    assert_x_cache(&app, ROCKET, "miss").await;
    assert_x_cache(&app, ROCKET, "miss").await;
    assert_eq!(nvidia.count(), 2);
    assert!(!app.folder().join(".vectors").exists());
}

/// A way in which the cache is damaged while no service runs.
struct Damage {
    name: &'static str,
    /// Whether the service replaces what is damaged. It does not replace a folder that has the path of a
    /// cache file, or a file that has the path of the cache's folder. Until somebody removes such a folder
    /// or file, the vectors that belong there are cached only in memory.
    is_repaired: bool,
    /// Damages the cache. The argument is the paths of its files.
    damage: fn(&[PathBuf]),
}

#[tokio::test]
async fn a_vector_whose_cache_file_is_damaged_is_a_miss_and_is_then_cached_again() {
    let cases = [
        Damage {
            name: "truncated files",
            is_repaired: true,
            damage: |files| {
                for file in files {
                    // The whole file has more than 10,000 bytes.
                    fs::write(file, &fs::read(file).unwrap()[..1000]).unwrap();
                }
            },
        },
        Damage {
            name: "empty files",
            is_repaired: true,
            damage: |files| {
                for file in files {
                    fs::write(file, "").unwrap();
                }
            },
        },
        Damage {
            name: "a changed number",
            is_repaired: true,
            damage: |files| {
                for file in files {
                    let text = fs::read_to_string(file).unwrap().replacen(".5e-3", ".6e-3", 1);
                    fs::write(file, text).unwrap();
                }
            },
        },
        Damage {
            name: "exchanged files",
            is_repaired: true,
            damage: |files| {
                let first_bytes = fs::read(&files[0]).unwrap();
                fs::copy(&files[1], &files[0]).unwrap();
                fs::write(&files[1], first_bytes).unwrap();
            },
        },
        Damage {
            name: "folders in place of files",
            is_repaired: false,
            damage: |files| {
                for file in files {
                    fs::remove_file(file).unwrap();
                    fs::create_dir(file).unwrap();
                }
            },
        },
        Damage {
            name: "a file in place of the folder",
            is_repaired: false,
            damage: |files| {
                // The file is in a subfolder of the cache's folder.
                let cache_folder = files[0].parent().unwrap().parent().unwrap();
                fs::remove_dir_all(cache_folder).unwrap();
                fs::write(cache_folder, "no folder").unwrap();
            },
        },
    ];
    for Damage { name, is_repaired, damage } in cases {
        let nvidia =
            FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
        let app = TestApp::start(&nvidia).await;
        for n in [1, 2] {
            assert_x_cache(&app, &tiny(n), "miss").await;
        }
        // Vectors are written after the answer.
        let are_written = async || vector_files(&app).len() == 2;
        wait_for("the number of vectors", Duration::from_secs(20), are_written).await;
        let files = vector_files(&app);
        let folder = app.stop().await;
        damage(&files);
        let app = TestApp::builder(&nvidia).folder(folder).start().await;
        for n in [1, 2] {
            let answer = app.upload(&tiny(n), "a.png").await;
            assert!(is_filled_with(&answer, n), "{name}");
            assert_eq!(answer.header("x-cache"), "miss", "{name}");
        }
        for n in [1, 2] {
            assert_x_cache(&app, &tiny(n), "hit").await;
        }
        assert_eq!(app.get("/ready").await.status, 200, "{name}");
        if !is_repaired {
            continue;
        }
        // Before the service stops, it writes its vectors. After a restart, hits come from the disk.
        let folder = app.stop().await;
        let app = TestApp::builder(&nvidia).folder(folder).start().await;
        for n in [1, 2] {
            let answer = app.upload(&tiny(n), "a.png").await;
            assert!(is_filled_with(&answer, n), "{name}");
            assert_eq!(answer.header("x-cache"), "hit", "{name}");
        }
    }
}

#[tokio::test]
async fn the_disk_cache_stays_within_its_limit_and_deletes_the_oldest_vectors_first() {
    let nvidia =
        FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
    // Each vector takes more than 10 KiB, so at most 12 of the 40 vectors below fit into 128 KiB.
    // Without the cache in memory, only a vector that is being written or is on disk can be a hit.
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_CACHE_DISK", "128KiB")
        .setting("IMAGESVC_CACHE_MEMORY", "0")
        .start()
        .await;
    for n in 0..40 {
        assert_x_cache(&app, &tiny(n), "miss").await;
        let files = vector_files(&app);
        // The service may have deleted a file since they were listed.
        let metadata = files.iter().filter_map(|file| fs::metadata(file).ok());
        let bytes: u64 = metadata.map(|metadata| metadata.len()).sum();
        assert!(bytes <= 128 << 10, "the cache should have at most 128 KiB, not {bytes} bytes");
    }
    let calls_before = nvidia.count();
    let (newest, oldest) = (tiny(39), tiny(0));
    assert_x_cache(&app, &newest, "hit").await;
    assert_eq!(nvidia.count(), calls_before);
    assert_x_cache(&app, &oldest, "miss").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_returns_no_wrong_vector_after_the_process_was_killed() {
    /// How many new pictures are sent in each round, all at once.
    const NEW_PICTURES: usize = 8;
    let nvidia =
        FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
    let folder = TempDir::new().unwrap();
    let client = reqwest::Client::new();
    let upload = |service: &ServiceProcess, n: usize| {
        let request = service.upload_request(&client, &tiny(n));
        async move { Answer::read(request.send().await?).await }
    };
    let mut hits = 0;
    for round in 0..15 {
        let service = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
        // Vectors of earlier rounds may be lost, but must never be wrong.
        for n in 0..round * NEW_PICTURES {
            let answer = upload(&service, n).await.unwrap();
            assert!(
                is_filled_with(&answer, n),
                "after {round} kills, picture {n} should still get its own vector"
            );
            hits += usize::from(answer.header("x-cache") == "hit");
        }
        let new_pictures = (round * NEW_PICTURES..).take(NEW_PICTURES);
        // The kill comes at a random time, or after all answers if they arrive earlier.
        let time_to_kill = Duration::from_micros(fastrand::u64(0..12_000));
        tokio::select! {
            _ = join_all(new_pictures.map(|n| upload(&service, n))) => {}
            () = tokio::time::sleep(time_to_kill) => {}
        }
        service.kill();
    }
    // The rounds send 8 * (0 + 1 + … + 14) = 840 pictures again. Only hits show whether the files on
    // disk are right. Not all are hits, because a kill may lose vectors.
    assert!(hits > 300, "more than 300 of 840 answers should be cache hits, not {hits}");
}
