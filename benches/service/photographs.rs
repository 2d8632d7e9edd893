//! Makes pictures to measure decoding: photographs as large as a phone's, and single pixels.

use std::io::Cursor;

use image_rs::{
    ImageFormat, RgbImage,
    codecs::jpeg::JpegEncoder,
    imageops::{self, FilterType},
};
use tiff::encoder::{Compression, DeflateLevel, Predictor, TiffEncoder, colortype::RGB8};

use crate::{pictures::NUMBER_LEN, samples::JPEG};

/// The width and height of a photograph of 12 megapixels.
const SIZE: (u32, u32) = (4000, 3000);

/// A JPEG's EXIF segment with orientation 6, a rotation by 90°.
const EXIF_ORIENTATION_6: &[u8] =
    b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";

/// One photograph in several formats. Each file ends with space for a number, so that each request can send
/// another picture. Decoders ignore this space.
pub struct Photographs {
    pub jpeg: Vec<u8>,
    /// The JPEG with EXIF orientation 6.
    pub turned: Vec<u8>,
    /// A lossless WebP, because the encoder has no lossy mode.
    pub webp: Vec<u8>,
    /// Compressed with Deflate.
    pub tiff: Vec<u8>,
}

impl Photographs {
    /// Encodes the photograph, which takes some seconds.
    pub fn new() -> Self {
        let photograph = make_photograph();
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 90).encode_image(&photograph).unwrap();
        let mut webp = Cursor::new(Vec::new());
        photograph.write_to(&mut webp, ImageFormat::WebP).unwrap();
        let mut tiff = Cursor::new(Vec::new());
        TiffEncoder::new(&mut tiff)
            .unwrap()
            .with_compression(Compression::Deflate(DeflateLevel::Fast))
            .with_predictor(Predictor::Horizontal)
            .write_image::<RGB8>(SIZE.0, SIZE.1, &photograph)
            .unwrap();
        let mut turned = jpeg.clone();
        turned.splice(2..2, EXIF_ORIENTATION_6.iter().copied()); // after the start marker
        let [jpeg, turned, webp, tiff] =
            [jpeg, turned, webp.into_inner(), tiff.into_inner()].map(with_space_for_number);
        Self { jpeg, turned, webp, tiff }
    }
}

/// Scales a small photograph up, and adds noise like that of a camera. Without noise, the result would
/// compress better than a photograph by a camera.
fn make_photograph() -> RgbImage {
    let small = image_rs::load_from_memory(JPEG).unwrap().into_rgb8();
    let mut large = imageops::resize(&small, SIZE.0, SIZE.1, FilterType::Triangle);
    let mut random = fastrand::Rng::with_seed(1);
    for pixel in large.pixels_mut() {
        let grain = random.i16(-2..=2);
        pixel.0 = pixel.0.map(|channel| (i16::from(channel) + grain).clamp(0, 255) as u8);
    }
    large
}

/// A GIF and a PNG of one pixel. The service must decode the GIF, and sends the PNG unchanged. Both are
/// padded to the same number of bytes, so that only the decoding differs.
pub fn one_pixel_pictures() -> (Vec<u8>, Vec<u8>) {
    let [mut gif, mut png] = [ImageFormat::Gif, ImageFormat::Png].map(|format| {
        let mut pixel = Cursor::new(Vec::new());
        RgbImage::new(1, 1).write_to(&mut pixel, format).unwrap();
        pixel.into_inner()
    });
    let len = gif.len().max(png.len());
    gif.resize(len, 0);
    png.resize(len, 0);
    (with_space_for_number(gif), with_space_for_number(png))
}

/// Appends space for a picture's number.
fn with_space_for_number(mut picture: Vec<u8>) -> Vec<u8> {
    picture.extend([0; NUMBER_LEN]);
    picture
}
