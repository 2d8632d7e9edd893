//! PNG of every depth and colour type, interlaced or not. All are uncompressed.

use super::{Kind, packed, palette};
use crate::support::craft::{Interlace, png, png_chunk, zlib};

/// For each pass of an interlaced picture: the first column and row, and the steps to the next column
/// and row (PNG specification, 8.1).
const PASSES: [(u32, u32, usize, usize); 7] = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
];

pub(super) fn all(size: (u32, u32)) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for (color_type, channels, name, depths) in [
        (0, 1, "grey", &[1, 2, 4, 8, 16][..]),
        (2, 3, "rgb", &[8, 16]),
        (3, 1, "palette", &[1, 2, 4, 8]),
        (4, 2, "grey-alpha", &[8, 16]),
        (6, 4, "rgba", &[8, 16]),
    ] {
        for depth in depths {
            for (interlace, suffix) in [(Interlace::None, ""), (Interlace::Adam7, "-interlaced")] {
                let data = pixels(size, channels, *depth, interlace);
                let mut chunks = Vec::new();
                if name == "palette" {
                    // Three bytes for each of 2^depth colours.
                    let colors = &palette()[..3 << depth];
                    chunks.push(png_chunk(b"PLTE", colors));
                    chunks.push(png_chunk(b"tRNS", &[0])); // the first colour is transparent
                }
                chunks.push(png_chunk(b"IDAT", &zlib(&data)));
                let bytes = png(size, *depth as u8, color_type, interlace, &chunks);
                kinds.push((format!("png-{name}-{depth}{suffix}"), bytes));
            }
        }
    }
    kinds
}

/// Scanlines without a filter. Each pass of an interlaced picture is generated like a small picture
/// of its own, so interlacing changes what a picture shows. No test compares an interlaced picture
/// with one that is not.
fn pixels((width, height): (u32, u32), channels: u32, depth: u32, interlace: Interlace) -> Vec<u8> {
    let lines = |size| {
        let rows = packed(size, channels, depth);
        rows.into_iter().flat_map(|row| [vec![0], row].concat()).collect::<Vec<u8>>()
    };
    if interlace == Interlace::None {
        return lines((width, height));
    }
    let passes = PASSES.iter().flat_map(|(first_column, first_row, column_step, row_step)| {
        let columns = (*first_column..width).step_by(*column_step).len();
        let rows = (*first_row..height).step_by(*row_step).len();
        // A pass without columns is empty: it does not even have filter bytes.
        if columns == 0 { Vec::new() } else { lines((columns as u32, rows as u32)) }
    });
    passes.collect()
}
