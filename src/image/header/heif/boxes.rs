//! The boxes that a HEIF file is made of (ISO/IEC 14496-12, 4.2), and the numbers in them.

use std::io::{Read, Seek, SeekFrom};

use super::{
    Fault::{self, Damaged},
    kind,
};
use crate::image::Reader;

/// The most bytes that all that is told of the pictures may have. A phone's file has some thousands.
const MAX_META: u64 = 1 << 20;

/// The most boxes of the file itself. A phone's file has three or four.
const MAX_BOXES: usize = 1024;

/// Reads numbers, most significant byte first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A number of up to eight bytes.
    pub(super) fn wide(&mut self, len: usize) -> Option<u64> {
        Some(self.bytes(len)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A number of up to four bytes.
    pub(super) fn number(&mut self, len: usize) -> Option<u32> {
        u32::try_from(self.wide(len)?).ok()
    }

    pub(super) fn name(&mut self) -> Option<&'a [u8; 4]> {
        self.bytes(4)?.try_into().ok()
    }

    /// The version that a box of the full kind begins with, and its flags.
    pub(super) fn version(&mut self) -> Option<(u32, u32)> {
        Some((self.number(1)?, self.number(3)?))
    }
}

/// A box inside of another one: its name, and what is in it.
pub(super) type Child<'a> = (&'a [u8; 4], Fields<'a>);

/// The boxes inside of a box; `None` where one does not end in it.
#[derive(Debug)]
pub(super) struct Boxes<'a>(pub(super) Fields<'a>);

impl<'a> Boxes<'a> {
    fn child(&mut self) -> Option<Child<'a>> {
        let all = self.0.0.len();
        let (len, name) = (self.0.wide(4)?, self.0.name()?);
        let len = match len {
            0 => all,
            1 => usize::try_from(self.0.wide(8)?).ok()?,
            len => usize::try_from(len).ok()?,
        };
        let head = all - self.0.0.len();
        Some((name, Fields(self.0.bytes(len.checked_sub(head)?)?)))
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

/// What is in the file's one `meta` box, and where the last whole box ends.
pub(super) fn top_level(reader: &mut Reader) -> Result<(Vec<u8>, u64), Fault> {
    let file_end = reader.seek(SeekFrom::End(0)).map_err(|_| Damaged)?;
    let (mut at, mut meta, mut is_film) = (0, None, false);
    for _ in 0..MAX_BOXES {
        let left = file_end - at;
        if left == 0 {
            break;
        }
        let mut head = [0; 16];
        let short = usize::try_from(left).unwrap_or(head.len()).min(head.len());
        read_at(reader, at, &mut head[..short]).ok_or(Damaged)?;
        let [.., a, b, c, d] = *head.first_chunk::<8>().ok_or(Damaged)?;
        let name = [a, b, c, d];
        let (head_len, len) = match Fields(&head).wide(4).ok_or(Damaged)? {
            0 => (8, left),
            1 => (16, Fields(&head[8..]).wide(8).ok_or(Damaged)?),
            len => (8, len),
        };
        // A name is made of letters and digits: anything else was put behind the file, as was what
        // does not end in it.
        let is_box = name.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
        if !is_box || len < head_len || len > left {
            // But of the picture itself nothing may be missing.
            if meta.is_none() || matches!(&name, b"mdat" | b"meta" | b"idat") {
                return Err(Damaged);
            }
            break;
        }
        is_film |= &name == b"moov";
        if &name == b"meta" {
            // The decoder would take the last of several.
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
        None if is_film => Err(kind("a HEIF image sequence or a film")),
        None => Err(Damaged),
    }
}

fn read_at(reader: &mut Reader, at: u64, buffer: &mut [u8]) -> Option<()> {
    reader.seek(SeekFrom::Start(at)).ok()?;
    reader.read_exact(buffer).ok()
}
