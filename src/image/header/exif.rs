//! Reads the orientation of a picture from its EXIF data (CIPA DC-008, 4.6.4: the tag Orientation).
//!
//! A picture with invalid EXIF data is not refused. It is treated like a picture without EXIF data.

use std::io::{self, Read};

use image_rs::metadata::Orientation;

use super::Reader;

/// At most this many bytes of EXIF data are read. In a JPEG, the data cannot be longer, because its
/// length is stored in 16 bits. The tag Orientation is near the start of the data.
const MAX_LEN: u32 = 64 << 10;

/// In a JPEG, these five bytes and then one byte of padding precede the EXIF data. Some programs write
/// the same six bytes to WebP and PNG.
const PREFIX: &[u8] = b"Exif\0";

/// Returns the transformation that turns the picture upright. Returns `None` if the EXIF data contains
/// no orientation or is invalid.
pub(super) fn orientation(exif: &[u8]) -> Option<Orientation> {
    let exif = match exif.strip_prefix(PREFIX) {
        Some(rest) => rest.get(1..).unwrap_or_default(), // without the padding
        None => exif,
    };
    Orientation::from_exif_chunk(exif)
}

/// Reads EXIF data of `length` bytes, or its beginning, and returns its orientation.
pub(super) fn read(reader: &mut Reader, length: u32) -> io::Result<Option<Orientation>> {
    let mut exif = vec![0; length.min(MAX_LEN) as usize];
    reader.read_exact(&mut exif)?;
    Ok(orientation(&exif))
}

/// Returns the orientation in a JPEG's APP1 segment. Returns `None` if there is none, or if the
/// segment contains something other than EXIF data.
pub(super) fn orientation_of_segment(segment: &[u8]) -> Option<Orientation> {
    if segment.starts_with(PREFIX) { orientation(segment) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_orientation_is_read_with_and_without_the_prefix_but_not_from_invalid_data() {
        let big_endian = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let little_endian = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        for exif in [&big_endian[..], little_endian] {
            assert_eq!(orientation(exif), Some(Orientation::Rotate90));
            for padding in [b"\0", b"\xff"] {
                let prefixed = [PREFIX, padding, exif].concat();
                assert_eq!(orientation(&prefixed), Some(Orientation::Rotate90));
                assert_eq!(orientation_of_segment(&prefixed), Some(Orientation::Rotate90));
            }
            // In a JPEG, EXIF data without the prefix does not count.
            assert_eq!(orientation_of_segment(exif), None);
        }
        let truncated = &big_endian[..20];
        for invalid in [&b""[..], b"Exif\0", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", truncated] {
            assert_eq!(orientation(invalid), None, "{}", invalid.escape_ascii());
        }
    }
}
