//! The bytes of a picture, in memory or in a file. They can be read any number of times.

use std::{
    fs::File,
    io::{self, BufRead, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    sync::Arc,
};

use bytes::Bytes;

/// A [`Reader`] loads a window of this many bytes from a file at once.
const WINDOW_LEN: usize = 64 * 1024;

/// The maximum number of steps while a header is read. A step is a call of `fill_buf` or `seek`. Ordinary
/// headers need a few hundred steps. A hostile header may have millions of tiny segments.
const MAX_HEADER_STEPS: u32 = 1 << 20;

/// A header may load about as many windows as the whole file has, plus this many. A hostile header could
/// jump between distant parts of the file again and again.
const MAX_EXTRA_HEADER_WINDOWS: u32 = 1024;

/// A picture's bytes. Clones are cheap and share the bytes.
#[derive(Debug, Clone)]
pub enum Content {
    /// All bytes, in memory.
    Memory(Bytes),
    /// An open file and its length in bytes. The file may be renamed while it is open.
    File(Arc<File>, u64),
}

impl Content {
    /// The length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads `len` bytes from `offset` on, or fewer if the content ends before that.
    ///
    /// # Errors
    /// The error of reading the file.
    pub fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let end = start.saturating_add(len).min(bytes.len());
                Ok(bytes.slice(start..end))
            }
            Self::File(file, file_len) => {
                let available = file_len.saturating_sub(offset);
                let available = usize::try_from(available).unwrap_or(usize::MAX);
                let mut buffer = vec![0; len.min(available)];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(buffer.into())
            }
        }
    }

    /// Creates a reader that starts at the first byte.
    pub fn reader(&self) -> Reader {
        self.reader_with_limits(UNLIMITED, UNLIMITED)
    }

    /// Creates a reader for the header. Its reads and seeks fail after more work than any ordinary
    /// header needs.
    pub fn header_reader(&self) -> Reader {
        let windows_of_file = u32::try_from(self.len() / WINDOW_LEN as u64).unwrap_or(UNLIMITED);
        let max_windows = MAX_EXTRA_HEADER_WINDOWS.saturating_add(windows_of_file);
        self.reader_with_limits(MAX_HEADER_STEPS, max_windows)
    }

    fn reader_with_limits(&self, max_steps: u32, max_windows: u32) -> Reader {
        Reader {
            content: self.clone(),
            position: 0,
            window: Bytes::new(),
            window_start: 0,
            steps_left: max_steps,
            windows_left: max_windows,
            error: None,
        }
    }
}

/// Reads a [`Content`]. Unlike `BufReader`, it retains its window of loaded bytes when it seeks. A
/// hostile JPEG with very many tiny segments causes as many seeks, but most of them stay within the
/// window.
#[derive(Debug)]
pub struct Reader {
    content: Content,
    position: u64,
    window: Bytes,
    window_start: u64,
    /// The steps that are still allowed, or [`UNLIMITED`]. [`MAX_HEADER_STEPS`] says what a step is.
    steps_left: u32,
    /// The windows that may still be loaded, or [`UNLIMITED`].
    windows_left: u32,
    /// The last [`ReadError`]. A seek sets it too if no more steps are allowed.
    error: Option<ReadError>,
}

/// Why a [`Reader`] could not read. The end of the content is no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadError {
    /// The header takes too much work.
    TooMuchWork,
    /// The file cannot be read. The number is the system's error code.
    System(i32),
}

impl Reader {
    /// Returns the last error of a read or seek, if there was one. The caller needs this because a parser
    /// may have taken the error for the end of the file.
    pub fn error(&self) -> Option<ReadError> {
        self.error
    }

    /// Counts a step. Fails if no more steps are allowed.
    fn count_step(&mut self) -> io::Result<()> {
        let is_allowed = count_down(&mut self.steps_left);
        self.fail_unless(is_allowed)
    }

    fn fail_unless(&mut self, is_allowed: bool) -> io::Result<()> {
        if is_allowed {
            return Ok(());
        }
        self.error = Some(ReadError::TooMuchWork);
        Err(io::Error::other("the header takes too much work"))
    }
}

/// A counter with this value is never counted down.
const UNLIMITED: u32 = u32::MAX;

/// Subtracts one from the counter. Returns `false` if the counter is already zero.
fn count_down(left: &mut u32) -> bool {
    match *left {
        UNLIMITED => true,
        0 => false,
        _ => {
            *left -= 1;
            true
        }
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.count_step()?;
        let window_end = self.window_start + self.window.len() as u64;
        if !(self.window_start..window_end).contains(&self.position) {
            let len = match self.content {
                Content::Memory(_) => usize::MAX, // everything, without a copy
                Content::File(..) => WINDOW_LEN,
            };
            let is_allowed = count_down(&mut self.windows_left);
            self.fail_unless(is_allowed)?;
            // If the file has become shorter, this fails with an error that has no code. Such an error is
            // not stored, so callers of `error` treat the picture as truncated.
            self.window = self.content.read_at(self.position, len).inspect_err(|error| {
                self.error = error.raw_os_error().map(ReadError::System).or(self.error);
            })?;
            self.window_start = self.position;
        }
        // The window now contains the position, or is empty because the content has ended.
        let skip = usize::try_from(self.position - self.window_start).unwrap_or(usize::MAX);
        Ok(self.window.get(skip..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount as u64;
    }
}

impl Read for Reader {
    /// Fills the whole buffer, or less if the content ends before. Some decoders would take a shorter read
    /// for the end of the content.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let taken = self.fill_buf()?.read(&mut buffer[filled..])?;
            if taken == 0 {
                break;
            }
            self.consume(taken);
            filled += taken;
        }
        Ok(filled)
    }

    /// Reserves exactly the memory that is needed. A buffer that doubles as it grows would take up
    /// to twice the memory of the file.
    fn read_to_end(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let remaining = self.content.len().saturating_sub(self.position);
        buffer.try_reserve_exact(usize::try_from(remaining).unwrap_or(usize::MAX))?;
        let mut appended = 0;
        loop {
            let bytes = self.fill_buf()?;
            if bytes.is_empty() {
                return Ok(appended);
            }
            buffer.extend_from_slice(bytes);
            let len = bytes.len();
            self.consume(len);
            appended += len;
        }
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.count_step()?;
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.content.len(), offset),
        };
        self.position = base
            .checked_add_signed(offset)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn in_file(bytes: &[u8]) -> Content {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Content::File(Arc::new(file), bytes.len() as u64)
    }

    #[test]
    fn a_header_reader_fails_after_too_many_windows_or_seeks() {
        let content = in_file(&vec![7; 1 << 20]);
        let mut reader = content.header_reader();
        // The positions alternate between two windows. Only one window is in memory at a time, so each
        // jump loads a window.
        let mut positions = (0..).map(|n| (n % 2) * 900_000);
        let mut jump = || {
            reader.seek(SeekFrom::Start(positions.next().unwrap()))?;
            reader.read_exact(&mut [0])
        };
        let jumps = (0..2000).take_while(|_| jump().is_ok()).count();
        let windows_of_file = (1 << 20) / WINDOW_LEN;
        assert_eq!(jumps, MAX_EXTRA_HEADER_WINDOWS as usize + windows_of_file);
        assert_eq!(reader.error(), Some(ReadError::TooMuchWork));
        let mut reader = content.header_reader();
        let mut seek = || reader.stream_position(); // this calls `seek` of the reader
        assert!((0..=MAX_HEADER_STEPS).any(|_| seek().is_err()));
    }

    #[test]
    fn a_read_across_two_windows_fills_the_buffer_unless_the_file_ends() {
        let content = in_file(&vec![7; 2 * WINDOW_LEN]);
        let mut reader = content.reader();
        reader.read_exact(&mut [0]).unwrap(); // loads the first window
        reader.seek(SeekFrom::Start(WINDOW_LEN as u64 - 2)).unwrap();
        assert_eq!(reader.read(&mut [0; 4]).unwrap(), 4);
        // Only one byte is left before the end of the file.
        reader.seek(SeekFrom::Start(2 * WINDOW_LEN as u64 - 1)).unwrap();
        assert_eq!(reader.read(&mut [0; 4]).unwrap(), 1);
    }

    #[test]
    fn the_end_of_a_shortened_file_stores_no_error_and_keeps_an_earlier_one() {
        let Content::File(file, len) = in_file(&[7; 10]) else { panic!("the content is a file") };
        let mut reader = Content::File(file, len + 1).reader();
        assert!(reader.read(&mut [0]).is_err());
        assert_eq!(reader.error(), None, "an error without a code is not stored");
        let earlier = Some(ReadError::System(5)); // EIO
        reader.error = earlier;
        assert!(reader.read(&mut [0]).is_err());
        assert_eq!(reader.error(), earlier);
    }

    #[test]
    fn reading_to_the_end_reserves_exactly_the_memory_it_needs() {
        let bytes = vec![7; 2 * WINDOW_LEN + 1];
        for content in [Content::Memory(bytes.clone().into()), in_file(&bytes)] {
            let (mut reader, mut read) = (content.reader(), Vec::new());
            reader.seek(SeekFrom::Start(1)).unwrap();
            assert_eq!(reader.read_to_end(&mut read).unwrap(), 2 * WINDOW_LEN);
            assert_eq!((read.len(), read.capacity()), (2 * WINDOW_LEN, 2 * WINDOW_LEN));
        }
    }

    proptest! {
        #[test]
        fn a_reader_returns_the_same_bytes_as_a_cursor(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            seeks_and_reads in proptest::collection::vec((-400i64..400, 0usize..200), 0..20),
        ) {
            let memory = Content::Memory(bytes.clone().into());
            for content in [memory, in_file(&bytes)] {
                let (mut reader, mut cursor) = (content.reader(), io::Cursor::new(&bytes));
                for (offset, len) in &seeks_and_reads {
                    let to = SeekFrom::Current(*offset);
                    prop_assert_eq!(reader.seek(to).ok(), cursor.seek(to).ok());
                    let (mut actual, mut expected) = (Vec::new(), Vec::new());
                    reader.by_ref().take(*len as u64).read_to_end(&mut actual).unwrap();
                    cursor.by_ref().take(*len as u64).read_to_end(&mut expected).unwrap();
                    prop_assert_eq!(actual, expected);
                }
            }
        }
    }
}
