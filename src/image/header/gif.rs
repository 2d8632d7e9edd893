//! Reads the header of a GIF (GIF89a, 18: the logical screen descriptor).

use std::io::Read;

use image_rs::metadata::Orientation;

use super::{Fault, Header, Reader};

/// The canvas; GIF knows no orientation.
pub(super) fn read(reader: &mut Reader) -> Result<Header, Fault> {
    let mut head = [0; 10];
    reader.read_exact(&mut head).map_err(|_| Fault::Damaged)?;
    let side = |at: usize| u32::from(u16::from_le_bytes([head[at], head[at + 1]]));
    Header::new(side(6), side(8), Orientation::NoTransforms).ok_or(Fault::Damaged)
}
