//! The cache: the same picture is paid for only once.

use std::{fs, path::PathBuf, time::Duration};

use futures_util::future::join_all;
use tempfile::TempDir;

use crate::support::{
    Answer, Child, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, TestApp, embedding_of, metric,
    picture_number, tiny, variant,
};

/// NVIDIA's answer with an embedding whose values tell the picture's number.
pub fn embedding_filled_with(number: usize) -> Reply {
    embedding_of(&format!("[{}]", vec![format!("{number}.5e-3"); 1536].join(",")))
}

pub fn is_filled_with(answer: &Answer, number: usize) -> bool {
    let expected: f64 = format!("{number}.5e-3").parse().unwrap();
    answer.vector().iter().all(|value| *value == expected)
}

/// The files of the cache on disk.
fn vectors(app: &TestApp) -> Vec<PathBuf> {
    // Vectors are written after the answer, so the folder may not exist yet.
    let folders = fs::read_dir(app.folder().join(".vectors"))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path());
    let folders = folders.filter(|folder| folder.file_name().unwrap().len() == 2);
    folders
        .flat_map(|folder| fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()))
        .collect()
}

pub async fn assert_cached(app: &TestApp, picture: &[u8], cache: &str) -> Answer {
    let answer = app.upload(picture, "a.jpg").await;
    answer.vector();
    assert_eq!(answer.header("x-cache"), cache);
    answer
}

#[tokio::test]
async fn a_repeated_picture_is_a_cache_hit_on_every_route_and_is_saved_again() {
    let picture_server = FakeServer::serving(ROCKET).await;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    let first = assert_cached(&app, ROCKET, "miss").await;
    for again in [
        app.upload(ROCKET, "b.jpg").await,
        app.base64(ROCKET).await,
        app.by_url(&picture_server.url("/")).await,
    ] {
        assert_eq!(again.header("x-cache"), "hit");
        assert_eq!(again.vector(), first.vector());
        assert_eq!(again.prepared(), "original");
        assert_ne!(again.saved_as(), first.saved_as());
    }
    assert_eq!(nvidia.lines().len(), 1);
    assert_eq!(app.saved().len(), 4);
    assert_cached(&app, &variant(ROCKET, 1), "miss").await;
    let metrics = app.get("/metrics").await.text();
    assert_eq!(metric(&metrics, "imagesvc_cache_lookups_total{outcome=\"memory\"}"), 3.0);
    assert_eq!(metric(&metrics, "imagesvc_cache_lookups_total{outcome=\"miss\"}"), 2.0);
}

#[tokio::test]
async fn the_cache_stores_with_each_vector_how_its_picture_was_prepared() {
    let nvidia = FakeNvidia::healthy().await;
    let shrinks = || TestApp::builder(&nvidia).setting("NVIDIA_LARGE_IMAGES", "shrink");
    let app = shrinks().start().await;
    for cache in ["miss", "hit"] {
        assert_eq!(assert_cached(&app, HUBBLE, cache).await.prepared(), "shrunk");
    }
    let app = shrinks().folder(app.stop().await).start().await;
    assert_eq!(assert_cached(&app, HUBBLE, "hit").await.prepared(), "shrunk");
    // With another setting the vector would be another one, so it is not a hit.
    let nvidia = FakeNvidia::with_uploads(|_| None).await;
    let app = TestApp::builder(&nvidia).folder(app.stop().await).start().await;
    assert_eq!(assert_cached(&app, HUBBLE, "miss").await.prepared(), "original");
}

#[tokio::test]
async fn a_vector_is_a_cache_hit_while_it_is_still_being_written_to_disk() {
    let nvidia =
        FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_CACHE_MEMORY", "0").start().await;
    for n in 0..100 {
        assert_cached(&app, &tiny(n), "miss").await;
        assert!(is_filled_with(&assert_cached(&app, &tiny(n), "hit").await, n));
    }
}

#[tokio::test]
async fn unfinished_files_of_an_earlier_run_are_removed_at_start() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    assert_cached(&app, ROCKET, "miss").await;
    let folder = app.stop().await;
    let staged = folder.path().join(".vectors/.staged");
    fs::write(staged.join("17"), "half a vector").unwrap();
    let app = TestApp::builder(&nvidia).folder(folder).start().await;
    let tidy = async {
        while fs::read_dir(&staged).unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), tidy).await.unwrap();
    assert_cached(&app, ROCKET, "hit").await;
}

#[tokio::test]
async fn the_cache_returns_its_vectors_after_a_restart() {
    let nvidia =
        FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
    let app = TestApp::start(&nvidia).await;
    for n in 1..=5 {
        assert!(is_filled_with(&assert_cached(&app, &tiny(n), "miss").await, n));
    }
    let folder = app.stop().await;
    let app = TestApp::builder(&nvidia).folder(folder).start().await;
    for n in 1..=5 {
        assert!(is_filled_with(&assert_cached(&app, &tiny(n), "hit").await, n));
    }
    assert_eq!(nvidia.lines().len(), 5);
    let metrics = app.get("/metrics").await.text();
    assert_eq!(metric(&metrics, "imagesvc_cache_lookups_total{outcome=\"disk\"}"), 5.0);
}

#[tokio::test]
async fn each_inference_url_has_its_own_cache() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    assert_cached(&app, ROCKET, "miss").await;
    let folder = app.stop().await;
    let elsewhere = FakeNvidia::healthy().await;
    let app = TestApp::builder(&elsewhere).folder(folder).start().await;
    assert_cached(&app, ROCKET, "miss").await;
    assert_eq!(elsewhere.lines().len(), 1);
}

#[tokio::test]
async fn the_sandbox_and_nvidia_never_share_a_vector() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let real = assert_cached(&app, ROCKET, "miss").await;
    let app = TestApp::sandbox().folder(app.stop().await).start().await;
    let imitated = assert_cached(&app, ROCKET, "miss").await;
    assert_eq!(imitated.json()["model"], "sandbox/perceptual");
    assert_ne!(imitated.vector(), real.vector());
    // Each finds its own vector again.
    let app = TestApp::sandbox().folder(app.stop().await).start().await;
    assert_eq!(assert_cached(&app, ROCKET, "hit").await.vector(), imitated.vector());
    let app = TestApp::builder(&nvidia).folder(app.stop().await).start().await;
    assert_eq!(assert_cached(&app, ROCKET, "hit").await.vector(), real.vector());
    assert_eq!(nvidia.lines().len(), 1);
}

#[tokio::test]
async fn without_a_cache_every_picture_is_sent_to_nvidia() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_CACHE_MEMORY", "0")
        .setting("IMAGESVC_CACHE_DISK", "0")
        .start()
        .await;
    assert_cached(&app, ROCKET, "miss").await;
    assert_cached(&app, ROCKET, "miss").await;
    assert_eq!(nvidia.lines().len(), 2);
    assert!(!app.folder().join(".vectors").exists());
}

/// Damages the files, or the folder, while the service does not run.
type Damage = fn(&[PathBuf]);

#[tokio::test]
async fn a_damaged_cache_entry_is_a_miss_and_is_written_again() {
    let cases: [(&str, Damage); 6] = [
        ("truncated", |files| {
            files
                .iter()
                .for_each(|file| fs::write(file, &fs::read(file).unwrap()[..1000]).unwrap());
        }),
        ("emptied", |files| files.iter().for_each(|file| fs::write(file, "").unwrap())),
        ("changed", |files| {
            for file in files {
                let text = fs::read_to_string(file).unwrap().replacen(".5e-3", ".6e-3", 1);
                fs::write(file, text).unwrap();
            }
        }),
        ("exchanged", |files| {
            let first = fs::read(&files[0]).unwrap();
            fs::copy(&files[1], &files[0]).unwrap();
            fs::write(&files[1], first).unwrap();
        }),
        ("turned into folders", |files| {
            for file in files {
                fs::remove_file(file).unwrap();
                fs::create_dir(file).unwrap();
            }
        }),
        ("replaced by a file", |files| {
            let folder = files[0].parent().unwrap().parent().unwrap();
            fs::remove_dir_all(folder).unwrap();
            fs::write(folder, "no folder").unwrap();
        }),
    ];
    for (name, damage) in cases {
        let nvidia =
            FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
        let app = TestApp::start(&nvidia).await;
        for n in [1, 2] {
            assert_cached(&app, &tiny(n), "miss").await;
        }
        let mut files = vectors(&app);
        while files.len() < 2 {
            // Vectors are written after the answer.
            tokio::task::yield_now().await;
            files = vectors(&app);
        }
        let folder = app.stop().await;
        damage(&files);
        let app = TestApp::builder(&nvidia).folder(folder).start().await;
        for n in [1, 2] {
            let answer = app.upload(&tiny(n), "a.png").await;
            assert!(is_filled_with(&answer, n), "{name}");
            assert_eq!(answer.header("x-cache"), "miss", "{name}");
        }
        for n in [1, 2] {
            assert!(is_filled_with(&assert_cached(&app, &tiny(n), "hit").await, n), "{name}");
        }
        assert_eq!(app.get("/ready").await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn the_disk_cache_stays_within_its_limit_and_deletes_the_oldest_vectors_first() {
    let nvidia =
        FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_CACHE_DISK", "128KiB")
        .setting("IMAGESVC_CACHE_MEMORY", "0")
        .start()
        .await;
    for n in 0..40 {
        assert_cached(&app, &tiny(n), "miss").await;
        let files = vectors(&app);
        // A concurrent sweep may have removed a file by now.
        let bytes: u64 =
            files.iter().filter_map(|file| fs::metadata(file).ok()).map(|about| about.len()).sum();
        assert!(bytes <= 128 << 10, "{bytes}");
    }
    let calls = nvidia.lines().len();
    assert_eq!(
        app.upload(&tiny(39), "a.png").await.header("x-cache"),
        "hit",
        "the newest is there"
    );
    assert_eq!(nvidia.lines().len(), calls);
    assert_eq!(app.upload(&tiny(0), "a.png").await.header("x-cache"), "miss", "the oldest is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cached_vector_is_wrong_after_any_number_of_kills() {
    let nvidia =
        FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await;
    let folder = TempDir::new().unwrap();
    let client = reqwest::Client::new();
    let upload = |child: &Child, n: usize| {
        let request = child.upload_request(&client, &tiny(n));
        async move { Answer::read(request.send().await?).await }
    };
    let mut hits = 0;
    for round in 0..15 {
        let child = Child::start_with(&nvidia, folder.path(), &[]);
        // Vectors of earlier rounds may be lost, but must never be wrong.
        for n in 0..round * 8 {
            let answer = upload(&child, n).await.unwrap();
            assert!(is_filled_with(&answer, n), "{n} after {round} kills");
            hits += usize::from(answer.header("x-cache") == "hit");
        }
        let wait = Duration::from_micros(fastrand::u64(0..12_000));
        tokio::select! {
            _ = join_all((round * 8..round * 8 + 8).map(|n| upload(&child, n))) => {}
            () = tokio::time::sleep(wait) => {}
        }
        child.kill();
    }
    assert!(hits > 300, "most vectors are kept: {hits}");
}
