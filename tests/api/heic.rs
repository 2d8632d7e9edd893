//! HEIC pictures, such as those of phones, get the size and orientation that libheif gives them.
//! Unsupported and hostile HEIC pictures are refused.

use std::{fs, path::Path};

use image_rs::RgbImage;

use crate::support::{
    Answer, FakeNvidia, FakeServer, PHONE, ROCKET, Reply, TestApp, assert_problem, metric,
};

/// Each line contains the name of a fixture, and its width, its height and the mean colours of its
/// parts, as libheif decodes them. These tests do not use the colours.
const EXPECTED: &str = include_str!("../fixtures/heic/expected.txt");

/// The bytes of a fixture.
fn file(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heic");
    fs::read(folder.join(name)).unwrap()
}

/// The fixtures whose names begin with the prefix.
fn files_with_prefix(prefix: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heic");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let names = names.filter(|name| name.starts_with(prefix) && name.ends_with(".heic"));
    names.map(|name| (name.clone(), file(&name))).collect()
}

/// The pixels of the JPEG that was last sent to NVIDIA.
fn last_sent_pixels(nvidia: &FakeNvidia) -> RgbImage {
    let inline = nvidia.last_inline_picture();
    assert_eq!(inline.media_type, "image/jpeg");
    inline.pixels()
}

/// Asserts that the picture was refused and not saved. Returns the detail of the error.
fn refusal_detail(answer: &Answer) -> String {
    let problem = assert_problem(answer, 415, "unsupported_image");
    assert!(problem.get("saved_as").is_none());
    problem["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_fixture_in_expected_txt_is_sent_at_its_listed_size_and_is_saved_unchanged() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for line in EXPECTED.lines() {
        let [name, width, height, _] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("each line of expected.txt should have four words: {line}")
        };
        let picture = file(&format!("{name}.heic"));
        let answer = app.upload(&picture, "IMG_0042.HEIC").await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        answer.assert_success();
        let body = answer.json();
        assert_eq!(
            (body["content_type"].as_str(), body["prepared"].as_str()),
            (Some("image/heic"), Some("jpeg"))
        );
        assert_eq!(
            (body["width"].to_string(), body["height"].to_string()),
            (width.into(), height.into()),
            "{name}"
        );
        assert!(answer.saved_as().ends_with(".heic"));
        assert_eq!(app.saved_bytes(&answer.saved_as()), picture, "{name}");
        let (sent_width, sent_height) = last_sent_pixels(&nvidia).dimensions();
        assert_eq!(
            (sent_width.to_string(), sent_height.to_string()),
            (width.into(), height.into())
        );
    }
}

#[tokio::test]
async fn a_picture_is_turned_by_its_irot_and_mirrored_by_its_imir() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // A point in the red half, and one in the blue half. In `halves`, red is on the left. `irot` turns
    // anticlockwise. `imir` 0 swaps top and bottom, so here both halves stay where they are. `imir` 1
    // swaps left and right (ISO/IEC 23008-12, 6.5.10 and 6.5.12).
    for (name, red_point, blue_point) in [
        ("halves", (8, 16), (56, 16)),
        ("halves-irot1", (16, 56), (16, 8)),
        ("halves-irot2", (56, 16), (8, 16)),
        ("halves-irot3", (16, 8), (16, 56)),
        ("halves-imir0", (8, 16), (56, 16)),
        ("halves-imir1", (56, 16), (8, 16)),
    ] {
        app.upload(&file(&format!("{name}.heic")), "a.heic").await.assert_success();
        let sent = last_sent_pixels(&nvidia);
        let pixel = |(x, y)| sent.get_pixel(x, y).0;
        let ([red_sample, _, _], [_, _, blue_sample]) = (pixel(red_point), pixel(blue_point));
        assert!(
            red_sample > 200 && blue_sample > 200,
            "{name}: {red_sample} and {blue_sample} should be more than 200"
        );
    }
}

#[tokio::test]
async fn transparent_pixels_become_white() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // The picture has 120 × 80 pixels. Its top is transparent, and its bottom is not. It shows a cat
    // in brown colours, which contain less blue than white does.
    app.upload(&file("alpha.heic"), "a.heic").await.assert_success();
    let sent = last_sent_pixels(&nvidia);
    let mean_blue_of_row =
        |y| (0..120).map(|x| u32::from(sent.get_pixel(x, y)[2])).sum::<u32>() / 120;
    let (top, bottom) = (mean_blue_of_row(1), mean_blue_of_row(78));
    assert!(top > 240 && bottom < 200, "only the top should be white: {top} and {bottom}");
}

#[tokio::test]
async fn a_picture_from_a_phone_is_accepted_by_upload_base64_and_url_with_nvidia_and_sandbox() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|_, _| Reply::new(200, &[], PHONE)).await;
    let with_nvidia = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    let with_sandbox = TestApp::sandbox().may_fetch_from(&picture_server).start().await;
    for app in [with_nvidia, with_sandbox] {
        for answer in [
            app.upload(PHONE, "IMG_0042.HEIC").await,
            app.base64(PHONE).await,
            app.by_url(&picture_server.url("/photo.heic")).await,
        ] {
            answer.assert_success();
            assert_eq!(answer.json()["content_type"], "image/heic");
        }
        let metrics = app.get("/metrics").await.text();
        let decode_count = metric(&metrics, "imagesvc_decodes_total{outcome=\"done\"}");
        assert!(decode_count >= 1.0, "a child process must decode the picture");
    }
}

#[tokio::test]
async fn a_picture_whose_jpeg_is_over_the_inline_limit_is_shrunk() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", "20000")
        .start()
        .await;
    let answer = app.upload(&file("large-grid-turned.heic"), "a.heic").await;
    assert_eq!(answer.prepared(), "shrunk");
    // Upright, the picture is higher than wide. A shrunk picture has at most 1024 pixels a side.
    let (width, height) = last_sent_pixels(&nvidia).dimensions();
    assert!(width < height && height <= 1024, "{width} x {height}");
}

#[tokio::test]
async fn the_bytes_decide_the_format_whatever_the_file_name() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (bytes, name, content_type, prepared) in [
        (ROCKET, "IMG_0042.HEIC", "image/jpeg", "original"),
        (PHONE, "photo.jpg", "image/heic", "jpeg"),
    ] {
        let answer = app.upload(bytes, name).await;
        answer.assert_success();
        let body = answer.json();
        assert_eq!(
            (body["content_type"].as_str(), body["prepared"].as_str()),
            (Some(content_type), Some(prepared))
        );
    }
}

#[tokio::test]
async fn the_refusal_of_an_unsupported_kind_names_the_kind_and_nothing_is_saved() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (name, words) in [
        ("avif.avif", "AVIF pictures are not supported"),
        ("avif-generic-brand.heic", "AVIF pictures are not supported"),
        ("hev1.heic", "a HEIC picture of the kind hev1"),
        ("jpeg.heic", "a HEIF file with a JPEG in it"),
        ("overlay.heic", "a HEIC picture that overlays others"),
        ("derived.heic", "a HEIC picture that is made from another one"),
        ("essential-unknown.heic", "an unknown essential property"),
        ("alpha-half.heic", "transparency of another size"),
        ("grid-alpha-turned-of-tile.heic", "transparency is cropped, turned or mirrored"),
    ] {
        let detail = refusal_detail(&app.upload(&file(name), "IMG_0042.HEIC").await);
        assert!(detail.contains(words), "{name}: {detail}");
        assert!(!detail.contains("damaged"), "{name}: {detail}");
    }
    assert!(app.saved().is_empty());
    assert!(nvidia.received().is_empty());
}

#[tokio::test]
async fn contradictory_and_truncated_files_are_refused_and_not_saved() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let mut bad_files = 0;
    for (name, picture) in files_with_prefix("bad-") {
        bad_files += 1;
        let detail = refusal_detail(&app.upload(&picture, "IMG_0042.HEIC").await);
        assert!(detail.contains("HEIC"), "{name}: {detail}");
    }
    assert!(bad_files >= 12, "there should be at least 12 contradictory files, not {bad_files}");
    for name in ["iphone-grid", "alpha", "thumbnail", "large-single"] {
        // Truncated to 1/16, 2/16 and so on.
        let picture = file(&format!("{name}.heic"));
        for sixteenths in 1..16 {
            let truncated = &picture[..picture.len() * sixteenths / 16];
            refusal_detail(&app.upload(truncated, "IMG_0042.HEIC").await);
        }
    }
    assert!(app.saved().is_empty());
    assert!(nvidia.received().is_empty());
}

#[tokio::test]
async fn more_pixels_than_the_limit_are_refused_even_if_they_are_cropped() {
    let nvidia = FakeNvidia::healthy().await;
    // The picture `generic-brand` has 120 × 80 = 9600 pixels, one more than the limit.
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IMAGE_PIXELS", "9599").start().await;
    for name in [
        "generic-brand",    // The whole picture has too many pixels.
        "clap-irot",        // The picture has too many pixels before it is cropped.
        "bomb-tile-larger", // A tile has too many pixels before it is cropped.
    ] {
        let answer = app.upload(&file(&format!("{name}.heic")), "IMG_0042.HEIC").await;
        let problem = assert_problem(&answer, 413, "image_too_large");
        assert!(problem["detail"].as_str().unwrap().contains("9599"), "{name}: {problem}");
    }
    assert!(app.saved().is_empty());
}

#[tokio::test]
async fn files_with_changed_bytes_are_never_answered_with_a_server_error() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let mut random = fastrand::Rng::with_seed(11);
    let (mut embedded, mut refused) = (0, 0);
    for n in 0..300 {
        let line = EXPECTED.lines().nth(random.usize(..EXPECTED.lines().count())).unwrap();
        let name = line.split(' ').next().unwrap();
        let mut picture = file(&format!("{name}.heic"));
        // Half of the files are changed only in their first 600 bytes, where the header is.
        let changeable_len = if n % 2 == 0 { picture.len().min(600) } else { picture.len() };
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..changeable_len);
            picture[at] = random.u8(..);
        }
        let answer = app.upload(&picture, "IMG_0042.HEIC").await;
        assert!(matches!(answer.status, 200 | 413 | 415), "{n} {name}: {}", answer.text());
        if answer.status == 200 {
            embedded += 1;
        } else {
            refused += 1;
        }
    }
    assert!(
        embedded > 20 && refused > 20,
        "embedded: {embedded}, refused: {refused}; both should be more than 20"
    );
}
