//! The first directory of a TIFF or BigTIFF file (TIFF 6.0, section 2): where the values of its tags
//! stand.

use std::io::{self, Read, Seek, SeekFrom};

use crate::image::{Reader, header::Fault};

/// In which order the bytes of a number stand in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum ByteOrder {
    /// The lowest first.
    Little,
    /// The highest first.
    Big,
}

impl ByteOrder {
    /// The number that up to eight bytes are.
    fn number(self, bytes: &[u8]) -> u64 {
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        match self {
            Self::Little => bytes.iter().rev().fold(0, join),
            Self::Big => bytes.iter().fold(0, join),
        }
    }
}

/// A tag's values in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Values {
    tag: u16,
    /// Bytes of one of them.
    size: u8,
    at: u64,
    pub(in crate::image) count: u64,
}

impl Values {
    /// Reads them, up to so many.
    pub(in crate::image) fn read(
        self,
        reader: &mut Reader,
        order: ByteOrder,
        most: u64,
    ) -> io::Result<Vec<u64>> {
        let size = usize::from(self.size);
        let count = usize::try_from(self.count.min(most)).map_err(io::Error::other)?;
        let mut bytes = vec![0; count.saturating_mul(size)];
        reader.seek(SeekFrom::Start(self.at))?;
        reader.read_exact(&mut bytes)?;
        Ok(bytes.chunks_exact(size).map(|value| order.number(value)).collect())
    }
}

/// The first directory, as far as it is of interest.
pub(super) struct Directory<'a> {
    reader: &'a mut Reader,
    pub(super) order: ByteOrder,
    found: Vec<Values>,
}

impl<'a> Directory<'a> {
    /// Goes through the first directory and keeps where the values of these tags stand. What is no
    /// whole number is skipped, and of several entries of one tag the first counts, as with libtiff.
    pub(super) fn read(reader: &'a mut Reader, tags: &[u16]) -> io::Result<Self> {
        reader.seek(SeekFrom::Start(0))?;
        let mut head = [0; 4];
        reader.read_exact(&mut head)?;
        let order = if head[0] == b'I' { ByteOrder::Little } else { ByteOrder::Big };
        let is_big = order.number(&head[2..]) == 43;
        let word = if is_big { 8 } else { 4 };
        let mut directory = Self { reader, order, found: Vec::new() };
        if is_big {
            directory.number(4)?; // the size of addresses, always eight
        }
        let first = directory.number(word)?;
        directory.reader.seek(SeekFrom::Start(first))?;
        for _ in 0..directory.number(if is_big { 8 } else { 2 })? {
            let mut entry = [0; 20];
            let entry = &mut entry[..4 + 2 * word];
            directory.reader.read_exact(entry)?;
            let (tag, kind) = (order.number(&entry[..2]), order.number(&entry[2..4]));
            let Some(tag) = tags.iter().copied().find(|wanted| u64::from(*wanted) == tag) else {
                continue;
            };
            let size = match kind {
                1 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 13 => 4,
                16..=18 => 8,
                _ => continue,
            };
            let (count, value) = (order.number(&entry[4..4 + word]), &entry[4 + word..]);
            let is_here = count.checked_mul(size.into()).is_some_and(|len| len <= word as u64);
            let at = if is_here {
                directory.reader.stream_position()? - word as u64
            } else {
                order.number(value)
            };
            if count > 0 && directory.values(tag).is_none() {
                directory.found.push(Values { tag, size, at, count });
            }
        }
        Ok(directory)
    }

    /// Where the values of a tag stand.
    pub(super) fn values(&self, tag: u16) -> Option<Values> {
        self.found.iter().copied().find(|values| values.tag == tag)
    }

    /// The values of a tag, up to so many; none, where it is missing.
    pub(super) fn numbers(&mut self, tag: u16, most: u64) -> Result<Vec<u64>, Fault> {
        let Some(values) = self.values(tag) else { return Ok(Vec::new()) };
        values.read(self.reader, self.order, most).map_err(|_| Fault::Damaged)
    }

    /// The first value of a tag, or what is meant where it is missing.
    pub(super) fn first(&mut self, tag: u16, otherwise: u64) -> Result<u64, Fault> {
        Ok(self.numbers(tag, 1)?.first().copied().unwrap_or(otherwise))
    }

    /// What it is read from.
    pub(super) fn reader(&mut self) -> &mut Reader {
        self.reader
    }

    fn number(&mut self, len: usize) -> io::Result<u64> {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..len];
        self.reader.read_exact(bytes)?;
        Ok(self.order.number(bytes))
    }
}
