//! HEIC, what phones take: read as libheif reads it, and refused where it is of another kind or hurts.

use std::{fs, path::Path};

use image_rs::RgbImage;

use crate::support::{
    Answer, FakeNvidia, FakeServer, PHONE, ROCKET, Reply, TestApp, assert_problem, metric,
};

const EXPECTED: &str = include_str!("../fixtures/heic/expected.txt");

fn file(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heic");
    fs::read(folder.join(name)).unwrap()
}

/// All files whose names begin so.
fn files(prefix: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heic");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let found = names.filter(|name| name.starts_with(prefix) && name.ends_with(".heic"));
    found.map(|name| (name.clone(), file(&name))).collect()
}

/// The JPEG that NVIDIA was given last.
fn sent(nvidia: &FakeNvidia) -> RgbImage {
    let sent = nvidia.last_inline();
    assert_eq!(sent.media_type, "image/jpeg");
    sent.pixels()
}

fn detail(answer: &Answer) -> String {
    let problem = assert_problem(answer, 415, "unsupported_image");
    assert!(problem.get("saved_as").is_none());
    problem["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_file_is_embedded_at_the_size_that_libheif_shows_and_saved_as_it_came() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for line in EXPECTED.lines() {
        let [name, width, height, _] = line.split(' ').collect::<Vec<_>>()[..] else { panic!() };
        let picture = file(&format!("{name}.heic"));
        let answer = app.upload(&picture, "IMG_0042.HEIC").await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        answer.vector();
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
        let (sent_width, sent_height) = sent(&nvidia).dimensions();
        assert_eq!(
            (sent_width.to_string(), sent_height.to_string()),
            (width.into(), height.into())
        );
    }
}

#[tokio::test]
async fn a_picture_is_turned_and_mirrored_as_the_file_says() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // Which half is red: irot turns against the clock; imir 0 puts the bottom on top, 1 the right on
    // the left (ISO/IEC 23008-12, 6.5.10 and 6.5.12).
    for (name, red, blue) in [
        ("halves", (8, 16), (56, 16)),
        ("halves-irot1", (16, 56), (16, 8)),
        ("halves-irot2", (56, 16), (8, 16)),
        ("halves-irot3", (16, 8), (16, 56)),
        ("halves-imir0", (8, 16), (56, 16)),
        ("halves-imir1", (56, 16), (8, 16)),
    ] {
        app.upload(&file(&format!("{name}.heic")), "a.heic").await.vector();
        let sent = sent(&nvidia);
        let pixel = |(x, y)| sent.get_pixel(x, y).0;
        let ([red, _, _], [_, _, blue]) = (pixel(red), pixel(blue));
        assert!(red > 200 && blue > 200, "{name}: {red} {blue}");
    }
}

#[tokio::test]
async fn transparency_lies_on_white() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // The top is transparent, the bottom is not.
    app.upload(&file("alpha.heic"), "a.heic").await.vector();
    let sent = sent(&nvidia);
    let row = |y| (0..120).map(|x| u32::from(sent.get_pixel(x, y)[2])).sum::<u32>() / 120;
    assert!(row(1) > 240, "{}", row(1));
    assert!(row(78) < 200, "{}", row(78));
}

#[tokio::test]
async fn a_phones_picture_comes_by_every_route_and_in_the_sandbox() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|_, _| Reply::new(200, &[], PHONE)).await;
    let real = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    let sandbox = TestApp::sandbox().may_fetch_from(&picture_server).start().await;
    for app in [real, sandbox] {
        for answer in [
            app.upload(PHONE, "IMG_0042.HEIC").await,
            app.base64(PHONE).await,
            app.by_url(&picture_server.url("/photo.heic")).await,
        ] {
            answer.vector();
            assert_eq!(answer.json()["content_type"], "image/heic");
        }
        let metrics = app.get("/metrics").await.text();
        assert!(metric(&metrics, "imagesvc_decodes_total{outcome=\"done\"}") >= 1.0, "in a child");
    }
}

#[tokio::test]
async fn a_picture_that_does_not_fit_is_shrunk() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", "20000")
        .start()
        .await;
    let answer = app.upload(&file("large-grid-turned.heic"), "a.heic").await;
    answer.vector();
    assert_eq!(answer.json()["prepared"], "shrunk");
    let (width, height) = sent(&nvidia).dimensions();
    assert!(width < height && height <= 1024, "{width} x {height}");
}

#[tokio::test]
async fn the_bytes_decide_and_not_the_name() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (bytes, name, content_type, prepared) in [
        (ROCKET, "IMG_0042.HEIC", "image/jpeg", "original"),
        (PHONE, "photo.jpg", "image/heic", "jpeg"),
    ] {
        let answer = app.upload(bytes, name).await;
        answer.vector();
        let body = answer.json();
        assert_eq!(
            (body["content_type"].as_str(), body["prepared"].as_str()),
            (Some(content_type), Some(prepared))
        );
    }
}

#[tokio::test]
async fn what_is_not_read_is_named_and_leaves_nothing() {
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
    ] {
        let said = detail(&app.upload(&file(name), "IMG_0042.HEIC").await);
        assert!(said.contains(words), "{name}: {said}");
        assert!(!said.contains("damaged"), "{name}: {said}");
    }
    assert!(app.saved().is_empty());
    assert!(nvidia.received().is_empty());
}

#[tokio::test]
async fn what_is_damaged_is_said_to_be_and_leaves_nothing() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (name, picture) in files("bad-") {
        let said = detail(&app.upload(&picture, "IMG_0042.HEIC").await);
        assert!(said.contains("HEIC"), "{name}: {said}");
    }
    for name in ["iphone-grid", "alpha", "thumbnail", "large-single"] {
        let picture = file(&format!("{name}.heic"));
        for sixteenths in 1..16 {
            let cut = &picture[..picture.len() * sixteenths / 16];
            detail(&app.upload(cut, "IMG_0042.HEIC").await);
        }
    }
    assert!(app.saved().is_empty());
    assert!(nvidia.received().is_empty());
}

#[tokio::test]
async fn more_pixels_than_the_limit_are_too_large_wherever_they_are() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IMAGE_PIXELS", "9599").start().await;
    // In the picture, in a picture that is cut, and in a tile that little is shown of.
    for name in ["generic-brand", "clap-irot", "bomb-tile-larger"] {
        let answer = app.upload(&file(&format!("{name}.heic")), "IMG_0042.HEIC").await;
        let problem = assert_problem(&answer, 413, "image_too_large");
        assert!(problem["detail"].as_str().unwrap().contains("9599"), "{name}: {problem}");
    }
    assert!(app.saved().is_empty());
}

#[tokio::test]
async fn a_changed_byte_is_never_the_services_fault() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let mut random = fastrand::Rng::with_seed(11);
    let mut outcomes = [0, 0];
    for n in 0..300 {
        let line = EXPECTED.lines().nth(random.usize(..EXPECTED.lines().count())).unwrap();
        let name = line.split(' ').next().unwrap();
        let mut picture = file(&format!("{name}.heic"));
        // Half of them in the header.
        let end = if n % 2 == 0 { picture.len().min(600) } else { picture.len() };
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..end);
            picture[at] = random.u8(..);
        }
        let answer = app.upload(&picture, "IMG_0042.HEIC").await;
        assert!(matches!(answer.status, 200 | 413 | 415), "{n} {name}: {}", answer.text());
        outcomes[usize::from(answer.status == 200)] += 1;
    }
    assert!(outcomes.iter().all(|count| *count > 20), "{outcomes:?}");
}
