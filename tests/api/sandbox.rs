//! Tests the service in sandbox mode through its routes. Sandbox mode needs no key and no network.

use image_rs::ImageFormat;

use crate::support::{CHELSEA, FakeServer, HUBBLE, ROCKET, TestApp, assert_problem, converted};

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn every_route_embeds_photographs_below_and_above_the_inline_limit() {
    let app = TestApp::sandbox().start().await;
    for (photo, name) in [(ROCKET, "rocket.jpg"), (CHELSEA, "chelsea.png"), (HUBBLE, "hubble.jpg")]
    {
        let answer = app.upload(photo, name).await;
        assert_eq!(answer.json()["model"], "sandbox/perceptual");
        assert_eq!(answer.prepared(), "original");
        assert_eq!(app.base64(photo).await.vector(), answer.vector());
    }
    let by_url = app.by_url(&app.url("/sandbox/photo.jpg")).await;
    assert_eq!(by_url.vector(), app.upload(ROCKET, "rocket.jpg").await.vector());
    let on_localhost = format!("http://localhost:{}/sandbox/photo.jpg", app.address.port());
    app.by_url(&on_localhost).await.vector();
}

#[tokio::test]
async fn copies_of_a_photograph_in_different_formats_get_similar_vectors() {
    let app = TestApp::sandbox().start().await;
    let original = app.upload(ROCKET, "rocket.jpg").await.vector();
    for format in
        [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff]
    {
        let answer = app.upload(&converted(ROCKET, format), "rocket").await;
        let similarity = cosine(&original, &answer.vector());
        assert!(similarity > 0.95, "{format:?}: {similarity} should be more than 0.95");
        let prepared = if format == ImageFormat::Png { "original" } else { "jpeg" };
        assert_eq!(answer.prepared(), prepared);
    }
    let other_photograph = app.upload(CHELSEA, "chelsea.png").await.vector();
    assert!(cosine(&original, &other_photograph) < 0.9);
}

#[tokio::test]
async fn two_of_the_three_sample_pictures_have_similar_vectors() {
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
    let [copy, landscape] = [1, 2].map(|other| cosine(&vectors[0], &vectors[other]));
    assert!(copy > 0.95, "{copy}");
    assert!(landscape < 0.9, "{landscape}");
    assert!(cosine(&vectors[1], &vectors[2]) < 0.9);
}

#[tokio::test]
async fn in_sandbox_mode_no_loopback_url_is_allowed_except_the_sample_picture() {
    let app = TestApp::sandbox().start().await;
    let other_server = FakeServer::serving(ROCKET).await;
    for url in [
        other_server.url("/"),
        "http://127.0.0.1/".into(),
        format!("http://[::1]:{}/", app.address.port()),
    ] {
        assert_problem(&app.by_url(&url).await, 403, "url_not_allowed");
    }
    assert!(other_server.received().is_empty());
}

#[tokio::test]
async fn a_picture_that_the_sandbox_cannot_decode_is_rejected_but_saved() {
    let app = TestApp::sandbox().start().await;
    let mut png = CHELSEA[..5000].to_vec();
    png.extend([0; 100]);
    let problem = assert_problem(&app.upload(&png, "broken.png").await, 422, "embedding_rejected");
    assert!(problem["saved_as"].is_string());
}
