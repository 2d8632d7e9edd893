//! Reads the first directory of a TIFF or BigTIFF file (TIFF 6.0, section 2): the positions of its
//! tags' values.

use std::io::{self, Read, Seek, SeekFrom};

use crate::image::{Reader, header::HeaderError};

/// The byte order of numbers in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum ByteOrder {
    /// The least significant byte comes first.
    Little,
    /// The most significant byte comes first.
    Big,
}

impl ByteOrder {
    /// Converts up to eight bytes to a number.
    fn number(self, bytes: &[u8]) -> u64 {
        let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        match self {
            Self::Little => bytes.iter().rev().fold(0, join),
            Self::Big => bytes.iter().fold(0, join),
        }
    }
}

/// The position of a tag's values in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Values {
    tag: u16,
    /// Bytes per value.
    size: u8,
    at: u64,
    pub(in crate::image) count: u64,
}

impl Values {
    /// Reads at most `max_count` of the values.
    pub(in crate::image) fn read(
        self,
        reader: &mut Reader,
        order: ByteOrder,
        max_count: u64,
    ) -> io::Result<Vec<u64>> {
        let size = usize::from(self.size);
        let count = usize::try_from(self.count.min(max_count)).map_err(io::Error::other)?;
        let mut bytes = vec![0; count.saturating_mul(size)];
        reader.seek(SeekFrom::Start(self.at))?;
        reader.read_exact(&mut bytes)?;
        Ok(bytes.chunks_exact(size).map(|value| order.number(value)).collect())
    }
}

/// The first directory, with the positions of the requested tags' values.
pub(super) struct Directory<'a> {
    reader: &'a mut Reader,
    pub(super) order: ByteOrder,
    values: Vec<Values>,
}

impl<'a> Directory<'a> {
    /// Reads the first directory and records the positions of these tags' values. As in libtiff, values
    /// that are not whole numbers are skipped, and only the first entry of a tag counts.
    pub(super) fn read(reader: &'a mut Reader, tags: &[u16]) -> io::Result<Self> {
        reader.seek(SeekFrom::Start(0))?;
        let mut head = [0; 4];
        reader.read_exact(&mut head)?;
        let order = if head[0] == b'I' { ByteOrder::Little } else { ByteOrder::Big };
        let is_big = order.number(&head[2..]) == 43;
        // The length of an offset or a count, in bytes.
        let word = if is_big { 8 } else { 4 };
        let mut directory = Self { reader, order, values: Vec::new() };
        if is_big {
            directory.read_number(4)?; // two numbers: the length of offsets, which is eight, and zero
        }
        let directory_at = directory.read_number(word)?;
        directory.reader.seek(SeekFrom::Start(directory_at))?;
        for _ in 0..directory.read_number(if is_big { 8 } else { 2 })? {
            let mut entry = [0; 20];
            let entry = &mut entry[..4 + 2 * word];
            directory.reader.read_exact(entry)?;
            let (tag, kind) = (order.number(&entry[..2]), order.number(&entry[2..4]));
            let Some(tag) = tags.iter().copied().find(|known| u64::from(*known) == tag) else {
                continue;
            };
            let size = match kind {
                1 | 6 | 7 => 1,
                3 | 8 => 2,
                4 | 9 | 13 => 4,
                16..=18 => 8,
                _ => continue,
            };
            let (count, values) = (order.number(&entry[4..4 + word]), &entry[4 + word..]);
            // If the values fit, the entry contains them. Otherwise it contains their offset.
            let is_in_entry = count.checked_mul(size.into()).is_some_and(|len| len <= word as u64);
            let at = if is_in_entry {
                directory.reader.stream_position()? - word as u64
            } else {
                order.number(values)
            };
            if count > 0 && directory.values(tag).is_none() {
                directory.values.push(Values { tag, size, at, count });
            }
        }
        Ok(directory)
    }

    /// Returns the position of a tag's values.
    pub(super) fn values(&self, tag: u16) -> Option<Values> {
        self.values.iter().copied().find(|values| values.tag == tag)
    }

    /// Reads at most `max_count` values of a tag. Returns no values if the tag is missing.
    pub(super) fn numbers(&mut self, tag: u16, max_count: u64) -> Result<Vec<u64>, HeaderError> {
        let Some(values) = self.values(tag) else { return Ok(Vec::new()) };
        values.read(self.reader, self.order, max_count).map_err(|_| HeaderError::Damaged)
    }

    /// Reads the first value of a tag. Returns the default if the tag is missing.
    pub(super) fn first_or(&mut self, tag: u16, default: u64) -> Result<u64, HeaderError> {
        Ok(self.numbers(tag, 1)?.first().copied().unwrap_or(default))
    }

    /// Returns the reader of the file.
    pub(super) fn reader(&mut self) -> &mut Reader {
        self.reader
    }

    fn read_number(&mut self, len: usize) -> io::Result<u64> {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..len];
        self.reader.read_exact(bytes)?;
        Ok(self.order.number(bytes))
    }
}
