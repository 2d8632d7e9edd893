//! Reads the rows of a `.npy` file: NumPy's format, versions 1 to 3, with 32-bit floats in two
//! dimensions.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use super::{Row, VectorsError};
use crate::bulk::numbers::{self, MAX_LENGTH};

const MAGIC: &[u8] = b"\x93NUMPY";

/// The most bytes of a header's text. For two dimensions, it has about 120 bytes.
const MAX_HEADER: u32 = 64 << 10;

/// The size of a number in the file, in bytes.
const NUMBER_BYTES: usize = size_of::<f32>();

/// Reads the rows of a file.
pub(super) struct Npy {
    input: BufReader<File>,
    path: PathBuf,
    /// The bytes of one row.
    bytes: Vec<u8>,
    rows_left: u64,
}

/// The values in a header. `None` is a missing one.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header {
    descr: Option<String>,
    fortran_order: Option<bool>,
    shape: Option<Vec<u64>>,
}

impl Npy {
    /// Reads the header of the file. `path` is for the errors.
    ///
    /// # Errors
    /// The file cannot be read, is not of this format, or has another length than its header declares.
    pub(super) fn open(file: File, path: &Path) -> Result<Self, VectorsError> {
        let io_error = |error| VectorsError::Io(path.to_owned(), error);
        let file_error = |detail: String| VectorsError::File { path: path.to_owned(), detail };
        let file_bytes = file.metadata().map_err(io_error)?.len();
        let mut input = BufReader::with_capacity(1 << 20, file);
        let (text, header_bytes) =
            read_header(&mut input).map_err(io_error)?.map_err(file_error)?;
        let shape = Parser(&text).header().and_then(Header::rows_and_vector_len);
        let (rows, vector_len) = shape.map_err(file_error)?;
        let row_bytes = vector_len * NUMBER_BYTES;
        let data_bytes = file_bytes.saturating_sub(header_bytes);
        match rows.checked_mul(row_bytes as u64) {
            Some(declared) if declared == data_bytes => {}
            Some(declared) if declared < data_bytes => {
                let extra = data_bytes - declared;
                let detail = format!("{extra} bytes follow the {rows} rows of its header");
                return Err(file_error(detail));
            }
            _ => {
                let complete = data_bytes / row_bytes as u64;
                return Err(file_error(format!(
                    "its header declares {rows} rows, but only {complete} follow: is the file complete?"
                )));
            }
        }
        Ok(Self { input, path: path.to_owned(), bytes: vec![0; row_bytes], rows_left: rows })
    }

    /// Reads the vector of the next row into `row`, whose number the caller has set. Returns whether
    /// there was a next row.
    ///
    /// # Errors
    /// A number of the vector is infinite or NaN, or the file cannot be read.
    pub(super) fn next(&mut self, row: &mut Row) -> Result<bool, VectorsError> {
        if self.rows_left == 0 {
            return Ok(false);
        }
        self.rows_left -= 1;
        let read = self.input.read_exact(&mut self.bytes);
        read.map_err(|error| VectorsError::Io(self.path.clone(), error))?;
        let (chunks, _) = self.bytes.as_chunks();
        row.vector.clear();
        row.vector.extend(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)));
        numbers::check(&row.vector).map_err(|detail| VectorsError::Row {
            path: self.path.clone(),
            place: format!("row {}", row.number),
            detail,
        })?;
        Ok(true)
    }
}

/// Reads the header. Returns its text, and the number of bytes before the first row. The outer error is
/// that of the system. The inner error says what is wrong with the header.
fn read_header(input: &mut impl Read) -> io::Result<Result<(String, u64), String>> {
    const NOT_NPY: &str = "this is not a .npy file: ";
    let mut beginning = Vec::new();
    let version_bytes = 2; // the major and the minor version
    input.take(MAGIC.len() as u64 + version_bytes).read_to_end(&mut beginning)?;
    let length_bytes = match beginning.strip_prefix(MAGIC) {
        Some([1, _]) => 2,
        Some([2 | 3, _]) => 4,
        Some([version, _]) => {
            return Ok(Err(format!("it has version {version} of the format .npy, not 1, 2 or 3")));
        }
        _ => return Ok(Err(format!("{NOT_NPY}it does not begin like one"))),
    };
    let mut length = [0; 4];
    let has_length = read_fully(input, &mut length[..length_bytes])?;
    let length = u32::from_le_bytes(length);
    if !has_length || length > MAX_HEADER {
        return Ok(Err(format!("{NOT_NPY}its header is incomplete or too long")));
    }
    let mut text = Vec::new();
    let read = input.take(length.into()).read_to_end(&mut text)?;
    let header_bytes = (beginning.len() + length_bytes + read) as u64;
    Ok(match String::from_utf8(text) {
        Ok(text) if read as u64 == u64::from(length) => Ok((text, header_bytes)),
        _ => Err(format!("{NOT_NPY}its header is incomplete or no text")),
    })
}

/// Fills the buffer. Returns whether the input had enough bytes.
fn read_fully(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

impl Header {
    /// The number of rows, and the length of their vectors. The error says why this program cannot read
    /// the rows.
    fn rows_and_vector_len(self) -> Result<(u64, usize), String> {
        match self.descr.as_deref() {
            Some("<f4") => {}
            Some(other) => {
                return Err(format!("its numbers are {other:.20}, not <f4 (32-bit floats)"));
            }
            None => return Err("its header has no descr".into()),
        }
        if self.fortran_order != Some(false) {
            return Err("it is not in C order: its rows are not contiguous".into());
        }
        let Some([rows, length]) = self.shape.as_deref() else {
            return Err("it does not have two dimensions".into());
        };
        match usize::try_from(*length) {
            Ok(length @ 1..=MAX_LENGTH) => Ok((*rows, length)),
            _ => Err(format!("its rows have {length} numbers, not 1 to {MAX_LENGTH}")),
        }
    }
}

/// Parses the text of a header: a Python dictionary with strings, Booleans and tuples of integers. Contains
/// the part of the text that is not parsed yet. A method's `None` means that the text has another form.
struct Parser<'a>(&'a str);

impl<'a> Parser<'a> {
    fn header(mut self) -> Result<Header, String> {
        self.dictionary().ok_or_else(|| "its header is not that of a .npy file".into())
    }

    fn dictionary(&mut self) -> Option<Header> {
        let mut header = Header::default();
        self.take('{').then_some(())?;
        while !self.take('}') {
            let name = self.string()?;
            self.take(':').then_some(())?;
            match name {
                "descr" => header.descr = Some(self.string()?.to_owned()),
                "fortran_order" => header.fortran_order = Some(self.boolean()?),
                "shape" => header.shape = Some(self.tuple()?),
                _ => return None,
            }
            if !self.take(',') {
                self.take('}').then_some(())?;
                break;
            }
        }
        self.0.trim().is_empty().then_some(header)
    }

    /// If `token` comes next, skips it and the spaces before it. Returns whether it came next.
    fn take(&mut self, token: char) -> bool {
        let rest = self.0.trim_start().strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// A string in either kind of quotes, without escapes.
    fn string(&mut self) -> Option<&'a str> {
        let quote = if self.take('\'') { '\'' } else { self.take('"').then_some('"')? };
        let (text, rest) = self.0.split_once(quote)?;
        self.0 = rest;
        Some(text)
    }

    fn boolean(&mut self) -> Option<bool> {
        let text = self.0.trim_start();
        let (value, rest) = match text.strip_prefix("True") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("False")?),
        };
        self.0 = rest;
        Some(value)
    }

    fn tuple(&mut self) -> Option<Vec<u64>> {
        let mut numbers = Vec::new();
        self.take('(').then_some(())?;
        while !self.take(')') {
            let text = self.0.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit())?;
            numbers.push(text[..end].parse().ok()?);
            self.0 = &text[end..];
            if !self.take(',') {
                self.take(')').then_some(())?;
                break;
            }
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of rows and the length of their vectors that a header with this text declares.
    fn shape(text: &str) -> Result<(u64, usize), String> {
        Parser(text).header().and_then(Header::rows_and_vector_len)
    }

    #[test]
    fn headers_are_read_as_numpy_and_other_programs_write_them() {
        for text in [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1536), }   \n",
            "{\"shape\":(3,1536),\"fortran_order\":False,\"descr\":\"<f4\"}",
            " { 'descr' : '<f4' , 'fortran_order' : False , 'shape' : ( 3 , 1536 , ) } ",
        ] {
            assert_eq!(shape(text), Ok((3, 1536)), "{text}");
        }
    }

    #[test]
    fn a_header_that_declares_anything_but_rows_of_32_bit_floats_is_refused_with_the_reason() {
        const CANNOT_BE_PARSED: &str = "not that of a .npy file";
        let header = |descr: &str, order: &str, shape: &str| {
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}")
        };
        for (text, reason) in [
            (header("<f8", "False", "(3, 4)"), "<f8"),
            (header("|O", "False", "(3, 4)"), "|O"),
            (header("<f4", "True", "(3, 4)"), "C order"),
            (header("<f4", "False", "(3,)"), "two dimensions"),
            (header("<f4", "False", "()"), "two dimensions"),
            (header("<f4", "False", "(3, 4, 5)"), "two dimensions"),
            (header("<f4", "False", "(3, 0)"), "0 numbers"),
            // The largest `u64` is parsed, but is too large a length. The next number is not parsed.
            (header("<f4", "False", "(3, 18446744073709551615)"), "numbers, not 1 to"),
            (header("<f4", "False", "(3, 18446744073709551616)"), CANNOT_BE_PARSED),
            (header("<f4", "False", "(-3, 4)"), CANNOT_BE_PARSED),
            (header("<f4", "None", "(3, 4)"), CANNOT_BE_PARSED),
            (
                "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}".into(),
                CANNOT_BE_PARSED,
            ),
            ("{'descr': '<f4', 'shape': (3, 4)}".into(), "C order"),
            ("{}".into(), "no descr"),
            (String::new(), CANNOT_BE_PARSED),
            ("{'descr': '<f4".into(), CANNOT_BE_PARSED),
        ] {
            let error = shape(&text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
