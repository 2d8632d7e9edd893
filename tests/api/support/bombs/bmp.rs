//! Hostile BMPs (<https://learn.microsoft.com/windows/win32/gdi/bitmap-compression>).

use super::Bomb;
use crate::support::craft::bmp;

// Values of the header's field for the compression.
const NONE: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BITFIELDS: u32 = 3;
const JPEG: u32 = 4;

pub(super) fn all() -> Vec<Bomb> {
    let palette = [7; 1024]; // 256 colours of four bytes
    let rle8 = |size, data: &[u8]| bmp(size, 8, RLE8, 256, &palette, data);
    let rle4 = |size, data: &[u8]| bmp(size, 4, RLE4, 16, &palette[..64], data);
    let with_masks = |masks: [u32; 3]| {
        let masks = masks.map(u32::to_le_bytes).concat();
        bmp((16, 16), 32, BITFIELDS, 0, &masks, &[0x5a; 1024])
    };
    vec![
        // The data of a picture of 36 megapixels consist only of the code for its end.
        ("bmp-rle8-of-nothing", rle8((6000, 6000), &[0, 1])),
        // The next two jump out of the picture: both to the right, and the first also up.
        ("bmp-rle8-jumps", rle8((64, 64), &[0, 2, 255, 255].repeat(1000))),
        ("bmp-rle4-jumps", rle4((64, 64), &[0, 2, 1, 0].repeat(1000))),
        // Jumps by zero pixels, so that the codes never advance.
        ("bmp-rle8-stands-still", rle8((64, 64), &[0, 2, 0, 0].repeat(500_000))),
        // The next two have no code for the end of the picture. The first consists of runs. The second
        // consists of blocks of 255 unencoded pixels. A block is the code `0, 255` and 128 bytes of pixels,
        // which also have the values `0, 255, …`.
        ("bmp-rle8-never-ends", rle8((64, 64), &[255, 1].repeat(1_000_000))),
        ("bmp-rle4-never-ends", rle4((64, 64), &[0, 255].repeat(1_000_000))),
        ("bmp-palette-4-billion", bmp((16, 16), 8, NONE, u32::MAX, &palette, &[0; 256])),
        ("bmp-palette-cut", bmp((16, 16), 8, NONE, 256, &palette[..8], &[])),
        ("bmp-masks-of-nothing", with_masks([0; 3])),
        ("bmp-masks-of-all", with_masks([u32::MAX; 3])),
        ("bmp-masks-with-holes", with_masks([0x5555_5555, 0xaaaa_aaaa, 0x1001])),
        // With 63.2 megapixels, this is just within the limit.
        ("bmp-no-data", bmp((8000, 7900), 24, NONE, 0, &[], &[])),
        ("bmp-lowest-height", bmp((16, i32::MIN), 24, NONE, 0, &[], &[0; 1000])),
        ("bmp-negative-width", bmp((-16, 16), 24, NONE, 0, &[], &[0; 1000])),
        ("bmp-widest", bmp((i32::MAX, 1), 1, NONE, 2, &palette[..8], &[0; 1000])),
        ("bmp-depth-65535", bmp((16, 16), u16::MAX, NONE, 0, &[], &[0; 1000])),
        ("bmp-compression-jpeg", bmp((16, 16), 0, JPEG, 0, &[], &[0; 1000])),
        ("bmp-data-far-away", data_far_away()),
    ]
}

/// According to the header, the pixels begin almost 4 GiB after the beginning of the file.
fn data_far_away() -> Vec<u8> {
    let mut file = bmp((16, 16), 24, NONE, 0, &[], &[0; 768]);
    file[10..14].copy_from_slice(&u32::MAX.to_le_bytes());
    file
}
