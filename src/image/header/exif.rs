//! Reads how a picture lies from its EXIF (CIPA DC-008, 4.6.4: the tag Orientation).

use std::io::{self, Read};

use image_rs::metadata::Orientation;

use super::Reader;

/// How much of an EXIF is read, in bytes: as much as a JPEG has room for. The tag stands in its front.
const READ: u32 = 64 << 10;

/// What JPEG puts before EXIF; some writers of WebP and PNG put it there, too. The sixth byte is
/// padding.
const PREFIX: &[u8] = b"Exif\0";

/// What makes the picture stand upright; `None` where the EXIF does not say, or makes no sense: broken
/// EXIF is no reason to refuse a picture.
pub(super) fn orientation(exif: &[u8]) -> Option<Orientation> {
    let exif = exif.strip_prefix(PREFIX).map_or(exif, |rest| rest.get(1..).unwrap_or_default());
    Orientation::from_exif_chunk(exif)
}

/// The same for an EXIF of this length that the reader is at.
pub(super) fn read(reader: &mut Reader, length: u32) -> io::Result<Option<Orientation>> {
    let mut exif = vec![0; length.min(READ) as usize];
    reader.read_exact(&mut exif)?;
    Ok(orientation(&exif))
}

/// The same for a JPEG's APP1 segment, which may hold something else.
pub(super) fn orientation_of_segment(segment: &[u8]) -> Option<Orientation> {
    segment.starts_with(PREFIX).then(|| orientation(segment)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exif_tells_its_orientation_with_and_without_its_prefix() {
        let big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let little = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        for exif in [&big[..], little] {
            assert_eq!(orientation(exif), Some(Orientation::Rotate90));
            for padding in [b"\0", b"\xff"] {
                let prefixed = [PREFIX, padding, exif].concat();
                assert_eq!(orientation(&prefixed), Some(Orientation::Rotate90));
                assert_eq!(orientation_of_segment(&prefixed), Some(Orientation::Rotate90));
            }
            assert_eq!(orientation_of_segment(exif), None);
        }
        for broken in [&b""[..], b"Exif\0", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", &big[..20]] {
            assert_eq!(orientation(broken), None, "{}", broken.escape_ascii());
        }
    }
}
