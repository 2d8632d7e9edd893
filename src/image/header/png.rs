//! Reads the header of a PNG (PNG specification, 5.3: chunks; 11.2.1: IHDR; 11.3.4.5: eXIf).

use std::io::{self, Read, Seek};

use image_rs::metadata::Orientation;

use super::{Header, HeaderError, Reader, Unsupported, exif};

/// Reads the size and the orientation. The EXIF chunk may be before or after the pixels.
pub(super) fn read(reader: &mut Reader) -> Result<Header, HeaderError> {
    let mut head = [0; 33]; // the signature and the whole chunk IHDR
    reader.read_exact(&mut head).map_err(|_| HeaderError::Damaged)?;
    let chunk_name = &head[12..16];
    match chunk_name {
        b"IHDR" => {}
        b"CgBI" => {
            return Err(HeaderError::Unsupported(Unsupported::Kind(
                "a PNG in Apple's own form (CgBI)",
            )));
        }
        _ => return Err(HeaderError::Damaged),
    }
    let u32_at =
        |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    // The end of the file is no error here: if pixels are missing, the decoder reports that.
    // After any other read error, `header::read_bounded` fails, whatever this function returns.
    let orientation = read_orientation(reader).ok().flatten();
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    let (width, height) = (u32_at(16), u32_at(20));
    Header::new(width, height, orientation).ok_or(HeaderError::Damaged)
}

/// Reads the orientation from the first EXIF chunk.
fn read_orientation(reader: &mut Reader) -> io::Result<Option<Orientation>> {
    loop {
        let mut head = [0; 8];
        reader.read_exact(&mut head)?;
        let [length, name] = [0, 4].map(|at| [head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = u32::from_be_bytes(length);
        match &name {
            b"IEND" => return Ok(None),
            b"eXIf" => return exif::read(reader, length),
            // Skip the data and the checksum of four bytes.
            _ => reader.seek_relative(i64::from(length) + 4)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Content;

    /// A chunk. Its checksum is wrong, but reading headers does not check it.
    fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        [&(data.len() as u32).to_be_bytes()[..], name, data, &[0; 4]].concat()
    }

    /// A PNG of 160 × 120 pixels with these chunks after IHDR.
    fn png(chunks: &[Vec<u8>]) -> Vec<u8> {
        let head = chunk(b"IHDR", &[0, 0, 0, 160, 0, 0, 0, 120, 8, 2, 0, 0, 0]);
        [b"\x89PNG\r\n\x1a\n", &head[..], &chunks.concat()].concat()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Header, HeaderError> {
        read(&mut Content::Memory(bytes.to_vec().into()).header_reader())
    }

    /// Checks the size, and returns the orientation.
    fn orientation(chunks: &[Vec<u8>]) -> Orientation {
        let header = read_bytes(&png(chunks)).unwrap();
        assert_eq!((header.width, header.height), (160, 120));
        header.orientation
    }

    /// EXIF data with the orientation 6, a quarter turn clockwise.
    const EXIF: &[u8; 26] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    /// [`EXIF`] after the prefix that some programs write.
    const PREFIXED_EXIF: &[u8; 32] =
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

    #[test]
    fn the_orientation_is_read_from_an_exif_chunk_before_or_after_the_pixels_but_not_after_the_end()
    {
        let pixels = chunk(b"IDAT", &[7; 100]);
        let end = chunk(b"IEND", b"");
        for exif in [chunk(b"eXIf", EXIF), chunk(b"eXIf", PREFIXED_EXIF)] {
            for chunks in [
                vec![exif.clone(), pixels.clone(), end.clone()],
                vec![pixels.clone(), pixels.clone(), exif.clone(), end.clone()],
                // The first EXIF chunk counts, even if another one follows and the end is missing.
                vec![exif.clone(), chunk(b"eXIf", b""), pixels.clone()],
            ] {
                assert_eq!(orientation(&chunks), Orientation::Rotate90);
            }
            let exif_after_end = [pixels.clone(), end.clone(), exif];
            assert_eq!(orientation(&exif_after_end), Orientation::NoTransforms);
        }
        assert_eq!(orientation(&[pixels, end]), Orientation::NoTransforms);
    }

    #[test]
    fn missing_and_invalid_exif_and_invalid_lengths_give_no_orientation() {
        let exif = chunk(b"eXIf", EXIF);
        let longer_than_the_file = [&u32::MAX.to_be_bytes()[..], b"tEXt"].concat();
        for chunks in [
            vec![],
            vec![exif[..20].to_vec()],
            vec![longer_than_the_file, exif.clone()],
            // Zeros are not valid EXIF data. Only the first 64 KiB of them are read.
            vec![chunk(b"eXIf", &[0; 70_000])],
            // The second EXIF chunk is ignored even if the first one is invalid.
            vec![chunk(b"eXIf", b"MM"), exif],
        ] {
            assert_eq!(orientation(&chunks), Orientation::NoTransforms);
        }
    }

    #[test]
    fn a_truncated_header_and_a_size_of_zero_are_damaged() {
        let complete = png(&[]);
        // The signature has 8 bytes, and the chunk IHDR has 25.
        for len in 0..33 {
            assert_eq!(read_bytes(&complete[..len]), Err(HeaderError::Damaged));
        }
        let (width_at, height_at) = (16, 20);
        for at in [width_at, height_at] {
            let mut without_pixels = complete.clone();
            without_pixels[at..at + 4].fill(0);
            assert_eq!(read_bytes(&without_pixels), Err(HeaderError::Damaged));
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_cause_no_panic(
            start in 8..200usize,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = png(&[chunk(b"IDAT", &[7; 50]), chunk(b"eXIf", EXIF)]);
            // The file has 133 bytes. Noise that would start after them changes nothing.
            let start = start.min(bytes.len());
            let end = (start + noise.len()).min(bytes.len());
            bytes[start..end].copy_from_slice(&noise[..end - start]);
            let _ = read_bytes(&bytes);
        }
    }
}
