//! Reads the headers of a GIF up to the pixels of its first frame (GIF89a, sections 18 to 23).
//!
//! Like Pillow and browsers, this parser skips unknown extensions and any bytes between blocks. It
//! enlarges the canvas if the first frame does not fit, and uses shades of grey if there are no colour
//! tables.

use std::io::{self, Read, Seek};

use image_rs::metadata::Orientation;

use super::{Header, HeaderError, Reader};

/// The headers of a GIF and of its first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Gif {
    /// The width of the canvas.
    pub(in crate::image) width: u16,
    /// The height of the canvas.
    pub(in crate::image) height: u16,
    /// The 256 colours of the first frame: red, green and blue.
    pub(in crate::image) palette: Vec<u8>,
    /// The index of the transparent colour in `palette`, if there is one.
    pub(in crate::image) transparent: Option<u8>,
    pub(in crate::image) frame: Frame,
    /// The offset of the first frame's pixels in the file.
    pub(in crate::image) data_at: u64,
}

/// The position and the size of a frame on the canvas, and the order of its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Frame {
    pub(in crate::image) left: u16,
    pub(in crate::image) top: u16,
    pub(in crate::image) width: u16,
    pub(in crate::image) height: u16,
    pub(in crate::image) is_interlaced: bool,
}

// The first byte of each kind of block.
const EXTENSION: u8 = b'!';
const FRAME: u8 = b',';
const TRAILER: u8 = b';';
/// The label of the extension that contains the transparent colour.
const GRAPHIC_CONTROL: u8 = 0xf9;

/// A flag of the file and of a frame: a colour table follows.
const HAS_TABLE: u8 = 0x80;
/// A flag of a frame: its lines are interlaced.
const INTERLACED: u8 = 0x40;
/// A flag of the graphic control extension: it contains a transparent colour.
const HAS_TRANSPARENT: u8 = 1;

/// Reads the headers.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Gif, HeaderError> {
    // An early end of the file and a failed read both become `Damaged` here. But after a failed read,
    // `header::read_bounded` returns the error that `reader` keeps.
    read_to_pixels(reader).ok().flatten().ok_or(HeaderError::Damaged)
}

/// Reads everything before the first frame's pixels. Returns `None` if there is no frame, if the
/// first frame has no pixels, or if an edge of the frame is beyond 65,535 pixels, the longest side
/// that a GIF can store.
fn read_to_pixels(reader: &mut Reader) -> io::Result<Option<Gif>> {
    let mut head = [0; 13];
    reader.read_exact(&mut head)?;
    let global_table = read_color_table(reader, head[10])?;
    let mut transparent = None;
    loop {
        match read_byte(reader)? {
            EXTENSION => transparent = read_extension(reader)?.or(transparent),
            FRAME => break,
            TRAILER => return Ok(None),
            _ => {}
        }
    }
    let mut descriptor = [0; 9];
    reader.read_exact(&mut descriptor)?;
    let [left, top, width, height] = [0, 2, 4, 6].map(|at| u16_at(&descriptor, at));
    let is_interlaced = descriptor[8] & INTERLACED != 0;
    let local_table = read_color_table(reader, descriptor[8])?;
    let grey_table = || (0..=255).flat_map(|grey| [grey; 3]).collect();
    let (Some(right), Some(bottom)) = (left.checked_add(width), top.checked_add(height)) else {
        return Ok(None);
    };
    let gif = Gif {
        width: u16_at(&head, 6).max(right),
        height: u16_at(&head, 8).max(bottom),
        palette: local_table.or(global_table).unwrap_or_else(grey_table),
        transparent,
        frame: Frame { left, top, width, height, is_interlaced },
        data_at: reader.stream_position()?,
    };
    Ok((width > 0 && height > 0).then_some(gif))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn read_byte(reader: &mut Reader) -> io::Result<u8> {
    let mut byte = [0];
    reader.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Reads a colour table if the flags announce one. Returns 256 colours. If the table contains fewer
/// colours, the others are black.
fn read_color_table(reader: &mut Reader, flags: u8) -> io::Result<Option<Vec<u8>>> {
    if flags & HAS_TABLE == 0 {
        return Ok(None);
    }
    // The three lowest bits of the flags are a number n. The table has 2^(n + 1) colours of three bytes.
    let stored_len: usize = 3 << ((flags & 7) + 1);
    let mut table = vec![0; 3 * 256];
    reader.read_exact(&mut table[..stored_len])?;
    Ok(Some(table))
}

/// Reads an extension to its end. Returns the index of the transparent colour, if the extension
/// contains one.
///
/// An extension is a label and then sub-blocks. Each sub-block begins with its length, and a length of
/// zero ends the extension. The transparent colour is in the first sub-block of a graphic control
/// extension.
fn read_extension(reader: &mut Reader) -> io::Result<Option<u8>> {
    let label = read_byte(reader)?;
    let mut transparent = None;
    for sub_block_index in 0.. {
        match (label, read_byte(reader)?) {
            (_, 0) => break,
            (GRAPHIC_CONTROL, len @ 4..) if sub_block_index == 0 => {
                let mut control = [0; 4];
                reader.read_exact(&mut control)?;
                transparent = (control[0] & HAS_TRANSPARENT != 0).then_some(control[3]);
                reader.seek_relative(i64::from(len) - 4)?;
            }
            (_, len) => reader.seek_relative(len.into())?,
        }
    }
    Ok(transparent)
}

impl Gif {
    /// Returns the header in the form that all formats have in common. GIF has no orientation.
    pub(super) fn header(&self) -> Result<Header, HeaderError> {
        let (width, height) = (self.width.into(), self.height.into());
        Header::new(width, height, Orientation::NoTransforms).ok_or(HeaderError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Content;

    /// A GIF of 160 × 120 pixels with a table of two colours, an extension for animations, the
    /// transparent colour 1, and an interlaced frame of 7 × 8 pixels at (5, 6). Only the first byte
    /// of its pixels is included.
    const FILE: &[u8] = b"GIF89a\xa0\0\x78\0\x80\0\0\0\0\0\xff\xff\xff\
        !\xff\x0bNETSCAPE2.0\x03\x01\0\0\0!\xf9\x04\x01\0\0\x01\0,\x05\0\x06\0\x07\0\x08\0\x40\x02";

    /// The length of the headers: all of [`FILE`] but the byte of the pixels.
    const HEADERS_LEN: usize = FILE.len() - 1;

    fn read_bytes(bytes: &[u8]) -> Result<Gif, HeaderError> {
        read(&mut Content::Memory(bytes.to_vec().into()).header_reader())
    }

    #[test]
    fn the_canvas_the_first_frame_its_colours_and_the_offset_of_its_pixels_are_read() {
        let gif = read_bytes(FILE).unwrap();
        let frame = Frame { left: 5, top: 6, width: 7, height: 8, is_interlaced: true };
        assert_eq!((gif.width, gif.height, gif.frame), (160, 120, frame));
        assert_eq!((gif.transparent, gif.data_at), (Some(1), HEADERS_LEN as u64));
        assert_eq!(gif.palette.len(), 768);
        assert_eq!(gif.palette[..6], [0, 0, 0, 255, 255, 255]); // black and white
        // The canvas is enlarged until the frame fits: 5 + 7 and 6 + 8 pixels.
        let mut with_empty_canvas = FILE.to_vec();
        with_empty_canvas[6..10].fill(0);
        let gif = read_bytes(&with_empty_canvas).unwrap();
        assert_eq!((gif.width, gif.height), (12, 14));
    }

    #[test]
    fn truncated_headers_are_damaged() {
        for len in 0..HEADERS_LEN {
            assert_eq!(read_bytes(&FILE[..len]), Err(HeaderError::Damaged));
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_cause_no_panic_and_the_frame_is_within_the_canvas(
            // The parser ignores the signature, the first 6 bytes.
            start in 6..FILE.len(),
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = FILE.to_vec();
            let end = (start + noise.len()).min(bytes.len());
            bytes[start..end].copy_from_slice(&noise[..end - start]);
            if let Ok(Gif { width, height, frame, palette, .. }) = read_bytes(&bytes) {
                prop_assert!(u32::from(frame.left) + u32::from(frame.width) <= u32::from(width));
                prop_assert!(u32::from(frame.top) + u32::from(frame.height) <= u32::from(height));
                prop_assert_eq!(palette.len(), 768);
            }
        }
    }
}
