//! Ordinary pictures of every kind: colours that change slowly, with some noise, as in a photograph.
//!
//! Missing are those that no short writer makes: lossy WebP with detail (here it is grey), and
//! arithmetic, 12-bit and lossless JPEG, which no decoder here reads.

mod bmp;
mod gif;
mod jpeg;
mod png;
mod tiff;
mod webp;

use std::io::Cursor;

use image_rs::{DynamicImage, ImageFormat};

/// A picture and its name.
pub type Kind = (String, Vec<u8>);

/// Each kind once, at this size.
pub fn all(width: u32, height: u32) -> Vec<Kind> {
    let size = (width, height);
    [
        jpeg::all(size),
        png::all(size),
        webp::all(size),
        gif::all(size),
        bmp::all(size),
        tiff::all(size),
    ]
    .concat()
}

/// Kinds that are real but that the decoder does not read, by how their names begin: scans for each
/// component of a JPEG that has fewer samples of colour, and of TIFF grey
/// with alpha or of four bits, palettes, planes of CMYK, planes in tiles that do not fill the
/// picture.
pub const UNREAD: [&str; 8] = [
    "jpeg-scan-for-each-42",
    "tiff-grey-4-",
    "tiff-grey-32-",
    "tiff-grey-alpha-",
    "tiff-palette-",
    "tiff-cmyk-8-planar",
    "tiff-cmyk-16-planar",
    "tiff-planar-tiles",
];

/// A channel of a pixel, in 16 bits: a gradient, another one for each channel, and noise.
fn sample(x: u32, y: u32, channel: u32) -> u16 {
    let gradient = x * (37 + 11 * channel) + y * (53 - 9 * channel);
    let noise = (x * 31 + y * 17 + channel).wrapping_mul(2_654_435_761) >> 21;
    (gradient + noise) as u16
}

fn byte(x: u32, y: u32, channel: u32) -> u8 {
    (sample(x, y, channel) >> 8) as u8
}

/// Rows of samples of so many bits, most significant bit first, each row padded to whole bytes.
fn packed((width, height): (u32, u32), channels: u32, bits: u32) -> Vec<Vec<u8>> {
    let row = |y| {
        let samples = (0..width).flat_map(|x| (0..channels).map(move |c| sample(x, y, c)));
        match bits {
            16 => samples.flat_map(u16::to_be_bytes).collect(),
            8 => samples.map(|sample| (sample >> 8) as u8).collect(),
            _ => {
                let samples: Vec<_> = samples.map(|sample| sample >> (16 - bits)).collect();
                let byte = |some: &[u16]| {
                    let first = 8 - bits;
                    (0..).zip(some).fold(0, |byte, (n, sample)| byte | sample << (first - n * bits))
                };
                samples.chunks(8 / bits as usize).map(|some| byte(some) as u8).collect()
            }
        }
    };
    (0..height).map(row).collect()
}

/// 256 colours of three bytes.
fn palette() -> Vec<u8> {
    (0..=255).flat_map(|n| [n, 255 - n, n / 2]).collect()
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}
