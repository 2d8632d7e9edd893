//! Tests that read files in the formats `.jsonl` and `.npy`, and tests of what all formats have in
//! common.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::bulk::{json_object::append, numbers::MAX_LENGTH};

/// A row as the tests compare it: its number, its label and its vector.
pub(super) type ReadRow = (u64, Option<String>, Vec<f32>);

/// The reader without `--field`, `--id` and `--prefix`: a row's label is its path or URL, and the added
/// fields have no prefix.
pub(super) fn default_reader() -> ItemReader {
    ItemReader { location_field: None, id_field: None, prefix: String::new() }
}

/// Writes a file with this name, and reads all its rows. The text of an error begins with this name.
pub(super) fn read(
    name: &str,
    bytes: impl AsRef<[u8]>,
    reader: &ItemReader,
) -> Result<Vec<ReadRow>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    read_all(&path, reader).map_err(|error| {
        let text = error.to_string();
        let folder = format!("{}/", folder.path().display());
        assert!(text.starts_with(&folder), "the error must name the file: {text}");
        text.replace(&folder, "")
    })
}

fn read_all(path: &Path, reader: &ItemReader) -> Result<Vec<ReadRow>, VectorsError> {
    let mut file = VectorFile::open(path, reader)?;
    let (mut rows, mut row) = (Vec::new(), Row::default());
    while file.next(&mut row)? {
        rows.push((row.number, row.label.take(), row.vector.clone()));
    }
    Ok(rows)
}

/// The fields that `embed` adds to a row.
fn added_fields(vector: &str) -> String {
    format!(
        r#""sha256":"ab","model":"m","prepared":"original","width":1,"height":1,"vector":[{vector}]"#
    )
}

/// The line that `embed` writes for an object of the source.
fn line(object: &str, vector: &str) -> String {
    append(object, &added_fields(vector)) + "\n"
}

/// A `.npy` file of version 1. `shape` is the number of rows and the length of a row as Python's text,
/// such as `(3, 2)`. `numbers` are the numbers of the first row, then of the second, and so on.
fn npy(shape: &str, numbers: &[f32]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let mut bytes = npy_with_header(1, &header);
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes
}

/// A `.npy` file of this version, without numbers. Spaces after the header make a file of version 1 as
/// long as NumPy makes it: 128 bytes.
fn npy_with_header(version: u8, header: &str) -> Vec<u8> {
    let text = format!("{header:<117}\n");
    let length = text.len() as u32;
    let length = &length.to_le_bytes()[..if version == 1 { 2 } else { 4 }];
    [&b"\x93NUMPY"[..], &[version, 0], length, text.as_bytes()].concat()
}

#[test]
fn the_label_of_a_row_of_a_jsonl_file_is_its_id_or_else_its_path_or_url() {
    let text = [
        line(r#"{"path":"a.jpg"}"#, "1,2"),
        line(r#"{"url": "http://h/b", "n": 7, "x": {"y": "z"}}"#, "-0.5, 1e2"),
        line(r#"{"n": [7]}"#, "3,4"),
    ]
    .concat();
    let label = |text: &str| Some(text.to_owned());
    let vectors = [vec![1.0, 2.0], vec![-0.5, 100.0], vec![3.0, 4.0]];
    for (reader, labels) in [
        // Without `--id`, the label is the path or URL. The third row has none.
        (default_reader(), [label("a.jpg"), label("http://h/b"), None]),
        // The value of the field `n` is preferred to the URL. Without `n`, the path is the label.
        (
            ItemReader { id_field: Some("n".into()), ..default_reader() },
            [label("a.jpg"), label("7"), label("[7]")],
        ),
        // With `--field`, only this field is the path or URL.
        (
            ItemReader { location_field: Some("x.y".into()), ..default_reader() },
            [None, label("z"), None],
        ),
    ] {
        let numbered = (1..).zip(labels).zip(vectors.clone());
        let expected: Vec<_> = numbered.map(|((n, label), vector)| (n, label, vector)).collect();
        assert_eq!(read("v.jsonl", &text, &reader).unwrap(), expected);
    }
    // The names of the added fields may have a prefix. Of these fields, only `vector`, `sha256` and
    // `model` are read, so only they get the prefix here.
    let prefixed = text.replace("\"vector\"", "\"p_vector\"").replace("\"sha256\"", "\"p_sha256\"");
    let prefixed = prefixed.replace("\"model\"", "\"p_model\"");
    let reader = ItemReader { prefix: "p_".into(), ..default_reader() };
    assert_eq!(read("v.jsonl", prefixed, &reader).unwrap().len(), 3);
}

#[test]
fn an_incomplete_last_line_is_ignored_wherever_it_ends() {
    let text = [line(r#"{"path":"a"}"#, "1,2"), line(r#"{"path":"b"}"#, "3,4")].concat();
    for end in 0..=text.len() {
        let complete_lines = text[..end].matches('\n').count();
        match read("v.jsonl", &text[..end], &default_reader()) {
            Ok(rows) => assert_eq!(rows.len(), complete_lines, "the text ended at {end}"),
            Err(error) => {
                assert_eq!(complete_lines, 0);
                assert_eq!(error, "v.jsonl: it contains no vectors");
            }
        }
    }
}

#[test]
fn the_error_of_a_line_that_embed_has_not_written_contains_the_line_number() {
    let good = line(r#"{"path":"a"}"#, "1,2");
    // A line of 65 MiB. The limit is 64 MiB.
    let long = format!("{{\"path\":\"{}\"}}\n", "x".repeat(65 << 20));
    for (bad, reason) in [
        ("\n".into(), "does not end with a vector"),
        ("{}\n".into(), "does not end with a vector"),
        ("text\n".into(), "does not end with a vector"),
        ("{\"vector\":[1,2]}\n".into(), "it has no sha256"),
        ("[1]}\n".into(), "this is not a row"),
        (good.replace("\"vector\"", "\"other\""), "it has no vector"),
        (good.replace("\"model\":\"m\",", ""), "it has no model"),
        (good.replace("\"m\"", "null"), "its model is not a text"),
        // The text from the value of the field `vector` to the end of the row counts as the vector.
        (good.replace("[1,2]", "[1,2],\"x\":[3]"), "not a list of numbers"),
        (good.replace("\"vector\":", "\"vector\":7,\"x\":"), "not a list of numbers"),
        (good.replace("[1,2]", "[[1,2]]"), "not a list of numbers"),
        (good.replace("[1,2]", "[1,null]"), "not a list of numbers"),
        (good.replace("[1,2]", "[1,\"2\"]"), "not a list of numbers"),
        (good.replace("[1,2]", "[1,2"), "does not end with a vector"),
        (good.replace("[1,2]", "[]"), "the vector is empty"),
        (good.replace("[1,2]", "[1,1e39]"), "infinite"),
        (good.replace("[1,2]", "[1,1e999]"), "infinite"),
        (good.replace("[1,2]", "[1,NaN]"), "not a list of numbers"),
        (format!("{{\u{1}{}", &good[1..]), "this is not a row"),
        (long, "longer than any row"),
    ] {
        let error = read("v.jsonl", format!("{good}{bad}{good}"), &default_reader()).unwrap_err();
        assert!(error.starts_with("v.jsonl, line 2: "), "{bad:.99}: {error}");
        assert!(error.contains(reason), "{bad:.99}: {error}");
    }
    let not_utf8 = [good.as_bytes(), b"{\"path\":\"\xff\",", &good.as_bytes()[1..]].concat();
    assert!(read("v.jsonl", not_utf8, &default_reader()).unwrap_err().contains("line 2: "));
    let too_many_numbers = line("{}", &vec!["0"; MAX_LENGTH + 1].join(","));
    let error = read("v.jsonl", too_many_numbers, &default_reader()).unwrap_err();
    assert!(error.contains("more than 1048576 numbers"), "{error}");
}

#[test]
fn a_npy_file_of_each_version_is_read() {
    for version in 1..=3 {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        let mut bytes = npy_with_header(version, header);
        bytes.extend([1.0_f32, 2.0, 3.0, 4.0, 5.0, -6.5].iter().flat_map(|n| n.to_le_bytes()));
        let expected = [(1, None, vec![1.0, 2.0, 3.0]), (2, None, vec![4.0, 5.0, -6.5])];
        assert_eq!(read("v.npy", bytes, &default_reader()).unwrap(), expected);
    }
}

#[test]
fn a_npy_file_without_rows_or_with_another_length_than_it_declares_is_refused() {
    let complete = npy("(3, 2)", &[1.0; 6]);
    for end in 0..complete.len() {
        let error = read("v.npy", &complete[..end], &default_reader()).unwrap_err();
        // The error names no row: the file is refused before its first row is read.
        assert!(error.starts_with("v.npy: "), "the file ended at {end}: {error}");
    }
    let short = read("v.npy", &complete[..complete.len() - 1], &default_reader()).unwrap_err();
    assert!(short.contains("declares 3 rows, but only 2 follow"), "{short}");
    let long = read("v.npy", [&complete[..], b"x"].concat(), &default_reader()).unwrap_err();
    assert!(long.contains("1 bytes follow the 3 rows"), "{long}");
    assert!(
        read("v.npy", npy("(0, 2)", &[]), &default_reader()).unwrap_err().contains("no vectors")
    );
}

#[test]
fn a_npy_file_that_declares_impossible_sizes_is_refused() {
    // Each shape has rows that are too long, or needs more than the four numbers in the file.
    for shape in [
        "(1, 18446744073709551615)",
        "(18446744073709551615, 1)",
        "(4611686018427387904, 4)",
        "(1, 1048577)",
        "(1099511627776, 1048576)",
    ] {
        let error = read("v.npy", npy(shape, &[1.0; 4]), &default_reader()).unwrap_err();
        // Either "its rows have" too many numbers, or "its header declares" too many rows.
        assert!(error.starts_with("v.npy: its "), "{shape}: {error}");
    }
    let header = [b"\x93NUMPY\x02\x00", &u32::MAX.to_le_bytes()[..], b"{"].concat();
    assert!(
        read("v.npy", header, &default_reader()).unwrap_err().contains("incomplete or too long")
    );
}

#[test]
fn extreme_numbers_are_read_and_the_error_of_one_that_is_not_finite_contains_the_row_number() {
    for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error =
            read("v.npy", npy("(2, 2)", &[1.0, 2.0, 3.0, number]), &default_reader()).unwrap_err();
        assert!(error.starts_with("v.npy, row 2: the vector contains a number that is"), "{error}");
    }
    let extreme = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0];
    assert_eq!(read("v.npy", npy("(1, 4)", &extreme), &default_reader()).unwrap()[0].2, extreme);
}

#[test]
fn a_folder_a_missing_file_and_an_empty_file_are_errors() {
    let folder = TempDir::new().unwrap();
    for name in ["v.jsonl", "v.npy", "v.parquet"] {
        let path = folder.path().join(name);
        assert!(read_all(&path, &default_reader()).is_err());
        fs::create_dir(&path).unwrap();
        let error = read_all(&path, &default_reader()).unwrap_err().to_string();
        assert!(error.ends_with("it is not a regular file"), "{error}");
        assert!(read(name, "", &default_reader()).is_err());
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn without_the_feature_a_parquet_file_is_refused_with_the_reason() {
    let error = read("v.parquet", "PAR1", &default_reader()).unwrap_err();
    assert!(error.contains("built without the feature `parquet`"), "{error}");
}

#[test]
fn labels_and_models_of_wanted_rows_come_from_the_jsonl_file_beside_the_vectors() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("v.npy");
    assert!(Labels::beside(&path, &default_reader(), &[1]).unwrap().is_none());
    let lines = (1..=4).map(|n| line(&format!("{{\"path\":\"{n}\"}}"), "1,2"));
    let text = lines.collect::<String>() + "{\"path\":\"incomplete";
    // Row 1, which is not wanted, and row 2 have other models.
    let text = text.replacen("\"model\":\"m\"", "\"model\":\"unwanted\"", 1);
    let text = text.replacen("\"model\":\"m\"", "\"model\":\"other\"", 1);
    fs::write(folder.path().join("v.jsonl"), text).unwrap();
    // There is no row 9, and the incomplete fifth line does not count as a row.
    let labels = Labels::beside(&path, &default_reader(), &[4, 2, 9]).unwrap().unwrap();
    assert_eq!(labels.row_count, 4);
    assert_eq!(labels.models, BTreeSet::from(["m".into(), "other".into()]));
    let mut found: Vec<_> = labels.by_row.into_iter().collect();
    found.sort();
    assert_eq!(found, [(2, "2".into()), (4, "4".into())]);
}

proptest! {
    #[test]
    fn no_file_makes_reading_panic(bytes: Vec<u8>, kind in 0..3_usize) {
        let name = ["v.jsonl", "v.npy", "v.parquet"][kind];
        let _ = read(name, bytes, &default_reader());
    }

    #[test]
    fn a_damaged_file_is_refused_or_its_numbers_are_finite(
        is_npy: bool,
        changes in prop::collection::vec((0..10_000_usize, any::<u8>()), 1..6),
    ) {
        let jsonl = [line(r#"{"path":"a"}"#, "1,2"), line(r#"{"path":"b"}"#, "3,4")].concat();
        let (name, mut bytes) = match is_npy {
            true => ("v.npy", npy("(3, 2)", &[1.0; 6])),
            false => ("v.jsonl", jsonl.into_bytes()),
        };
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(rows) = read(name, bytes, &default_reader()) {
            prop_assert!(rows.iter().all(|(_, _, vector)| vector.iter().all(|n| n.is_finite())));
        }
    }

    #[test]
    fn numbers_are_read_as_they_were_written(
        numbers in prop::collection::vec(
            any::<f32>().prop_filter("finite", |n| n.is_finite()),
            1..20,
        ),
    ) {
        let text: Vec<_> = numbers.iter().map(ToString::to_string).collect();
        let rows = read("v.jsonl", line("{}", &text.join(",")), &default_reader()).unwrap();
        prop_assert_eq!(&rows[0].2, &numbers);
        let shape = format!("(1, {})", numbers.len());
        let rows = read("v.npy", npy(&shape, &numbers), &default_reader()).unwrap();
        prop_assert_eq!(&rows[0].2, &numbers);
    }
}
