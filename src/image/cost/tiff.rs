//! Walks the first directory of a TIFF or BigTIFF file, keeping nothing of it.

use std::io::{Read, Seek, SeekFrom};

use crate::image::Reader;

/// A TIFF or BigTIFF file's first directory.
pub(super) struct Tiff<'a> {
    reader: &'a mut Reader,
    is_little_endian: bool,
    is_big: bool,
}

pub(super) struct Entry {
    pub(super) tag: u64,
    /// Bytes of one value.
    size: u64,
    pub(super) count: u64,
    /// Where the value is, or where its address stands.
    at: u64,
}

impl<'a> Tiff<'a> {
    /// Goes to the first directory.
    pub(super) fn open(reader: &'a mut Reader) -> Option<Self> {
        let mut head = [0; 4];
        reader.read_exact(&mut head).ok()?;
        let is_little_endian = head[0] == b'I';
        let is_big = head.contains(&43);
        let mut tiff = Self { reader, is_little_endian, is_big };
        if is_big {
            tiff.number(4)?; // the size of addresses, always eight
        }
        let directory = tiff.address()?;
        tiff.reader.seek(SeekFrom::Start(directory)).ok()?;
        Some(tiff)
    }

    pub(super) fn entries(&mut self) -> Option<u64> {
        self.number(if self.is_big { 8 } else { 2 })
    }

    pub(super) fn entry(&mut self) -> Option<Entry> {
        let tag = self.number(2)?;
        let size = match self.number(2)? {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16..=18 => 8,
            _ => return None,
        };
        let count = self.address()?;
        let at = self.reader.stream_position().ok()?;
        self.address()?;
        Some(Entry { tag, size, count, at })
    }

    /// The first value of an entry; the directory is gone on with after it.
    pub(super) fn first_value(&mut self, entry: &Entry) -> Option<u64> {
        let next = self.reader.stream_position().ok()?;
        let room = if self.is_big { 8 } else { 4 };
        self.reader.seek(SeekFrom::Start(entry.at)).ok()?;
        if entry.size.checked_mul(entry.count)? > room {
            let at = self.address()?;
            self.reader.seek(SeekFrom::Start(at)).ok()?;
        }
        let value = self.number(entry.size)?;
        self.reader.seek(SeekFrom::Start(next)).ok()?;
        Some(value)
    }

    fn address(&mut self) -> Option<u64> {
        self.number(if self.is_big { 8 } else { 4 })
    }

    fn number(&mut self, bytes: u64) -> Option<u64> {
        let mut number = 0;
        for place in 0..bytes {
            let mut byte = [0];
            self.reader.read_exact(&mut byte).ok()?;
            let byte = u64::from(byte[0]);
            number = if self.is_little_endian {
                number | byte << (8 * place)
            } else {
                number << 8 | byte
            };
        }
        Some(number)
    }
}
