//! Reads the rows of a `.jsonl` file that the command `embed` has written.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use super::{Row, VectorsError, label, numbers};
use crate::bulk::{item::ItemReader, json_object};

/// The longest line that is read, in bytes.
const MAX_LINE: usize = 16 << 20;
const MAX_LINE_BYTES: u64 = MAX_LINE as u64;

/// The lines of a file.
pub(super) struct JsonLines {
    input: BufReader<File>,
    path: PathBuf,
    reader: ItemReader,
    /// The name of the vector's field, as a JSON string.
    vector_key: String,
    bytes: Vec<u8>,
    /// The number of lines that were read.
    lines: u64,
}

impl JsonLines {
    /// The lines of an open file. `path` is for errors.
    pub(super) fn new(file: File, path: &Path, reader: ItemReader) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 20, file),
            path: path.to_owned(),
            vector_key: json_object::string(&reader.name("vector")),
            reader,
            bytes: Vec::new(),
            lines: 0,
        }
    }

    /// Reads the next row into `row`. Returns whether there was one.
    ///
    /// # Errors
    /// The line is not a row of `imagesvc embed`, or the file cannot be read.
    pub(super) fn next(&mut self, row: &mut Row) -> Result<bool, VectorsError> {
        if !self.next_line()? {
            return Ok(false);
        }
        self.parse_fields(row)
            .and_then(|vector| numbers::read(vector, &mut row.vector))
            .map_err(|detail| self.error(detail))?;
        Ok(true)
    }

    /// Parses the line that [`Self::next_line`] has read, but not its vector.
    pub(super) fn parse_without_vector(&mut self, row: &mut Row) -> Result<(), VectorsError> {
        self.parse_fields(row).map_err(|detail| self.error(detail)).map(|_| ())
    }

    /// Reads the next line. Returns whether there was one. A last line without a line break is
    /// incomplete, and is ignored: a run was killed, or is just writing this line.
    pub(super) fn next_line(&mut self) -> Result<bool, VectorsError> {
        self.bytes.clear();
        let read = self.input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut self.bytes);
        let read = read.map_err(|error: io::Error| VectorsError::Io(self.path.clone(), error))?;
        if read == 0 || !self.bytes.ends_with(b"\n") && self.bytes.len() < MAX_LINE {
            return Ok(false);
        }
        self.lines += 1;
        Ok(true)
    }

    /// Parses all fields of the line except for the vector, and returns the text of the vector.
    fn parse_fields(&self, row: &mut Row) -> Result<&str, String> {
        let not_a_row = |detail: &str| format!("this is not a row of imagesvc embed: {detail}");
        let text = str::from_utf8(&self.bytes).map_err(|_| not_a_row("it is not UTF-8"))?;
        let without_end = text.strip_suffix("}\n").filter(|text| text.ends_with(']'));
        let without_end = without_end.ok_or_else(|| not_a_row("it does not end with a vector"))?;
        let members = json_object::members_before(text, &self.reader.name("vector"));
        let members = members.map_err(|error| not_a_row(&error.to_string()))?;
        let find = |name: &str| {
            let position = members.iter().position(|(known, _)| *known == self.reader.name(name));
            position.ok_or_else(|| not_a_row(&format!("it has no {}", self.reader.name(name))))
        };
        row.label = label(&self.reader, &members[..find("sha256")?]);
        row.model = json_object::as_string(members[find("model")?].1);
        if row.model.is_none() {
            return Err(not_a_row("its model is not a text"));
        }
        let rest = json_object::after(without_end, &members).trim_start();
        let vector = rest.strip_prefix(',').and_then(|rest| {
            rest.trim_start().strip_prefix(&self.vector_key)?.trim_start().strip_prefix(':')
        });
        vector.ok_or_else(|| not_a_row("its vector is not the last field"))
    }

    fn error(&self, detail: String) -> VectorsError {
        let place = format!("line {}", self.lines);
        VectorsError::Row { path: self.path.clone(), place, detail }
    }
}
