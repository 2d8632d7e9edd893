//! Reads the rows of a `.jsonl` file that the command `embed` has written.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use super::{Row, VectorsError, label};
use crate::bulk::{
    item::ItemReader,
    numbers,
    rows::{Found, Lines},
};

/// The rows of a file.
pub(super) struct JsonLines {
    lines: Lines<File>,
    path: PathBuf,
    /// Knows the names of the rows' fields.
    item_reader: ItemReader,
}

impl JsonLines {
    /// The lines of an open file. `path` is for errors.
    pub(super) fn new(file: File, path: &Path, item_reader: ItemReader) -> Self {
        Self { lines: Lines::new(file), path: path.to_owned(), item_reader }
    }

    /// Reads the next row into `row`. Returns whether there was one. An incomplete last line is no row.
    ///
    /// # Errors
    /// The line is not a row of `imagesvc embed`, or the file cannot be read.
    pub(super) fn next(&mut self, row: &mut Row) -> Result<bool, VectorsError> {
        if !self.next_line()? {
            return Ok(false);
        }
        self.parse_fields(row)
            .and_then(|vector| {
                row.vector.clear();
                numbers::append(vector, &mut row.vector)
            })
            .map_err(|detail| self.error(detail))?;
        Ok(true)
    }

    /// Parses the line that was read last, but not its vector.
    pub(super) fn parse_without_vector(&mut self, row: &mut Row) -> Result<(), VectorsError> {
        self.parse_fields(row).map_err(|detail| self.error(detail)).map(|_| ())
    }

    /// Reads the next line. Returns whether it exists and is complete.
    pub(super) fn next_line(&mut self) -> Result<bool, VectorsError> {
        let found = self.lines.advance();
        let found = found.map_err(|error| VectorsError::Io(self.path.clone(), error))?;
        Ok(found == Found::Line)
    }

    /// Parses the line that was read last. Sets the row's label and model, and returns the text of the
    /// vector.
    fn parse_fields(&self, row: &mut Row) -> Result<&str, String> {
        let not_a_row = |detail: String| format!("this is not a row of imagesvc embed: {detail}");
        let parsed = self.lines.row(&self.item_reader).map_err(not_a_row)?;
        row.label = label(&self.item_reader, &parsed.source_members);
        row.model = Some(parsed.model().map_err(not_a_row)?);
        Ok(parsed.vector)
    }

    fn error(&self, detail: String) -> VectorsError {
        let place = format!("line {}", self.lines.number());
        VectorsError::Row { path: self.path.clone(), place, detail }
    }
}
