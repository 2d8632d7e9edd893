//! A bucket in place of the downloads folder: what it contains, and what replicas share through it.
//! `bucket_failures.rs` tests what happens while the bucket fails.

use std::path::Path;

use image_rs::ImageFormat;
use serde_json::json;

use crate::{
    cache::assert_x_cache,
    query::with_query,
    support::{
        CHELSEA, FakeBucket, FakeNvidia, HUBBLE, ROCKET, TestApp, assert_problem, converted,
        data_url, tiny, variant, wait_for,
    },
};

/// The number of files in the folder for incoming pictures.
fn incoming_count(app: &TestApp) -> usize {
    std::fs::read_dir(app.folder().join(".incoming")).unwrap().count()
}

/// Waits until the bucket contains at least this many vectors.
async fn wait_for_vectors(bucket: &FakeBucket, count: usize) {
    let patience = std::time::Duration::from_secs(10);
    let are_written = async || bucket.objects_in("vectors").len() >= count;
    wait_for("the number of vectors", patience, are_written).await;
}

#[tokio::test]
async fn pictures_are_in_the_bucket_byte_for_byte_and_not_in_the_folder() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let app = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    // The first picture stays in memory until it is written, the second one is in a file.
    for picture in [ROCKET, HUBBLE] {
        let answer = app.upload(picture, "a.jpg").await;
        answer.assert_success();
        let saved_as = answer.saved_as();
        assert_eq!(answer.json()["path"], format!("downloads/{saved_as}"));
        assert_eq!(bucket.objects_in("downloads")[&saved_as], picture);
        let object = format!("/downloads/{saved_as}?"); // the signature follows
        let put = bucket.server.received().into_iter().find(|put| put.target.contains(&object));
        assert_eq!(put.unwrap().header("content-type"), Some("image/jpeg"));
    }
    assert!(app.saved().is_empty());
    app.wait_for(|_| incoming_count(&app) == 0).await;
    assert!(
        bucket.objects_in("checks").is_empty(),
        "the check at the service's start must remove the object that it wrote"
    );
}

#[tokio::test]
async fn a_picture_that_is_not_to_be_saved_is_not_written_to_the_bucket() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let app = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    let request = with_query(app.upload_request(ROCKET, "a.jpg"), "save=false");
    app.send(request).await.assert_success();
    wait_for_vectors(&bucket, 1).await;
    assert!(bucket.objects_in("downloads").is_empty());
}

#[tokio::test]
async fn another_replica_and_one_that_starts_later_do_not_pay_for_the_same_picture() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let first = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    let second = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    let from_nvidia = assert_x_cache(&first, ROCKET, "miss").await;
    wait_for_vectors(&bucket, 1).await;
    let from_bucket = assert_x_cache(&second, ROCKET, "hit").await;
    assert_eq!(from_bucket.vector(), from_nvidia.vector());
    drop((first, second));
    let third = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    assert_x_cache(&third, ROCKET, "hit").await;
    let batch = third.batch(&json!({ "input": [data_url(ROCKET)] })).await;
    assert_eq!(batch.status, 200, "{}", batch.text());
    assert_eq!(nvidia.count(), 1);
    assert_eq!(bucket.objects_in("vectors").len(), 1);
    // Each of the four requests saves its own copy of the picture.
    assert_eq!(bucket.objects_in("downloads").len(), 4);
}

#[tokio::test]
async fn a_vector_from_the_bucket_is_cached_in_memory_and_on_disk() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let payer = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    assert_x_cache(&payer, ROCKET, "miss").await;
    wait_for_vectors(&bucket, 1).await;
    let reader = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    let vector_reads = || {
        let lines = bucket.server.lines();
        lines.iter().filter(|line| line.starts_with("GET") && line.contains("/vectors/")).count()
    };
    let reads_before = vector_reads();
    for _ in 0..3 {
        assert_x_cache(&reader, ROCKET, "hit").await;
    }
    assert_eq!(vector_reads() - reads_before, 1, "memory should answer after the first read");
    // The cache's subfolders have names of two hexadecimal digits. Each is made with its
    // first vector.
    let has_vector_on_disk = |folder: &Path| {
        let files = std::fs::read_dir(folder.join(".vectors")).into_iter().flatten();
        files.flatten().any(|entry| entry.file_name().len() == 2)
    };
    reader.wait_for(|_| has_vector_on_disk(reader.folder())).await;
}

#[tokio::test]
async fn a_damaged_vector_or_one_of_another_version_is_computed_again_and_replaced() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("a changed number", |bytes| {
            let last_digit = bytes.len() - "0]\n".len();
            bytes[last_digit] ^= 1;
        }),
        ("a missing end", |bytes| bytes.truncate(1000)),
        ("another version", |bytes| bytes["imagesvc-vector ".len()] += 1),
        // Longer than any vector that the service reads.
        ("a very long object", |bytes| bytes.resize(2 << 20, b' ')),
    ];
    for (name, damage) in damages {
        let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
        let payer = TestApp::builder(&nvidia).bucket(&bucket).start().await;
        assert_x_cache(&payer, ROCKET, "miss").await;
        wait_for_vectors(&bucket, 1).await;
        let intact = bucket.objects_in("vectors");
        bucket.change_objects_in("vectors", damage);
        let reader = TestApp::builder(&nvidia).bucket(&bucket).start().await;
        assert_x_cache(&reader, ROCKET, "miss").await;
        reader.wait_for(|_| bucket.objects_in("vectors") == intact).await;
        assert_eq!(nvidia.count(), 2, "{name}");
    }
}

#[tokio::test]
async fn a_vector_under_another_pictures_key_is_not_returned() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let payer = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    for picture in [ROCKET, CHELSEA] {
        assert_x_cache(&payer, picture, "miss").await;
    }
    wait_for_vectors(&bucket, 2).await;
    let vectors: Vec<_> = bucket.objects_in("vectors").into_values().collect();
    // Exchanges the two vectors.
    bucket.change_objects_in("vectors", move |bytes| {
        *bytes = vectors.iter().find(|other| *other != bytes).unwrap().clone();
    });
    let reader = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    for picture in [ROCKET, CHELSEA] {
        assert_x_cache(&reader, picture, "miss").await;
    }
}

#[tokio::test]
async fn a_picture_that_cannot_be_decoded_is_removed_from_the_bucket() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let app = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    // The first half of the file contains the whole header, so only decoding shows the damage. With a
    // bucket, the service saves each picture before it decodes it.
    let mut damaged = converted(ROCKET, ImageFormat::WebP);
    damaged.truncate(damaged.len() / 2);
    let answer = app.upload(&damaged, "a.webp").await;
    assert_eq!(answer.status, 415, "{}", answer.text());
    app.wait_for(|_| bucket.objects_in("downloads").is_empty()).await;
}

#[tokio::test]
async fn a_batch_that_fails_leaves_no_picture_in_the_bucket() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let app = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    let pictures: Vec<_> = (0..3).map(|n| data_url(&variant(ROCKET, n))).collect();
    let saved_batch = app.batch(&json!({ "input": pictures })).await;
    assert_eq!(saved_batch.status, 200, "{}", saved_batch.text());
    assert_eq!(bucket.objects_in("downloads").len(), 3);
    // The bucket refuses PNGs. Only the last picture of the next batch is a PNG.
    bucket.fail(|request| {
        let is_png = request.header("content-type") == Some("image/png");
        is_png.then(|| FakeBucket::error(403, "AccessDenied"))
    });
    let last = data_url(&tiny(0));
    let failed_batch = app.batch(&json!({ "input": [pictures[0], pictures[1], last] })).await;
    assert_problem(&failed_batch, 503, "storage_unavailable");
    app.wait_for(|_| bucket.objects_in("downloads").len() == 3).await;
}
