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
            b"eXIf" => {
                let mut exif = vec![0; length.min(exif::READ) as usize];
                reader.read_exact(&mut exif)?;
                return Ok(exif::orientation(&exif));
            }
            // The checksum follows.
            _ => reader.seek_relative(i64::from(length) + 4)?,
        }
    }
}
