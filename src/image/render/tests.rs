//! Tests of decoding, turning and scaling.

use std::io::Cursor;

use image_rs::{Rgb, Rgba, codecs::jpeg::JpegEncoder};

use super::*;
use crate::image::{Content, probe};

/// No JPEG in these tests has more bytes than this `max_len`.
const CONVERTED: Target = Target::Converted { max_len: 20 << 20 };

/// No picture in these tests has more pixels.
const MAX_PIXELS: u64 = 64_000_000;

fn picture(bytes: Vec<u8>) -> Picture {
    probe(Content::Memory(bytes.into()), MAX_PIXELS).unwrap()
}

/// Decodes the bytes of a picture.
pub(super) fn decoded(bytes: &[u8]) -> Result<RgbImage, Error> {
    let picture = probe(Content::Memory(bytes.to_vec().into()), MAX_PIXELS)?;
    decode(&picture, estimate_memory(&picture)?)
}

/// Encodes an image in a format, and reads the header.
fn encoded(image: &DynamicImage, format: ImageFormat) -> Picture {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    picture(bytes.into_inner())
}

/// An image of 64 × 32 pixels whose left half is red and whose right half is blue.
fn two_halves() -> RgbImage {
    RgbImage::from_fn(64, 32, |x, _| if x < 32 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) })
}

/// A JPEG of [`two_halves`] with this EXIF orientation (TIFF tag 0x0112).
fn jpeg_with_orientation(orientation: u8) -> Picture {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 95).encode_image(&two_halves()).unwrap();
    let exif = [
        &b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..],
        &[orientation, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    jpeg.splice(2..2, exif);
    picture(jpeg)
}

/// Whether the colours are similar: JPEG changes colours a little.
fn is_close(pixel: &Rgb<u8>, expected: [u8; 3]) -> bool {
    pixel.0.iter().zip(expected).all(|(a, b)| a.abs_diff(b) < 40)
}

#[test]
fn transparent_pixels_become_white() {
    let left_half_transparent =
        RgbaImage::from_fn(
            8,
            8,
            |x, _| {
                if x < 4 { Rgba([9, 9, 9, 0]) } else { Rgba([255, 0, 0, 255]) }
            },
        );
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
        let picture = encoded(&left_half_transparent.clone().into(), format);
        let image = decode(&picture, estimate_memory(&picture).unwrap()).unwrap();
        assert_eq!(image.get_pixel(0, 0).0, [255, 255, 255], "{format:?}");
        assert!(is_close(image.get_pixel(7, 7), [255, 0, 0]), "{format:?}");
    }
}

#[test]
fn exif_orientation_is_applied_when_converting_and_when_shrinking() {
    // Orientation 6 is a rotation by 90° clockwise, so the left half becomes the upper one.
    let picture = jpeg_with_orientation(6);
    let memory_estimate = estimate_memory(&picture).unwrap();
    for jpeg in [
        CONVERTED.render(&picture, memory_estimate).unwrap(),
        Target::Shrunk { max_len: 100_000 }.render(&picture, memory_estimate).unwrap(),
    ] {
        let image = image_rs::load_from_memory(&jpeg).unwrap().into_rgb8();
        assert_eq!(image.dimensions(), (32, 64));
        assert!(is_close(image.get_pixel(16, 8), [255, 0, 0]));
        assert!(is_close(image.get_pixel(16, 56), [0, 0, 255]));
    }
}

#[test]
fn the_colours_of_sixteen_bit_and_grey_pictures_are_kept() {
    // The high and the low byte of a sample are very different, so a mix-up changes the colour.
    let orange = Rgba([0xf010, 0x80ff, 0x10f0, 0xffff]);
    let with_16_bits = DynamicImage::ImageRgba16(image_rs::ImageBuffer::from_pixel(4, 4, orange));
    let grey =
        DynamicImage::ImageLuma8(image_rs::GrayImage::from_pixel(4, 4, image_rs::Luma([200])));
    for (image, format, expected) in [
        (&with_16_bits, ImageFormat::Png, [0xf0, 0x80, 0x10]),
        (&with_16_bits, ImageFormat::Tiff, [0xf0, 0x80, 0x10]),
        (&grey, ImageFormat::Bmp, [200; 3]),
    ] {
        let picture = encoded(image, format);
        let memory_estimate = estimate_memory(&picture).unwrap();
        let jpeg = CONVERTED.render(&picture, memory_estimate).unwrap();
        let rendered = image_rs::load_from_memory(&jpeg).unwrap().into_rgb8();
        assert_eq!(rendered.dimensions(), (4, 4), "{format:?}");
        let are_kept = rendered.pixels().all(|pixel| is_close(pixel, expected));
        assert!(are_kept, "{format:?}: {:?}", rendered.get_pixel(0, 0));
    }
}

#[test]
fn a_shrunk_picture_is_within_max_len_and_max_side_and_keeps_its_proportions() {
    let mut random = fastrand::Rng::with_seed(1);
    let noise =
        RgbImage::from_fn(3000, 1500, |_, _| Rgb([random.u8(..), random.u8(..), random.u8(..)]));
    let picture = encoded(&noise.into(), ImageFormat::Jpeg);
    let memory_estimate = estimate_memory(&picture).unwrap();
    for max_len in [1_000_000, 100_000, 15_000] {
        let jpeg = Target::Shrunk { max_len }.render(&picture, memory_estimate).unwrap();
        assert!(jpeg.len() <= max_len);
        let image = image_rs::load_from_memory(&jpeg).unwrap();
        assert!(image.width() <= MAX_SHRUNK_SIDE);
        assert!(image.width().abs_diff(2 * image.height()) <= 2); // sides are rounded
    }
}

#[test]
fn a_small_picture_is_not_scaled_up() {
    let picture = encoded(&two_halves().into(), ImageFormat::Png);
    let memory_estimate = estimate_memory(&picture).unwrap();
    let jpeg = Target::Shrunk { max_len: 100_000 }.render(&picture, memory_estimate).unwrap();
    assert_eq!(image_rs::load_from_memory(&jpeg).unwrap().width(), 64);
}

#[test]
fn a_truncated_picture_causes_no_panic() {
    for format in
        [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff]
    {
        let mut bytes = Cursor::new(Vec::new());
        two_halves().write_to(&mut bytes, format).unwrap();
        let bytes = bytes.into_inner();
        for len in 0..bytes.len() {
            let content = Content::Memory(bytes[..len].to_vec().into());
            if let Ok(picture) = probe(content, MAX_PIXELS) {
                let _ = estimate_memory(&picture)
                    .and_then(|memory_estimate| CONVERTED.render(&picture, memory_estimate));
            }
        }
    }
}
