//! PNG of every depth and colour type, interlaced or not, without compression.

use super::{Kind, packed, palette};
use crate::support::craft::{png, png_chunk, zlib};

/// For each pass: its first column and row, and the steps to the next ones (PNG specification, 8.1).
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
    for (color, channels, name, depths) in [
        (0, 1, "grey", &[1, 2, 4, 8, 16][..]),
        (2, 3, "rgb", &[8, 16]),
        (3, 1, "palette", &[1, 2, 4, 8]),
        (4, 2, "grey-alpha", &[8, 16]),
        (6, 4, "rgba", &[8, 16]),
    ] {
        for depth in depths {
            for (is_interlaced, suffix) in [(false, ""), (true, "-interlaced")] {
                let data = pixels(size, channels, *depth, is_interlaced);
                let mut chunks = Vec::new();
                if color == 3 {
                    let colors = &palette()[..3 << depth];
                    chunks.push(png_chunk(b"PLTE", colors));
                    chunks.push(png_chunk(b"tRNS", &[0]));
                }
                chunks.push(png_chunk(b"IDAT", &zlib(&data)));
                let png = png(size, *depth as u8, color, is_interlaced, &chunks);
                kinds.push((format!("png-{name}-{depth}{suffix}"), png));
            }
        }
    }
    kinds
}

/// Scanlines without a filter. Each pass of an interlaced picture is a small picture of its own, so the
/// whole picture differs from the one without interlacing. The tests do not depend on that.
fn pixels((width, height): (u32, u32), channels: u32, depth: u32, is_interlaced: bool) -> Vec<u8> {
    let lines = |size| {
        let rows = packed(size, channels, depth);
        rows.into_iter().flat_map(|row| [vec![0], row].concat()).collect::<Vec<u8>>()
    };
    if !is_interlaced {
        return lines((width, height));
    }
    let passes = PASSES.iter().flat_map(|(column, row, across, down)| {
        let size = ((*column..width).step_by(*across).len(), (*row..height).step_by(*down).len());
        if size.0 == 0 { Vec::new() } else { lines((size.0 as u32, size.1 as u32)) }
    });
    passes.collect()
}
