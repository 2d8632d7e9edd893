//! One picture in forms that real files have: it is embedded as what it shows, or refused by name.
//! (Pillow judges these files, too: see [`super::pillow`].)

use std::{fs, path::Path};

use image_rs::{
    Rgb, RgbImage,
    imageops::{self, FilterType},
};

use crate::support::{Difference, FakeNvidia, TestApp, assert_problem};

/// What is right.
enum Right {
    /// It shows the same as another file.
    As(&'static str),
    /// It shows the plain picture without its colours.
    Grey,
    /// It shows the plain picture, turned by a quarter clockwise.
    Turned,
    /// It is refused with this word, and not called damaged.
    Refused(&'static str),
}

use Right::{As, Grey, Refused, Turned};

const CASES: [(&str, Right); 17] = [
    ("plain.jpg", As("plain.png")),
    ("plain.png", As("plain.png")),
    ("exif6.jpg", Turned),
    ("jpeg-fill-bytes-before-sof.jpg", As("plain.jpg")),
    ("jpeg-one-zero-after-app0.jpg", As("plain.jpg")),
    ("jpeg-three-scans-420.jpg", Refused("scan")),
    ("jpeg-three-scans-444.jpg", As("plain.png")),
    ("tiff-tiled-planar-exact-zip.tiff", As("plain.png")),
    ("tiff-tiled-planar-ragged-zip.tiff", As("plain.png")),
    ("tiff-palette8.tiff", As("plain.png")),
    ("tiff-la.tiff", Grey),
    ("tiff-grey4.tiff", Grey),
    ("tiff-g3.tiff", Grey),
    ("webp-vp8-scale-11.webp", As("plain.jpg")),
    ("webp-exif6-bare.webp", Turned),
    ("webp-exif6-prefixed.webp", Turned),
    ("bmp-os2v2.bmp", As("plain.png")),
];

/// How far a place may be from what is right, in steps of 255.
fn tolerance(name: &str) -> f64 {
    // Of few colours: a place has one that is not its own.
    if name == "tiff-palette8.tiff" { 80.0 } else { 30.0 }
}

fn file(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats");
    fs::read(folder.join(name)).unwrap()
}

fn picture(name: &str) -> RgbImage {
    image_rs::load_from_memory(&file(name)).unwrap().into_rgb8()
}

/// As television weighs colours (ITU-R BT.601), and with it whoever drew the files.
fn without_colours(mut picture: RgbImage) -> RgbImage {
    for Rgb(pixel) in picture.pixels_mut() {
        let [red, green, blue] = pixel.map(u32::from);
        *pixel = [((299 * red + 587 * green + 114 * blue) / 1000) as u8; 3];
    }
    picture
}

/// How a picture should look, at this size.
fn look(right: &Right, (width, height): (u32, u32)) -> Option<RgbImage> {
    let look = match right {
        As(name) => picture(name),
        Grey => without_colours(picture("plain.png")),
        Turned => imageops::rotate90(&picture("plain.png")),
        Refused(_) => return None,
    };
    Some(imageops::resize(&look, width, height, FilterType::Triangle))
}

#[tokio::test]
async fn a_picture_in_an_odd_form_is_shown_as_it_should_look_or_refused_by_name() {
    const INLINE: usize = 20_000;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", INLINE)
        .start()
        .await;
    let mut faults = Vec::new();
    for (name, right) in CASES {
        // Too large to go as it is, by what stands behind its end.
        let mut bytes = file(name);
        bytes.resize(bytes.len() + INLINE, 0);
        let answer = app.upload(&bytes, name).await;
        if let Refused(word) = right {
            let problem = assert_problem(&answer, 415, "unsupported_image");
            let detail = problem["detail"].as_str().unwrap();
            if !detail.contains(word) || detail.contains("damaged") {
                faults.push(format!("{name}: {detail}"));
            }
            continue;
        }
        if answer.status != 200 {
            faults.push(format!("{name}: {}", answer.text()));
            continue;
        }
        let shown = nvidia.last_inline().pixels();
        let look = look(&right, shown.dimensions()).unwrap();
        let is_of_that_shape = (shown.width() > shown.height()) == !matches!(right, Turned);
        let difference = Difference::between(&look, &shown).unwrap();
        if !is_of_that_shape || difference.worst > tolerance(name) {
            faults.push(format!("{name}: {:?} pixels, {difference}", shown.dimensions()));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[tokio::test]
async fn a_picture_has_one_vector_whatever_its_form() {
    let app = TestApp::sandbox().start().await;
    let plain = app.upload(&file("plain.png"), "plain").await.vector();
    let turned = app.upload(&file("exif6.jpg"), "turned").await.vector();
    for (name, right) in CASES {
        let answer = app.upload(&file(name), name).await;
        let like = match right {
            As(_) => &plain,
            Turned => &turned,
            Grey | Refused(_) => continue,
        };
        let cosine: f64 = like.iter().zip(answer.vector()).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9, "{name}: {cosine}");
    }
}
