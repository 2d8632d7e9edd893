//! Reads the first directory of a TIFF or BigTIFF file (TIFF 6.0, section 2). A directory is a list of
//! tags, which says where the values of each tag are.

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

/// Where a tag's values are in the file, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Position {
    tag: u16,
    /// Bytes per value.
    size: u8,
    /// The offset of the first value.
    at: u64,
    /// The number of values.
    pub(in crate::image) count: u64,
}

impl Position {
    /// Reads the first values, at most `max_count`.
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
    positions: Vec<Position>,
}

impl<'a> Directory<'a> {
    /// Reads the first directory, and records the positions of these tags' values. Skips entries without
    /// values, and entries whose values are not whole numbers. If several entries of a tag remain, uses the
    /// first, as libtiff does.
    pub(super) fn read(reader: &'a mut Reader, tags: &[u16]) -> io::Result<Self> {
        reader.seek(SeekFrom::Start(0))?;
        let mut head = [0; 4];
        reader.read_exact(&mut head)?;
        // `sniff` has checked that the file begins with "II" or "MM".
        let order = if head[0] == b'I' { ByteOrder::Little } else { ByteOrder::Big };
        let is_big_tiff = order.number(&head[2..]) == 43; // TIFF has 42 here
        // The length of an offset, and of a tag's number of values, in bytes.
        let offset_len = if is_big_tiff { 8 } else { 4 };
        let mut directory = Self { reader, order, positions: Vec::new() };
        if is_big_tiff {
            directory.read_number(4)?; // skips the length of an offset and a zero, two bytes each
        }
        let directory_at = directory.read_number(offset_len)?;
        directory.reader.seek(SeekFrom::Start(directory_at))?;
        let entry_count = directory.read_number(if is_big_tiff { 8 } else { 2 })?;
        for _ in 0..entry_count {
            // The tag, the type, the number of values, and the values or their offset.
            let mut entry = [0; 20];
            let entry = &mut entry[..4 + 2 * offset_len];
            directory.reader.read_exact(entry)?;
            let (tag, kind) = (order.number(&entry[..2]), order.number(&entry[2..4]));
            let Some(tag) = tags.iter().copied().find(|wanted| u64::from(*wanted) == tag) else {
                continue;
            };
            // The types of whole numbers, and their sizes in bytes.
            let size = match kind {
                1 | 6 | 7 => 1,  // BYTE, SBYTE, UNDEFINED
                3 | 8 => 2,      // SHORT, SSHORT
                4 | 9 | 13 => 4, // LONG, SLONG, IFD
                16..=18 => 8,    // LONG8, SLONG8, IFD8
                _ => continue,
            };
            let (count, values_or_offset) = entry[4..].split_at(offset_len);
            let count = order.number(count);
            // If all values together are no longer than an offset, the entry contains them instead of
            // their offset.
            let len = count.checked_mul(size.into());
            let at = if len.is_some_and(|len| len <= offset_len as u64) {
                directory.reader.stream_position()? - offset_len as u64
            } else {
                order.number(values_or_offset)
            };
            if count > 0 && directory.position(tag).is_none() {
                directory.positions.push(Position { tag, size, at, count });
            }
        }
        Ok(directory)
    }

    /// Returns the position of a tag's values, or `None` if none was recorded.
    pub(super) fn position(&self, tag: u16) -> Option<Position> {
        self.positions.iter().copied().find(|position| position.tag == tag)
    }

    /// Reads the first values of a tag, at most `max_count`. Returns no values if the tag is missing.
    pub(super) fn read_values(
        &mut self,
        tag: u16,
        max_count: u64,
    ) -> Result<Vec<u64>, HeaderError> {
        let Some(position) = self.position(tag) else { return Ok(Vec::new()) };
        position.read(self.reader, self.order, max_count).map_err(|_| HeaderError::Damaged)
    }

    /// Reads the first value of a tag. Returns the default if the tag is missing.
    pub(super) fn first_or(&mut self, tag: u16, default: u64) -> Result<u64, HeaderError> {
        Ok(self.read_values(tag, 1)?.first().copied().unwrap_or(default))
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
