//! A BMP of each depth, and others: run-length encoded, with masks, top-down, and with a header of OS/2.

use super::{Kind, packed};
use crate::support::craft::bmp;

// Values of the field `compression` in the second header, which follows the file header.
const NONE: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BITFIELDS: u32 = 3;

pub(super) fn all((width, height): (u32, u32)) -> Vec<Kind> {
    let size = (width as i32, height as i32);
    let colors: Vec<u8> = (0..=255).flat_map(|n| [n, 255 - n, n / 2, 0]).collect();
    // Rows are padded to four bytes.
    let pixels = |channels, bits| {
        let rows = packed((width, height), channels, bits).into_iter();
        rows.flat_map(|mut row| {
            row.resize(row.len().next_multiple_of(4), 0);
            row
        })
        .collect::<Vec<u8>>()
    };
    // The fourth argument of `bmp` is the palette's number of colours. 0 means all that the depth allows.
    // The fifth argument is the palette or the masks.
    let with_masks = |depth: u16, masks: [u32; 3], pixels: &[u8]| {
        bmp(size, depth, BITFIELDS, 0, &masks.map(u32::to_le_bytes).concat(), pixels)
    };
    let uncompressed = |depth: u16, pixels: &[u8]| bmp(size, depth, NONE, 0, &[], pixels);
    // The palette has four bytes for each of 2^bits colours.
    let indexed =
        |bits: u16| bmp(size, bits, NONE, 0, &colors[..4 << bits], &pixels(1, bits.into()));
    [
        ("1", indexed(1)),
        ("2", indexed(2)),
        ("4", indexed(4)),
        ("8", indexed(8)),
        ("16", uncompressed(16, &pixels(1, 16))),
        ("24", uncompressed(24, &pixels(3, 8))),
        // A negative height means that the top row comes first.
        ("24-top-down", bmp((size.0, -size.1), 24, NONE, 0, &[], &pixels(3, 8))),
        ("32", uncompressed(32, &pixels(4, 8))),
        ("565", with_masks(16, [0xf800, 0x7e0, 0x1f], &pixels(1, 16))),
        // Ten bits for each colour.
        ("masks", with_masks(32, [0x3ff0_0000, 0xffc00, 0x3ff], &pixels(4, 8))),
        ("alpha", with_alpha_mask(size, &pixels(4, 8))),
        ("os2", os2(&uncompressed(24, &pixels(3, 8)))),
        ("rle8", bmp(size, 8, RLE8, 0, &colors, &runs((width, height), 8))),
        ("rle4", bmp(size, 4, RLE4, 0, &colors[..4 << 4], &runs((width, height), 4))),
    ]
    .map(|(name, bmp)| (format!("bmp-{name}"), bmp))
    .to_vec()
}

/// A BMP with a mask for alpha. The four masks are part of the second header, which thus has 56 bytes
/// instead of 40. The length of the second header is at byte 14.
fn with_alpha_mask(size: (i32, i32), pixels: &[u8]) -> Vec<u8> {
    let masks = [0xff_0000u32, 0xff00, 0xff, 0xff00_0000].map(u32::to_le_bytes).concat();
    let mut file = bmp(size, 32, BITFIELDS, 0, &masks, pixels);
    file[14] = 56;
    file
}

/// A BMP with the second header of OS/2. This header has 64 bytes, 24 more than that of Windows, which
/// ends at byte 54. The offset of the pixels is at byte 10, and the length of the second header at
/// byte 14.
fn os2(windows: &[u8]) -> Vec<u8> {
    let mut bmp = windows.to_vec();
    bmp[10] += 24;
    bmp[14] = 64;
    bmp.splice(54..54, [0; 24]);
    bmp
}

/// Run-length encoded pixels in runs of up to four pixels of one colour.
fn runs((width, height): (u32, u32), bits: u32) -> Vec<u8> {
    let mut data = Vec::new();
    // Each sample of `packed` is the colour of one run.
    for row in packed((width.div_ceil(4), height), 1, 8) {
        for (run_index, color) in (0..).zip(row) {
            // With four bits per pixel, a byte contains two pixels. Both get the upper bits of the sample.
            let color = if bits == 4 { color >> 4 | color & 0xf0 } else { color };
            data.extend([(width - run_index * 4).min(4) as u8, color]);
        }
        data.extend([0, 0]); // the end of the row
    }
    data.extend([0, 1]); // the end of the picture
    data
}
