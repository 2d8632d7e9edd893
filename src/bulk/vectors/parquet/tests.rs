//! Tests that read `.parquet` files: types of columns, labels, and damaged files.

use std::sync::Arc;

use arrow_array::{
    FixedSizeListArray, Float32Array, Int32Array, Int64Array, StringArray,
    builder::{Float32Builder, Float64Builder, ListBuilder},
};
use arrow_schema::Field;
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use proptest::prelude::*;

use crate::bulk::vectors::tests::{ReadRow, default_reader, read};

use super::*;

/// A file with these columns, in row groups of two rows.
fn file(columns: &[(&str, ArrayRef)]) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns.to_vec()).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// A column of texts.
fn texts(texts: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

/// The column of models.
fn models(rows: usize) -> ArrayRef {
    texts(&vec![Some("m"); rows])
}

/// A column of lists of fixed length, with the vectors `[0, 0.5]`, `[1, 1.5]` and so on.
fn fixed(rows: usize) -> ArrayRef {
    let numbers: Vec<_> = (0..rows * 2).map(|n| n as f32 / 2.0).collect();
    let field = Arc::new(Field::new("item", DataType::Float32, false));
    Arc::new(FixedSizeListArray::new(field, 2, Arc::new(Float32Array::from(numbers)), None))
}

/// A column with these vectors, as lists of variable length.
fn list_of_floats(rows: &[&[f32]]) -> ArrayRef {
    let mut list = ListBuilder::new(Float32Builder::new());
    for row in rows {
        list.append_value(row.iter().copied().map(Some));
    }
    Arc::new(list.finish())
}

/// A file with five rows, in three row groups.
fn small_file() -> Vec<u8> {
    file(&[
        ("path", texts(&[Some("a"), Some("b"), Some("c"), Some("d"), Some("e")])),
        ("model", models(5)),
        ("vector", fixed(5)),
    ])
}

/// Reads a file with these bytes.
fn rows_of(bytes: Vec<u8>, reader: &ItemReader) -> Result<Vec<ReadRow>, String> {
    read("v.parquet", bytes, reader)
}

#[test]
fn lists_of_fixed_and_of_variable_length_are_read_with_floats_of_both_sizes() {
    let mut doubles = ListBuilder::new(Float64Builder::new());
    for row in 0..5 {
        doubles.append_value([f64::from(row), f64::from(row) + 0.5].map(Some));
    }
    let singles: Vec<_> = (0..5_u8).map(|n| [f32::from(n), f32::from(n) + 0.5]).collect();
    let singles: Vec<&[f32]> = singles.iter().map(|row| &row[..]).collect();
    let expected: Vec<_> = (1..)
        .zip(["a", "b", "c", "d", "e"])
        .map(|(n, path)| {
            let first = n as f32 - 1.0;
            (n, Some(path.to_owned()), vec![first, first + 0.5])
        })
        .collect();
    for vectors in [fixed(5), list_of_floats(&singles), Arc::new(doubles.finish()) as ArrayRef] {
        let bytes = file(&[
            ("path", texts(&[Some("a"), Some("b"), Some("c"), Some("d"), Some("e")])),
            ("model", models(5)),
            ("vector", vectors),
        ]);
        assert_eq!(rows_of(bytes, &default_reader()).unwrap(), expected);
    }
}

#[test]
fn more_rows_than_one_batch_are_read() {
    let rows = 3 * BATCH_ROWS + 1;
    let bytes = file(&[("model", models(rows)), ("vector", fixed(rows))]);
    let read = rows_of(bytes, &default_reader()).unwrap();
    assert_eq!(read.len(), rows);
    assert!(read.iter().zip(0_u16..).all(|((_, _, vector), n)| vector[0] == f32::from(n)));
}

#[test]
fn the_label_of_a_row_is_its_id_or_else_its_path_or_url() {
    let bytes = file(&[
        ("url", texts(&[Some("http://a"), None, Some(" ")])),
        ("file", texts(&[Some("f1"), Some("f2"), None])),
        ("n", Arc::new(Int64Array::from(vec![Some(7), None, Some(-9)]))),
        ("images", texts(&[Some(r#"{"big": {"x": "y"}}"#), Some("no json"), None])),
        ("model", models(3)),
        ("vector", fixed(3)),
    ]);
    for (field, id, expected) in [
        // Of the usual fields, `url` is preferred to `file`. The blank URL does not count.
        (None, None, [Some("http://a"), Some("f2"), None]),
        // The id is preferred. The second row has no id.
        (None, Some("n"), [Some("7"), Some("f2"), Some("-9")]),
        // With `--field`, only this field is the path or URL. Here it is in the JSON of a column.
        (Some("images.big.x"), None, [Some("y"), None, None]),
        // No row has the field for the id.
        (Some("file"), Some("missing"), [Some("f1"), Some("f2"), None]),
    ] {
        let [field, id] = [field, id].map(|name: Option<&str>| name.map(str::to_owned));
        let rows = rows_of(
            bytes.clone(),
            &ItemReader { location_field: field, id_field: id, ..default_reader() },
        )
        .unwrap();
        let labels: Vec<_> = rows.iter().map(|(_, label, _)| label.as_deref()).collect();
        assert_eq!(labels, expected);
    }
}

#[test]
fn the_columns_of_models_and_vectors_are_found_by_their_names_with_the_prefix() {
    let prefixed = file(&[("p_model", models(1)), ("p_vector", fixed(1))]);
    assert!(rows_of(prefixed, &ItemReader { prefix: "p_".into(), ..default_reader() }).is_ok());
}

#[test]
fn a_file_without_usable_models_or_vectors_is_refused_with_the_reason() {
    let numbers = || Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef;
    let mut with_null = ListBuilder::new(Float32Builder::new());
    with_null.append_value([Some(1.0), None]);
    with_null.append_null();
    let with_null = Arc::new(with_null.finish()) as ArrayRef;
    for (columns, reason) in [
        (vec![("vector", fixed(2))], "it has no column model"),
        (vec![("model", models(2))], "it has no column vector"),
        (vec![("model", texts(&[None, None])), ("vector", fixed(2))], "row 1: its model is not a"),
        (vec![("model", models(2)), ("vector", numbers())], "is of the type Int32, not a list"),
        (vec![("model", models(2)), ("vector", models(2))], "is of the type Utf8, not a list"),
        (
            vec![("model", models(2)), ("vector", with_null.clone())],
            "row 1: the vector contains a null",
        ),
        (
            vec![("model", models(1)), ("vector", with_null.slice(1, 1))],
            "row 1: the vector is null",
        ),
        (
            vec![("model", models(2)), ("vector", list_of_floats(&[&[], &[]]))],
            "the vector is empty",
        ),
        (
            vec![("model", models(2)), ("vector", list_of_floats(&[&[1.0], &[f32::NAN]]))],
            "row 2: the vector contains a number that is infinite or NaN",
        ),
        (vec![("model", models(0)), ("vector", fixed(0))], "it contains no vectors"),
    ] {
        let error = rows_of(file(&columns), &default_reader()).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn an_incomplete_file_is_refused_wherever_it_ends() {
    let complete = small_file();
    for end in 0..complete.len() {
        let error = rows_of(complete[..end].to_vec(), &default_reader()).unwrap_err();
        // The file is refused before its first row is read. Errors of a row begin with `v.parquet, row`.
        assert!(error.starts_with("v.parquet: "), "the file ended at {end}: {error}");
    }
}

#[test]
fn a_changed_byte_causes_no_panic_and_many_changes_are_refused() {
    let original = small_file();
    let mut errors = Vec::new();
    for at in 0..original.len() {
        for change in [0x01, 0x02, 0x40, 0x80, 0xff] {
            let mut bytes = original.clone();
            bytes[at] ^= change;
            errors.extend(rows_of(bytes, &default_reader()).err());
        }
    }
    // Of the five changes of a byte, more than one is noticed on average.
    assert!(errors.len() > original.len(), "only {} changes were noticed", errors.len());
    // One of the changes declares another compression.
    assert!(errors.iter().any(|error| error.contains("its pages are compressed by SNAPPY")));
}

#[test]
fn a_panic_of_the_reader_becomes_an_error() {
    let error = without_panic::<()>(|| panic!("a panic of the test")).unwrap_err();
    assert!(error.contains("damaged"), "{error}");
}

proptest! {
    #[test]
    fn a_file_with_changed_bytes_is_refused_or_its_numbers_are_finite(
        changes in prop::collection::vec((0..10_000_usize, any::<u8>()), 2..9),
    ) {
        let mut bytes = small_file();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(rows) = rows_of(bytes, &default_reader()) {
            prop_assert!(rows.iter().all(|(_, _, vector)| vector.iter().all(|n| n.is_finite())));
        }
    }
}
