//! Appends rows to the output, and finds out which rows earlier runs have appended.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{
    item::{Identity, ItemReader},
    rows::{Found, Lines},
};

/// The output cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    #[error("{0} is in use by another run")]
    InUse(PathBuf),
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{path}, line {line}: this is not a row of this command: {detail}")]
    NotARow { path: PathBuf, line: u64, detail: String },
    #[error(
        "{path} contains vectors of {row_model}, but this service computes vectors of \
         {service_model}: vectors of different models cannot be compared, so choose another --out"
    )]
    OtherModel { path: PathBuf, row_model: String, service_model: String },
}

/// The rows that the output already contains.
#[derive(Debug, Default)]
pub(super) struct Existing {
    /// For each identity, how many of its rows [`Self::take`] has not taken yet.
    counts: HashMap<Identity, u32>,
    /// The model of all rows. `None` if there are no rows.
    pub model: Option<String>,
}

impl Existing {
    /// An output with one row of each of these identities.
    #[cfg(test)]
    pub(super) fn of(identities: impl IntoIterator<Item = Identity>) -> Self {
        let counts = identities.into_iter().map(|identity| (identity, 1)).collect();
        Self { counts, model: None }
    }

    /// Whether the output contains a row with this identity, even if [`Self::take`] has taken it.
    pub(super) fn contains(&self, identity: Identity) -> bool {
        self.counts.contains_key(&identity)
    }

    /// Takes one row with this identity out of the counts. Returns whether there was one. The file stays as
    /// it is.
    pub(super) fn take(&mut self, identity: Identity) -> bool {
        match self.counts.get_mut(&identity) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }
}

/// Opens the output, or creates it, and locks it. Removes an incomplete last line. Blocks the thread.
///
/// # Errors
/// Another run has locked the output, or it cannot be read or written to.
pub(super) fn open(path: &Path) -> Result<File, OutputError> {
    let io_error = |error| OutputError::Io(path.to_owned(), error);
    let mut file =
        File::options().create(true).read(true).append(true).open(path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OutputError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => return Err(io_error(error)),
    }
    cut_incomplete_line(&mut file).map_err(io_error)?;
    Ok(file)
}

/// Removes everything after the last line break, or everything if there is none.
fn cut_incomplete_line(file: &mut File) -> io::Result<()> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut end = length;
    let mut chunk = vec![0; 64 << 10];
    while end > 0 {
        let start = end.saturating_sub(chunk.len() as u64);
        // The difference is at most the length of `chunk`, so it always fits in a `usize`.
        let part = &mut chunk[..usize::try_from(end - start).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length { file.set_len(end) } else { Ok(()) }
}

/// Reads which rows the output contains, without parsing the vectors. `path` is only for the error messages.
/// Blocks the thread.
///
/// # Errors
/// The output cannot be read, or contains a line that `embed` has not written, or rows of several models.
pub(super) fn read(
    input: impl Read,
    path: &Path,
    reader: &ItemReader,
) -> Result<Existing, OutputError> {
    let io_error = |error| OutputError::Io(path.to_owned(), error);
    let mut lines = Lines::new(input);
    let mut existing = Existing::default();
    // An incomplete last line is not a row. Only a dry run finds one: other runs call `open`, which
    // removes it.
    while lines.advance().map_err(io_error)? == Found::Line {
        let line = lines.number();
        let not_a_row =
            |detail: String| OutputError::NotARow { path: path.to_owned(), line, detail };
        let row = lines.row(reader).map_err(not_a_row)?;
        let model = row.model().map_err(not_a_row)?;
        match &existing.model {
            Some(known) if *known != model => {
                return Err(not_a_row(format!("its model is {model}, not {known}")));
            }
            Some(_) => {}
            None => existing.model = Some(model),
        }
        let location = reader.location(&row.source_members);
        let identity = reader.identity(&row.source_members, location.as_deref(), &row.object());
        *existing.counts.entry(identity).or_default() += 1;
    }
    Ok(existing)
}

/// Appends rows to a file.
#[derive(Debug)]
pub(super) struct Appender {
    file: File,
    /// The length of the file up to and with the last complete row.
    length: u64,
}

impl Appender {
    /// Appends to a file that was opened for appending.
    ///
    /// # Errors
    /// The file's length cannot be read.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, length })
    }

    /// Appends a line, which ends in a line break. After an error, removes the incomplete line.
    ///
    /// # Errors
    /// The system's error, for example because the disk is full.
    pub(super) fn append(&mut self, line: &str) -> io::Result<()> {
        match self.file.write_all(line.as_bytes()) {
            Ok(()) => {
                self.length += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                // If this fails as well, the next run removes the incomplete line.
                let _ = self.file.set_len(self.length);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::json_object;

    fn reader() -> ItemReader {
        ItemReader { location_field: None, id_field: None, prefix: String::new() }
    }

    impl Existing {
        fn row_count(&self) -> u64 {
            self.counts.values().map(|count| u64::from(*count)).sum()
        }
    }

    /// The fields that the command adds to a row.
    const ADDED: &str =
        r#""sha256":"ab","model":"m","prepared":"original","width":1,"height":1,"vector":[0.5,1]"#;

    /// The text of an output with a row for each of these objects of a source.
    fn output_with(objects: &[&str]) -> String {
        objects.iter().map(|object| json_object::append(object, ADDED) + "\n").collect()
    }

    /// Reads an output that has this text.
    fn read_text(text: &str) -> Result<Existing, OutputError> {
        read(text.as_bytes(), Path::new("out.jsonl"), &reader())
    }

    #[test]
    fn an_identity_is_taken_as_often_as_the_output_contains_it() {
        // The first two rows have the same path, and therefore the same identity.
        let text = output_with(&[r#"{"path":"a"}"#, r#"{"n": 1, "path": "a"}"#, r#"{"path":"b"}"#]);
        let mut existing = read_text(&text).unwrap();
        assert_eq!((existing.row_count(), existing.model.as_deref()), (3, Some("m")));
        let (a, b) = (Identity::of("a"), Identity::of("b"));
        assert!(existing.take(a) && existing.take(a) && !existing.take(a));
        assert!(existing.take(b) && !existing.take(Identity::of("c")));
        assert!(existing.contains(a));
    }

    #[test]
    fn an_incomplete_last_line_is_removed_and_is_not_read_as_a_row_wherever_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let text = output_with(&[r#"{"path":"a"}"#, r#"{"path":"b"}"#]);
        let first_line_end = text.find('\n').unwrap() + 1;
        for end in 0..=text.len() {
            std::fs::write(&path, &text[..end]).unwrap();
            let file = open(&path).unwrap();
            let expected = if end == text.len() {
                end
            } else if end >= first_line_end {
                first_line_end
            } else {
                0
            };
            assert_eq!(file.metadata().unwrap().len(), expected as u64, "the text ended at {end}");
            let row_count = read_text(&text[..end]).unwrap().row_count();
            assert_eq!(row_count, text[..end].matches('\n').count() as u64);
        }
    }

    #[test]
    fn an_output_that_another_run_uses_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let _first = open(&path).unwrap();
        assert!(matches!(open(&path), Err(OutputError::InUse(_))));
    }

    #[test]
    fn the_error_of_a_line_that_is_no_row_or_has_another_model_contains_the_line_number() {
        // The last text ends like a row, but does not begin like one.
        for text in ["{}\n", "text\n", "\n", "[1]\n", "{\"vector\":[1]}\n", "\u{0}]}\n"] {
            assert!(matches!(read_text(text), Err(OutputError::NotARow { line: 1, .. })), "{text}");
        }
        let other = output_with(&["{}"]).replace("\"m\"", "\"other\"");
        assert!(matches!(
            read_text(&(output_with(&["{}"]) + &other)),
            Err(OutputError::NotARow { line: 2, .. })
        ));
    }
}
