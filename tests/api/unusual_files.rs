//! One picture, in files of unusual kinds that occur in practice. The service embeds what a file
//! shows, or refuses the file and says why. The tests in [`super::pillow`] compare how the service and
//! Pillow decode these files.

use std::{fs, path::Path};

use image_rs::{
    Rgb, RgbImage,
    imageops::{self, FilterType},
};

use crate::support::{Difference, FakeNvidia, TestApp, assert_problem};

/// What the service should make of a file.
enum Expected {
    /// The pixels of the fixture with this name.
    SameAs(&'static str),
    /// The pixels of `plain.png` in shades of grey.
    Grey,
    /// The pixels of `plain.png`, turned clockwise by 90°.
    Turned,
    /// An error. Its `detail` contains this word, and does not call the file damaged.
    Refused(&'static str),
}

use Expected::{Grey, Refused, SameAs, Turned};

const CASES: [(&str, Expected); 17] = [
    ("plain.jpg", SameAs("plain.png")),
    ("plain.png", SameAs("plain.png")),
    ("exif6.jpg", Turned),
    ("jpeg-fill-bytes-before-sof.jpg", SameAs("plain.jpg")),
    ("jpeg-one-zero-after-app0.jpg", SameAs("plain.jpg")),
    // A baseline JPEG with several scans is refused if its colours are subsampled, as in 4:2:0.
    ("jpeg-three-scans-420.jpg", Refused("scan")),
    ("jpeg-three-scans-444.jpg", SameAs("plain.png")),
    ("tiff-tiled-planar-exact-zip.tiff", SameAs("plain.png")),
    ("tiff-tiled-planar-ragged-zip.tiff", SameAs("plain.png")),
    ("tiff-palette8.tiff", SameAs("plain.png")),
    ("tiff-la.tiff", Grey),
    ("tiff-grey4.tiff", Grey),
    ("tiff-g3.tiff", Grey),
    ("webp-vp8-scale-11.webp", SameAs("plain.jpg")),
    ("webp-exif6-bare.webp", Turned),
    ("webp-exif6-prefixed.webp", Turned),
    ("bmp-os2v2.bmp", SameAs("plain.png")),
];

/// The largest allowed [`Difference::worst_square`] between the JPEG that NVIDIA receives and the
/// expected picture.
fn tolerance(name: &str) -> f64 {
    // The palette of this file has only 65 colours. Even the nearest one may differ much from the
    // original.
    if name == "tiff-palette8.tiff" { 80.0 } else { 30.0 }
}

/// A file of `tests/fixtures/formats`.
fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats");
    fs::read(folder.join(name)).unwrap()
}

/// The pixels of a fixture.
fn pixels_of(name: &str) -> RgbImage {
    image_rs::load_from_memory(&fixture(name)).unwrap().into_rgb8()
}

/// Converts a picture to grey with the weights of ITU-R BT.601. The grey files were made with the
/// same weights.
fn without_colours(mut picture: RgbImage) -> RgbImage {
    for Rgb(pixel) in picture.pixels_mut() {
        let [red, green, blue] = pixel.map(u32::from);
        *pixel = [((299 * red + 587 * green + 114 * blue) / 1000) as u8; 3];
    }
    picture
}

/// The expected pixels, scaled to this size, or `None` if the file should be refused.
fn expected_pixels(expected: &Expected, (width, height): (u32, u32)) -> Option<RgbImage> {
    let pixels = match expected {
        SameAs(name) => pixels_of(name),
        Grey => without_colours(pixels_of("plain.png")),
        Turned => imageops::rotate90(&pixels_of("plain.png")),
        Refused(_) => return None,
    };
    Some(imageops::resize(&pixels, width, height, FilterType::Triangle))
}

#[tokio::test]
async fn an_unusual_file_reaches_nvidia_as_it_looks_or_is_refused_with_the_reason() {
    const INLINE_LIMIT: usize = 20_000;
    let nvidia = FakeNvidia::healthy().await;
    // With `shrink`, even a JPEG or PNG is decoded if it is too large to be sent inline. By default, an
    // upright one would be uploaded unchanged.
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", INLINE_LIMIT)
        .start()
        .await;
    let mut failures = Vec::new();
    for (name, expected) in CASES {
        // Zeros after the end of the file make it too large, so that it is always decoded.
        let mut bytes = fixture(name);
        bytes.resize(bytes.len() + INLINE_LIMIT, 0);
        let answer = app.upload(&bytes, name).await;
        if let Refused(word) = expected {
            let problem = assert_problem(&answer, 415, "unsupported_image");
            let detail = problem["detail"].as_str().unwrap();
            if !detail.contains(word) || detail.contains("damaged") {
                failures.push(format!("{name}: {detail}"));
            }
            continue;
        }
        if answer.status != 200 {
            failures.push(format!("{name}: {}", answer.text()));
            continue;
        }
        let received = nvidia.last_inline_picture().pixels();
        let pixels = expected_pixels(&expected, received.dimensions()).unwrap();
        // The picture has landscape format, unless it is turned.
        let is_landscape = received.width() > received.height();
        let has_right_shape = is_landscape == !matches!(expected, Turned);
        let difference = Difference::between(&pixels, &received).unwrap();
        if !has_right_shape || difference.worst_square > tolerance(name) {
            failures.push(format!("{name}: {:?} pixels, {difference}", received.dimensions()));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test]
async fn the_coloured_variants_of_one_picture_get_similar_vectors() {
    let app = TestApp::sandbox().start().await;
    let plain = app.upload(&fixture("plain.png"), "plain").await.vector();
    let turned = app.upload(&fixture("exif6.jpg"), "turned").await.vector();
    for (name, expected) in CASES {
        let answer = app.upload(&fixture(name), name).await;
        // Without its colours, a picture may get another vector.
        let reference = match expected {
            SameAs(_) => &plain,
            Turned => &turned,
            Grey | Refused(_) => continue,
        };
        // The sandbox's vectors have length 1, so the sum of the products is the cosine.
        let cosine: f64 = reference.iter().zip(answer.vector()).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9, "{name}: {cosine} should be more than 0.9");
    }
}
