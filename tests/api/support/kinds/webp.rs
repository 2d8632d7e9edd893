//! WebP: lossless from an encoder, and lossy without an encoder, in grey. Both are also in extended
//! files, with and without alpha and animation.

use image_rs::{ImageFormat, RgbImage, RgbaImage};

use super::{Kind, byte, encoded};
use crate::support::craft::{anmf, riff_chunk, vp8_grey, vp8x, webp};

// Flags of an extended WebP.
const ALPHA: u8 = 0b1_0000;
const ANIMATED: u8 = 0b10;

// Filters of an alpha chunk.
const NO_FILTER: u8 = 0;
const HORIZONTAL: u8 = 1;
const GRADIENT: u8 = 3;

pub(super) fn all((width, height): (u32, u32)) -> Vec<Kind> {
    let rgb = RgbImage::from_fn(width, height, |x, y| [0, 1, 2].map(|c| byte(x, y, c)).into());
    let rgba = RgbaImage::from_fn(width, height, |x, y| [0, 1, 2, 3].map(|c| byte(x, y, c)).into());
    let lossless = encoded(&rgb.into(), ImageFormat::WebP);
    let lossless_alpha = encoded(&rgba.into(), ImageFormat::WebP);
    let lossy = riff_chunk(b"VP8 ", &vp8_grey(width as u16, height as u16));
    let raw_alpha: Vec<u8> =
        (0..height).flat_map(|y| (0..width).map(move |x| byte(x, y, 3))).collect();
    // The filter is in the bits 2 and 3 of the first byte. The other bits are 0: no compression.
    let alpha_chunk = |filter: u8| riff_chunk(b"ALPH", &[&[filter << 2], &raw_alpha[..]].concat());
    // Two frames, which are the same. `ALPHA` is set even if they have no alpha; decoders accept this.
    let animated = |chunks: &[Vec<u8>]| {
        let frame = anmf(width, height, chunks);
        let head = [vp8x(ANIMATED | ALPHA, width, height), riff_chunk(b"ANIM", &[0; 6])];
        webp(&[&head[..], &[frame.clone(), frame]].concat())
    };
    let extended =
        |flags, chunks: &[Vec<u8>]| webp(&[&[vp8x(flags, width, height)], chunks].concat());
    // The chunk of the pixels follows the 12 bytes of `RIFF`, the length and `WEBP`.
    let (rgb_chunk, rgba_chunk) = (lossless[12..].to_vec(), lossless_alpha[12..].to_vec());
    let kinds = [
        ("lossy", webp(std::slice::from_ref(&lossy))),
        ("lossy-extended", extended(0, std::slice::from_ref(&lossy))),
        ("lossy-alpha", extended(ALPHA, &[alpha_chunk(NO_FILTER), lossy.clone()])),
        ("lossy-alpha-gradient", extended(ALPHA, &[alpha_chunk(GRADIENT), lossy.clone()])),
        ("lossy-animated", animated(std::slice::from_ref(&lossy))),
        ("lossy-alpha-animated", animated(&[alpha_chunk(HORIZONTAL), lossy])),
        ("lossless-extended", extended(0, std::slice::from_ref(&rgb_chunk))),
        ("lossless-alpha-extended", extended(ALPHA, std::slice::from_ref(&rgba_chunk))),
        ("lossless-animated", animated(&[rgb_chunk])),
        ("lossless-alpha-animated", animated(&[rgba_chunk])),
        ("lossless", lossless),
        ("lossless-alpha", lossless_alpha),
    ];
    kinds.map(|(name, webp)| (format!("webp-{name}"), webp)).to_vec()
}
