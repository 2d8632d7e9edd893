//! Tests that read sources of all kinds from files.

use std::{fs, os::unix::fs::symlink};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Writes files with these names and contents, and reads their items.
fn read_files(files: &[(&str, &[u8])]) -> Result<Vec<Item>, String> {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = files.iter().map(|(name, _)| folder.path().join(name)).collect();
    for (path, (_, text)) in paths.iter().zip(files) {
        fs::write(path, text).unwrap();
    }
    read_all(&paths)
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Item>, String> {
    let reader = ItemReader { location_field: None, id_field: None, prefix: String::new() };
    let mut items = Vec::new();
    let sink = &mut |item| {
        items.push(item);
        true // more items are wanted
    };
    read(paths, &reader, sink).map_err(|error| error.to_string())?;
    Ok(items)
}

/// The JSON objects of the rows of one file.
fn objects(name: &str, text: &str) -> Vec<String> {
    let items = read_files(&[(name, text.as_bytes())]).unwrap();
    items.into_iter().map(|item| item.object).collect()
}

#[test]
fn csv_and_tsv_may_have_quotes_line_breaks_and_a_byte_order_mark_or_no_rows() {
    let text =
        "\u{feff}name,\"url\"\r\n\"A \"\"b\"\", c\",http://a/1\r\n\"two\nlines\",http://a/2\n\n";
    assert_eq!(
        objects("list.csv", text),
        [
            r#"{"name":"A \"b\", c","url":"http://a/1"}"#,
            r#"{"name":"two\nlines","url":"http://a/2"}"#
        ]
    );
    assert_eq!(objects("list.TSV", "n\turl\n1,5\tx.jpg"), [r#"{"n":"1,5","url":"x.jpg"}"#]);
    assert!(objects("empty.csv", "").is_empty() && objects("header.csv", "a,b\n").is_empty());
}

#[test]
fn a_csv_row_with_too_few_fields_or_invalid_utf8_fails_but_other_rows_do_not() {
    let list = read_files(&[("list.csv", b"url,n\nx\nhttp://a/1,2\n\xff,1\n")]).unwrap();
    let code = |item: &Item| item.picture.as_ref().err().map(|failure| failure.code.clone());
    let codes: Vec<_> = list.iter().map(code).collect();
    let invalid = || Some("invalid_row".to_owned());
    assert_eq!(codes, [invalid(), None, invalid()]);
}

#[test]
fn a_csv_file_with_two_fields_of_the_same_name_is_refused() {
    assert!(read_files(&[("list.csv", b"url,url\nx,y\n")]).unwrap_err().contains("twice"));
}

#[test]
fn a_row_that_is_too_long_ends_a_csv_or_json_list_with_an_error_but_a_txt_list_goes_on() {
    // Far more than the limit of 4 MiB: slightly longer rows of CSV and JSON are accepted.
    const TOO_LONG: usize = 10 << 20;
    let mut csv = b"url\n\"".to_vec();
    csv.resize(TOO_LONG, b'x');
    assert!(read_files(&[("list.csv", &csv)]).unwrap_err().contains("4 MiB"));
    let mut json = b"[{\"url\": \"".to_vec();
    json.resize(TOO_LONG, b'x');
    assert!(read_files(&[("list.json", &json)]).unwrap_err().contains("4 MiB"));
    let mut lines = vec![b'x'; TOO_LONG];
    lines.extend(b"\nlast.jpg\n");
    let items = read_files(&[("list.txt", &lines)]).unwrap();
    assert_eq!((items.len(), items[0].picture.is_err()), (2, true));
    assert_eq!(items[1].object, r#"{"path":"last.jpg"}"#);
}

#[test]
fn a_row_of_the_maximum_length_is_read_and_a_line_with_one_byte_more_is_not() {
    const MAX_LEN: usize = 4 << 20; // 4 MiB
    for line_break in ["", "\n", "\r\n"] {
        for (length, is_read) in [(MAX_LEN - 1, true), (MAX_LEN, true), (MAX_LEN + 1, false)] {
            let lines = format!("{}{line_break}", "x".repeat(length));
            let items = read_files(&[("list.txt", lines.as_bytes())]).unwrap();
            assert_eq!(items.len(), 1);
            assert_eq!(items[0].picture.is_ok(), is_read, "{length} bytes, then {line_break:?}");
        }
        let csv = format!("url\nx\n{}{line_break}", "x".repeat(MAX_LEN));
        assert_eq!(read_files(&[("list.csv", csv.as_bytes())]).map(|items| items.len()), Ok(2));
    }
    // `{"url":""}`, the object without any `x`, has 10 bytes.
    let object = |length: usize| format!("{{\"url\":\"{}\"}}", "x".repeat(length - 10));
    let json = format!("[\n  {},\n  {}\n]\n", object(MAX_LEN), object(MAX_LEN));
    assert_eq!(read_files(&[("list.json", json.as_bytes())]).map(|items| items.len()), Ok(2));
}

#[test]
fn each_line_is_a_path_or_a_url_and_utf16_is_refused() {
    assert_eq!(
        objects("list.txt", "\u{feff}a b.jpg\r\n\r\n  \nhttps://a.example/x?y=1\nlast"),
        [r#"{"path":"a b.jpg"}"#, r#"{"url":"https://a.example/x?y=1"}"#, r#"{"path":"last"}"#]
    );
    assert!(read_files(&[("list.txt", b"\xff\xfea\0")]).unwrap_err().contains("UTF-16"));
}

#[test]
fn json_objects_keep_their_text_but_not_their_line_breaks() {
    let first = r#"{"url": "http://a/1", "n": 1.50}"#;
    assert_eq!(objects("list.jsonl", &format!("{first}\r\n\n{first}")), [first, first]);
    let spread = "\u{feff} [\n{\"url\":\n\"http://a/1\",\t\"n\": 1.50},{\"url\": \"b\"}\n]\n";
    assert_eq!(
        objects("list.json", spread),
        ["{\"url\": \"http://a/1\",\t\"n\": 1.50}", r#"{"url": "b"}"#]
    );
}

#[test]
fn a_json_file_that_is_damaged_or_contains_no_list_is_an_error() {
    for text in ["{}", "[{\"url\": \"x\"}", "", "[1,]", "[{}] x"] {
        assert!(read_files(&[("list.json", text.as_bytes())]).is_err(), "{text}");
    }
}

#[test]
fn a_folder_is_read_with_nested_folders_but_without_hidden_files_and_linked_folders() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir(at(".hidden")).unwrap();
    for name in ["a/b/1.JPG", "2.webp", "notes.txt", ".3.jpg", ".hidden/4.jpg", "odd \"name\".png"]
    {
        fs::write(at(name), "").unwrap();
    }
    symlink(at("2.webp"), at("link.png")).unwrap();
    // A link to a folder. The link's name is like that of a picture.
    symlink(folder.path(), at("a/circle.jpg")).unwrap();
    let mut names: Vec<_> = read_all(&[folder.path().to_owned()])
        .unwrap()
        .iter()
        .map(|item| item.label.rsplit('/').next().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["1.JPG", "2.webp", "link.png", "odd \"name\".png"]);
}

#[test]
fn a_file_with_a_name_that_is_not_utf8_fails() {
    use std::os::unix::ffi::OsStrExt;
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"\xff.jpg")), "").unwrap();
    let items = read_all(&[folder.path().to_owned()]).unwrap();
    assert_eq!(items[0].picture.as_ref().unwrap_err().code, "invalid_name");
}

#[test]
fn a_missing_source_and_a_second_standard_input_are_errors() {
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    assert!(check(&paths(&["/nothing/here.jpg"])).is_err());
    assert!(check(&paths(&["-", "-"])).is_err());
    assert!(check(&paths(&["-", "/"])).is_ok());
}

#[test]
fn reading_stops_when_no_more_items_are_wanted_even_at_the_last_item_of_a_source() {
    let folder = tempfile::tempdir().unwrap();
    let object = r#"{"url":"x"}"#;
    for (name, text) in [
        ("two.txt", "x\ny\n".to_owned()),
        ("two.csv", "url\nx\ny\n".to_owned()),
        ("two.json", format!("[{object},{object}, broken")), // the end must not be read
        ("two.jsonl", format!("{object}\n{object}\n")),
        ("one.txt", "x\n".to_owned()),
        ("one.csv", "url\nx\n".to_owned()),
        ("one.json", format!("[{object}]")),
        ("one.jsonl", format!("{object}\n")),
        ("one.png", String::new()),
        ("folder/one.png", String::new()),
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let source = if name.starts_with("folder/") { path.parent().unwrap() } else { &path };
        let reader = ItemReader { location_field: None, id_field: None, prefix: String::new() };
        let mut count = 0;
        let sink = &mut |_| {
            count += 1;
            false // no more items are wanted
        };
        // The second source must not be read, even if the first has no more items.
        read(&[source.to_owned(), source.to_owned()], &reader, sink).unwrap();
        assert_eq!(count, 1, "only the first item of {name} should be read");
    }
}

proptest! {
    #[test]
    fn csv_values_are_read_as_they_were_written(
        rows in prop::collection::vec(("\\PC{0,8}[\"\n,]?", "[a-z]{1,5}"), 0..9),
    ) {
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record(["name", "url"]).unwrap();
        for (name, url) in &rows {
            csv.write_record([name, url]).unwrap();
        }
        let text = csv.into_inner().unwrap();
        let items = read_files(&[("list.csv", &text)]).unwrap();
        let value = |item: &Item| {
            let object: serde_json::Value = serde_json::from_str(&item.object).unwrap();
            object["name"].as_str().unwrap().to_owned()
        };
        let values: Vec<_> = items.iter().map(value).collect();
        prop_assert_eq!(values, rows.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
    }

    #[test]
    fn no_bytes_make_a_source_panic(bytes: Vec<u8>, kind in 0..5_usize) {
        let name = ["a.txt", "a.csv", "a.tsv", "a.json", "a.jsonl"][kind];
        let _ = read_files(&[(name, &bytes)]);
    }
}
