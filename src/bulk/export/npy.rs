//! Writes a NumPy file: the vectors as 32-bit floats, in the order of the rows.
//!
//! The format (version 1.0) is a header, followed by the numbers:
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::{
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
};

use super::{ExportError, rows::RowFile};
use crate::nvidia::DIMENSIONS;

/// The length of the header in bytes. It is a multiple of 64, because NumPy aligns the numbers to 64
/// bytes. A header of every shape fits into it.
const HEADER_LEN: usize = 128;

/// The beginning of the header: the magic text and the version.
const MAGIC_AND_VERSION: &[u8; 8] = b"\x93NUMPY\x01\x00";

/// How many bytes are written at once.
const WRITE_BYTES: usize = 1 << 20;

/// Writes the vectors of all rows to `file`, which is empty. Returns the number of rows.
///
/// # Errors
/// A line that `imagesvc embed` has not written, or a vector with an invalid number or another length than
/// the first. Also an interruption, or an error of the system.
pub(super) fn write(rows: &RowFile<'_>, file: &File) -> Result<u64, ExportError> {
    let mut output = BufWriter::with_capacity(WRITE_BYTES, file);
    output.write_all(&[0; HEADER_LEN])?; // space for the header, which contains the number of rows
    let mut vector_len = None;
    let mut numbers = Vec::new();
    let count = rows.for_each(|line| {
        // Only the check is needed: this call fails if the row lacks a field that `embed` adds.
        line.added_values()?;
        numbers.clear();
        line.append_vector(&mut vector_len, &mut numbers)?;
        for number in &numbers {
            output.write_all(&number.to_le_bytes())?;
        }
        rows.advance_progress();
        Ok(())
    })?;
    output.flush()?;
    drop(output);
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    // Without rows, the shape is (0, 1536).
    file.write_all(&header(count, vector_len.unwrap_or(DIMENSIONS)))?;
    Ok(count)
}

/// The header of an array with this shape.
fn header(rows: u64, columns: usize) -> [u8; HEADER_LEN] {
    let description =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let mut header = [b' '; HEADER_LEN];
    let (magic_and_version, rest) = header.split_at_mut(MAGIC_AND_VERSION.len());
    magic_and_version.copy_from_slice(MAGIC_AND_VERSION);
    // The next two bytes contain the length of the text. The text fills the rest of the header.
    let text_len = (HEADER_LEN - MAGIC_AND_VERSION.len() - 2) as u16;
    rest[..2].copy_from_slice(&text_len.to_le_bytes());
    rest[2..][..description.len()].copy_from_slice(description.as_bytes());
    header[HEADER_LEN - 1] = b'\n';
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_shape_fits_in_the_header() {
        let header = header(u64::MAX, usize::MAX);
        // The last two of these ten bytes are the length of the text: 118 (0x76) bytes.
        assert_eq!(&header[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let text = str::from_utf8(&header[10..]).unwrap();
        let start = "{'descr': '<f4', 'fortran_order': False, \
                     'shape': (18446744073709551615, 18446744073709551615), } ";
        assert!(text.starts_with(start) && text.ends_with(" \n"), "{text}");
    }
}
