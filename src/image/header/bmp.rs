//! Reads the header of a BMP
//! (<https://learn.microsoft.com/windows/win32/api/wingdi/ns-wingdi-bitmapinfoheader>).

use std::io::Read;

use image_rs::metadata::Orientation;

use super::{Fault, Header, Reader};

/// The length of the oldest second header, whose sizes have 16 bits.
const CORE_HEADER: u32 = 12;

/// The size; a negative height says that the rows are stored top-down. BMP knows no orientation.
pub(super) fn read(reader: &mut Reader) -> Result<Header, Fault> {
    let mut head = [0; 26];
    reader.read_exact(&mut head).map_err(|_| Fault::Damaged)?;
    let number =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (width, height) = if number(14) == CORE_HEADER {
        (number(18) & 0xffff, number(18) >> 16)
    } else {
        (number(18), number(22).cast_signed().unsigned_abs())
    };
    let is_sane = i32::try_from(width).is_ok();
    let header = Header::new(width, height, Orientation::NoTransforms).filter(|_| is_sane);
    header.ok_or(Fault::Damaged)
}
