//! Tests the service in sandbox mode through its routes. Sandbox mode needs no key and no network.

use image_rs::ImageFormat;

use crate::support::{CHELSEA, FakeServer, HUBBLE, ROCKET, TestApp, assert_problem, converted};

/// Vectors whose cosine is higher than this are similar.
const SIMILAR: f64 = 0.95;
/// Vectors whose cosine is lower than this belong to different photographs.
const DIFFERENT: f64 = 0.9;

/// The cosine of two of the sandbox's vectors, which all have length 1.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn a_photograph_gets_the_same_vector_by_upload_base64_and_url() {
    let app = TestApp::sandbox().start().await;
    // The rocket is sent to the stand-in inline. The other two are too large, and become assets.
    for (photo, name) in [(ROCKET, "rocket.jpg"), (CHELSEA, "chelsea.png"), (HUBBLE, "hubble.jpg")]
    {
        let answer = app.upload(photo, name).await;
        assert_eq!(answer.json()["model"], "sandbox/perceptual");
        assert_eq!(answer.prepared(), "original");
        assert_eq!(app.base64(photo).await.vector(), answer.vector());
    }
    // `/sandbox/photo.jpg` is the rocket, too.
    let by_url = app.by_url(&app.url("/sandbox/photo.jpg")).await;
    assert_eq!(by_url.vector(), app.upload(ROCKET, "rocket.jpg").await.vector());
    // The service's own port is allowed under both names, 127.0.0.1 and localhost.
    let on_localhost = format!("http://localhost:{}/sandbox/photo.jpg", app.address.port());
    app.by_url(&on_localhost).await.assert_success();
}

#[tokio::test]
async fn copies_in_other_formats_get_similar_vectors_but_another_photograph_does_not() {
    let app = TestApp::sandbox().start().await;
    let original = app.upload(ROCKET, "rocket.jpg").await.vector();
    for format in
        [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff]
    {
        let answer = app.upload(&converted(ROCKET, format), "rocket").await;
        let similarity = cosine(&original, &answer.vector());
        assert!(similarity > SIMILAR, "{format:?}: {similarity} should be more than {SIMILAR}");
        // NVIDIA accepts only PNG and JPEG. The service converts the other formats to JPEG.
        let prepared = if format == ImageFormat::Png { "original" } else { "jpeg" };
        assert_eq!(answer.prepared(), prepared);
    }
    let other_photograph = app.upload(CHELSEA, "chelsea.png").await.vector();
    assert!(cosine(&original, &other_photograph) < DIFFERENT);
}

#[tokio::test]
async fn the_sample_photo_is_similar_to_its_edited_copy_but_not_to_the_landscape() {
    let app = TestApp::sandbox().start().await;
    let names = ["photo", "photo-cropped-and-darker", "landscape"];
    let mut vectors = Vec::new();
    for path in names.map(|name| format!("/sandbox/{name}.jpg")) {
        let picture = app.get(&path).await;
        assert_eq!((picture.status, picture.header("content-type")), (200, "image/jpeg"));
        let by_url = app.by_url(&app.url(&path)).await.vector();
        assert_eq!(app.upload(&picture.body, &path).await.vector(), by_url);
        vectors.push(by_url);
    }
    let [photo, copy, landscape] = &vectors[..] else { panic!("there should be three vectors") };
    let (to_copy, to_landscape) = (cosine(photo, copy), cosine(photo, landscape));
    assert!(to_copy > SIMILAR, "{to_copy} should be more than {SIMILAR}");
    assert!(to_landscape < DIFFERENT, "{to_landscape} should be less than {DIFFERENT}");
    assert!(cosine(copy, landscape) < DIFFERENT);
}

#[tokio::test]
async fn in_sandbox_mode_a_loopback_url_of_another_server_is_refused() {
    let app = TestApp::sandbox().start().await;
    let other_server = FakeServer::serving(ROCKET).await;
    for url in [
        other_server.url("/"),
        "http://127.0.0.1/".into(), // port 80
        // The service listens on 127.0.0.1 and not on ::1.
        format!("http://[::1]:{}/", app.address.port()),
    ] {
        assert_problem(&app.by_url(&url).await, 403, "url_not_allowed");
    }
    assert_eq!(other_server.count(), 0, "no request should reach the other server");
}

#[tokio::test]
async fn a_picture_that_the_sandbox_cannot_decode_is_rejected_but_saved() {
    let app = TestApp::sandbox().start().await;
    // The header is intact, but the pixels end early and are followed by zeros. The service sends an
    // upright PNG unchanged, so only the sandbox decodes it. When NVIDIA or the sandbox rejects
    // a picture, the saved file stays.
    let mut png = CHELSEA[..5000].to_vec();
    png.extend([0; 100]);
    let problem = assert_problem(&app.upload(&png, "broken.png").await, 422, "embedding_rejected");
    assert!(problem["saved_as"].is_string());
}
