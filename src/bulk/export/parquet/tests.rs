//! Tests that make Parquet files, and read them.

use std::fs;

use arrow_array::{
    Array,
    cast::AsArray,
    types::{Float32Type, Int32Type},
};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::super::tests::{ABOVE_MIDDLE_OF_TWO_F32, RowsFolder, row, row_of};
use super::*;
use crate::config::ExportFormat;

/// Makes a Parquet file of the rows, and opens it.
fn open(rows: &RowsFolder) -> ParquetRecordBatchReaderBuilder<File> {
    rows.make(ExportFormat::Parquet).unwrap();
    ParquetRecordBatchReaderBuilder::try_new(File::open(rows.path("out.file")).unwrap()).unwrap()
}

/// Makes a Parquet file of the rows, and reads all of its rows.
fn read(rows: &RowsFolder) -> RecordBatch {
    let reader: ParquetRecordBatchReader = open(rows).with_batch_size(1 << 20).build().unwrap();
    let batches: Vec<_> = reader.map(Result::unwrap).collect();
    let [batch] = &batches[..] else { panic!("{} batches", batches.len()) };
    batch.clone()
}

/// The texts in a column.
fn column(batch: &RecordBatch, name: &str) -> Vec<Option<String>> {
    let column = batch.column_by_name(name).unwrap().as_string::<i32>();
    column.iter().map(|text| text.map(ToOwned::to_owned)).collect()
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

#[test]
fn fields_of_the_source_become_text_columns_in_the_order_in_which_they_first_occur() {
    // The last row has `b` twice. The last value counts.
    let text = [
        row_of(r#"{"b": 1.50, "b.c": null, "": true}"#, "1,2"),
        row_of("{}", "3,4"),
        row_of(r#"{"a": {"n": [1]}, "b": "x", "b": "Gr\u00fc\u00df \"e\""}"#, "5,6"),
    ];
    let batch = read(&RowsFolder::new(&text.concat()));
    let schema = batch.schema();
    let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let added = ["sha256", "model", "prepared", "width", "height", "vector"];
    assert_eq!(names, [&["b", "b.c", "", "a"][..], &added].concat());
    assert_eq!(column(&batch, "b"), [Some("1.50".into()), None, Some("Grüß \"e\"".into())]);
    assert_eq!(column(&batch, "b.c"), [None, None, None]);
    assert_eq!(column(&batch, ""), [Some("true".into()), None, None]);
    assert_eq!(column(&batch, "a"), [None, None, Some(r#"{"n": [1]}"#.into())]);
    assert_eq!(column(&batch, "prepared"), some(&["jpeg", "jpeg", "jpeg"]));
}

#[test]
fn sizes_are_stored_as_integers_and_vectors_as_the_nearest_f32_of_each_number() {
    let (number, nearest_f32) = ABOVE_MIDDLE_OF_TWO_F32;
    let text = row(&format!("{number},-1e-3")) + &row("3,4");
    let batch = read(&RowsFolder::new(&text));
    let size = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int32Type>();
    // `row` makes rows with the width 3 and the height 2.
    assert_eq!(size("width").values()[..], [3, 3]);
    assert_eq!(size("height").values()[..], [2, 2]);
    let vectors = batch.column_by_name("vector").unwrap();
    let element = Field::new("element", DataType::Float32, false);
    assert_eq!(*vectors.data_type(), DataType::FixedSizeList(Arc::new(element), 2));
    let numbers = vectors.as_fixed_size_list().values().as_primitive::<Float32Type>().values();
    assert_eq!(numbers[..], [nearest_f32, -0.001, 3.0, 4.0]);
}

#[test]
fn a_prefix_separates_added_fields_from_those_of_the_source_with_the_same_names() {
    let object = r#"{"vector": [7], "sha256": "from the source"}"#;
    let added = r#""d_sha256":"ab","d_model":"m","d_prepared":"jpeg","d_width":3,"d_height":2,"d_vector":[1]"#;
    let text = json_object::append(object, added) + "\n";
    let batch = read(&RowsFolder::new(&text).prefixed("d_"));
    assert_eq!(column(&batch, "vector"), some(&["[7]"]));
    assert_eq!(
        (column(&batch, "sha256"), column(&batch, "d_sha256")),
        (some(&["from the source"]), some(&["ab"]))
    );
    assert_eq!(batch.column_by_name("d_vector").unwrap().as_fixed_size_list().value_length(), 1);
}

#[test]
fn a_file_without_rows_declares_vectors_of_the_length_that_the_model_has() {
    let file = open(&RowsFolder::new(""));
    assert_eq!(file.metadata().file_metadata().num_rows(), 0);
    let vector = file.schema().field_with_name("vector").unwrap();
    assert!(matches!(vector.data_type(), DataType::FixedSizeList(_, 1536)));
}

#[test]
fn a_row_group_has_a_limited_number_of_rows_and_of_bytes() {
    let many = (0..MAX_GROUP_ROWS + 10).map(|n| row(&n.to_string())).collect::<String>();
    let file = open(&RowsFolder::new(&many));
    let row_groups = file.metadata().row_groups();
    let row_counts: Vec<_> = row_groups.iter().map(|group| group.num_rows()).collect();
    assert_eq!(row_counts, [MAX_GROUP_ROWS as i64, 10]);

    // 23 rows with texts of 3 MiB are more than two groups of 32 MiB (`MAX_GROUP_BYTES`).
    const TEXT_BYTES: usize = 3 << 20;
    let text = |n: usize| format!("{n}{}", "a".repeat(TEXT_BYTES));
    let large = |n| row_of(&format!("{{\"a\": \"{}\"}}", text(n)), "1");
    let rows = RowsFolder::new(&(0..23).map(large).collect::<String>());
    let file = open(&rows);
    let sizes: Vec<_> =
        file.metadata().row_groups().iter().map(|group| group.total_byte_size() as usize).collect();
    assert!(sizes.len() >= 3, "{sizes:?}");
    // A batch is full at 4 MiB (`MAX_BATCH_BYTES`), so it has at most two texts. A group ends with the
    // batch that fills it.
    assert!(sizes.iter().all(|size| *size <= MAX_GROUP_BYTES + 2 * TEXT_BYTES), "{sizes:?}");
    let texts = column(&read(&rows), "a");
    assert!(texts.iter().enumerate().all(|(n, found)| found.as_deref() == Some(&text(n))));
}

#[test]
fn a_field_of_the_wrong_type_and_a_row_with_too_many_fields_are_errors() {
    let good = row("1");
    for (line, message) in [
        (good.replace(r#""model":"m""#, r#""model":[1]"#), "line 2: [1] is not a text"),
        (good.replace(r#""width":3"#, r#""width":3.5"#), "line 2: 3.5 is not a size in pixels"),
    ] {
        let rows = RowsFolder::new(&(good.clone() + &line));
        assert_eq!(rows.make(ExportFormat::Parquet).unwrap_err(), message);
    }
    // One field more than the 1000 that are allowed.
    let members: Vec<_> = (0..1001).map(|n| format!("\"{n}\": 1")).collect();
    let rows = RowsFolder::new(&row_of(&format!("{{{}}}", members.join(",")), "1"));
    let error = rows.make(ExportFormat::Parquet).unwrap_err();
    assert!(error.contains("more than 1000 different fields"), "{error}");
    // The file with the rows still exists, and no Parquet file was made.
    assert!(
        fs::exists(rows.path("out.jsonl")).unwrap() && !fs::exists(rows.path("out.file")).unwrap()
    );
}
