//! Hostile PNGs (PNG specification, third edition).

use super::Bomb;
use crate::support::craft::{Interlace, png, png_chunk, zlib, zlib_zeros};

// Colour types.
const RGB: u8 = 2;
const PALETTE: u8 = 3;
const RGBA: u8 = 6;

/// A gibibyte, in bytes. So many zeros are only a mebibyte when they are compressed.
const GIB: u64 = 1 << 30;

pub(super) fn all() -> Vec<Bomb> {
    let with_gib = |head: &[u8]| [head, &zlib_zeros(GIB)].concat();
    vec![
        // Text and a profile that decompress to a gibibyte (11.3.3, 11.3.2.3).
        ("png-ztxt", small(&[png_chunk(b"zTXt", &with_gib(b"Comment\0\0"))])),
        ("png-itxt", small(&[png_chunk(b"iTXt", &with_gib(b"XML:com.adobe.xmp\0\x01\0\0\0"))])),
        ("png-iccp", small(&[png_chunk(b"iCCP", &with_gib(b"Profile\0\0"))])),
        ("png-200000-texts", small(&vec![png_chunk(b"tEXt", b"a\0"); 200_000])),
        ("png-idat-inflates", png((16, 16), 8, RGB, Interlace::None, &[idat(GIB)])),
        ("png-idat-of-nothing", small(&vec![png_chunk(b"IDAT", b""); 200_000])),
        // 63 megapixels, which the limit of 64 allows, but no pixels follow.
        ("png-no-data", png((8000, 7900), 8, RGB, Interlace::None, &[png_chunk(b"IDAT", b"")])),
        // The data of about 100 KiB decompresses to 99 MiB, a little more than the pixels need.
        ("png-interlaced-16-bit", png((3500, 3500), 16, RGBA, Interlace::Adam7, &[idat(99 << 20)])),
        // Chunks that declare the largest length of the specification (5.3), or one byte less.
        ("png-text-2gib", with_declared_length(b"tEXt", 0x7fff_ffff)),
        ("png-idat-2gib", with_declared_length(b"IDAT", 0x7fff_ffff)),
        ("png-exif-2gib", with_declared_length(b"eXIf", 0x7fff_fffe)),
        ("png-depth-3", png((16, 16), 3, RGB, Interlace::None, &[idat(1000)])),
        ("png-palette-missing", png((16, 16), 8, PALETTE, Interlace::None, &[idat(1000)])),
        ("png-animated", small(&[png_chunk(b"acTL", &[255; 8]), frame_control()])),
    ]
}

/// A chunk of data that decompresses to at least this many zeros.
fn idat(zeros: u64) -> Vec<u8> {
    png_chunk(b"IDAT", &zlib_zeros(zeros))
}

/// A picture of 16 × 16 pixels with these chunks before the pixels.
fn small(chunks: &[Vec<u8>]) -> Vec<u8> {
    // A row has the byte of its filter, and three bytes for each of 16 pixels.
    let pixels = png_chunk(b"IDAT", &zlib(&[0; 16 * 49]));
    png((16, 16), 8, RGB, Interlace::None, &[chunks, &[pixels]].concat())
}

/// A picture with a chunk whose length field contains `length`, although the chunk has 1000 bytes.
fn with_declared_length(name: &[u8; 4], length: u32) -> Vec<u8> {
    let mut chunk = png_chunk(name, &[b'a'; 1000]);
    chunk[..4].copy_from_slice(&length.to_be_bytes());
    small(&[chunk])
}

/// The header of an animation frame that is larger than the picture.
fn frame_control() -> Vec<u8> {
    let mut control = vec![0; 26];
    control[4..12].copy_from_slice(&[0, 0, 255, 255, 0, 0, 255, 255]);
    png_chunk(b"fcTL", &control)
}
