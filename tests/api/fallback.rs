//! The fallback: if NVIDIA refuses an asset, or the asset API fails, the service shrinks the picture and
//! sends it inline.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use image_rs::RgbImage;

use crate::support::{
    CHELSEA, FakeNvidia, HUBBLE, InlinePicture, Received, Reply, TestApp, assert_problem,
    converted, embedding, noise_png,
    nvidia_api::{CREATE_ASSET, INFER},
    variant,
};

/// The JPEG in an inline inference, and the length of its Base64 text.
fn inline_jpeg(request: &Received) -> (RgbImage, usize) {
    let inline = InlinePicture::of(request);
    assert_eq!(inline.media_type, "image/jpeg");
    (inline.pixels(), inline.text_len)
}

/// Whether this is an inference with the picture in its body. An inference on an asset has a body
/// of only 15 bytes.
fn is_inline(request: &Received) -> bool {
    request.line() == INFER && request.body.len() > 100
}

/// Lets NVIDIA send this reply to calls whose line starts with `call`, except to inline inferences.
/// Asserts that the service shrinks the picture and sends it inline. Asserts that it does the same
/// with the next picture, and does not try to create an asset.
async fn assert_falls_back(call: &'static str, reply: Reply) {
    let nvidia = FakeNvidia::healthy_except(move |request| {
        (request.line().starts_with(call) && !is_inline(request)).then(|| reply.clone())
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    let answer = app.upload(HUBBLE, "hubble.jpg").await;
    assert_eq!(answer.prepared(), "shrunk");
    // The answer has the size of the original picture.
    assert_eq!(
        (answer.json()["width"].as_u64(), answer.json()["height"].as_u64()),
        (Some(1000), Some(872))
    );

    // The call that deletes the asset may come at any time, so it is not counted.
    let calls = || nvidia.received().into_iter().filter(|request| request.method != "DELETE");
    let inline_calls: Vec<_> = calls().filter(is_inline).collect();
    assert_eq!(inline_calls.len(), 1, "{:?}", nvidia.lines());
    let (picture, text_len) = inline_jpeg(&inline_calls[0]);
    assert!(text_len < 200_000, "the text must be within NVIDIA's limit: {text_len}");
    // A shrunk picture is never larger than the original.
    assert!(picture.width() <= 1000 && picture.height() <= 872);
    let calls_before = calls().count();

    let next_answer = app.upload(&variant(HUBBLE, 1), "hubble.jpg").await;
    assert_eq!(next_answer.prepared(), "shrunk");
    assert_eq!(calls().count(), calls_before + 1, "{:?}", nvidia.lines());
}

#[tokio::test]
async fn a_picture_is_sent_inline_if_the_creation_of_its_asset_is_refused() {
    for status in [400, 403, 404, 405, 410, 413, 415, 422] {
        assert_falls_back(CREATE_ASSET, Reply::status(status)).await;
    }
}

#[tokio::test]
async fn a_picture_is_sent_inline_if_the_response_to_the_creation_of_its_asset_is_invalid() {
    for body in [
        "",
        "{}",
        r#"{"assetId":"../../x","uploadUrl":"http://example.com/"}"#,
        r#"{"assetId":"0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9","uploadUrl":"file:///etc/passwd"}"#,
        r#"{"assetId":"0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9","uploadUrl":"upload"}"#,
    ] {
        assert_falls_back(CREATE_ASSET, Reply::json(200, body)).await;
    }
}

#[tokio::test]
async fn a_picture_is_sent_inline_if_the_upload_of_its_asset_is_refused() {
    // The host of the upload URL checks no key and limits no calls, so even 401 and 429 refuse only the
    // upload.
    for status in [400, 401, 403, 404, 411, 413, 429] {
        assert_falls_back("PUT ", Reply::status(status)).await;
    }
}

#[tokio::test]
async fn a_picture_is_sent_inline_if_the_inference_on_its_asset_is_refused() {
    for status in [400, 404, 410, 413, 415, 422] {
        assert_falls_back(INFER, Reply::status(status)).await;
    }
}

#[tokio::test]
async fn a_picture_is_not_sent_inline_if_nvidia_refuses_the_key_or_the_account() {
    // `CREATE_ASSET` with 403 is not in this list: a 403 for this call refuses only the asset.
    for (call, nvidia_status, code, status) in [
        (CREATE_ASSET, 401, "embedding_unauthorized", 502),
        (CREATE_ASSET, 402, "embedding_exhausted", 503),
        (INFER, 401, "embedding_unauthorized", 502),
        (INFER, 403, "embedding_unauthorized", 502),
        (INFER, 402, "embedding_exhausted", 503),
    ] {
        let nvidia = FakeNvidia::healthy_except(move |request| {
            (request.line() == call).then(|| Reply::status(nvidia_status))
        })
        .await;
        let app = TestApp::start(&nvidia).await;
        assert_problem(&app.upload(HUBBLE, "hubble.jpg").await, status, code);
        assert!(!nvidia.received().iter().any(is_inline));
    }
}

#[tokio::test]
async fn a_rate_limited_creation_of_an_asset_is_retried_and_the_picture_is_not_sent_inline() {
    let nvidia = FakeNvidia::healthy_except(|request| {
        (request.line() == CREATE_ASSET).then(|| Reply::status(429))
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    assert_problem(&app.upload(HUBBLE, "hubble.jpg").await, 503, "embedding_rate_limited");
    // Three attempts are the default of NVIDIA_MAX_ATTEMPTS.
    assert_eq!(nvidia.lines(), [CREATE_ASSET; 3]);
}

#[tokio::test]
async fn the_creation_of_assets_is_tried_again_after_the_pause_for_a_refusal() {
    let nvidia = FakeNvidia::healthy_except(|request| {
        (request.line() == CREATE_ASSET).then(|| Reply::status(404))
    })
    .await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| {
            // The creation of the asset is a part of the upload. Normally, the pause after a refused
            // upload is ten minutes.
            assert_eq!(config.embed.call.refused_upload_pause.as_secs(), 600);
            config.embed.call.refused_upload_pause = Duration::ZERO;
        })
        .start()
        .await;
    app.upload(HUBBLE, "hubble.jpg").await.assert_success();
    app.upload(&variant(HUBBLE, 1), "hubble.jpg").await.assert_success();
    assert_eq!(nvidia.lines(), [CREATE_ASSET, INFER, CREATE_ASSET, INFER]);
}

#[tokio::test]
async fn no_asset_is_created_if_nvidia_large_images_is_set_to_shrink() {
    let nvidia = FakeNvidia::replying(vec![embedding()]).await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_LARGE_IMAGES", "shrink").start().await;
    assert_eq!(app.upload(HUBBLE, "hubble.jpg").await.prepared(), "shrunk");
    assert_eq!(nvidia.lines(), [INFER]);
    let (picture, _) = inline_jpeg(&nvidia.received()[0]);
    // Like the original with its 1000 × 872 pixels, the picture is wider than it is high.
    let (width, height) = picture.dimensions();
    assert!(width <= 1000 && width > height, "{width} x {height}");
}

#[tokio::test]
async fn a_picture_that_must_be_shrunk_but_cannot_be_decoded_is_refused_and_not_saved() {
    let nvidia = FakeNvidia::replying(vec![embedding()]).await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_LARGE_IMAGES", "shrink").start().await;
    // The picture has 240 KB. As Base64 it exceeds the inline limit of 200,000 characters, so the
    // service must decode it to shrink it.
    let mut damaged = CHELSEA.to_vec();
    damaged[1000..5000].fill(0);
    let problem =
        assert_problem(&app.upload(&damaged, "damaged.png").await, 415, "unsupported_image");
    assert!(problem.get("saved_as").is_none());
    assert!(app.saved().is_empty());
    assert!(nvidia.received().is_empty());
}

#[tokio::test]
async fn a_picture_refused_as_an_asset_and_inline_does_not_disable_assets() {
    let inferences = AtomicUsize::new(0);
    // The first two inferences are on the asset and inline, both for the first upload.
    let nvidia = FakeNvidia::healthy_except(move |request| {
        (request.line() == INFER && inferences.fetch_add(1, Ordering::Relaxed) < 2)
            .then(|| Reply::status(422))
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    assert_problem(&app.upload(HUBBLE, "refused.jpg").await, 422, "embedding_rejected");
    assert_eq!(app.upload(HUBBLE, "hubble.jpg").await.prepared(), "original");
}

#[tokio::test]
async fn a_picture_that_is_encoded_twice_releases_its_decode_memory_after_the_first_time() {
    let bmp = converted(&noise_png(500, 500), image_rs::ImageFormat::Bmp);
    let nvidia = FakeNvidia::replying(vec![embedding()]).await;
    // The picture is first re-encoded. The result is too large to be sent inline, so the picture is
    // then shrunk. Each step needs most of `IMAGESVC_MAX_DECODE_BYTES`, because a decoder needs 50 MiB
    // even for the smallest picture. If the first step kept its memory, the second would wait for
    // memory until the request's deadline.
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("IMAGESVC_MAX_DECODE_BYTES", "64MiB")
        .setting("IMAGESVC_REQUEST_TIMEOUT", "20s")
        .start()
        .await;
    assert_eq!(app.upload(&bmp, "noise.bmp").await.prepared(), "shrunk");
}

/// A fake NVIDIA that creates no assets while the returned flag is true, which it is at first.
async fn nvidia_with_outage() -> (FakeNvidia, Arc<AtomicBool>) {
    let is_outage = Arc::new(AtomicBool::new(true));
    let shared_is_outage = Arc::clone(&is_outage);
    let nvidia = FakeNvidia::healthy_except(move |request| {
        let fails = request.line() == CREATE_ASSET && shared_is_outage.load(Ordering::Relaxed);
        fails.then(|| Reply::status(503))
    })
    .await;
    (nvidia, is_outage)
}

#[tokio::test]
async fn a_picture_that_was_shrunk_during_an_outage_is_sent_as_an_asset_after_the_outage() {
    let (nvidia, is_outage) = nvidia_with_outage().await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| {
            // Normally, the pause after an outage is a minute.
            assert_eq!(config.embed.call.failed_upload_pause.as_secs(), 60);
            config.embed.call.failed_upload_pause = Duration::from_millis(500);
        })
        .start()
        .await;
    assert_eq!(app.upload(HUBBLE, "a.jpg").await.prepared(), "shrunk");
    is_outage.store(false, Ordering::Relaxed);
    let started = Instant::now();
    while app.upload(HUBBLE, "a.jpg").await.prepared() == "shrunk" {
        assert!(started.elapsed() < Duration::from_secs(10), "the picture must become an asset");
    }
    assert_eq!(app.upload(HUBBLE, "a.jpg").await.header("x-cache"), "hit");
}

#[tokio::test]
async fn after_a_restart_neither_an_outage_nor_the_vector_of_a_shrunk_picture_is_remembered() {
    let (nvidia, is_outage) = nvidia_with_outage().await;
    let app = TestApp::start(&nvidia).await;
    assert_eq!(app.upload(HUBBLE, "a.jpg").await.prepared(), "shrunk");
    assert_eq!(app.upload(HUBBLE, "a.jpg").await.header("x-cache"), "hit");
    let folder = app.stop().await;
    is_outage.store(false, Ordering::Relaxed);
    let app = TestApp::builder(&nvidia).folder(folder).start().await;
    assert_eq!(app.upload(HUBBLE, "a.jpg").await.prepared(), "original");
}

#[tokio::test]
async fn pictures_are_sent_inline_without_another_asset_call_after_the_asset_api_failed() {
    // An outage may be short, so the first picture tries three times to create an asset. After a
    // redirect, another attempt would not help.
    for (failure, attempts) in
        [(Reply::status(503), 3), (Reply::CloseAfter(Vec::new()), 3), (Reply::status(301), 1)]
    {
        let nvidia = FakeNvidia::healthy_except(move |request| {
            (request.line() == CREATE_ASSET).then(|| failure.clone())
        })
        .await;
        let app = TestApp::start(&nvidia).await;
        for n in 0..2 {
            let answer = app.upload(&variant(HUBBLE, n), "hubble.jpg").await;
            assert_eq!(answer.prepared(), "shrunk");
        }
        let create_calls = nvidia.lines().iter().filter(|line| *line == CREATE_ASSET).count();
        assert_eq!(create_calls, attempts, "only the first picture should try to create an asset");
    }
}

#[tokio::test]
async fn after_an_outage_the_asset_api_is_tried_again_sooner_than_after_a_refusal() {
    // 503 means an outage, and 404 a refusal.
    for (status, is_tried_again) in [(503, true), (404, false)] {
        let nvidia = FakeNvidia::healthy_except(move |request| {
            (request.line() == CREATE_ASSET).then(|| Reply::status(status))
        })
        .await;
        let app = TestApp::builder(&nvidia)
            .configure(|config| {
                // Only the pause after an outage changes: `refused_upload_pause` stays ten minutes.
                assert_eq!(config.embed.call.failed_upload_pause.as_secs(), 60);
                config.embed.call.failed_upload_pause = Duration::ZERO;
            })
            .start()
            .await;
        app.upload(HUBBLE, "hubble.jpg").await.assert_success();
        let calls_before = nvidia.count();
        app.upload(&variant(HUBBLE, 1), "hubble.jpg").await.assert_success();
        let lines = nvidia.lines();
        assert_eq!(
            lines[calls_before..].contains(&CREATE_ASSET.to_owned()),
            is_tried_again,
            "{status}"
        );
    }
}

#[tokio::test]
async fn in_an_outage_a_large_picture_makes_at_most_one_call_more_than_a_small_picture() {
    let nvidia = FakeNvidia::healthy_except(|_| Some(Reply::status(503))).await;
    let app = TestApp::start(&nvidia).await;
    for (n, call_count) in [(0, 4), (1, 3), (2, 3)] {
        let calls_before = nvidia.count();
        let answer = app.upload(&variant(HUBBLE, n), "hubble.jpg").await;
        assert_eq!(answer.status, 502);
        // The service tries three times to create an asset for the first picture. These attempts count
        // for the whole picture, so the service then sends it inline only once. It sends each of the
        // other two pictures inline right away, and tries that three times, as with a small picture.
        assert_eq!(nvidia.count() - calls_before, call_count, "{:?}", nvidia.lines());
    }
}
