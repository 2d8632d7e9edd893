//! Undoes predictors, and scales samples of every depth to 8 bits.

use crate::image::header::tiff::{
    Tiff,
    directory::ByteOrder,
    kinds::{Depth, Predictor},
};

/// Restores the samples of a row from the differences that a predictor stored (TIFF 6.0, section 14,
/// and Adobe's Technical Note 3).
pub(super) fn undo_predictor(tiff: &Tiff, row: &mut [u8]) {
    // `Difference` adds each sample to that of the same channel in the next pixel.
    let distance = tiff.samples_of_a_pixel_in_one_chunk() as usize;
    match (tiff.predictor, tiff.depth) {
        (Predictor::None, _) => {}
        (Predictor::Difference, Depth::Float) => sum_differences::<4>(row, distance, tiff.order),
        (Predictor::Difference, Depth::Bits(16)) => sum_differences::<2>(row, distance, tiff.order),
        // These are 8 bits: `Predictor::from_tag` refuses fewer.
        (Predictor::Difference, Depth::Bits(_)) => sum_differences::<1>(row, distance, tiff.order),
        (Predictor::FloatDifference, _) => {
            // Here, `distance` counts bytes, not samples.
            sum_differences::<1>(row, distance, tiff.order);
            // In a file of either byte order, the row now contains the highest byte of every sample,
            // then the second byte of every sample, and so on.
            let separated = row.to_vec();
            let sample_count = row.len() / 4;
            for (index, sample) in row.chunks_exact_mut(4).enumerate() {
                let big_endian = [0, 1, 2, 3].map(|byte| separated[byte * sample_count + index]);
                sample.copy_from_slice(&swap_if_little(big_endian, tiff.order));
            }
        }
    }
}

/// Goes through the row in order. To each number, adds the already restored number that is `distance`
/// numbers before it. A number has `BYTES` bytes.
fn sum_differences<const BYTES: usize>(row: &mut [u8], distance: usize, order: ByteOrder) {
    let byte_distance = distance * BYTES;
    // Bytes at the end of the row that are too few for a number stay as they are.
    for start in (byte_distance..(row.len() + 1).saturating_sub(BYTES)).step_by(BYTES) {
        let mut carry = 0;
        for significance in 0..BYTES {
            let byte = match order {
                ByteOrder::Little => start + significance,
                ByteOrder::Big => start + BYTES - 1 - significance,
            };
            let sum = u16::from(row[byte]) + u16::from(row[byte - byte_distance]) + carry;
            row[byte] = sum as u8;
            carry = sum >> 8;
        }
    }
}

/// Scales each sample of a row to 8 bits. The results replace the contents of `samples`.
pub(super) fn to_bytes(tiff: &Tiff, row: &[u8], samples: &mut Vec<u8>) {
    samples.clear();
    match tiff.depth {
        Depth::Bits(8) => samples.extend_from_slice(row),
        Depth::Bits(16) => samples.extend(row.chunks_exact(2).map(|sample| {
            let bytes = swap_if_little([sample[0], sample[1]], tiff.order);
            // 257 is 65,535 / 255. Adding 128 rounds the quotient.
            ((u32::from(u16::from_be_bytes(bytes)) + 128) / 257) as u8
        })),
        // 1.0 becomes 255. Numbers outside of 0.0 to 1.0 are clamped.
        Depth::Float => samples.extend(row.chunks_exact(4).map(|sample| {
            let bytes = [sample[0], sample[1], sample[2], sample[3]];
            let number = f32::from_be_bytes(swap_if_little(bytes, tiff.order));
            (number.clamp(0.0, 1.0) * 255.0).round() as u8
        })),
        Depth::Bits(bits) => {
            let max_value = (1 << bits) - 1;
            let factor = 255 / max_value;
            // With 1, 2 or 4 bits, a byte contains several samples. The first is in the highest bits.
            let scaled_samples =
                |byte: u8| (0..8 / bits).map(move |n| (byte << (n * bits) >> (8 - bits)) * factor);
            samples.extend(row.iter().copied().flat_map(scaled_samples));
        }
    }
}

/// Converts bytes between the file's order and big-endian, in either direction.
fn swap_if_little<const BYTES: usize>(mut bytes: [u8; BYTES], order: ByteOrder) -> [u8; BYTES] {
    if order == ByteOrder::Little {
        bytes.reverse();
    }
    bytes
}
