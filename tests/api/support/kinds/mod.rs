//! Generates ordinary pictures of many kinds. Like photographs, they have gradients and some noise.
//!
//! Some kinds are missing. Lossy WebP is always grey, because an encoder for colours would be long.
//! There is no JPEG with arithmetic coding, with 12 bits or without loss. Some kinds that the
//! service cannot decode are included: see [`unsupported`].

mod bmp;
mod gif;
mod jpeg;
mod png;
mod tiff;
mod webp;

use std::io::Cursor;

use image_rs::{DynamicImage, ImageFormat};

/// The name of a kind of picture, and a picture of this kind.
pub type Kind = (String, Vec<u8>);

/// One picture of each kind, of this size. Only the canvas of `gif-first-frame-larger` is smaller.
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

/// How the service's error describes the kind with this name, or `None` if the service can decode the
/// kind.
pub fn unsupported(name: &str) -> Option<&'static str> {
    let several_scans = "a baseline JPEG with its colour components in several scans";
    // RGB includes RGBA: `tiff-rgba-float-32-` is decoded.
    let floats = "a TIFF of floating-point numbers that are not RGB of 32 bits";
    let kinds = [
        ("jpeg-scan-per-component-420", several_scans),
        ("jpeg-scan-per-component-422", several_scans),
        ("tiff-grey-float-32-", floats),
    ];
    // Only the start is compared, because the name of a TIFF ends with its layout.
    kinds.iter().find(|(start, _)| name.starts_with(start)).map(|(_, description)| *description)
}

/// A sample of 16 bits: a gradient, which is different for each channel, and noise.
fn sample(x: u32, y: u32, channel: u32) -> u16 {
    let gradient = x * (37 + 11 * channel) + y * (53 - 9 * channel);
    let noise = (x * 31 + y * 17 + channel).wrapping_mul(2_654_435_761) >> 21;
    (gradient + noise) as u16
}

/// The upper 8 bits of a [`sample`].
fn byte(x: u32, y: u32, channel: u32) -> u8 {
    (sample(x, y, channel) >> 8) as u8
}

/// Rows of samples with this number of bits, most significant bit first. Each row is padded to
/// whole bytes.
fn packed((width, height): (u32, u32), channels: u32, bits: u32) -> Vec<Vec<u8>> {
    let row = |y| {
        let samples = (0..width).flat_map(|x| (0..channels).map(move |c| sample(x, y, c)));
        match bits {
            16 => samples.flat_map(u16::to_be_bytes).collect(),
            8 => samples.map(|sample| (sample >> 8) as u8).collect(),
            _ => {
                let shortened: Vec<_> = samples.map(|sample| sample >> (16 - bits)).collect();
                let pack = |group: &[u16]| {
                    let first_shift = 8 - bits;
                    let numbered = (0..).zip(group);
                    numbered.fold(0, |packed_byte, (n, sample)| {
                        packed_byte | sample << (first_shift - n * bits)
                    })
                };
                shortened.chunks(8 / bits as usize).map(|group| pack(group) as u8).collect()
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
