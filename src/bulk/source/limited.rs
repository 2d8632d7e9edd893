//! Limits the size of each row, and removes a byte order mark.

use std::{
    cell::Cell,
    io::{self, Cursor, Read},
    rc::Rc,
};

/// The most bytes of a row. [`Limited`] also accepts slightly longer rows.
pub(in crate::bulk) const MAX_ROW_BYTES: u64 = 4 << 20;

/// How many bytes may be read for a row. A parser also reads what separates two rows, and reads ahead,
/// so this is more than [`MAX_ROW_BYTES`].
const MAX_READ_BYTES: u64 = MAX_ROW_BYTES + (64 << 10);

/// UTF-8's byte order mark.
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// The input without a byte order mark at its beginning.
///
/// # Errors
/// The first bytes cannot be read, or are those of UTF-16.
pub(super) fn without_bom(mut input: Box<dyn Read>) -> io::Result<Box<dyn Read>> {
    let mut head = Vec::with_capacity(BOM.len());
    input.by_ref().take(BOM.len() as u64).read_to_end(&mut head)?;
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        let detail = "the text is UTF-16: save it as UTF-8";
        return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
    }
    if head == BOM {
        head.clear();
    }
    Ok(Box::new(Cursor::new(head).chain(input)))
}

/// A reader that fails when more than [`MAX_READ_BYTES`] are read for one row.
pub(super) struct Limited<R> {
    inner: R,
    /// How many bytes may still be read for this row. [`Allowance`] has the same cell.
    left: Rc<Cell<u64>>,
}

/// Allows a [`Limited`] to read another row. It is separate, because the parser owns the [`Limited`].
pub(super) struct Allowance(Rc<Cell<u64>>);

impl Allowance {
    /// Allows another row.
    pub(super) fn renew(&self) {
        self.0.set(MAX_READ_BYTES);
    }
}

impl<R: Read> Limited<R> {
    /// Limits the first row. [`Allowance::renew`] must be called before each further row.
    pub(super) fn new(inner: R) -> (Self, Allowance) {
        let left = Rc::new(Cell::new(MAX_READ_BYTES));
        (Self { inner, left: Rc::clone(&left) }, Allowance(left))
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.get().checked_sub(read as u64) {
            Some(left) => self.left.set(left),
            None => {
                let detail = format!(
                    "a row has more than {} MiB: is a quote or a bracket not closed?",
                    MAX_ROW_BYTES >> 20
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
            }
        }
        Ok(read)
    }
}
