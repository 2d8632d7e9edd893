//! Hostile GIFs (GIF89a).

use super::Bomb;
use crate::support::craft::{LowBits, gif_lzw, sub_blocks};

pub(super) fn all() -> Vec<Bomb> {
    let pixel_frame = frame((1, 1), &gif_lzw(&[0]));
    let too_few_pixels = gif_lzw(&[0; 1000]);
    vec![
        ("gif-100000-frames", gif((1, 1), &pixel_frame.repeat(100_000))),
        ("gif-frame-larger", gif((1, 1), &frame((2000, 1000), &too_few_pixels))),
        ("gif-frame-65535", gif((16, 16), &frame((65_535, 65_535), &too_few_pixels))),
        ("gif-canvas-5000", gif((5000, 5000), &pixel_frame)),
        ("gif-canvas-65535", gif((65_535, 65_535), &pixel_frame)),
        ("gif-lzw-never-ends", gif((16, 16), &frame((16, 16), &endless_lzw()))),
        ("gif-lzw-of-nothing", gif((16, 16), &frame((16, 16), &[8, 0]))),
        ("gif-code-size-255", gif((16, 16), &frame((16, 16), &[255, 3, 1, 2, 3, 0]))),
        ("gif-extensions", gif((16, 16), &b"!\xfe\x01 \0".repeat(600_000))),
        ("gif-xmp-3mb", gif((16, 16), &xmp())),
    ]
}

fn gif((width, height): (u16, u16), blocks: &[u8]) -> Vec<u8> {
    let mut gif = b"GIF89a".to_vec();
    gif.extend([width.to_le_bytes(), height.to_le_bytes()].concat());
    gif.extend(b"\x80\0\0\0\0\0\xff\xff\xff"); // a table of two colours
    gif.extend(blocks);
    gif.push(b';');
    gif
}

fn frame((width, height): (u16, u16), data: &[u8]) -> Vec<u8> {
    let (left, top) = ([0, 0], [0, 0]);
    let place = [left, top, width.to_le_bytes(), height.to_le_bytes()].concat();
    [b",", &place[..], &[0], data].concat()
}

/// Two megabytes of clear codes (256), without a pixel and without an end code.
fn endless_lzw() -> Vec<u8> {
    let mut bits = LowBits::default();
    for _ in 0..1_800_000 {
        bits.put(256, 9);
    }
    [vec![8], sub_blocks(&bits.finish())].concat()
}

/// Three megabytes of metadata, which a decoder may store, and no frame.
fn xmp() -> Vec<u8> {
    [&b"!\xff\x0bXMP DataXMP"[..], &sub_blocks(&vec![b'x'; 3 << 20])].concat()
}
