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
    answer.assert_success();
    assert_eq!(answer.json()["original_filename"], "rocket.jpg");
    assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
}

#[tokio::test]
async fn a_form_with_two_pictures_is_refused_and_saves_no_picture() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let part = ("name=\"file\"; filename=\"rocket.jpg\"", ROCKET);
    let answer = app.upload_parts(&[part, part]).await;
    let problem = assert_problem(&answer, 422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("one picture"));
    assert!(app.saved().is_empty());
    assert!(nvidia.received().is_empty());
}

#[tokio::test]
async fn the_error_for_each_common_mistake_names_the_mistake_or_its_correction() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (answer, words) in [
        // curl -F file=photo.jpg, and curl -F file=: these parts have no `filename`.
        (app.upload_parts(&[("name=\"file\"", b"photo.jpg")]).await, "@"),
        (app.upload_parts(&[("name=\"file\"", b"")]).await, "@"),
        // curl -F image=@photo.jpg
        (
            app.upload_parts(&[("name=\"image\"; filename=\"a.jpg\"", ROCKET)]).await,
            "received: image",
        ),
        // fields with other names, and no field
        (app.upload_parts(&[("name=\"a\"", b"1"), ("name=\"b\"", b"2")]).await, "received: a, b"),
        (app.upload_parts(&[]).await, "no field"),
        // a Content-Type that was set by hand, without a boundary
        (
            app.post("/vectorize-image-upload", "multipart/form-data", ROCKET).await,
            "let your client set Content-Type",
        ),
        // curl --data-binary @photo.jpg, and JSON
        (app.post("/vectorize-image-upload", "image/jpeg", ROCKET).await, "-F"),
        (app.post("/vectorize-image-upload", "application/json", "{}").await, "-F"),
        // bodies that are no form
        (
            app.post("/vectorize-image-upload", FORM_CONTENT_TYPE, "nothing").await,
            "closing boundary",
        ),
        (app.post("/vectorize-image-upload", FORM_CONTENT_TYPE, "").await, "closing boundary"),
    ] {
        let problem = assert_problem(&answer, 422, "validation_failed");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{words}: {problem}");
        assert_eq!(problem["errors"][0]["loc"], serde_json::json!(["body", "file"]));
    }
    assert!(app.saved().is_empty());
}

#[tokio::test]
async fn a_picture_without_a_file_name_is_accepted_and_the_answer_has_no_original_filename() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let answer = app.upload_parts(&[("name=\"file\"\r\nContent-Type: image/jpeg", ROCKET)]).await;
    answer.assert_success();
    assert!(answer.json().get("original_filename").is_none());
}

#[tokio::test]
async fn the_file_name_is_read_from_part_headers_as_real_clients_write_them() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (part_header, file_name) in [
        ("filename=\"my name=bob.jpg\"; name=\"file\"", Some("my name=bob.jpg")),
        ("NAME=\"file\"; FILENAME=\"a.jpg\"", Some("a.jpg")),
        (
            "name=\"file\"; filename*=UTF-8''Strandl%C3%A4ufer%20%F0%9F%90%A6.jpg",
            Some("Strandläufer 🐦.jpg"),
        ),
        ("name=\"file\"; filename=\"_.jpg\"; filename*=utf-8'de'%c3%a4.jpg", Some("ä.jpg")),
        ("name=file; filename=my photo.jpg", Some("my photo.jpg")),
        ("name = \"file\" ; filename=\"a\\\"b.jpg\"", Some("a\"b.jpg")),
        // Control characters are removed. The answer omits an empty name.
        ("name=\"file\"; filename*=UTF-8''%0d%0a%1b.jpg", Some(".jpg")),
        ("name=\"file\"; filename=\"\"", None),
    ] {
        let answer = app.upload_parts(&[(part_header, ROCKET)]).await;
        answer.assert_success();
        let returned = answer.json().get("original_filename").cloned();
        assert_eq!(returned.as_ref().and_then(|name| name.as_str()), file_name, "{part_header}");
    }
}

#[tokio::test]
async fn empty_files_are_skipped_only_if_the_form_also_contains_a_picture() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // Browsers send such a part for a file input that the user left empty.
    let empty =
        ("name=\"file\"; filename=\"\"\r\nContent-Type: application/octet-stream", &b""[..]);
    let picture = ("name=\"file\"; filename=\"rocket.jpg\"", ROCKET);
    for parts in [[empty, picture], [picture, empty]] {
        let answer = app.upload_parts(&parts).await;
        answer.assert_success();
        assert_eq!(answer.json()["original_filename"], "rocket.jpg");
        assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
    }
    assert_problem(&app.upload_parts(&[empty, empty]).await, 400, "empty_image");
}

#[tokio::test]
async fn a_content_type_with_unusual_spaces_and_an_unusual_boundary_is_accepted() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // According to RFC 2045, a boundary with `/`, `=`, `:`, `(`, `)` or `?` must be in quotes. The service
    // also accepts it without.
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
        app.post("/vectorize-image-upload", &content_type, body.clone()).await.assert_success();
    }
}

#[tokio::test]
async fn a_truncated_form_is_refused_and_saves_no_picture() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let mut body = form(ROCKET);
    body.truncate(body.len() - b"\r\n--x--\r\n".len()); // without the closing boundary
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
    // A form may have at most 32 parts.
    let many_parts = vec![("name=\"a\"", &b"1"[..]); 40];
    let problem = assert_problem(&app.upload_parts(&many_parts).await, 422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("32 parts"));
    // A part's header may have 64 KiB. The service checks this only when the next chunk of the body
    // arrives, so this header is long enough for several chunks.
    let long_header = format!("name=\"{}\"", "a".repeat(700_000));
    let problem =
        assert_problem(&app.upload_parts(&[(&long_header, b"1")]).await, 422, "validation_failed");
    assert!(problem["detail"].as_str().unwrap().contains("header of a part"));
}

#[tokio::test]
async fn file_names_are_returned_unchanged_except_for_invisible_characters() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (name, expected) in [
        ("../../etc/passwd", "../../etc/passwd"),
        ("Strandläufer 🐦.jpg", "Strandläufer 🐦.jpg"),
        // U+202E would make the rest of the name appear from right to left.
        ("\u{202e}gpj.exe", "gpj.exe"),
    ] {
        let answer = app.upload(ROCKET, name).await;
        answer.assert_success();
        assert_eq!(answer.json()["original_filename"], expected);
    }
    assert_eq!(app.saved().len(), 3, "every picture should be saved in the downloads folder");
}

#[tokio::test]
async fn an_avif_without_a_file_name_is_refused_as_an_unsupported_image_and_not_as_text() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // Without a file name, bytes of an unknown format count as text. The service does not decode AVIF,
    // but recognizes it.
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
async fn the_error_for_a_too_long_body_states_the_limit_for_pictures() {
    // A body is longer than its picture, so the upload and Base64 routes have higher limits for bodies.
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IMAGE_BYTES", "1MiB").start().await;
    let picture = noise_png(1200, 1000); // 3.6 MB: also over the limits for bodies
    for answer in [app.upload(&picture, "noise.png").await, app.base64(&picture).await] {
        let problem = assert_problem(&answer, 413, "image_too_large");
        assert!(problem["detail"].as_str().unwrap().contains("1 MiB"), "{problem}");
    }
}
