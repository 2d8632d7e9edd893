//! Reads a file whose beginning is replaced by other bytes.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use crate::image::{Content, Reader};

/// The longest padding after the file.
const ZEROS: [u8; 3] = [0; 3];

/// Reads `head`, then the file from `file_start` on, then `padding` zeros. This gives a decoder a
/// header that it understands, without copying the file.
pub(super) struct SplicedReader {
    head: Vec<u8>,
    /// The position in the file at which reading starts. `head` replaces the bytes before it.
    file_start: u64,
    /// The reader of the file. Its position corresponds to [`Self::position`], or is
    /// [`Self::file_start`] while `head` is read.
    file: Reader,
    /// The position in the spliced bytes: `head`, the rest of the file, and the padding.
    position: u64,
    /// The number of spliced bytes before the padding.
    len_without_padding: u64,
    /// The number of zeros after the file.
    padding: usize,
}

impl SplicedReader {
    /// Reads `head`, then the file from `file_start` on.
    pub(super) fn new(head: Vec<u8>, content: &Content, file_start: u64) -> io::Result<Self> {
        let mut file = content.reader();
        file.seek(SeekFrom::Start(file_start))?;
        let rest_len = content.len().saturating_sub(file_start);
        let len_without_padding = head.len() as u64 + rest_len;
        Ok(Self { head, file_start, file, position: 0, len_without_padding, padding: 0 })
    }

    /// Adds this many zeros at the end, but at most three: no decoder needs more.
    pub(super) fn with_padding(mut self, zero_count: usize) -> Self {
        self.padding = zero_count.min(ZEROS.len());
        self
    }

    fn head_len(&self) -> u64 {
        self.head.len() as u64
    }
}

impl BufRead for SplicedReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let position = usize::try_from(self.position).unwrap_or(usize::MAX);
        if let Some(head) = self.head.get(position..)
            && !head.is_empty()
        {
            return Ok(head);
        }
        let Some(zeros_read) = self.position.checked_sub(self.len_without_padding) else {
            return self.file.fill_buf();
        };
        let zeros_read = usize::try_from(zeros_read).unwrap_or(usize::MAX);
        Ok(ZEROS[..self.padding].get(zeros_read..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        if (self.head_len()..self.len_without_padding).contains(&self.position) {
            self.file.consume(amount);
        }
        self.position += amount as u64;
    }
}

impl Read for SplicedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

impl Seek for SplicedReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.len_without_padding + self.padding as u64, offset),
        };
        let position = base.checked_add_signed(offset);
        let position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let after_head = position.saturating_sub(self.head_len());
        self.file.seek(SeekFrom::Start(self.file_start.saturating_add(after_head)))?;
        self.position = position;
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reading_and_seeking_give_the_same_results_as_on_the_concatenated_bytes(
            head in proptest::collection::vec(any::<u8>(), 0..40),
            file in proptest::collection::vec(any::<u8>(), 0..200),
            file_start in 0..250usize,
            zero_count in 0..4usize,
            reads in proptest::collection::vec((0..3u8, -300i64..300, 0usize..100), 0..20),
        ) {
            let rest = file.get(file_start..).unwrap_or_default();
            let expected = [&head[..], rest, &ZEROS[..zero_count]].concat();
            let content = Content::Memory(file.clone().into());
            let spliced = SplicedReader::new(head, &content, file_start as u64).unwrap();
            let mut spliced = spliced.with_padding(zero_count);
            let mut cursor = Cursor::new(expected);
            for (base, offset, len) in reads {
                let to = match base {
                    0 => SeekFrom::Start(offset.unsigned_abs()),
                    1 => SeekFrom::Current(offset),
                    _ => SeekFrom::End(offset),
                };
                prop_assert_eq!(spliced.seek(to).ok(), cursor.seek(to).ok());
                let (mut actual, mut expected) = (Vec::new(), Vec::new());
                spliced.by_ref().take(len as u64).read_to_end(&mut actual).unwrap();
                cursor.by_ref().take(len as u64).read_to_end(&mut expected).unwrap();
                prop_assert_eq!(actual, expected);
            }
        }
    }
}
