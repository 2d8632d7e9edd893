//! Pictures for the tests.

use std::{io::Cursor, sync::LazyLock};

use base64::{Engine, prelude::BASE64_STANDARD};
use image_rs::{DynamicImage, ImageFormat, Rgb, RgbImage};

/// A JPEG photograph of 640 × 427 pixels. By default, it is short enough to be sent to NVIDIA inline.
pub const ROCKET: &[u8] = include_bytes!("../../fixtures/rocket.jpg");
/// A PNG photograph of 451 × 300 pixels. By default, it is too long to be sent to NVIDIA inline.
pub const CHELSEA: &[u8] = include_bytes!("../../fixtures/chelsea.png");
/// A JPEG photograph of 1000 × 872 pixels. By default, it is too long to be sent to NVIDIA inline.
pub const HUBBLE: &[u8] = include_bytes!("../../fixtures/hubble_deep_field.jpg");
/// A HEIC photograph of 80 × 120 pixels with the structure of an iPhone's photographs: in tiles,
/// and stored on its side.
pub const PHONE: &[u8] = include_bytes!("../../fixtures/heic/iphone-grid.heic");

/// Converts a picture to another format, as RGB with 8 bits per sample.
pub fn converted(picture: &[u8], format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let picture: DynamicImage = image_rs::load_from_memory(picture).unwrap().into_rgb8().into();
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG of noise. Noise cannot be compressed, so the PNG has about three bytes per pixel.
pub fn noise_png(width: u32, height: u32) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let noise =
        RgbImage::from_fn(width, height, |_, _| Rgb([random.u8(..), random.u8(..), random.u8(..)]));
    let mut bytes = Cursor::new(Vec::new());
    noise.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// The same picture with different bytes for each `n`. The bytes of `n` are appended, and decoders
/// ignore bytes after a picture's end.
pub fn variant(picture: &[u8], n: usize) -> Vec<u8> {
    [picture, &n.to_le_bytes()].concat()
}

/// A picture's bytes as a `data:` URL. The service ignores the media type in such a URL.
pub fn data_url(picture: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(picture))
}

/// A picture of 4 × 4 pixels with different bytes for each `n`.
pub fn tiny(n: usize) -> Vec<u8> {
    static PNG: LazyLock<Vec<u8>> = LazyLock::new(|| noise_png(4, 4));
    variant(&PNG, n)
}

/// The beginning of an AVIF picture, a format that the service does not support.
pub fn avif() -> Vec<u8> {
    [&b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf"[..], &[0; 100]].concat()
}
