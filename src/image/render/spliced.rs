//! A file with another beginning.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use crate::image::{Content, Reader};

/// What may be missing at the end.
const ZEROS: [u8; 3] = [0; 3];

/// Reads a file, but for its first bytes, in whose place stand others: a header that the decoder knows.
pub(super) struct Spliced {
    head: Vec<u8>,
    /// How long the beginning of the file is that is not read.
    replaced: u64,
    /// Stands where [`Self::position`] is, or at the end of what is replaced, if that is within the head.
    rest: Reader,
    position: u64,
    len: u64,
    /// How many zeros follow.
    padding: usize,
}

impl Spliced {
    /// The head, and the file from a place on.
    pub(super) fn new(head: Vec<u8>, content: &Content, from: u64) -> io::Result<Self> {
        let mut rest = content.reader();
        rest.seek(SeekFrom::Start(from))?;
        let len = head.len() as u64 + content.len().saturating_sub(from);
        Ok(Self { head, replaced: from, rest, position: 0, len, padding: 0 })
    }

    /// Adds up to three zeros at the end.
    pub(super) fn padded(mut self, zeros: usize) -> Self {
        self.padding = zeros.min(ZEROS.len());
        self
    }

    fn head_len(&self) -> u64 {
        self.head.len() as u64
    }
}

impl BufRead for Spliced {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let position = usize::try_from(self.position).unwrap_or(usize::MAX);
        if let Some(head) = self.head.get(position..)
            && !head.is_empty()
        {
            return Ok(head);
        }
        let Some(behind) = self.position.checked_sub(self.len) else { return self.rest.fill_buf() };
        let behind = usize::try_from(behind).unwrap_or(usize::MAX);
        Ok(ZEROS[..self.padding].get(behind..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        if (self.head_len()..self.len).contains(&self.position) {
            self.rest.consume(amount);
        }
        self.position += amount as u64;
    }
}

impl Read for Spliced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl Seek for Spliced {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.len + self.padding as u64, offset),
        };
        let position = base.checked_add_signed(offset);
        let position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let behind_head = position.saturating_sub(self.head_len());
        self.rest.seek(SeekFrom::Start(self.replaced.saturating_add(behind_head)))?;
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
        fn it_reads_as_one_piece(
            head in proptest::collection::vec(any::<u8>(), 0..40),
            file in proptest::collection::vec(any::<u8>(), 0..200),
            from in 0..250usize,
            zeros in 0..4usize,
            steps in proptest::collection::vec((0..3u8, -300i64..300, 0usize..100), 0..20),
        ) {
            let rest = file.get(from..).unwrap_or_default();
            let expected = [&head[..], rest, &ZEROS[..zeros]].concat();
            let content = Content::Memory(file.clone().into());
            let spliced = Spliced::new(head, &content, from as u64).unwrap();
            let (mut ours, mut theirs) = (spliced.padded(zeros), Cursor::new(expected));
            for (base, offset, len) in steps {
                let to = match base {
                    0 => SeekFrom::Start(offset.unsigned_abs()),
                    1 => SeekFrom::Current(offset),
                    _ => SeekFrom::End(offset),
                };
                prop_assert_eq!(ours.seek(to).ok(), theirs.seek(to).ok());
                let (mut our_bytes, mut their_bytes) = (Vec::new(), Vec::new());
                ours.by_ref().take(len as u64).read_to_end(&mut our_bytes).unwrap();
                theirs.by_ref().take(len as u64).read_to_end(&mut their_bytes).unwrap();
                prop_assert_eq!(our_bytes, their_bytes);
            }
        }
    }
}
