//! Writes a Parquet file. The fields that a row has from its source become columns of texts. The columns of
//! the fields that `embed` adds have the types of their values.
//!
//! A row group stays in memory until it is complete, so its rows and its bytes are limited. Nothing is
//! compressed: a vector is hardly compressible, and each codec would make the program larger.

use std::{fs::File, io, mem, sync::Arc};

use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, Int32Array, RecordBatch, builder::StringBuilder,
};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Schema, SchemaRef};
use parquet::{
    arrow::ArrowWriter,
    errors::ParquetError,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

use super::{
    super::{
        item::{ADDED_FIELDS, ItemReader},
        json_object,
    },
    ExportError,
    columns::Columns,
    rows::{Line, RowFile},
};
use crate::nvidia::DIMENSIONS;

/// The most rows of a row group.
const MAX_GROUP_ROWS: usize = 8192;

/// A row group with this many bytes is full: about 5,000 of NVIDIA's vectors.
const MAX_GROUP_BYTES: usize = 32 << 20;

/// The most rows that are encoded at once.
const MAX_BATCH_ROWS: usize = 256;

/// A batch with this many bytes of text is full.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// The name of the field for a list's numbers, by Parquet's specification.
const ELEMENT: &str = "element";

/// Writes the file. Returns the number of rows.
///
/// # Errors
/// A row that does not fit in the columns, or the system's error.
pub(super) fn write(rows: &RowFile<'_>, file: &File) -> Result<u64, ExportError> {
    // The columns must be known before the first row is written, so the rows are read twice.
    let (mut columns, mut first_length) = (Columns::default(), None);
    rows.for_each(|line| {
        // Only the first vector is parsed here, for its length.
        if first_length.is_none() {
            line.append_vector(&mut first_length, &mut Vec::new())?;
        }
        columns.add_all(&line.row.source_members)
    })?;
    // Without rows, this is the length of NVIDIA's vectors.
    let vector_length = first_length.unwrap_or(DIMENSIONS);
    let list_length = i32::try_from(vector_length).map_err(|_| {
        ExportError::Columns(format!("vectors of {vector_length} numbers are too long for Parquet"))
    })?;
    let schema = schema(&columns, list_length, rows.reader);
    let properties = properties(rows.reader);
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))?;
    let mut batch = Batch::new(columns, schema);
    let count = rows.for_each(|line| {
        batch.add(&line, vector_length)?;
        rows.advance_progress();
        if batch.is_full() { Ok(writer.write(&batch.take(list_length)?)?) } else { Ok(()) }
    })?;
    writer.write(&batch.take(list_length)?)?;
    writer.close()?;
    Ok(count)
}

fn schema(columns: &Columns, list_length: i32, reader: &ItemReader) -> SchemaRef {
    let of_source = columns.names.iter().map(|name| Field::new(name, DataType::Utf8, true));
    let [sha256, model, prepared, width, height, vector] =
        ADDED_FIELDS.map(|field| reader.prefixed_name(field));
    let texts = [sha256, model, prepared].map(|name| Field::new(name, DataType::Utf8, false));
    let sizes = [width, height].map(|name| Field::new(name, DataType::Int32, false));
    let list = DataType::FixedSizeList(element(), list_length);
    let vector = Field::new(vector, list, false);
    let fields: Vec<_> = of_source.chain(texts).chain(sizes).chain([vector]).collect();
    Arc::new(Schema::new(fields))
}

/// The field for a vector's numbers.
fn element() -> FieldRef {
    Arc::new(Field::new(ELEMENT, DataType::Float32, false))
}

/// How the columns are encoded. Dictionaries help only with repeated values, and the numbers of vectors
/// and the hashes are hardly ever repeated. Statistics are useless for the numbers of vectors.
fn properties(reader: &ItemReader) -> WriterProperties {
    let [sha256, .., vector] = ADDED_FIELDS.map(|field| reader.prefixed_name(field));
    let sha256 = ColumnPath::new(vec![sha256]);
    let vector = ColumnPath::new(vec![vector, "list".into(), ELEMENT.into()]);
    WriterProperties::builder()
        .set_max_row_group_row_count(Some(MAX_GROUP_ROWS))
        .set_max_row_group_bytes(Some(MAX_GROUP_BYTES))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_column_dictionary_enabled(sha256, false)
        .set_column_dictionary_enabled(vector.clone(), false)
        .set_column_statistics_enabled(vector, EnabledStatistics::None)
        .build()
}

/// Rows that are encoded together.
struct Batch {
    columns: Columns,
    schema: SchemaRef,
    /// A builder for each column with a field of the source.
    of_source: Vec<StringBuilder>,
    /// `sha256`, `model` and `prepared`.
    texts: [StringBuilder; 3],
    /// `width` and `height`.
    sizes: [Vec<i32>; 2],
    /// The numbers of all vectors.
    vectors: Vec<f32>,
    rows: usize,
    /// The length of all texts, in bytes.
    bytes: usize,
}

impl Batch {
    fn new(columns: Columns, schema: SchemaRef) -> Self {
        Self {
            of_source: columns.names.iter().map(|_| StringBuilder::new()).collect(),
            columns,
            schema,
            texts: Default::default(),
            sizes: Default::default(),
            vectors: Vec::new(),
            rows: 0,
            bytes: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.rows >= MAX_BATCH_ROWS || self.bytes >= MAX_BATCH_BYTES
    }

    /// Adds a row, whose vector must have this length.
    fn add(&mut self, line: &Line<'_>, vector_length: usize) -> Result<(), ExportError> {
        let [sha256, model, prepared, width, height] = line.added_values()?;
        let cells = self.columns.cells(&line.row.source_members);
        let cells = cells.map_err(|detail| line.error(detail))?;
        for (builder, cell) in self.of_source.iter_mut().zip(cells) {
            self.bytes += cell.as_ref().map_or(0, |text| text.len());
            builder.append_option(cell);
        }
        for (builder, value) in self.texts.iter_mut().zip([sha256, model, prepared]) {
            let text = json_object::as_string(value);
            let text = text.ok_or_else(|| line.error(format!("{value} is not a text")))?;
            self.bytes += text.len();
            builder.append_value(text);
        }
        for (sizes, value) in self.sizes.iter_mut().zip([width, height]) {
            let size = value.get().parse();
            sizes.push(size.map_err(|_| line.error(format!("{value} is not a size in pixels")))?);
        }
        line.append_vector(&mut Some(vector_length), &mut self.vectors)?;
        self.rows += 1;
        Ok(())
    }

    /// Takes all rows out of the batch, and leaves it empty.
    fn take(&mut self, list_length: i32) -> Result<RecordBatch, ExportError> {
        let texts = self.of_source.iter_mut().chain(&mut self.texts);
        let mut arrays: Vec<_> =
            texts.map(|builder| Arc::new(builder.finish()) as ArrayRef).collect();
        for sizes in &mut self.sizes {
            arrays.push(Arc::new(Int32Array::from(mem::take(sizes))));
        }
        let numbers = Arc::new(Float32Array::from(mem::take(&mut self.vectors)));
        arrays.push(Arc::new(FixedSizeListArray::try_new(element(), list_length, numbers, None)?));
        (self.rows, self.bytes) = (0, 0);
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), arrays)?)
    }
}

impl From<ParquetError> for ExportError {
    fn from(error: ParquetError) -> Self {
        match error {
            // The library wraps the system's errors in this variant.
            ParquetError::External(error) => match error.downcast::<io::Error>() {
                Ok(error) => Self::Io(*error),
                Err(error) => Self::Parquet(ParquetError::External(error)),
            },
            other => Self::Parquet(other),
        }
    }
}

impl From<ArrowError> for ExportError {
    fn from(error: ArrowError) -> Self {
        ParquetError::from(error).into()
    }
}

#[cfg(test)]
mod tests;
