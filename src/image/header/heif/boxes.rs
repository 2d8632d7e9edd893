//! Reads the boxes of a HEIF file (ISO/IEC 14496-12, 4.2) and the fields in them.

use std::io::{Read, Seek, SeekFrom};

use super::{
    HeaderError::{self, Damaged},
    unsupported,
};
use crate::image::Reader;

/// The most bytes that a `meta` box may contain. In a phone's file, it contains a few thousand.
const MAX_META: u64 = 1 << 20;

/// The maximum number of boxes at the top level of the file. Further boxes are ignored. A phone's
/// file has three or four.
const MAX_BOXES: usize = 1024;

/// Reads big-endian numbers and other fields from the start of a slice. Each method removes the
/// field that it returns, and returns `None` if the slice is too short.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A number that is stored in `len` bytes, at most eight.
    pub(super) fn number_u64(&mut self, len: usize) -> Option<u64> {
        Some(self.bytes(len)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A number that is stored in `len` bytes, at most four.
    pub(super) fn number(&mut self, len: usize) -> Option<u32> {
        u32::try_from(self.number_u64(len)?).ok()
    }

    /// The name of a box, or another code of four characters.
    pub(super) fn name(&mut self) -> Option<&'a [u8; 4]> {
        self.bytes(4)?.try_into().ok()
    }

    /// The version and the flags at the start of a full box (ISO/IEC 14496-12, 4.2).
    pub(super) fn version_and_flags(&mut self) -> Option<(u32, u32)> {
        Some((self.number(1)?, self.number(3)?))
    }
}

/// The name and the contents of a box inside of another box.
pub(super) type Child<'a> = (&'a [u8; 4], Fields<'a>);

/// Iterates over the boxes inside of another box. Yields `None` for an invalid box, such as a box
/// that is longer than the rest of the outer box, and then ends.
#[derive(Debug)]
pub(super) struct Boxes<'a>(pub(super) Fields<'a>);

impl<'a> Boxes<'a> {
    /// Reads the next box. Returns `None` if the box is invalid.
    fn child(&mut self) -> Option<Child<'a>> {
        let available = self.0.0.len();
        let (len, name) = (self.0.number_u64(4)?, self.0.name()?);
        let len = match len {
            0 => available,                                    // up to the end of the outer box
            1 => usize::try_from(self.0.number_u64(8)?).ok()?, // the length has eight bytes
            len => usize::try_from(len).ok()?,
        };
        let head_len = available - self.0.0.len();
        Some((name, Fields(self.0.bytes(len.checked_sub(head_len)?)?)))
    }
}

impl<'a> Iterator for Boxes<'a> {
    type Item = Option<Child<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.0.is_empty() {
            return None;
        }
        let child = self.child();
        if child.is_none() {
            self.0 = Fields(&[]);
        }
        Some(child)
    }
}

/// Reads the complete boxes at the top level of the file, up to [`MAX_BOXES`]. Returns the contents of
/// the `meta` box, and the offset where the last of these boxes ends.
pub(super) fn read_meta_box(reader: &mut Reader) -> Result<(Vec<u8>, u64), HeaderError> {
    let file_end = reader.seek(SeekFrom::End(0)).map_err(|_| Damaged)?;
    let (mut at, mut meta, mut has_movie) = (0, None, false);
    for _ in 0..MAX_BOXES {
        let remaining = file_end - at;
        if remaining == 0 {
            break;
        }
        let mut head = [0; 16];
        let available = usize::try_from(remaining).unwrap_or(head.len()).min(head.len());
        read_at(reader, at, &mut head[..available]).ok_or(Damaged)?;
        let name = [head[4], head[5], head[6], head[7]];
        let (head_len, len) = match Fields(&head).number_u64(4).ok_or(Damaged)? {
            0 => (8, remaining), // up to the end of the file
            // The length has eight bytes, after the name.
            1 => (16, Fields(&head[8..]).number_u64(8).ok_or(Damaged)?),
            len => (8, len),
        };
        // If these bytes are not a complete box with a printable name, some program has appended
        // other data to the file. That data is ignored, unless it may be a truncated part of the
        // picture.
        let is_printable = name.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
        if !is_printable || len < head_len || len > remaining {
            if meta.is_none() || matches!(&name, b"mdat" | b"meta" | b"idat") {
                return Err(Damaged);
            }
            break;
        }
        has_movie |= &name == b"moov";
        if &name == b"meta" {
            // A file may have only one `meta` box. Of several, the decoder would use the last one.
            if meta.is_some() || len - head_len > MAX_META {
                return Err(Damaged);
            }
            let mut body = vec![0; usize::try_from(len - head_len).map_err(|_| Damaged)?];
            read_at(reader, at + head_len, &mut body).ok_or(Damaged)?;
            meta = Some(body);
        }
        at += len;
    }
    match meta {
        Some(meta) => Ok((meta, at)),
        None if has_movie => Err(unsupported("a HEIF image sequence or a film")),
        None => Err(Damaged),
    }
}

fn read_at(reader: &mut Reader, at: u64, buffer: &mut [u8]) -> Option<()> {
    reader.seek(SeekFrom::Start(at)).ok()?;
    reader.read_exact(buffer).ok()
}
