//! Reads the rows of the `.jsonl` file one by one, with only one row in memory.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{
    super::{
        item::ItemReader,
        numbers,
        rows::{AddedValues, Found, Lines, Row},
    },
    ExportError,
};

/// The `.jsonl` file, to which `imagesvc embed` has written the rows.
pub(super) struct RowFile<'a> {
    pub file: &'a File,
    /// Used only for the names, with their prefix, of the fields that `embed` adds to a row.
    pub reader: &'a ItemReader,
    /// How many rows were written to the Parquet or NumPy file so far, for the progress line.
    pub exported: &'a AtomicU64,
    /// Reading ends when this becomes true.
    pub is_interrupted: &'a AtomicBool,
}

impl RowFile<'_> {
    /// Calls `on_line` with each row and its line number, from the first to the last. Returns the number of
    /// rows.
    ///
    /// # Errors
    /// An error of the disk or of `on_line`, a line that `imagesvc embed` has not written, or an
    /// interruption. After the first of these, no more rows are read.
    pub(super) fn for_each(
        &self,
        mut on_line: impl FnMut(Line<'_>) -> Result<(), ExportError>,
    ) -> Result<u64, ExportError> {
        let mut file = self.file;
        file.seek(SeekFrom::Start(0))?;
        let mut lines = Lines::new(file);
        while !self.is_interrupted.load(Ordering::Relaxed) {
            let found = lines.advance()?;
            let number = lines.number();
            let error = |detail: String| ExportError::Row { line: number, detail };
            match found {
                Found::Line => {}
                // Every line was a row, so the number of the last line is the number of rows.
                Found::End => return Ok(number),
                // `output::open` has removed the incomplete line of an earlier run.
                Found::IncompleteLine => return Err(error("the line is incomplete".into())),
            }
            let row = lines.row(self.reader).map_err(|detail| error(not_a_row(&detail)))?;
            on_line(Line { number, row })?;
        }
        Err(ExportError::Interrupted)
    }

    /// Adds a row to the count of the progress line.
    pub(super) fn advance_progress(&self) {
        self.exported.fetch_add(1, Ordering::Relaxed);
    }
}

/// A row of the file, with the number of its line.
pub(super) struct Line<'a> {
    number: u64,
    pub row: Row<'a>,
}

impl<'a> Line<'a> {
    /// An error in this line.
    pub(super) fn error(&self, detail: impl Into<String>) -> ExportError {
        ExportError::Row { line: self.number, detail: detail.into() }
    }

    /// The values of the added fields that precede the vector.
    ///
    /// # Errors
    /// The added fields are not those of `imagesvc embed`.
    pub(super) fn added_values(&self) -> Result<AddedValues<'a>, ExportError> {
        self.row.added_values().map_err(|detail| self.error(not_a_row(&detail)))
    }

    /// Appends the numbers of the vector to `values`. The first vector sets `length`, and every other vector
    /// must have this length.
    ///
    /// # Errors
    /// The vector has another length, or is not a list of finite numbers. Even then, some numbers may have
    /// been appended.
    pub(super) fn append_vector(
        &self,
        length: &mut Option<usize>,
        values: &mut Vec<f32>,
    ) -> Result<(), ExportError> {
        let previous_len = values.len();
        numbers::append(self.row.vector, values).map_err(|detail| self.error(detail))?;
        let actual = values.len() - previous_len;
        let expected = *length.get_or_insert(actual);
        if actual == expected {
            return Ok(());
        }
        Err(self
            .error(format!("the vector has {actual} numbers, but the first row's has {expected}")))
    }
}

fn not_a_row(detail: &str) -> String {
    format!("`imagesvc embed` did not write this row: {detail}")
}
