//! Reads the labels ([`Row::label`]) for a file that contains only vectors, from the `.jsonl` file beside it.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{Row, VectorsError, json_lines::JsonLines};
use crate::bulk::item::ItemReader;

/// The labels of the wanted rows: those whose numbers were passed to [`Labels::beside`].
#[derive(Debug)]
pub(in crate::bulk) struct Labels {
    /// The file from which the labels were read.
    pub path: PathBuf,
    /// The number of all rows in that file.
    pub row_count: u64,
    /// The models of the wanted rows. Empty if the file has no wanted row.
    pub models: BTreeSet<String>,
    /// The labels by the numbers of their rows, from 1. A row that has no label is not stored.
    pub by_row: HashMap<u64, String>,
}

impl Labels {
    /// Reads the labels of the rows with these numbers from the `.jsonl` file beside `path`. Returns
    /// `None` if there is no such file. Blocks the thread.
    ///
    /// # Errors
    /// The file cannot be read, or a wanted row is malformed.
    pub(in crate::bulk) fn beside(
        path: &Path,
        reader: &ItemReader,
        wanted: &[u64],
    ) -> Result<Option<Self>, VectorsError> {
        let path = path.with_extension("jsonl");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(VectorsError::Io(path, error)),
        };
        let mut lines = JsonLines::new(file, &path, reader.clone());
        let mut labels =
            Self { path, row_count: 0, models: BTreeSet::new(), by_row: HashMap::new() };
        let mut row = Row::default();
        while lines.next_line()? {
            labels.row_count += 1;
            let row_number = labels.row_count;
            if wanted.contains(&row_number) {
                lines.parse_without_vector(&mut row)?;
                labels.by_row.extend(row.label.take().map(|label| (row_number, label)));
                labels.models.extend(row.model.take());
            }
        }
        Ok(Some(labels))
    }
}
