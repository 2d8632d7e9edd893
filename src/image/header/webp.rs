//! Reads the header of a WebP (RFC 9649, 2; RFC 6386, 9.1, for the lossy kind).

use std::io::{self, Read, Seek, SeekFrom};

use image_rs::metadata::Orientation;

use super::{Fault, Header, Reader, exif};

/// Where the first chunk begins.
const FIRST_CHUNK: u64 = 12;

/// In the flags of the extended kind: there is EXIF.
const HAS_EXIF: u8 = 0b1000;

/// Size, and, in the extended kind, the orientation that the EXIF gives.
pub(super) fn read(reader: &mut Reader) -> Result<Header, Fault> {
    sizes(reader)
        .and_then(|(width, height, has_exif)| {
            // A file that is cut short has no EXIF; what is cut, its decoder tells.
            let orientation = has_exif.then(|| orientation(reader).ok().flatten()).flatten();
            Header::new(width, height, orientation.unwrap_or(Orientation::NoTransforms))
        })
        .ok_or(Fault::Damaged)
}

/// Width, height, and whether there is EXIF.
fn sizes(reader: &mut Reader) -> Option<(u32, u32, bool)> {
    let mut head = [0; 30];
    // The smallest lossless picture has no more.
    reader.read_exact(&mut head[..25]).ok()?;
    let number =
        |head: &[u8; 30], at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], 0]);
    match &head[12..16] {
        b"VP8L" => {
            let sizes = number(&head, 21) | u32::from(head[24]) << 24;
            Some(((sizes & 0x3fff) + 1, (sizes >> 14 & 0x3fff) + 1, false))
        }
        b"VP8 " => {
            reader.read_exact(&mut head[25..]).ok()?;
            // Above the 14 bits of a size stand two that say how it should be scaled when shown.
            let side = |at: usize| u32::from(u16::from_le_bytes([head[at], head[at + 1]])) & 0x3fff;
            Some((side(26), side(28), false))
        }
        b"VP8X" => {
            reader.read_exact(&mut head[25..]).ok()?;
            Some((number(&head, 24) + 1, number(&head, 27) + 1, head[20] & HAS_EXIF != 0))
        }
        _ => None,
    }
}

fn orientation(reader: &mut Reader) -> io::Result<Option<Orientation>> {
    reader.seek(SeekFrom::Start(FIRST_CHUNK))?;
    loop {
        let mut head = [0; 8];
        reader.read_exact(&mut head)?;
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if head.starts_with(b"EXIF") {
            let mut exif = vec![0; length.min(exif::READ) as usize];
            reader.read_exact(&mut exif)?;
            return Ok(exif::orientation(&exif));
        }
        // Chunks of an odd length are followed by a byte of padding.
        reader.seek_relative(i64::from(length) + i64::from(length % 2))?;
    }
}
