//! Reads the first directory of a TIFF or BigTIFF file (TIFF 6.0, section 2), keeping nothing of it.

use std::io::{Read, Seek, SeekFrom};

use image_rs::metadata::Orientation;

use super::{Fault, Header, Reader};

/// What the first directory says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Tiff {
    width: u32,
    height: u32,
    /// Of the first sample of a pixel.
    pub(in crate::image) bits: u64,
    /// In a pixel.
    pub(in crate::image) samples: u64,
    pub(in crate::image) compression: u64,
    orientation: Orientation,
}

impl Tiff {
    /// What the header of any format says.
    pub(super) fn header(&self) -> Result<Header, Fault> {
        Header::new(self.width, self.height, self.orientation).ok_or(Fault::Damaged)
    }
}

/// Reads the first directory. Tables that no picture needs are a fault: the decoder would expand them.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Tiff, Fault> {
    directory(reader).ok_or(Fault::Damaged)
}

fn directory(reader: &mut Reader) -> Option<Tiff> {
    const MAX_STRIPS: u64 = 1 << 16;
    reader.seek(SeekFrom::Start(0)).ok()?;
    let directory = &mut Directory::open(reader)?;
    let (mut width, mut height, mut orientation) = (0, 0, Orientation::NoTransforms);
    let (mut bits, mut samples, mut compression) = (1, 1, 1);
    for _ in 0..directory.entries()? {
        let entry = directory.entry()?;
        match entry.tag {
            256 => width = directory.first_value(&entry)?,
            257 => height = directory.first_value(&entry)?,
            258 => bits = directory.first_value(&entry)?,
            259 => compression = directory.first_value(&entry)?,
            277 => samples = directory.first_value(&entry)?,
            // Where the strips and tiles are, and how long.
            273 | 279 | 324 | 325 if entry.count > MAX_STRIPS => return None,
            274 if entry.count != 1 => return None,
            274 => {
                let value = u8::try_from(directory.first_value(&entry)?).unwrap_or(0);
                orientation = Orientation::from_exif(value).unwrap_or(orientation);
            }
            _ => {}
        }
    }
    if bits > 64 || samples > 16 {
        return None;
    }
    let (width, height) = (u32::try_from(width).ok()?, u32::try_from(height).ok()?);
    Some(Tiff { width, height, bits, samples, compression, orientation })
}

/// A TIFF or BigTIFF file's first directory.
struct Directory<'a> {
    reader: &'a mut Reader,
    is_little_endian: bool,
    is_big: bool,
}

struct Entry {
    tag: u64,
    /// Bytes of one value.
    size: u64,
    count: u64,
    /// Where the value is, or where its address stands.
    at: u64,
}

impl<'a> Directory<'a> {
    /// Goes to the first directory.
    fn open(reader: &'a mut Reader) -> Option<Self> {
        let mut head = [0; 4];
        reader.read_exact(&mut head).ok()?;
        let is_little_endian = head[0] == b'I';
        let is_big = head.contains(&43);
        let mut directory = Self { reader, is_little_endian, is_big };
        if is_big {
            directory.number(4)?; // the size of addresses, always eight
        }
        let first = directory.address()?;
        directory.reader.seek(SeekFrom::Start(first)).ok()?;
        Some(directory)
    }

    fn entries(&mut self) -> Option<u64> {
        self.number(if self.is_big { 8 } else { 2 })
    }

    fn entry(&mut self) -> Option<Entry> {
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
    fn first_value(&mut self, entry: &Entry) -> Option<u64> {
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
