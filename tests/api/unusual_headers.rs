//! BMP, GIF and WebP files with unusual headers, and with errors that imagesvc tolerates as other
//! decoders do.

use image_rs::{ImageFormat, RgbImage, imageops};

use crate::support::{
    FakeNvidia, TestApp, assert_problem, converted,
    craft::{gif_lzw, riff_chunk, vp8x, webp},
};

/// The picture that the following four files show.
const PLAIN: &[u8] = include_bytes!("../fixtures/formats/plain.png");
/// The picture at half its width and half its height, as a BMP with the header of OS/2.
const OS2: &[u8] = include_bytes!("../fixtures/formats/bmp-os2v2.bmp");
/// A WebP whose header asks viewers to enlarge it. Decoders ignore this.
const SCALED: &[u8] = include_bytes!("../fixtures/formats/webp-vp8-scale-11.webp");
/// A WebP with EXIF orientation 6, whose EXIF data begins with `Exif\0\0`. Only a JPEG needs this prefix.
const PREFIXED: &[u8] = include_bytes!("../fixtures/formats/webp-exif6-prefixed.webp");
/// A WebP with EXIF orientation 6, without that prefix.
const BARE: &[u8] = include_bytes!("../fixtures/formats/webp-exif6-bare.webp");

fn plain() -> RgbImage {
    image_rs::load_from_memory(PLAIN).unwrap().into_rgb8()
}

/// The mean difference between a picture and the JPEG that NVIDIA receives must be less than this.
const DIFFERENCE_LIMIT: u64 = 8;

/// The mean difference between the samples of two pictures of the same size, from 0 to 255.
fn mean_difference(a: &RgbImage, b: &RgbImage) -> u64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let total: u64 = a.iter().zip(b.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    total / a.len() as u64
}

/// Uploads pictures. Each is given as its name, its bytes, and its size before the EXIF orientation is
/// applied. Asserts that the answers contain these sizes, and that each picture becomes a JPEG. Returns the
/// pixels that NVIDIA received.
async fn upload_all(pictures: &[(&str, Vec<u8>, [u32; 2])]) -> Vec<RgbImage> {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let mut received = Vec::new();
    for (name, bytes, size) in pictures {
        let answer = app.upload(bytes, name).await;
        assert_eq!(answer.prepared(), "jpeg", "{name}");
        let body = answer.json();
        assert_eq!([&body["width"], &body["height"]], size.map(serde_json::Value::from).each_ref());
        received.push(nvidia.last_inline_picture().pixels());
    }
    received
}

#[tokio::test]
async fn pictures_with_unusual_headers_reach_nvidia_as_they_look() {
    let full_size = [160, 120];
    let pictures = [
        ("os2.bmp", OS2.to_vec(), [80, 60]),
        ("scaled.webp", SCALED.to_vec(), full_size),
        ("prefixed.webp", PREFIXED.to_vec(), full_size),
        ("bare.webp", BARE.to_vec(), full_size),
    ];
    let received = upload_all(&pictures).await;
    let turned = imageops::rotate90(&plain());
    let small_plain = imageops::resize(&plain(), 80, 60, imageops::FilterType::Triangle);
    let expected = [small_plain, plain(), turned.clone(), turned];
    let pairs = received.iter().zip(&expected);
    for ((name, ..), (received_pixels, expected_pixels)) in pictures.iter().zip(pairs) {
        let difference = mean_difference(received_pixels, expected_pixels);
        assert!(difference < DIFFERENCE_LIMIT, "{name} should not differ by {difference}");
    }
}

#[tokio::test]
async fn a_webp_whose_flags_declare_missing_chunks_is_read() {
    // The chunk with the pixels, without the 12 bytes of the file's header.
    let lossless = converted(PLAIN, ImageFormat::WebP).split_off(12);
    // In turn, the flags declare nothing, XMP, EXIF, transparency, and all three together with an
    // ICC profile. The files contain none of these. A chunk of an unknown kind follows the pixels.
    let pictures: Vec<_> = [0, 0b100, 0b1000, 0b1_0000, 0b11_1100]
        .map(|flags| {
            let file = webp(&[vp8x(flags, 160, 120), lossless.clone(), riff_chunk(b"junk", b"x")]);
            ("flags.webp", file, [160, 120])
        })
        .to_vec();
    for received in upload_all(&pictures).await {
        assert!(mean_difference(&received, &plain()) < DIFFERENCE_LIMIT);
    }
}

#[tokio::test]
async fn a_gif_without_a_palette_is_grey_and_a_frame_beyond_the_canvas_is_not_cropped() {
    let grey = RgbImage::from_fn(60, 40, |x, y| [(x * 3 + y) as u8; 3].into());
    let indices: Vec<u8> = grey.pixels().map(|pixel| pixel.0[0]).collect();
    let frame = |left: u8, top: u8| {
        [b",", &[left, 0, top, 0, 60, 0, 40, 0, 0][..], &gif_lzw(&indices), b";"].concat()
    };
    let screen = |width: u8, height: u8| [b"GIF89a", &[width, 0, height, 0, 0, 0, 0][..]].concat();
    let pictures = [
        // In turn, the frame fills the canvas, exceeds it, and has a canvas of 0 × 0 pixels.
        ("grey.gif", [screen(60, 40), frame(0, 0)].concat(), [60, 40]),
        ("beyond-canvas.gif", [screen(30, 20), frame(4, 2)].concat(), [4 + 60, 2 + 40]),
        ("no-canvas.gif", [screen(0, 0), frame(0, 0)].concat(), [60, 40]),
    ];
    // The left and the upper edge of the frame in each picture.
    let offsets = [(0, 0), (4, 2), (0, 0)];
    for (received, (left, top)) in upload_all(&pictures).await.iter().zip(offsets) {
        let frame = imageops::crop_imm(received, left, top, 60, 40).to_image();
        assert!(mean_difference(&frame, &grey) < DIFFERENCE_LIMIT);
    }
}

#[tokio::test]
async fn the_error_for_an_unsupported_kind_of_bmp_states_the_kind_and_the_bmp_is_not_saved() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // At byte 14 of the file, the second header begins with its own length. The bits per pixel are at
    // byte 28 of the file, and the compression is at byte 30.
    let bmp = |length: u8, bits: u8, compression: u8| {
        let mut bmp = OS2.to_vec();
        [bmp[14], bmp[28], bmp[30]] = [length, bits, compression];
        bmp
    };
    for (bytes, kind) in [
        (bmp(64, 1, 3), "a BMP with fax compression"),
        (bmp(64, 24, 4), "a BMP with run-length coding of 24 bits"),
        (bmp(40, 0, 4), "a BMP with a JPEG inside"),
        (bmp(40, 0, 5), "a BMP with a PNG inside"),
        (bmp(40, 64, 0), "a BMP with 64 bits a pixel"),
    ] {
        let answer = app.upload(&bytes, "picture.bmp").await;
        let problem = assert_problem(&answer, 415, "unsupported_image");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(kind) && !detail.contains("damaged"), "{detail}");
    }
    assert!(app.saved().is_empty());
    assert_eq!(nvidia.count(), 0);
}
