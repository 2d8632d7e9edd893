//! GIF: ordinary, interlaced, transparent, animated, without a colour table, and with a frame that
//! is smaller or larger than the canvas.

use super::{Kind, byte, palette};
use crate::support::craft::gif_lzw;

// Flags of a frame.
const NONE: u8 = 0;
const INTERLACED: u8 = 0x40;

pub(super) fn all(size: (u32, u32)) -> Vec<Kind> {
    let whole_frame = frame(size, NONE);
    // The graphic control extension that makes colour 7 transparent.
    let transparent = b"!\xf9\x04\x01\0\0\x07\0";
    let smaller_frame = frame((size.0.div_ceil(2), size.1.div_ceil(2)), NONE);
    [
        ("plain", gif(size, &whole_frame)),
        ("interlaced", gif(size, &frame(size, INTERLACED))),
        ("transparent", gif(size, &[&transparent[..], &whole_frame].concat())),
        ("frames", gif(size, &[&whole_frame[..], &smaller_frame, &whole_frame].concat())),
        ("first-frame-smaller", gif(size, &smaller_frame)),
        ("first-frame-larger", gif((size.0 / 2, size.1 / 2), &whole_frame)),
        ("without-colour-table", without_colour_table(size, &whole_frame)),
    ]
    .map(|(name, gif)| (format!("gif-{name}"), gif))
    .to_vec()
}

/// A GIF with these blocks. The flags 0xf7 announce a table of 256 colours. The zeros after them are the
/// background colour and the aspect ratio.
fn gif((width, height): (u32, u32), blocks: &[u8]) -> Vec<u8> {
    let sizes = [(width as u16).to_le_bytes(), (height as u16).to_le_bytes()].concat();
    [b"GIF89a", &sizes[..], &[0xf7, 0, 0], &palette(), blocks, b";"].concat()
}

/// A GIF without a colour table, which decoders show in grey. The flags for the table are at byte
/// 10, and the table begins at byte 13.
fn without_colour_table(size: (u32, u32), blocks: &[u8]) -> Vec<u8> {
    let colored = gif(size, blocks);
    let table_len = 3 * 256;
    [&colored[..10], &[0, 0, 0], &colored[13 + table_len..]].concat()
}

/// A frame at the top left of the canvas.
fn frame((width, height): (u32, u32), flags: u8) -> Vec<u8> {
    let pixels: Vec<u8> =
        (0..height).flat_map(|y| (0..width).map(move |x| byte(x, y, 0))).collect();
    let sizes = [(width as u16).to_le_bytes(), (height as u16).to_le_bytes()].concat();
    [b",\0\0\0\0", &sizes[..], &[flags], &gif_lzw(&pixels)].concat()
}
