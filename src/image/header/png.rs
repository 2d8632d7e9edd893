//! Reads the header of a PNG (PNG specification, 5.3: chunks; 11.2.1: IHDR; 11.3.4.5: eXIf).

use std::io::{self, Read, Seek};

use image_rs::metadata::Orientation;

use super::{Fault, Header, Reader, Unsupported, exif};

/// Size, and the orientation that the EXIF gives, which may stand before the pixels or after them.
pub(super) fn read(reader: &mut Reader) -> Result<Header, Fault> {
    let mut head = [0; 33]; // the signature, and all of the chunk IHDR
    reader.read_exact(&mut head).map_err(|_| Fault::Damaged)?;
    match &head[12..16] {
        b"IHDR" => {}
        b"CgBI" => {
            return Err(Fault::Unsupported(Unsupported::Kind("a PNG in Apple's own form (CgBI)")));
        }
        _ => return Err(Fault::Damaged),
    }
    let number =
        |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    // A file that is cut short has no EXIF; what is cut, its decoder tells.
    let orientation = orientation(reader).ok().flatten().unwrap_or(Orientation::NoTransforms);
    Header::new(number(16), number(20), orientation).ok_or(Fault::Damaged)
}

fn orientation(reader: &mut Reader) -> io::Result<Option<Orientation>> {
    loop {
        let mut head = [0; 8];
        reader.read_exact(&mut head)?;
        let [length, name] = [0, 4].map(|at| [head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = u32::from_be_bytes(length);
        match &name {
            b"IEND" => return Ok(None),
            b"eXIf" => return exif::read(reader, length),
            // The checksum follows.
            _ => reader.seek_relative(i64::from(length) + 4)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Content;

    /// A chunk, without its checksum: no header needs it.
    fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        [&(data.len() as u32).to_be_bytes()[..], name, data, &[0; 4]].concat()
    }

    /// A picture of 160 × 120 pixels with these chunks.
    fn png(chunks: &[Vec<u8>]) -> Vec<u8> {
        let head = chunk(b"IHDR", &[0, 0, 0, 160, 0, 0, 0, 120, 8, 2, 0, 0, 0]);
        [b"\x89PNG\r\n\x1a\n", &head[..], &chunks.concat()].concat()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Header, Fault> {
        read(&mut Content::Memory(bytes.to_vec().into()).header_reader())
    }

    fn orientation(chunks: &[Vec<u8>]) -> Orientation {
        let header = read_bytes(&png(chunks)).unwrap();
        assert_eq!((header.width, header.height), (160, 120));
        header.orientation
    }

    /// A quarter clockwise, in the order of bytes that PNG has, too.
    const TURNED: &[u8; 26] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    const PREFIXED: &[u8; 32] =
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

    #[test]
    fn exif_turns_before_and_after_the_pixels_with_or_without_its_prefix() {
        let pixels = chunk(b"IDAT", &[7; 100]);
        let end = chunk(b"IEND", b"");
        for exif in [chunk(b"eXIf", TURNED), chunk(b"eXIf", PREFIXED)] {
            for chunks in [
                vec![exif.clone(), pixels.clone(), end.clone()],
                vec![pixels.clone(), pixels.clone(), exif.clone(), end.clone()],
                // The first one counts; and a file cut short has had its EXIF.
                vec![exif.clone(), chunk(b"eXIf", b""), pixels.clone()],
            ] {
                assert_eq!(orientation(&chunks), Orientation::Rotate90);
            }
            assert_eq!(
                orientation(&[pixels.clone(), end.clone(), exif]),
                Orientation::NoTransforms
            );
        }
        assert_eq!(orientation(&[pixels, end]), Orientation::NoTransforms);
    }

    #[test]
    fn what_is_cut_short_or_absurdly_long_turns_nothing() {
        let exif = chunk(b"eXIf", TURNED);
        let absurd = [&u32::MAX.to_be_bytes()[..], b"tEXt"].concat();
        for chunks in [
            vec![],
            vec![exif[..20].to_vec()],
            vec![absurd, exif.clone()],
            vec![chunk(b"eXIf", &[0; 70_000])],
            vec![chunk(b"eXIf", b"MM"), exif],
        ] {
            assert_eq!(orientation(&chunks), Orientation::NoTransforms);
        }
    }

    #[test]
    fn without_its_whole_header_and_without_pixels_it_is_damaged() {
        let whole = png(&[]);
        for len in 0..33 {
            assert_eq!(read_bytes(&whole[..len]), Err(Fault::Damaged));
        }
        for at in [16, 20] {
            let mut empty = whole.clone();
            empty[at..at + 4].fill(0);
            assert_eq!(read_bytes(&empty), Err(Fault::Damaged));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            at in 8..200usize,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = png(&[chunk(b"IDAT", &[7; 50]), chunk(b"eXIf", TURNED)]);
            let at = at.min(bytes.len());
            let end = (at + noise.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
            let _ = read_bytes(&bytes);
        }
    }
}
