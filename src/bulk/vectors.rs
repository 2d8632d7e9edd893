//! Reads files of vectors row by row, with only a few rows in memory.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    item::ItemReader,
    json_object::{self, Member},
};
use json_lines::JsonLines;
use npy::Npy;

mod json_lines;
mod labels;
mod npy;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(feature = "parquet")]
mod parquet_pages;

pub(super) use labels::Labels;

/// A row of a file.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// The number of the row in the file, from 1.
    pub number: u64,
    /// What `nearest` prints for the row: the value of the field that `--id` names, or else the path or
    /// URL. `None` if the row has neither, as in a `.npy` file.
    pub label: Option<String>,
    /// The model that computed the vector. `None` in a `.npy` file, which cannot contain it.
    pub model: Option<String>,
    pub vector: Vec<f32>,
}

/// Why a file of vectors cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum VectorsError {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{path}: {detail}")]
    File { path: PathBuf, detail: String },
    /// `place` is the number of the line or row, such as `line 3`.
    #[error("{path}, {place}: {detail}")]
    Row { path: PathBuf, place: String, detail: String },
    #[error(
        "{path} contains vectors of {row_model}, but this service computes vectors of \
         {service_model}: vectors of different models cannot be compared"
    )]
    OtherModel { path: PathBuf, row_model: String, service_model: String },
}

/// Reads the rows of a file, in the file's format.
enum Rows {
    JsonLines(JsonLines),
    Npy(Npy),
    #[cfg(feature = "parquet")]
    Parquet(parquet::Parquet),
}

/// An open file of vectors, which has at least one row.
pub(super) struct VectorFile {
    pub path: PathBuf,
    rows: Rows,
    /// The first row, until [`Self::next`] returns it.
    first: Option<Row>,
}

impl VectorFile {
    /// Opens a file, and reads its first row. The extension `.npy` or `.parquet` selects the format. A file
    /// with any other extension is read like a `.jsonl` file. Blocks the thread.
    ///
    /// # Errors
    /// The file cannot be read, has no rows, or does not contain vectors in its format.
    pub(super) fn open(path: &Path, reader: &ItemReader) -> Result<Self, VectorsError> {
        let io_error = |error| VectorsError::Io(path.to_owned(), error);
        // Opening a named pipe would block until another program writes to it.
        if !fs::metadata(path).map_err(io_error)?.is_file() {
            return Err(io_error(io::Error::other("it is not a regular file")));
        }
        let file = File::open(path).map_err(io_error)?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        let mut rows = match extension {
            Some("npy") => Rows::Npy(Npy::open(file, path)?),
            Some("parquet") => Self::open_parquet(file, path, reader)?,
            _ => Rows::JsonLines(JsonLines::new(file, path, reader.clone())),
        };
        let mut first = Row::default();
        if !rows.next(&mut first)? {
            let detail = "it contains no vectors".into();
            return Err(VectorsError::File { path: path.to_owned(), detail });
        }
        Ok(Self { path: path.to_owned(), rows, first: Some(first) })
    }

    #[cfg(feature = "parquet")]
    fn open_parquet(file: File, path: &Path, reader: &ItemReader) -> Result<Rows, VectorsError> {
        Ok(Rows::Parquet(parquet::Parquet::open(file, path, reader)?))
    }

    #[cfg(not(feature = "parquet"))]
    fn open_parquet(_: File, path: &Path, _: &ItemReader) -> Result<Rows, VectorsError> {
        let detail = "this program was built without the feature `parquet`: use the .jsonl file";
        Err(VectorsError::File { path: path.to_owned(), detail: detail.into() })
    }

    /// The model of the first row. `None` in a `.npy` file, which cannot contain it. Call this before
    /// [`Self::next`]: later, it returns `None` for every file.
    pub(super) fn model_of_first_row(&self) -> Option<&str> {
        self.first.as_ref()?.model.as_deref()
    }

    /// Reads the next row into `row`. Returns whether there was a next row. Pass the same `row` to each
    /// call, because a call adds one to its number. Blocks the thread.
    ///
    /// # Errors
    /// The row is malformed, or the file cannot be read.
    pub(super) fn next(&mut self, row: &mut Row) -> Result<bool, VectorsError> {
        match self.first.take() {
            Some(first) => {
                *row = first;
                Ok(true)
            }
            None => self.rows.next(row),
        }
    }

    /// Whether the file itself contains no labels. They are in the `.jsonl` file beside it.
    pub(super) fn has_separate_labels(&self) -> bool {
        matches!(self.rows, Rows::Npy(_))
    }

    /// The error that something is wrong with the row of this number.
    pub(super) fn row_error(&self, number: u64, detail: String) -> VectorsError {
        let word = if matches!(self.rows, Rows::JsonLines(_)) { "line" } else { "row" };
        VectorsError::Row { path: self.path.clone(), place: format!("{word} {number}"), detail }
    }
}

impl Rows {
    /// Adds one to the number of `row`, and reads the next row into it. Returns whether there was one.
    fn next(&mut self, row: &mut Row) -> Result<bool, VectorsError> {
        row.number += 1;
        match self {
            Self::JsonLines(rows) => rows.next(row),
            Self::Npy(rows) => rows.next(row),
            #[cfg(feature = "parquet")]
            Self::Parquet(rows) => rows.next(row),
        }
    }
}

/// The label of a row. `source_members` are the row's members without those that `embed` added.
fn label(reader: &ItemReader, source_members: &[Member<'_>]) -> Option<String> {
    let id = reader.id_field.as_ref().and_then(|id| json_object::field(source_members, id));
    let id = id.map(|id| json_object::as_string(id).unwrap_or_else(|| id.get().to_owned()));
    id.or_else(|| reader.location(source_members))
}

#[cfg(test)]
mod tests;
