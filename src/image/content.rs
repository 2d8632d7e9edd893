//! The bytes of a picture, in memory or in a file, readable any number of times.

use std::{
    fs::File,
    io::{self, BufRead, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    sync::Arc,
};

use bytes::Bytes;

/// How much a [`Reader`] takes from a file at once.
const WINDOW: usize = 64 * 1024;

/// How often a header's reader reads or seeks, and how often it goes to the file beside going through
/// it once, at the most. A picture's header takes some hundreds of steps; a hostile one has millions
/// of tiny segments, or entries that are far apart.
const HEADER_STEPS: u32 = 1 << 20;
const HEADER_WINDOWS: u32 = 1024;

/// A picture's bytes. Cheap to clone; clones read independently of each other.
#[derive(Debug, Clone)]
pub enum Content {
    /// All of it in memory.
    Memory(Bytes),
    /// In a file that may be renamed meanwhile, of this many bytes.
    File(Arc<File>, u64),
}

impl Content {
    /// Length in bytes.
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

    /// Up to `len` bytes from `offset` on; fewer only at the end.
    ///
    /// # Errors
    /// What reading the file says.
    pub fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let end = start.saturating_add(len).min(bytes.len());
                Ok(bytes.slice(start..end))
            }
            Self::File(file, total) => {
                let left = usize::try_from(total.saturating_sub(offset)).unwrap_or(usize::MAX);
                let mut buffer = vec![0; len.min(left)];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(buffer.into())
            }
        }
    }

    /// A reader of its own from the start.
    pub fn reader(&self) -> Reader {
        self.reader_with(u32::MAX, u32::MAX)
    }

    /// The same for a header: it fails after so much work that no header takes.
    pub fn header_reader(&self) -> Reader {
        let once = u32::try_from(self.len() / WINDOW as u64).unwrap_or(u32::MAX);
        self.reader_with(HEADER_STEPS, HEADER_WINDOWS.saturating_add(once))
    }

    fn reader_with(&self, steps: u32, windows: u32) -> Reader {
        let content = self.clone();
        let window = Bytes::new();
        Reader { content, position: 0, window, window_start: 0, steps, windows, fault: None }
    }
}

/// Reads a [`Content`]. Unlike `BufReader`, seeking keeps what was already read: a hostile JPEG
/// with millions of tiny segments makes a header reader seek as often.
#[derive(Debug)]
pub struct Reader {
    content: Content,
    position: u64,
    window: Bytes,
    window_start: u64,
    /// Steps, and windows, that are left.
    steps: u32,
    windows: u32,
    fault: Option<ReadFault>,
}

/// Why a [`Reader`] could not read on, although the bytes had not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFault {
    /// The header takes too much work.
    TooMuchWork,
    /// The file cannot be read: the system's error.
    System(i32),
}

impl Reader {
    /// What kept it from reading on, if something did, even where the caller took it for the end.
    pub fn fault(&self) -> Option<ReadFault> {
        self.fault
    }

    fn step(&mut self) -> io::Result<()> {
        let is_spent = !spend(&mut self.steps);
        self.end_if(is_spent)
    }

    fn end_if(&mut self, is_spent: bool) -> io::Result<()> {
        if !is_spent {
            return Ok(());
        }
        self.fault = Some(ReadFault::TooMuchWork);
        Err(io::Error::other("the header takes too much work"))
    }
}

/// Counts down, and tells whether something was left; `u32::MAX` has no end.
fn spend(left: &mut u32) -> bool {
    match *left {
        u32::MAX => true,
        0 => false,
        _ => {
            *left -= 1;
            true
        }
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.step()?;
        let window_end = self.window_start + self.window.len() as u64;
        if !(self.window_start..window_end).contains(&self.position) {
            let len = match self.content {
                Content::Memory(_) => usize::MAX,
                Content::File(..) => WINDOW,
            };
            let is_spent = !spend(&mut self.windows);
            self.end_if(is_spent)?;
            self.window = self.content.read_at(self.position, len).inspect_err(|error| {
                self.fault = error.raw_os_error().map(ReadFault::System);
            })?;
            self.window_start = self.position;
        }
        // Within the window by the lines above, or both are empty at the end.
        let skip = usize::try_from(self.position - self.window_start).unwrap_or(usize::MAX);
        Ok(self.window.get(skip..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount as u64;
    }
}

impl Read for Reader {
    /// Fills the buffer, but at the end: some decoders take a short read for the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            let taken = self.fill_buf()?.read(&mut buffer[read..])?;
            if taken == 0 {
                break;
            }
            self.consume(taken);
            read += taken;
        }
        Ok(read)
    }

    /// Takes just the room that is needed: a decoder that wants the whole file would let its
    /// buffer double until it fits, to nearly twice the file.
    fn read_to_end(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let left = self.content.len().saturating_sub(self.position);
        buffer.try_reserve_exact(usize::try_from(left).unwrap_or(usize::MAX))?;
        let mut read = 0;
        loop {
            let bytes = self.fill_buf()?;
            if bytes.is_empty() {
                return Ok(read);
            }
            buffer.extend_from_slice(bytes);
            let len = bytes.len();
            self.consume(len);
            read += len;
        }
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.step()?;
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
    fn a_header_that_takes_too_much_work_is_given_up() {
        let content = in_file(&vec![7; 1 << 20]);
        let mut reader = content.header_reader();
        let mut far = (0..).map(|n| (n % 2) * 900_000);
        let mut jump = || {
            reader.seek(SeekFrom::Start(far.next().unwrap()))?;
            reader.read_exact(&mut [0])
        };
        let jumps = (0..2000).take_while(|_| jump().is_ok()).count();
        // Beside what going through it once takes.
        assert_eq!(jumps, HEADER_WINDOWS as usize + (1 << 20) / WINDOW);
        assert_eq!(reader.fault(), Some(ReadFault::TooMuchWork));
        let mut reader = content.header_reader();
        let mut skip = || reader.stream_position();
        assert!((0..=HEADER_STEPS).any(|_| skip().is_err()));
    }

    #[test]
    fn a_read_across_two_windows_is_not_short() {
        let content = in_file(&vec![7; 2 * WINDOW]);
        let mut reader = content.reader();
        reader.seek(SeekFrom::Start(WINDOW as u64 - 1)).unwrap();
        reader.read_exact(&mut [0]).unwrap();
        reader.seek(SeekFrom::Start(WINDOW as u64 - 2)).unwrap();
        assert_eq!(reader.read(&mut [0; 4]).unwrap(), 4);
        reader.seek(SeekFrom::Start(2 * WINDOW as u64 - 1)).unwrap();
        assert_eq!(reader.read(&mut [0; 4]).unwrap(), 1);
    }

    #[test]
    fn what_is_read_to_the_end_takes_no_more_room_than_it_needs() {
        let bytes = vec![7; 2 * WINDOW + 1];
        for content in [Content::Memory(bytes.clone().into()), in_file(&bytes)] {
            let (mut reader, mut read) = (content.reader(), Vec::new());
            reader.seek(SeekFrom::Start(1)).unwrap();
            assert_eq!(reader.read_to_end(&mut read).unwrap(), 2 * WINDOW);
            assert_eq!((read.len(), read.capacity()), (2 * WINDOW, 2 * WINDOW));
        }
    }

    proptest! {
        #[test]
        fn a_reader_reads_what_a_cursor_reads(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            steps in proptest::collection::vec((-400i64..400, 0usize..200), 0..20),
        ) {
            let memory = Content::Memory(bytes.clone().into());
            for content in [memory, in_file(&bytes)] {
                let (mut reader, mut cursor) = (content.reader(), io::Cursor::new(&bytes));
                for (offset, len) in &steps {
                    let seeks = (reader.seek(SeekFrom::Current(*offset)), cursor.seek(SeekFrom::Current(*offset)));
                    prop_assert_eq!(seeks.0.ok(), seeks.1.ok());
                    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                    reader.by_ref().take(*len as u64).read_to_end(&mut ours).unwrap();
                    cursor.by_ref().take(*len as u64).read_to_end(&mut theirs).unwrap();
                    prop_assert_eq!(ours, theirs);
                }
            }
        }
    }
}
