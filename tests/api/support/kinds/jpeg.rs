//! Generates JPEGs: one with an encoder, and others with a few random coefficients in each block.

use image_rs::{ImageFormat, RgbImage};

use super::{Kind, byte, encoded};
use crate::support::craft::{HighBits, jpeg_head, scan_head, segment};

// The markers of frame headers (ITU-T T.81, B.1.1.3).
const BASELINE: u8 = 0xc0;
const EXTENDED: u8 = 0xc1;
const PROGRESSIVE: u8 = 0xc2;

/// The scans of a baseline or extended JPEG. Has no effect on a progressive JPEG.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scans {
    /// One scan with all components.
    Single,
    /// A scan for each component.
    ForEachComponent,
}

pub(super) fn all(size: (u32, u32)) -> Vec<Kind> {
    let rgb = RgbImage::from_fn(size.0, size.1, |x, y| [0, 1, 2].map(|c| byte(x, y, c)).into());
    let mut kinds = vec![("jpeg-encoded".into(), encoded(&rgb.into(), ImageFormat::Jpeg))];
    // Sampling factors, as in `jpeg_head`.
    for (sampling, name) in [
        (&[0x11][..], "grey"),
        (&[0x11; 3], "444"),
        (&[0x21, 0x11, 0x11], "422"),
        (&[0x22, 0x11, 0x11], "420"),
        (&[0x11; 4], "cmyk"),
    ] {
        for (frame, frame_name) in
            [(BASELINE, "baseline"), (EXTENDED, "extended"), (PROGRESSIVE, "progressive")]
        {
            let bytes = jpeg(frame, size, sampling, Scans::Single);
            kinds.push((format!("jpeg-{frame_name}-{name}"), bytes));
        }
        if sampling.len() > 1 {
            let bytes = jpeg(BASELINE, size, sampling, Scans::ForEachComponent);
            kinds.push((format!("jpeg-scan-per-component-{name}"), bytes));
        }
    }
    kinds
}

/// Writes blocks with the Huffman codes of [`jpeg_head`].
struct Blocks {
    bits: HighBits,
    random_state: u32,
}

impl Blocks {
    /// Returns 16 bits of a linear congruential generator.
    fn random(&mut self) -> u64 {
        self.random_state = self.random_state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u64::from(self.random_state >> 16)
    }

    /// Writes the number of bits of a DC difference, which is five, in four bits. Then writes these five
    /// bits, which are random.
    fn write_dc(&mut self) {
        let difference = self.random() & 31;
        self.bits.put(5, 4);
        self.bits.put(difference, 5);
    }

    /// Writes six AC coefficients, and then the code for the end of the block. Each coefficient is the
    /// code for "one bit" (see [`jpeg_head`]) and one random bit.
    fn write_ac(&mut self) {
        for _ in 0..6 {
            let coefficient = self.random() & 1;
            self.bits.put(0b01, 2);
            self.bits.put(coefficient, 1);
        }
        self.bits.put(0b00, 2);
    }

    fn write_dc_and_ac(&mut self) {
        self.write_dc();
        self.write_ac();
    }

    /// Returns the bytes of the scan, with a zero after each 0xff (ITU-T T.81, B.1.1.5).
    fn finish(self) -> Vec<u8> {
        let bytes = self.bits.finish();
        let mut stuffed = Vec::with_capacity(bytes.len() + bytes.len() / 64);
        for byte in bytes {
            stuffed.push(byte);
            if byte == 0xff {
                stuffed.push(0);
            }
        }
        stuffed
    }
}

/// A JPEG of random blocks. `frame` and `sampling` are as in [`jpeg_head`].
fn jpeg(frame: u8, size: (u32, u32), sampling: &[u8], scans: Scans) -> Vec<u8> {
    let max_factors = sampling[0]; // the first component has the largest factors
    let (max_horizontal, max_vertical) = (u32::from(max_factors >> 4), u32::from(max_factors & 15));
    // A scan of several components consists of whole MCUs (minimum coded units), so it may have
    // blocks beyond the right and the bottom edge. A scan of one component has only the blocks that
    // the picture needs (ITU-T T.81, A.2.2).
    let mcus = size.0.div_ceil(8 * max_horizontal) * size.1.div_ceil(8 * max_vertical);
    let scan = |head: Vec<u8>, block_count: u32, write_block: fn(&mut Blocks)| {
        let mut blocks = Blocks { bits: HighBits::default(), random_state: 1 };
        (0..block_count).for_each(|_| write_block(&mut blocks));
        [head, blocks.finish()].concat()
    };
    let ids: Vec<u8> = (1..=sampling.len() as u8).collect();
    let blocks_per_mcu: u32 =
        sampling.iter().map(|factors| u32::from((factors >> 4) * (factors & 15))).sum();
    let blocks_if_alone_in_scan = |factors: u8| {
        (size.0 * u32::from(factors >> 4)).div_ceil(8 * max_horizontal)
            * (size.1 * u32::from(factors & 15)).div_ceil(8 * max_vertical)
    };
    let blocks_if_all_in_one_scan = if sampling.len() == 1 {
        blocks_if_alone_in_scan(max_factors)
    } else {
        mcus * blocks_per_mcu
    };
    let mut jpeg = jpeg_head(frame, (size.0 as u16, size.1 as u16), sampling);
    if sampling.len() == 4 {
        // Adobe's segment: the components are CMYK, without a colour transform.
        let after_start_marker = 2..2;
        jpeg.splice(after_start_marker, segment(0xee, b"Adobe\0\x64\0\0\0\0\0"));
    }
    if frame == PROGRESSIVE {
        // One scan has the DC coefficients of all components. Then each component has a scan with its AC
        // coefficients.
        jpeg.extend(scan(scan_head(&ids, (0, 0), 0), blocks_if_all_in_one_scan, Blocks::write_dc));
        for (id, factors) in ids.iter().zip(sampling) {
            let head = scan_head(&[*id], (1, 63), 0);
            jpeg.extend(scan(head, blocks_if_alone_in_scan(*factors), Blocks::write_ac));
        }
    } else if scans == Scans::ForEachComponent {
        for (id, factors) in ids.iter().zip(sampling) {
            let head = scan_head(&[*id], (0, 63), 0);
            jpeg.extend(scan(head, blocks_if_alone_in_scan(*factors), Blocks::write_dc_and_ac));
        }
    } else {
        let head = scan_head(&ids, (0, 63), 0);
        jpeg.extend(scan(head, blocks_if_all_in_one_scan, Blocks::write_dc_and_ac));
    }
    jpeg.extend(b"\xff\xd9"); // the end of the picture
    jpeg
}
