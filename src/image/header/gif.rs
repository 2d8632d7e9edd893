//! Reads the headers of a GIF up to the pixels of its first frame (GIF89a, 18 to 23).
//!
//! As Pillow and browsers do, it goes over what it does not know, makes the canvas as large as the
//! first frame needs it, and takes shades of grey where no colours are given.

use std::io::{self, Read, Seek};

use image_rs::metadata::Orientation;

use super::{Fault, Header, Reader};

/// What the headers of a GIF and of its first frame say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Gif {
    /// Of the canvas.
    pub(in crate::image) width: u16,
    pub(in crate::image) height: u16,
    /// 256 colours for the first frame: red, green and blue.
    pub(in crate::image) palette: Vec<u8>,
    /// The colour that is transparent instead.
    pub(in crate::image) transparent: Option<u8>,
    pub(in crate::image) frame: Frame,
    /// Where the pixels of the first frame begin.
    pub(in crate::image) data_at: u64,
}

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Frame {
    pub(in crate::image) left: u16,
    pub(in crate::image) top: u16,
    pub(in crate::image) width: u16,
    pub(in crate::image) height: u16,
    pub(in crate::image) is_interlaced: bool,
}

/// What begins an extension, a frame, and the end.
const EXTENSION: u8 = b'!';
const FRAME: u8 = b',';
const TRAILER: u8 = b';';
/// The extension that says which colour is transparent.
const GRAPHIC_CONTROL: u8 = 0xf9;

/// In the flags of the screen and of a frame: a table of colours follows.
const HAS_TABLE: u8 = 0x80;
/// In a frame's flags.
const INTERLACED: u8 = 0x40;
/// In the flags of the graphic control extension.
const HAS_TRANSPARENT: u8 = 1;

/// Reads the headers.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Gif, Fault> {
    read_to_pixels(reader).ok().flatten().ok_or(Fault::Damaged)
}

/// `None` if there is no frame, or one without pixels.
fn read_to_pixels(reader: &mut Reader) -> io::Result<Option<Gif>> {
    let mut head = [0; 13];
    reader.read_exact(&mut head)?;
    let global = table(reader, head[10])?;
    let mut transparent = None;
    loop {
        match byte(reader)? {
            EXTENSION => transparent = extension(reader)?.or(transparent),
            FRAME => break,
            TRAILER => return Ok(None),
            _ => {}
        }
    }
    let mut descriptor = [0; 9];
    reader.read_exact(&mut descriptor)?;
    let [left, top, width, height] = [0, 2, 4, 6].map(|at| half(&descriptor, at));
    let is_interlaced = descriptor[8] & INTERLACED != 0;
    let local = table(reader, descriptor[8])?;
    let (Some(right), Some(bottom)) = (left.checked_add(width), top.checked_add(height)) else {
        return Ok(None);
    };
    let gif = Gif {
        width: half(&head, 6).max(right),
        height: half(&head, 8).max(bottom),
        palette: local.or(global).unwrap_or_else(|| (0..=255).flat_map(|grey| [grey; 3]).collect()),
        transparent,
        frame: Frame { left, top, width, height, is_interlaced },
        data_at: reader.stream_position()?,
    };
    Ok((width > 0 && height > 0).then_some(gif))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn byte(reader: &mut Reader) -> io::Result<u8> {
    let mut byte = [0];
    reader.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// The table of colours, if the flags say that one follows; colours that it lacks are black.
fn table(reader: &mut Reader, flags: u8) -> io::Result<Option<Vec<u8>>> {
    if flags & HAS_TABLE == 0 {
        return Ok(None);
    }
    let mut table = vec![0; 3 * 256];
    reader.read_exact(&mut table[..6 << (flags & 7)])?;
    Ok(Some(table))
}

/// Goes over an extension, and gives the transparent colour that it names.
fn extension(reader: &mut Reader) -> io::Result<Option<u8>> {
    let label = byte(reader)?;
    let mut transparent = None;
    for block in 0.. {
        match (label, byte(reader)?) {
            (_, 0) => break,
            (GRAPHIC_CONTROL, len @ 4..) if block == 0 => {
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
    /// What the header of any format says; GIF knows no orientation.
    pub(super) fn header(&self) -> Result<Header, Fault> {
        let (width, height) = (self.width.into(), self.height.into());
        Header::new(width, height, Orientation::NoTransforms).ok_or(Fault::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Content;

    const FILE: &[u8] = b"GIF89a\xa0\0\x78\0\x80\0\0\0\0\0\xff\xff\xff\
        !\xff\x0bNETSCAPE2.0\x03\x01\0\0\0!\xf9\x04\x01\0\0\x01\0,\x05\0\x06\0\x07\0\x08\0\x40\x02";

    fn read_bytes(bytes: &[u8]) -> Result<Gif, Fault> {
        read(&mut Content::Memory(bytes.to_vec().into()).header_reader())
    }

    #[test]
    fn headers_tell_the_canvas_the_first_frame_and_where_its_pixels_are() {
        let gif = read_bytes(FILE).unwrap();
        let frame = Frame { left: 5, top: 6, width: 7, height: 8, is_interlaced: true };
        assert_eq!((gif.width, gif.height, gif.frame), (160, 120, frame));
        assert_eq!((gif.transparent, gif.data_at), (Some(1), FILE.len() as u64 - 1));
        assert_eq!(gif.palette.len(), 768);
        // The canvas is as large as the frame needs it.
        let mut small = FILE.to_vec();
        small[6..10].fill(0);
        let gif = read_bytes(&small).unwrap();
        assert_eq!((gif.width, gif.height), (12, 14));
    }

    #[test]
    fn headers_cut_short_are_damaged() {
        for len in 0..FILE.len() - 1 {
            assert_eq!(read_bytes(&FILE[..len]), Err(Fault::Damaged));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_the_frame_is_within_the_canvas(
            at in 6..80usize,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = FILE.to_vec();
            let at = at.min(bytes.len());
            let end = (at + noise.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
            if let Ok(Gif { width, height, frame, palette, .. }) = read_bytes(&bytes) {
                prop_assert!(u32::from(frame.left) + u32::from(frame.width) <= u32::from(width));
                prop_assert!(u32::from(frame.top) + u32::from(frame.height) <= u32::from(height));
                prop_assert_eq!(palette.len(), 768);
            }
        }
    }
}
