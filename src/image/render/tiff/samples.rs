//! A row's samples: predictors undone, and every depth made 8 bits.

use crate::image::header::tiff::{
    Tiff,
    directory::ByteOrder,
    kinds::{Depth, Predictor},
};

/// Makes a row what it was before its predictor (TIFF 6.0, section 14; Adobe's Technical Note 3).
pub(super) fn undo_predictor(tiff: &Tiff, row: &mut [u8]) {
    let distance = tiff.samples_per_chunk_pixel() as usize;
    match (tiff.predictor, tiff.depth.bits()) {
        (Predictor::None, _) => {}
        (Predictor::Difference, 32) => add::<4>(row, distance, tiff.order),
        (Predictor::Difference, 16) => add::<2>(row, distance, tiff.order),
        (Predictor::Difference, _) => add::<1>(row, distance, tiff.order),
        (Predictor::FloatDifference, _) => {
            add::<1>(row, distance, tiff.order);
            let apart = row.to_vec();
            let len = row.len() / 4;
            for (n, sample) in row.chunks_exact_mut(4).enumerate() {
                // All the highest bytes come first, in files of either order.
                let highest_first = [0, 1, 2, 3].map(|place| apart[place * len + n]);
                sample.copy_from_slice(&highest_to_lowest(highest_first, tiff.order));
            }
        }
    }
}

/// Adds to each number, of so many bytes, the one that stands so many before it.
fn add<const BYTES: usize>(row: &mut [u8], distance: usize, order: ByteOrder) {
    let back = distance * BYTES;
    for at in (back..(row.len() + 1).saturating_sub(BYTES)).step_by(BYTES) {
        let mut carry = 0;
        for place in 0..BYTES {
            let place = if order == ByteOrder::Little { place } else { BYTES - 1 - place };
            let sum = u16::from(row[at + place]) + u16::from(row[at + place - back]) + carry;
            row[at + place] = sum as u8;
            carry = sum >> 8;
        }
    }
}

/// Makes each sample of a row 8 bits.
pub(super) fn to_bytes(tiff: &Tiff, row: &[u8], samples: &mut Vec<u8>) {
    samples.clear();
    match tiff.depth {
        Depth::Bits(8) => samples.extend_from_slice(row),
        Depth::Bits(16) => samples.extend(row.chunks_exact(2).map(|sample| {
            let bytes = highest_to_lowest([sample[0], sample[1]], tiff.order);
            ((u32::from(u16::from_be_bytes(bytes)) + 128) / 257) as u8
        })),
        Depth::Float => samples.extend(row.chunks_exact(4).map(|sample| {
            let bytes = [sample[0], sample[1], sample[2], sample[3]];
            let number = f32::from_be_bytes(highest_to_lowest(bytes, tiff.order));
            (number.clamp(0.0, 1.0) * 255.0).round() as u8
        })),
        Depth::Bits(bits) => {
            let most = (1 << bits) - 1;
            let step = 255 / most;
            let parts =
                |byte: u8| (0..8 / bits).map(move |n| (byte << (n * bits) >> (8 - bits)) * step);
            samples.extend(row.iter().copied().flat_map(parts));
        }
    }
}

/// A number's bytes from the file's order, or into it.
fn highest_to_lowest<const BYTES: usize>(mut bytes: [u8; BYTES], order: ByteOrder) -> [u8; BYTES] {
    if order == ByteOrder::Little {
        bytes.reverse();
    }
    bytes
}
