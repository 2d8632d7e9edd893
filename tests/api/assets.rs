//! A large picture needs three calls to NVIDIA, and a fourth to delete the asset. "Large" means too
//! large to be sent inline: more than about 150 KB.
//!
//! [`assert_uploaded`] compares the request lines, headers and bodies of these calls. Of a picture that
//! the service has converted, it compares only the format, width and height.

use image_rs::ImageFormat;

use crate::support::{
    CHELSEA, FakeNvidia, FakeServer, HUBBLE, Reply, TestApp, converted, noise_png,
    nvidia_api::{ASSETS_PATH, CREATE_ASSET, INFER, KEY, UPLOAD_PATH},
    variant,
};

const DESCRIPTION: &str = "imagesvc picture";

/// What NVIDIA should receive as the asset.
enum Expected {
    /// The picture's own bytes.
    Unchanged,
    /// A JPEG of the same width and height.
    Jpeg,
}

/// Uploads a picture to the service, and asserts that the service uploads it to NVIDIA as expected,
/// with this media type, and without the key.
async fn assert_uploaded(picture: &[u8], expected: Expected, media_type: &str) {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // The file's name must not be sent to NVIDIA. The comparisons below would find it in a call.
    app.upload(picture, "secret-name.jpg").await.assert_success();

    let received = nvidia.wait_for(4).await;
    let [creation, upload, inference, deletion] = &received[..] else {
        panic!("NVIDIA should receive four requests: {:?}", nvidia.lines())
    };
    let asset = FakeNvidia::ASSET;
    assert_eq!(
        nvidia.lines(),
        [
            CREATE_ASSET.to_owned(),
            format!("PUT {UPLOAD_PATH}{asset}?{}", FakeNvidia::SIGNATURE),
            INFER.to_owned(),
            format!("DELETE {ASSETS_PATH}/{asset}"),
        ]
    );
    let agent = concat!("user-agent: imagesvc/", env!("CARGO_PKG_VERSION")).to_owned();
    let key = format!("authorization: Bearer {KEY}");

    let creation_body =
        format!(r#"{{"contentType":"{media_type}","description":"{DESCRIPTION}"}}"#);
    assert_eq!(String::from_utf8_lossy(&creation.body), creation_body);
    assert_eq!(
        creation.sorted_headers(),
        [
            "accept: application/json".to_owned(),
            key.clone(),
            format!("content-length: {}", creation_body.len()),
            "content-type: application/json".to_owned(),
            agent.clone(),
        ]
    );
    let uploaded = &upload.body[..];
    match expected {
        Expected::Unchanged => {
            assert!(uploaded == picture, "the uploaded bytes must be those of the picture");
        }
        Expected::Jpeg => {
            assert!(uploaded.starts_with(&[0xff, 0xd8, 0xff]), "the uploaded bytes must be a JPEG");
            let [uploaded_size, original_size] = [uploaded, picture]
                .map(|bytes| image_rs::load_from_memory(bytes).unwrap().to_rgb8().dimensions());
            assert_eq!(uploaded_size, original_size);
        }
    }
    assert_eq!(
        upload.sorted_headers(),
        [
            "accept: */*".to_owned(),
            format!("content-length: {}", uploaded.len()),
            format!("content-type: {media_type}"),
            agent.clone(),
            format!("x-amz-meta-nvcf-asset-description: {DESCRIPTION}"),
        ],
        "the presigned URL must not receive the key"
    );
    assert_eq!(inference.body, br#"{"messages":[]}"#);
    assert_eq!(
        inference.sorted_headers(),
        [
            "accept: application/json".to_owned(),
            key.clone(),
            "content-length: 15".to_owned(),
            "content-type: application/json".to_owned(),
            format!("nvcf-function-asset-ids: {asset}"),
            format!("nvcf-input-asset-references: {asset}"),
            agent.clone(),
        ]
    );
    assert_eq!(deletion.sorted_headers(), ["accept: application/json".to_owned(), key, agent]);
}

#[tokio::test]
async fn a_large_jpeg_is_uploaded_unchanged_and_without_the_key() {
    assert_uploaded(HUBBLE, Expected::Unchanged, "image/jpeg").await;
}

#[tokio::test]
async fn a_large_png_is_uploaded_unchanged() {
    assert_uploaded(CHELSEA, Expected::Unchanged, "image/png").await;
}

#[tokio::test]
async fn a_picture_of_several_megabytes_is_uploaded_completely() {
    let picture = noise_png(1200, 1000);
    assert!(picture.len() > 3_000_000, "the picture must have several megabytes");
    assert_uploaded(&picture, Expected::Unchanged, "image/png").await;
}

#[tokio::test]
async fn a_large_webp_is_uploaded_as_jpeg() {
    let webp = converted(&noise_png(500, 400), ImageFormat::WebP);
    assert_uploaded(&webp, Expected::Jpeg, "image/jpeg").await;
}

#[tokio::test]
async fn the_base64_route_and_the_url_route_upload_a_large_picture() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(HUBBLE).await;
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    // The first picture has other bytes, because otherwise the second embedding would come from the
    // cache.
    app.base64(&variant(HUBBLE, 1)).await.assert_success();
    app.by_url(&picture_server.url("/hubble.jpg")).await.assert_success();
    // Each picture needs four calls.
    let received = nvidia.wait_for(2 * 4).await;
    let uploads: Vec<_> = received.iter().filter(|request| request.method == "PUT").collect();
    assert_eq!(uploads.len(), 2);
    assert!(uploads[0].body == variant(HUBBLE, 1) && uploads[1].body == HUBBLE);
}

#[tokio::test]
async fn a_hanging_deletion_does_not_delay_the_answer_or_extend_the_drain_timeout() {
    let nvidia =
        FakeNvidia::healthy_except(|request| (request.method == "DELETE").then_some(Reply::Hang))
            .await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| {
            // When the service stops, it waits at most this long for running requests and for calls
            // to NVIDIA, such as the deletion.
            config.server.drain_timeout = std::time::Duration::from_millis(50);
        })
        .start()
        .await;
    // The timeout of a deletion is 10 s (`DELETE_TIMEOUT`), so a service that waits for the deletion
    // would exceed the 8 s below.
    let started = std::time::Instant::now();
    app.upload(HUBBLE, "hubble.jpg").await.assert_success();
    nvidia.wait_for(4).await;
    app.stop().await;
    let elapsed = started.elapsed();
    assert!(
        elapsed < std::time::Duration::from_secs(8),
        "the answer and the shutdown should take less than 8 s, not {elapsed:?}"
    );
}

#[tokio::test]
async fn an_asset_is_deleted_if_its_inference_fails() {
    // The service does not retry a call after the status 402.
    let nvidia =
        FakeNvidia::healthy_except(|request| (request.line() == INFER).then(|| Reply::status(402)))
            .await;
    let app = TestApp::start(&nvidia).await;
    assert_eq!(app.upload(HUBBLE, "hubble.jpg").await.status, 503);
    let received = nvidia.wait_for(4).await;
    assert_eq!(received[3].method, "DELETE");
}

#[tokio::test]
async fn a_failed_creation_and_a_failed_upload_of_an_asset_are_retried() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (creations, uploads) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // The first upload gets no response, and its connection is closed. The first creation gets a 503.
    let nvidia = FakeNvidia::healthy_except(move |request| match request.method.as_str() {
        "PUT" => {
            (uploads.fetch_add(1, Ordering::Relaxed) == 0).then(|| Reply::CloseAfter(Vec::new()))
        }
        "POST" if request.line() == CREATE_ASSET => {
            (creations.fetch_add(1, Ordering::Relaxed) == 0).then(|| Reply::status(503))
        }
        _ => None,
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    app.upload(HUBBLE, "hubble.jpg").await.assert_success();
    let received = nvidia.wait_for(6).await;
    let methods: Vec<_> = received.iter().map(|request| request.method.as_str()).collect();
    // two creations, two uploads, one inference and one deletion
    assert_eq!(methods, ["POST", "POST", "PUT", "PUT", "POST", "DELETE"]);
    assert!(received[3].body == HUBBLE, "the second attempt must send the whole picture");
}
