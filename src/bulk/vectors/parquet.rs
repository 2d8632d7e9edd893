//! Reads the rows of a `.parquet` file: the column with lists of floats, the column with the model, and
//! the columns that may contain a row's path, URL or id.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use arrow_array::{
    Array, ArrayRef, ListArray, RecordBatch,
    cast::AsArray,
    types::{Float32Type, Float64Type, Int32Type, Int64Type},
};
use arrow_schema::DataType;
use parquet::{
    arrow::{
        ProjectionMask, arrow_reader::ParquetRecordBatchReader, parquet_to_arrow_field_levels,
    },
    errors::ParquetError,
    file::metadata::ParquetMetaDataReader,
};

use super::{Row, VectorsError, parquet_pages::CheckedRowGroups};
use crate::bulk::{
    item::{ItemReader, USUAL_FIELDS},
    json_object,
    numbers::{self, MAX_LENGTH},
};

/// How many rows are decoded at once.
const BATCH_ROWS: usize = 32;

/// The rows of a file.
pub(super) struct Parquet {
    batches: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    /// The position of the next row in `batch`.
    position: usize,
    /// The number of rows of the file that are not read yet.
    rows_left: u64,
    path: PathBuf,
    /// Used only for the names of the columns.
    item_reader: ItemReader,
}

impl Parquet {
    /// Reads the metadata.
    ///
    /// # Errors
    /// The file is not of this format, or has no column with vectors or with their model.
    pub(super) fn open(
        file: File,
        path: &Path,
        item_reader: &ItemReader,
    ) -> Result<Self, VectorsError> {
        let opened = without_panic(|| Self::open_or_panic(file, path, item_reader));
        opened.map_err(|detail| VectorsError::File { path: path.to_owned(), detail })
    }

    fn open_or_panic(file: File, path: &Path, item_reader: &ItemReader) -> Result<Self, String> {
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).map_err(unreadable)?;
        let schema = metadata.file_metadata().schema_descr();
        let columns = schema.root_schema().get_fields().iter().map(|field| field.name());
        let vector = item_reader.prefixed_name("vector");
        let model = item_reader.prefixed_name("model");
        for needed in [&vector, &model] {
            if !columns.clone().any(|name| name == needed) {
                return Err(format!("it has no column {needed}"));
            }
        }
        let is_wanted = |name: &str| {
            let mut chosen_fields =
                [&item_reader.id_field, &item_reader.location_field].into_iter().flatten();
            // Whether the column `name` may contain the field at this path: the column `images` may
            // contain `images.big.x`.
            let may_contain = |field_path: &str| {
                let rest = field_path.strip_prefix(name);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            [&vector, &model].contains(&&name.to_owned())
                || chosen_fields.any(|field_path| may_contain(field_path))
                || (item_reader.location_field.is_none() && USUAL_FIELDS.contains(&name))
        };
        let wanted = columns.enumerate().filter(|(_, name)| is_wanted(name)).map(|(at, _)| at);
        let mask = ProjectionMask::roots(schema, wanted);
        // The Arrow schema in the file's metadata is ignored, so lists of fixed and of variable length are
        // both read as lists of variable length.
        let levels =
            parquet_to_arrow_field_levels(schema, mask.clone(), None).map_err(unreadable)?;
        let row_groups = CheckedRowGroups::new(file, metadata, &mask).map_err(unreadable)?;
        let rows_left = row_groups.rows();
        let batches = ParquetRecordBatchReader::try_new_with_row_groups(
            &levels,
            &row_groups,
            BATCH_ROWS,
            None,
        );
        let (path, item_reader) = (path.to_owned(), item_reader.clone());
        let batches = batches.map_err(unreadable)?;
        Ok(Self { batches, batch: None, position: 0, rows_left, path, item_reader })
    }

    /// Reads the next row into `row`. Returns whether there was one. The caller has set `row.number`.
    ///
    /// # Errors
    /// The row has no usable model or vector, or the file is damaged.
    pub(super) fn next(&mut self, row: &mut Row) -> Result<bool, VectorsError> {
        without_panic(|| self.next_or_panic(row)).map_err(|detail| VectorsError::Row {
            path: self.path.clone(),
            place: format!("row {}", row.number),
            detail,
        })
    }

    fn next_or_panic(&mut self, row: &mut Row) -> Result<bool, String> {
        if self.batch.as_ref().is_none_or(|batch| self.position == batch.num_rows()) {
            self.position = 0;
            self.batch = match self.batches.next() {
                Some(batch) => Some(batch.map_err(unreadable)?),
                None if self.rows_left > 0 => {
                    return Err(format!("{} rows of the file are missing", self.rows_left));
                }
                None => return Ok(false),
            };
        }
        let Some(batch) = self.batch.as_ref().filter(|batch| batch.num_rows() > 0) else {
            return Err("the file is damaged: it contains an empty batch".into());
        };
        let columns = Columns { batch, at: self.position };
        row.model = columns.text(&self.item_reader.prefixed_name("model"));
        if row.model.is_none() {
            return Err("its model is not a text".into());
        }
        let id = self.item_reader.id_field.as_ref().and_then(|id| columns.field(id));
        row.label = id.or_else(|| columns.location(self.item_reader.location_field.as_deref()));
        columns.read_vector(&self.item_reader.prefixed_name("vector"), &mut row.vector)?;
        self.position += 1;
        let rows_left = self.rows_left.checked_sub(1);
        self.rows_left = rows_left.ok_or("it has more rows than its metadata declares")?;
        Ok(true)
    }
}

/// The values of the columns in one row.
struct Columns<'a> {
    batch: &'a RecordBatch,
    /// The position of the row in `batch`.
    at: usize,
}

impl Columns<'_> {
    /// The column with this name. `None` if it is missing, or null in this row.
    fn column(&self, name: &str) -> Option<&ArrayRef> {
        self.batch.column_by_name(name).filter(|column| column.is_valid(self.at))
    }

    /// The column's text or integer in this row, as text. `None` if it is null, or if the column is missing
    /// or has another type.
    fn text(&self, name: &str) -> Option<String> {
        let column = self.column(name)?;
        Some(match column.data_type() {
            DataType::Utf8 => column.as_string::<i32>().value(self.at).to_owned(),
            DataType::Int32 => column.as_primitive::<Int32Type>().value(self.at).to_string(),
            DataType::Int64 => column.as_primitive::<Int64Type>().value(self.at).to_string(),
            _ => return None,
        })
    }

    /// The text of the column named `field_path`, or else of a field in a column's JSON: `images.big.x` may
    /// be the field `big.x` in the column `images`.
    fn field(&self, field_path: &str) -> Option<String> {
        self.text(field_path).or_else(|| {
            field_path.match_indices('.').find_map(|(dot, _)| {
                let object = self.text(&field_path[..dot])?;
                let members = json_object::members(&object).ok()?;
                json_object::as_string(json_object::field(&members, &field_path[dot + 1..])?)
            })
        })
    }

    /// The picture's path or URL, unless it is missing or blank. `chosen_field` is the field that the user
    /// chose for it, if any.
    fn location(&self, chosen_field: Option<&str>) -> Option<String> {
        let is_not_blank = |text: &String| !text.trim().is_empty();
        match chosen_field {
            Some(field_path) => self.field(field_path).filter(is_not_blank),
            None => USUAL_FIELDS.iter().find_map(|name| self.field(name).filter(is_not_blank)),
        }
    }

    /// Reads a list of floats into `vector`.
    fn read_vector(&self, name: &str, vector: &mut Vec<f32>) -> Result<(), String> {
        vector.clear();
        // The column is not missing: `open` has checked that.
        let list = self.column(name).ok_or("the vector is null")?;
        let refuse = || {
            format!("its column {name} is of the type {}, not a list of floats", list.data_type())
        };
        let numbers = list.as_list_opt::<i32>().map(|list: &ListArray| list.value(self.at));
        let numbers = numbers.ok_or_else(refuse)?;
        if numbers.null_count() > 0 {
            return Err("the vector contains a null".into());
        }
        if numbers.len() > MAX_LENGTH {
            return Err(format!("the vector has more than {MAX_LENGTH} numbers"));
        }
        if let Some(numbers) = numbers.as_primitive_opt::<Float32Type>() {
            vector.extend_from_slice(numbers.values());
        } else if let Some(numbers) = numbers.as_primitive_opt::<Float64Type>() {
            vector.extend(numbers.values().iter().map(|number| *number as f32));
        } else {
            return Err(refuse());
        }
        numbers::check(vector)
    }
}

/// The error message for a file or row that the Parquet reader refuses.
fn unreadable(error: impl Into<ParquetError>) -> String {
    format!("it cannot be read as Parquet: {}", error.into())
}

/// Turns a panic into an error. The Parquet reader panics on some damaged files.
fn without_panic<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err("it cannot be read as Parquet: it is damaged".into()))
}

#[cfg(test)]
mod tests;
