//! Retention removes old pictures and no other files.

use std::{fs, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use crate::support::{
    FakeNvidia, ROCKET, TestApp, embedding, picture_number, tiny, variant, wait_for,
};

/// Waits until retention has removed at least this many pictures.
async fn wait_until_removed(app: &TestApp, count: f64) {
    app.wait_for(|value| value("imagesvc_pictures_removed_total") >= count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_concurrent_uploads_only_pictures_that_are_not_in_use_are_removed() {
    let (release, _) = watch::channel(false);
    let held_reply = embedding().held_until(&release);
    // Picture 0 is uploaded first, and gets its reply last. Until then, its file is in use, and is
    // the oldest.
    let nvidia = FakeNvidia::scripted(move |request, _| match picture_number(request) {
        0 => held_reply.clone(),
        _ => embedding(),
    })
    .await;
    // Room for 20 small pictures: each counts as one block of the disk, 4096 bytes.
    let max_bytes = 20 * 4096;
    let app =
        TestApp::builder(&nvidia).setting("IMAGESVC_DOWNLOADS_MAX_BYTES", max_bytes).start().await;
    // The last name is a UUID of version 4. The service names pictures by UUIDs of version 7.
    let other_files = ["holiday.jpg", ".gitkeep", "01234567-89ab-4cde-8f01-23456789abcd.jpg"];
    for name in other_files {
        fs::write(app.folder().join(name), vec![0; 10_000]).unwrap();
    }
    let first_picture = tiny(0);
    let first_upload = app.upload(&first_picture, "first.png");
    let other_uploads = async {
        nvidia.wait_for(1).await; // the call for picture 0
        let uploads = stream::iter(1..200).map(async |n| {
            app.upload(&tiny(n), "a.png").await.assert_success();
        });
        uploads.buffer_unordered(8).collect::<()>().await;
        wait_until_removed(&app, 180.0).await; // all of the 200 pictures except 20
        // Retention removes pictures until the rest is at least a sixteenth below the limit. So 18 pictures
        // are left, or up to 20 if more were saved afterwards.
        let saved = app.saved();
        let pictures: Vec<_> = saved.iter().filter(|name| name.ends_with(".png")).collect();
        assert!(
            (18..=20).contains(&pictures.len()),
            "18 to 20 pictures should be left, not {}",
            pictures.len()
        );
        release.send(true).unwrap();
    };
    let (first_answer, ()) = tokio::join!(first_upload, other_uploads);
    first_answer.assert_success();
    let first_name = first_answer.saved_as();
    assert_eq!(app.saved_bytes(&first_name), first_picture, "a picture in use must not be removed");
    for name in other_files {
        assert!(
            app.folder().join(name).exists(),
            "{name} must not be removed, because the service did not write it"
        );
    }
    // After its request has ended, the first picture is removed like any other. The rocket alone is
    // larger than `max_bytes`, so all older pictures must be removed.
    app.upload(ROCKET, "large.jpg").await.assert_success();
    let is_removed = async || !app.saved().contains(&first_name);
    wait_for("the removal of the first picture", Duration::from_secs(30), is_removed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_older_than_the_age_limit_is_removed_but_its_vector_stays_cached() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_DOWNLOADS_MAX_AGE", "1s").start().await;
    for n in 0..3 {
        app.upload(&variant(ROCKET, n), "a.jpg").await.assert_success();
    }
    wait_until_removed(&app, 3.0).await;
    assert!(app.saved().is_empty(), "all three pictures should be removed");
    // Only variants of the rocket were uploaded so far, so the rocket itself is not in the cache.
    assert_eq!(app.upload(ROCKET, "a.jpg").await.header("x-cache"), "miss");
    assert_eq!(app.upload(&variant(ROCKET, 1), "a.jpg").await.header("x-cache"), "hit");
}
