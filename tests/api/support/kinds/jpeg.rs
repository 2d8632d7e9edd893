//! JPEG: one from an encoder, and others with a few random coefficients in each block.

use image_rs::{ImageFormat, RgbImage};

use super::{Kind, byte, encoded};
use crate::support::craft::{HighBits, jpeg_head, scan_head, segment};

const BASELINE: u8 = 0xc0;
const EXTENDED: u8 = 0xc1;
const PROGRESSIVE: u8 = 0xc2;

/// The scans of a JPEG that is not progressive.
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
    for (sampling, name) in [
        (&[0x11][..], "grey"),
        (&[0x11; 3], "444"),
        (&[0x21, 0x11, 0x11], "422"),
        (&[0x22, 0x11, 0x11], "420"),
        (&[0x11; 4], "cmyk"),
    ] {
        for (frame, kind) in
            [(BASELINE, "baseline"), (EXTENDED, "extended"), (PROGRESSIVE, "progressive")]
        {
            kinds.push((format!("jpeg-{kind}-{name}"), jpeg(frame, size, sampling, Scans::Single)));
        }
        if sampling.len() > 1 {
            let bytes = jpeg(BASELINE, size, sampling, Scans::ForEachComponent);
            kinds.push((format!("jpeg-scan-for-each-{name}"), bytes));
        }
    }
    kinds
}

/// Writes blocks with the Huffman codes of [`jpeg_head`].
struct Blocks {
    bits: HighBits,
    /// The state of the random number generator.
    seed: u32,
}

impl Blocks {
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u64::from(self.seed >> 16)
    }

    /// Writes a random DC difference of five bits.
    fn dc(&mut self) {
        let difference = self.random() & 31;
        self.bits.put(5, 4);
        self.bits.put(difference, 5);
    }

    /// Writes six small AC coefficients and the end of the block.
    fn ac(&mut self) {
        for _ in 0..6 {
            let value = self.random() & 1;
            self.bits.put(0b01 << 1 | value, 3);
        }
        self.bits.put(0b00, 2);
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

/// A JPEG of random blocks. `frame` is the marker of its frame header, and `sampling` contains the
/// sampling factors of each component.
fn jpeg(frame: u8, size: (u32, u32), sampling: &[u8], scans: Scans) -> Vec<u8> {
    let max = sampling[0]; // the first component has the largest factors
    let (across, down) = (u32::from(max >> 4), u32::from(max & 15));
    let mcus = size.0.div_ceil(8 * across) * size.1.div_ceil(8 * down);
    let scan = |head: Vec<u8>, count: u32, write: &dyn Fn(&mut Blocks)| {
        let mut blocks = Blocks { bits: HighBits::default(), seed: 1 };
        (0..count).for_each(|_| write(&mut blocks));
        [head, blocks.finish()].concat()
    };
    let ids: Vec<u8> = (1..=sampling.len() as u8).collect();
    let blocks_per_mcu: u32 =
        sampling.iter().map(|factors| u32::from((factors >> 4) * (factors & 15))).sum();
    // In a scan of several components, blocks fill up the last MCU (minimum coded unit) of a row and of
    // a column. A scan of one component contains only the blocks that are needed (A.2.2).
    let blocks_in_own_scan = |factors: u8| {
        (size.0 * u32::from(factors >> 4)).div_ceil(8 * across)
            * (size.1 * u32::from(factors & 15)).div_ceil(8 * down)
    };
    let mut jpeg = jpeg_head(frame, (size.0 as u16, size.1 as u16), sampling);
    if sampling.len() == 4 {
        jpeg.splice(2..2, segment(0xee, b"Adobe\0\x64\0\0\0\0\0"));
    }
    if frame == PROGRESSIVE {
        let blocks =
            if sampling.len() == 1 { blocks_in_own_scan(max) } else { mcus * blocks_per_mcu };
        jpeg.extend(scan(scan_head(&ids, (0, 0), 0), blocks, &Blocks::dc));
        for (id, factors) in ids.iter().zip(sampling) {
            let head = scan_head(&[*id], (1, 63), 0);
            jpeg.extend(scan(head, blocks_in_own_scan(*factors), &Blocks::ac));
        }
    } else {
        let block = |blocks: &mut Blocks| {
            blocks.dc();
            blocks.ac();
        };
        if scans == Scans::ForEachComponent {
            for (id, factors) in ids.iter().zip(sampling) {
                let head = scan_head(&[*id], (0, 63), 0);
                jpeg.extend(scan(head, blocks_in_own_scan(*factors), &block));
            }
        } else {
            let blocks =
                if sampling.len() == 1 { blocks_in_own_scan(max) } else { mcus * blocks_per_mcu };
            jpeg.extend(scan(scan_head(&ids, (0, 63), 0), blocks, &block));
        }
    }
    jpeg.extend(b"\xff\xd9");
    jpeg
}
