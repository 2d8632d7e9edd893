//! The upload route: forms as real clients send them, and common mistakes.

use crate::support::{
    FORM_CONTENT_TYPE, FakeNvidia, ROCKET, TestApp, assert_problem, avif, form, noise_png,
};

#[tokio::test]
async fn other_fields_before_and_after_the_file_are_ignored() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let answer = app
        .upload_parts(&[
            ("name=\"user\"", b"me"),
            ("name=\"other\"; filename=\"other.jpg\"", &[7; 5000]),
            ("name=\"file\"; filename=\"rocket.jpg\"", ROCKET),
            ("name=\"comment\"", b"a fine rocket"),
        ])
        .await;
    answer.vector();
    assert_eq!(answer.json()["original_filename"], "rocket.jpg");
    assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
}

#[tokio::test]
async fn a_second_file_part_is_refused_and_leaves_no_file() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let part = ("name=\"file\"; filename=\"rocket.jpg\"", ROCKET);
    let problem = assert_problem(&app.upload_parts(&[part, part]).await, 422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("one picture"));
    assert!(app.saved().is_empty());
    assert!(nvidia.received().is_empty());
}

#[tokio::test]
async fn the_detail_of_each_common_mistake_says_how_to_correct_it() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (answer, word) in [
        // curl -F file=photo.jpg
        (app.upload_parts(&[("name=\"file\"", b"photo.jpg")]).await, "@"),
        (app.upload_parts(&[("name=\"file\"", b"")]).await, "@"),
        // curl -F image=@photo.jpg
        (
            app.upload_parts(&[("name=\"image\"; filename=\"a.jpg\"", ROCKET)]).await,
            "received: image",
        ),
        (app.upload_parts(&[("name=\"a\"", b"1"), ("name=\"b\"", b"2")]).await, "received: a, b"),
        (app.upload_parts(&[]).await, "no field"),
        (
            app.post("/vectorize-image-upload", "multipart/form-data", ROCKET).await,
            "let your client set Content-Type",
        ),
        (app.post("/vectorize-image-upload", "image/jpeg", ROCKET).await, "-F"),
        (app.post("/vectorize-image-upload", "application/json", "{}").await, "-F"),
        (
            app.post("/vectorize-image-upload", FORM_CONTENT_TYPE, "nothing").await,
            "closing boundary",
        ),
        (app.post("/vectorize-image-upload", FORM_CONTENT_TYPE, "").await, "closing boundary"),
    ] {
        let problem = assert_problem(&answer, 422, "validation_failed");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{word}: {problem}");
        assert_eq!(problem["errors"][0]["loc"], serde_json::json!(["body", "file"]));
    }
    assert!(app.saved().is_empty());
}

#[tokio::test]
async fn a_picture_without_a_file_name_is_accepted() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let answer = app.upload_parts(&[("name=\"file\"\r\nContent-Type: image/jpeg", ROCKET)]).await;
    answer.vector();
    assert!(answer.json().get("original_filename").is_none());
}

#[tokio::test]
async fn the_part_headers_of_real_clients_are_parsed() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (head, name) in [
        ("filename=\"my name=bob.jpg\"; name=\"file\"", Some("my name=bob.jpg")),
        ("NAME=\"file\"; FILENAME=\"a.jpg\"", Some("a.jpg")),
        (
            "name=\"file\"; filename*=UTF-8''Strandl%C3%A4ufer%20%F0%9F%90%A6.jpg",
            Some("Strandläufer 🐦.jpg"),
        ),
        ("name=\"file\"; filename=\"_.jpg\"; filename*=utf-8'de'%c3%a4.jpg", Some("ä.jpg")),
        ("name=file; filename=my photo.jpg", Some("my photo.jpg")),
        ("name = \"file\" ; filename=\"a\\\"b.jpg\"", Some("a\"b.jpg")),
        ("name=\"file\"; filename*=UTF-8''%0d%0a%1b.jpg", Some(".jpg")),
        ("name=\"file\"; filename=\"\"", None),
    ] {
        let answer = app.upload_parts(&[(head, ROCKET)]).await;
        answer.vector();
        assert_eq!(answer.json().get("original_filename").and_then(|name| name.as_str()), name);
    }
}

#[tokio::test]
async fn empty_files_beside_the_picture_are_skipped() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let empty =
        ("name=\"file\"; filename=\"\"\r\nContent-Type: application/octet-stream", &b""[..]);
    let picture = ("name=\"file\"; filename=\"rocket.jpg\"", ROCKET);
    for parts in [[empty, picture], [picture, empty]] {
        let answer = app.upload_parts(&parts).await;
        answer.vector();
        assert_eq!(answer.json()["original_filename"], "rocket.jpg");
        assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
    }
    assert_problem(&app.upload_parts(&[empty, empty]).await, 400, "empty_image");
}

#[tokio::test]
async fn a_content_type_with_spaces_or_an_unquoted_boundary_is_accepted() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let boundary = "Sx/9+e=7K:(a)b?c";
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n"
    );
    let body = [head.as_bytes(), ROCKET, format!("\r\n--{boundary}--\r\n").as_bytes()].concat();
    for content_type in [
        format!("multipart/form-data ; boundary={boundary}"),
        format!("multipart/form-data; boundary=\"{boundary}\""),
        format!("multipart/form-data;charset=utf-8;Boundary={boundary};"),
    ] {
        app.post("/vectorize-image-upload", &content_type, body.clone()).await.vector();
    }
}

#[tokio::test]
async fn a_truncated_form_is_refused_and_leaves_no_file() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let mut body = form(ROCKET);
    body.truncate(body.len() - 9);
    let answer = app.post("/vectorize-image-upload", FORM_CONTENT_TYPE, body).await;
    let problem = assert_problem(&answer, 422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("closing boundary"));
    assert!(app.saved().is_empty());
    assert!(nvidia.received().is_empty());
}

#[tokio::test]
async fn a_form_with_too_many_parts_or_a_too_long_header_is_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let many_parts = vec![("name=\"a\"", &b"1"[..]); 40];
    let problem = assert_problem(&app.upload_parts(&many_parts).await, 422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("32 parts"));
    let long_head = format!("name=\"{}\"", "a".repeat(700_000));
    let problem =
        assert_problem(&app.upload_parts(&[(&long_head, b"1")]).await, 422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("header of a part"));
}

#[tokio::test]
async fn file_names_are_returned_without_invisible_characters() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (name, expected) in [
        ("../../etc/passwd", "../../etc/passwd"),
        ("Strandläufer 🐦.jpg", "Strandläufer 🐦.jpg"),
        ("\u{202e}gpj.exe", "gpj.exe"),
    ] {
        let answer = app.upload(ROCKET, name).await;
        answer.vector();
        assert_eq!(answer.json()["original_filename"], expected);
    }
    assert_eq!(app.saved().len(), 3);
}

#[tokio::test]
async fn a_picture_in_an_unsupported_format_and_without_a_file_name_is_an_unsupported_image() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let answer = app.upload_parts(&[("name=\"file\"", &avif())]).await;
    assert_problem(&answer, 415, "unsupported_image");
}

#[tokio::test]
async fn a_boundary_longer_than_the_standard_allows_is_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let content_type = format!("multipart/form-data; boundary={}", "b".repeat(71));
    let answer = app.post("/vectorize-image-upload", &content_type, "").await;
    let problem = assert_problem(&answer, 422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("70 characters"));
}

#[tokio::test]
async fn the_error_for_a_body_far_over_the_limit_states_the_limit_for_pictures() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IMAGE_BYTES", "1MiB").start().await;
    let picture = noise_png(1200, 1000);
    for answer in [app.upload(&picture, "noise.png").await, app.base64(&picture).await] {
        let problem = assert_problem(&answer, 413, "image_too_large");
        assert!(problem["detail"].as_str().unwrap().contains("1 MiB"), "{problem}");
    }
}
