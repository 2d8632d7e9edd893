//! Tests that make files from rows.

use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use super::*;

/// A folder with the rows `out.jsonl`, from which files are made.
pub(super) struct RowsFolder {
    folder: TempDir,
    prefix: &'static str,
}

impl RowsFolder {
    pub(super) fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("out.jsonl"), text).unwrap();
        Self { folder, prefix: "" }
    }

    /// Sets the prefix of the fields that `embed` adds.
    #[cfg(feature = "parquet")]
    pub(super) fn prefixed(self, prefix: &'static str) -> Self {
        Self { prefix, ..self }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Prepares to make a file with this name.
    fn export(&self, name: &str, format: ExportFormat) -> Export {
        let file = ExportFile { path: self.path(name), format };
        let rows_path = self.path("out.jsonl");
        let rows = File::options().read(true).append(true).open(&rows_path).unwrap();
        let reader =
            ItemReader { location_field: None, id_field: None, prefix: self.prefix.into() };
        Export::prepare(file, &rows_path, &rows, &reader).unwrap()
    }

    /// Makes `out.file`. Returns the number of rows, or the error.
    pub(super) fn make(&self, format: ExportFormat) -> Result<u64, String> {
        let made = self.export("out.file", format).write(&AtomicBool::new(false));
        made.map_err(|error| error.to_string())
    }

    /// The names of all files in the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A row with only the fields that `embed` adds. `vector` contains the numbers of its vector.
pub(super) fn row(vector: &str) -> String {
    row_of("{}", vector)
}

/// A row with the source's fields, given as `object`, and the fields that `embed` adds.
/// `vector` contains the numbers of its vector.
pub(super) fn row_of(object: &str, vector: &str) -> String {
    let added = format!(
        r#""sha256":"ab","model":"m","prepared":"jpeg","width":3,"height":2,"vector":[{vector}]"#
    );
    super::super::json_object::append(object, &added) + "\n"
}

/// All formats of this build.
fn formats() -> Vec<ExportFormat> {
    vec![
        #[cfg(feature = "parquet")]
        ExportFormat::Parquet,
        ExportFormat::Npy,
    ]
}

/// A number's text and its nearest `f32`. The number is just above the middle between two neighbouring
/// `f32`, so the nearest is the upper one. Parsed as `f64`, it would be exactly in the middle, and a
/// conversion from there to `f32` would give the lower one.
pub(super) const ABOVE_MIDDLE_OF_TWO_F32: (&str, f32) =
    ("1.0000000596046447753906250000000001", 1.0 + f32::EPSILON);

#[test]
fn a_numpy_file_has_a_header_and_the_nearest_f32_of_each_number_in_the_order_of_the_rows() {
    let numbers = [("-0.0", -0.0), ("1E-3", 0.001), ABOVE_MIDDLE_OF_TWO_F32, ("1e-60", 0.0)];
    let texts = numbers.map(|(text, _)| text);
    let text = row(&texts.join(" , ")) + &row_of(r#"{"n": 1}"#, "1,2,3,4");
    let rows = RowsFolder::new(&text);
    assert_eq!(rows.make(ExportFormat::Npy).unwrap(), 2);
    let bytes = fs::read(rows.path("out.file")).unwrap();
    // A header of 128 bytes: the magic text, version 1.0, and the length of the other 118 (0x76) bytes.
    let (header, data) = bytes.split_at(128);
    assert!(header.ends_with(b" \n") && header.starts_with(b"\x93NUMPY\x01\x00\x76\x00{"));
    let header = String::from_utf8_lossy(&header[10..]);
    let expected = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }";
    assert_eq!(header.trim_end(), expected);
    let expected = numbers.map(|(_, number)| number).into_iter().chain([1.0, 2.0, 3.0, 4.0]);
    let expected: Vec<u8> = expected.flat_map(f32::to_le_bytes).collect();
    assert_eq!(data, expected);
}

#[test]
fn without_rows_a_numpy_file_declares_no_rows_and_the_vector_length_of_the_model() {
    let rows = RowsFolder::new("");
    assert_eq!(rows.make(ExportFormat::Npy).unwrap(), 0);
    let bytes = fs::read(rows.path("out.file")).unwrap();
    // The file is only a header, of 128 bytes, with the shape.
    assert!(bytes.len() == 128 && String::from_utf8_lossy(&bytes).contains("(0, 1536)"));
}

#[test]
fn the_error_of_an_invalid_row_contains_its_line_number_and_an_earlier_file_stays() {
    let good = row("1,2");
    for (line, message) in [
        (row("1"), "line 2: the vector has 1 numbers, but the first row's has 2"),
        (row("1,2,3"), "line 2: the vector has 3 numbers"),
        (row(""), "line 2: the vector is empty"),
        (row("1,1e39"), r#"line 2: the vector contains "1e39""#),
        (row("1,\"2\""), "line 2: the vector contains"),
        (row("[1,2]"), r#"line 2: the vector contains "[1,2]""#),
        (row("1,NaN"), "line 2: the vector is not a list of numbers: "),
        (
            good.replace("[1,2]", "12"),
            "line 2: `imagesvc embed` did not write this row: it does not end with a vector",
        ),
        (
            good.replace("sha256", "sha1"),
            "line 2: `imagesvc embed` did not write this row: it has no sha256",
        ),
        (good.replace("width", "wide"), "line 2: `imagesvc embed` did not write this row"),
        (good.trim_end().to_owned(), "line 2: the line is incomplete"),
        ("\n".into(), "line 2: `imagesvc embed` did not write this row"),
    ] {
        for format in formats() {
            let rows = RowsFolder::new(&(good.clone() + &line));
            fs::write(rows.path("out.file"), "earlier").unwrap();
            let error = rows.make(format).unwrap_err();
            assert!(error.starts_with(message), "{format:?}: {error}");
            assert_eq!(fs::read(rows.path("out.file")).unwrap(), b"earlier");
            assert_eq!(rows.names(), ["out.file", "out.jsonl"]);
        }
    }
}

#[test]
fn an_interrupted_export_leaves_no_file_except_the_rows() {
    for format in formats() {
        let rows = RowsFolder::new(&row("1,2"));
        let is_interrupted = AtomicBool::new(true);
        let made = rows.export("out.file", format).write(&is_interrupted);
        assert!(matches!(made, Err(ExportError::Interrupted)));
        assert_eq!(rows.names(), ["out.jsonl"]);
    }
}

#[test]
fn the_rows_stay_locked_until_the_export_ends() {
    let rows = RowsFolder::new("");
    let open_and_lock = || super::super::output::open(&rows.path("out.jsonl"));
    let file = open_and_lock().unwrap();
    let reader = ItemReader { location_field: None, id_field: None, prefix: String::new() };
    let target = ExportFile { path: rows.path("out.npy"), format: ExportFormat::Npy };
    let export = Export::prepare(target, &rows.path("out.jsonl"), &file, &reader).unwrap();
    drop(file);
    assert!(matches!(open_and_lock(), Err(OutputError::InUse(_))));
    drop(export);
    open_and_lock().unwrap();
}

#[test]
fn the_incomplete_file_of_a_killed_run_is_removed_and_a_link_in_its_place_is_not_followed() {
    let rows = RowsFolder::new(&row("1,2"));
    fs::write(rows.path("out.file.new"), "incomplete").unwrap();
    let export = rows.export("out.file", ExportFormat::Npy);
    assert_eq!(rows.names(), ["out.jsonl"]);
    fs::write(rows.path("victim"), "unchanged").unwrap();
    std::os::unix::fs::symlink("victim", rows.path("out.file.new")).unwrap();
    assert!(matches!(export.write(&AtomicBool::new(false)), Err(ExportError::Io(_))));
    assert_eq!(fs::read(rows.path("victim")).unwrap(), b"unchanged");
}

#[test]
fn an_existing_file_is_accepted_only_if_this_command_may_have_made_it() {
    let rows = RowsFolder::new("");
    let check_file = |name: &str, rows_name: &str| {
        let file = ExportFile { path: rows.path(name), format: ExportFormat::Npy };
        check(&file, &rows.path(rows_name)).map_err(|error| error.to_string())
    };
    fs::write(rows.path("existing.npy"), "").unwrap();
    fs::create_dir(rows.path("folder.npy")).unwrap();
    std::os::unix::fs::symlink("existing.npy", rows.path("link.npy")).unwrap();
    check_file("new.npy", "new.jsonl").unwrap();
    // The rows exist, so an earlier run may have made the file.
    check_file("existing.npy", "out.jsonl").unwrap();
    let error = check_file("existing.npy", "missing.jsonl").unwrap_err();
    assert!(error.contains("has not made it"), "{error}");
    for name in ["folder.npy", "link.npy"] {
        assert!(check_file(name, "out.jsonl").unwrap_err().contains("not a regular file"));
    }
}

#[tokio::test(start_paused = true)]
async fn while_a_file_is_made_a_line_says_every_ten_seconds_how_many_rows_are_written() {
    let (finish, finished) = std::sync::mpsc::channel();
    let mut task = spawn_blocking(move || finished.recv().unwrap());
    let start = Instant::now();
    let mut times = Vec::new();
    let report = || {
        times.push(start.elapsed().as_secs());
        if times.len() == 3 {
            finish.send("made").unwrap();
        }
    };
    // The paused clock does not advance by itself while a blocking task runs.
    let clock = async {
        loop {
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
            tokio::task::yield_now().await;
        }
    };
    let made = tokio::select! {
        biased; // polls the progress first, so that its interval starts at 0 s
        made = with_progress(&mut task, report) => made.unwrap(),
        () = clock => unreachable!(),
    };
    // More reports may follow until the blocking task has ended.
    assert_eq!((made, &times[..3]), ("made", &[10, 20, 30][..]));

    let rows = RowsFolder::new(&row("1,2").repeat(7));
    for format in formats() {
        let export = rows.export("out.file", format);
        export.write(&AtomicBool::new(false)).unwrap();
        let line = progress_line(Path::new("out.file"), &export.exported);
        assert_eq!(line, "making out.file: 7 rows are written", "{format:?}");
    }
}
