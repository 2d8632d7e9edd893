//! A picture that is small enough to be sent inline needs one call to NVIDIA. These tests check
//! every byte of this call, and the answer to the client.

use ::base64::{Engine, prelude::BASE64_STANDARD};

use crate::support::{
    CHELSEA, FakeNvidia, FakeServer, ROCKET, TestApp,
    nvidia_api::{INFER, KEY, inline_body},
};

#[tokio::test]
async fn a_small_jpeg_is_sent_in_one_call_with_exactly_this_request_line_headers_and_body() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.assert_success();

    let received = nvidia.received();
    assert_eq!(nvidia.lines(), [INFER]);
    let body = inline_body("image/jpeg", &BASE64_STANDARD.encode(ROCKET));
    assert_eq!(String::from_utf8_lossy(&received[0].body), body);
    assert_eq!(
        received[0].sorted_headers(),
        [
            "accept: application/json".to_owned(),
            format!("authorization: Bearer {KEY}"),
            format!("content-length: {}", body.len()),
            "content-type: application/json".to_owned(),
            concat!("user-agent: imagesvc/", env!("CARGO_PKG_VERSION")).to_owned(),
        ]
    );
    // `sorted_headers` leaves out `host`.
    assert_eq!(received[0].header("host"), Some(nvidia.address.to_string().as_str()));
}

#[tokio::test]
async fn the_upload_base64_and_url_routes_send_the_same_body_to_nvidia() {
    let picture_server = FakeServer::serving(ROCKET).await;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .may_fetch_from(&picture_server)
        // Without a cache, the service calls NVIDIA for each of the three requests.
        .setting("IMAGESVC_CACHE_MEMORY", "0")
        .setting("IMAGESVC_CACHE_DISK", "0")
        .start()
        .await;
    app.upload(ROCKET, "rocket.jpg").await.assert_success();
    app.base64(ROCKET).await.assert_success();
    app.by_url(&picture_server.url("/rocket.jpg")).await.assert_success();
    let received = nvidia.received();
    assert_eq!(received.len(), 3);
    assert!(received.iter().all(|request| request.body == received[0].body));
}

#[tokio::test]
async fn a_png_with_a_jpg_file_name_is_sent_as_png() {
    // The whole photograph is too large to be sent inline.
    let thumbnail = image_rs::load_from_memory(CHELSEA).unwrap().resize(
        100,
        100,
        image_rs::imageops::FilterType::Triangle,
    );
    let mut png = std::io::Cursor::new(Vec::new());
    thumbnail.write_to(&mut png, image_rs::ImageFormat::Png).unwrap();
    let png = png.into_inner();
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let answer = app.upload(&png, "chelsea.jpg").await;
    answer.assert_success();
    assert!(answer.saved_as().ends_with(".png"));
    assert_eq!(answer.json()["content_type"], "image/png");
    assert_eq!(
        nvidia.received()[0].body,
        inline_body("image/png", &BASE64_STANDARD.encode(&png)).as_bytes()
    );
}

#[tokio::test]
async fn an_nvidia_key_with_a_bearer_prefix_is_not_sent_with_two_prefixes() {
    let nvidia = FakeNvidia::healthy().await;
    let with_bearer = format!("Bearer {KEY}");
    let app = TestApp::builder(&nvidia).setting("NVIDIA_API_KEY", &with_bearer).start().await;
    app.upload(ROCKET, "rocket.jpg").await.assert_success();
    assert_eq!(nvidia.received()[0].header("authorization"), Some(with_bearer.as_str()));
}

#[tokio::test]
async fn the_answer_describes_the_saved_picture_and_names_the_model() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let answer = app.upload(ROCKET, "IMG_0042.JPG").await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert!(answer.text().ends_with("]}\n"), "the vector must be the last field, before a newline");
    let body = answer.json();
    let saved_as = body["saved_as"].as_str().unwrap();
    // The path begins with `downloads/`, although the test's folder has another name.
    assert_eq!(body["path"], format!("downloads/{saved_as}"));
    assert_eq!(app.saved(), [saved_as]);
    assert_eq!(app.saved_bytes(saved_as), ROCKET);
    assert_eq!(body["original_filename"], "IMG_0042.JPG");
    assert_eq!(body["content_type"], "image/jpeg");
    assert_eq!((body["width"].as_u64(), body["height"].as_u64()), (Some(640), Some(427)));
    assert_eq!(body["sha256"], "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c");
    assert_eq!(body["prepared"], "original");
    assert_eq!(body["model"], "nvidia/nv-dinov2");
    assert_eq!(body["dimensions"], 1536);
    // Only the URL route adds this field.
    assert!(body.get("source_url").is_none());
}
