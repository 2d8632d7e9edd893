//! Writes the file of failures beside the output. This file is itself a valid source.
//!
//! The failures of this run are first appended to a second file, because the file of failures may be a
//! source of this run. At the end of a run, both are merged. If the run was killed, the next run merges
//! them at its start.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
};

use super::{
    item::{ERROR_FIELD, Failure, Identity, Item, ItemReader},
    json_object::{self, string},
    output::Appender,
};

/// The failures of this run and of earlier ones.
#[derive(Debug)]
pub(super) struct Failures {
    path: PathBuf,
    reader: ItemReader,
    /// The failures of this run.
    current: Appender,
    /// The rows that failed in earlier runs and have not been tried again in this run.
    earlier: HashSet<Identity>,
}

impl Failures {
    /// The path of the file with the failures of a run whose output is `out`.
    pub(super) fn path(out: &Path) -> PathBuf {
        out.with_extension("failed.jsonl")
    }

    /// Opens the file beside the output `out`. The caller must have locked the output. `is_done` returns
    /// whether the output contains a row with this identity; the failure of such a row is removed.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn open(
        out: &Path,
        reader: ItemReader,
        is_done: impl Fn(Identity) -> bool,
    ) -> io::Result<Self> {
        let path = Self::path(out);
        let second_path = second_path(&path);
        // If the last run was killed, the second file contains its failures. They replace earlier failures
        // of the same rows.
        let mut failed_in_killed_run = HashSet::new();
        read(&second_path, &reader, |identity, _| {
            failed_in_killed_run.insert(identity);
            Ok(())
        })?;
        merge(&path, &reader, |in_second_file, identity| {
            !is_done(identity) && (in_second_file || !failed_in_killed_run.contains(&identity))
        })?;
        let mut earlier = HashSet::new();
        read(&path, &reader, |identity, _| {
            earlier.insert(identity);
            Ok(())
        })?;
        let current = File::options().create(true).append(true).open(second_path)?;
        Ok(Self { path, reader, current: Appender::new(current)?, earlier })
    }

    /// Adds a failure.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn add(&mut self, item: &Item, failure: &Failure) -> io::Result<()> {
        self.earlier.remove(&item.identity);
        self.current.append(&(row(item, failure, &self.reader) + "\n"))
    }

    /// Removes the row's failure of an earlier run, because the row has succeeded now.
    pub(super) fn remove_earlier(&mut self, identity: Identity) {
        self.earlier.remove(&identity);
    }

    /// Completes the file, or removes it if it would be empty. Returns its path if it exists.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn finish(self) -> io::Result<Option<PathBuf>> {
        let earlier = self.earlier;
        merge(&self.path, &self.reader, |in_second_file, identity| {
            in_second_file || earlier.contains(&identity)
        })?;
        Ok(if self.path.exists() { Some(self.path) } else { None })
    }
}

/// The source's object with the failure as its last member.
pub(super) fn row(item: &Item, failure: &Failure, reader: &ItemReader) -> String {
    let Failure { code, detail, may_succeed_later } = failure;
    let error = format!(
        "{}:{{\"code\":{},\"detail\":{},\"retryable\":{may_succeed_later}}}",
        string(&reader.prefixed_name(ERROR_FIELD)),
        string(code),
        string(detail)
    );
    json_object::append(&item.object, &error)
}

/// The path of the second file, with the failures of the current run.
fn second_path(path: &Path) -> PathBuf {
    path.with_extension("jsonl.current")
}

/// Merges the second file into the file at `path`, and removes the second file. If no row is kept, removes
/// both. `keep` returns whether to keep a row. Its arguments are whether the row is from the second file,
/// and the row's identity.
fn merge(
    path: &Path,
    reader: &ItemReader,
    keep: impl Fn(bool, Identity) -> bool,
) -> io::Result<()> {
    let merged_path = path.with_extension("jsonl.new");
    let mut merged = BufWriter::new(File::create(&merged_path)?);
    let mut is_empty = true;
    for (in_second_file, old_path) in [(false, path.to_owned()), (true, second_path(path))] {
        read(&old_path, reader, |identity, line| {
            if keep(in_second_file, identity) {
                is_empty = false;
                merged.write_all(line)?;
            }
            Ok(())
        })?;
    }
    merged.flush()?;
    if is_empty {
        remove(&merged_path)?;
        remove(path)?;
    } else {
        fs::rename(&merged_path, path)?;
    }
    remove(&second_path(path))
}

/// Removes a file if it exists.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Calls `on_line` with each complete line and its row's identity. A missing file counts as empty.
fn read(
    path: &Path,
    reader: &ItemReader,
    mut on_line: impl FnMut(Identity, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut input = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        // The lines need no limit here: `embed` has written them, with a limited length.
        if input.read_until(b'\n', &mut line)? == 0 || !line.ends_with(b"\n") {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        let (place, number) = ("", 0); // only for messages, which are not shown here
        on_line(reader.object(&text, place, number).identity, &line)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> ItemReader {
        ItemReader { location_field: None, id_field: None, prefix: String::new() }
    }

    fn item(path: &str) -> Item {
        reader().object(&format!("{{\"path\": \"{path}\"}}"), "", 1)
    }

    /// How a run ends.
    #[derive(Clone, Copy)]
    enum End {
        Finished,
        Killed,
    }

    /// A run in which these pictures fail and succeed. Returns the joined paths in the file of failures.
    fn run(out: &Path, failed: &[&str], succeeded: &[&str], end: End) -> String {
        let mut failures = Failures::open(out, reader(), |_| false).unwrap();
        for path in failed {
            failures.add(&item(path), &Failure::permanent("code", "detail")).unwrap();
        }
        for path in succeeded {
            failures.remove_earlier(item(path).identity);
        }
        match end {
            End::Finished => drop(failures.finish().unwrap()),
            End::Killed => drop(failures),
        }
        let text = fs::read_to_string(out.with_extension("failed.jsonl")).unwrap_or_default();
        // The path is the first value: the text between the third and the fourth quote.
        text.lines().map(|line| line.split('"').nth(3).unwrap().to_owned()).collect()
    }

    #[test]
    fn failures_of_several_runs_become_one_file_without_the_pictures_that_succeeded() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.jsonl");
        assert_eq!(run(&out, &["a", "b", "c"], &[], End::Finished), "abc");
        assert_eq!(run(&out, &["b"], &["a"], End::Finished), "cb");
        // A killed run leaves the file as it was, so it still contains the failure of `c`.
        assert_eq!(run(&out, &["d"], &["c"], End::Killed), "cb");
        // This run adds the failure of `d` first. `is_done` is always false in this test, so `c` must succeed
        // again.
        assert_eq!(run(&out, &[], &["c"], End::Finished), "bd");
        assert_eq!(run(&out, &[], &["b", "d"], End::Finished), "");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no file should be left");
    }

    #[test]
    fn the_row_of_a_failure_is_read_as_the_same_object_with_the_same_identity() {
        let item = item("a\\\"b");
        let text = row(&item, &Failure::permanent("code", "de\ntail"), &reader());
        let again = reader().object(&text, "", 1);
        assert_eq!((again.object, again.identity), (item.object, item.identity));
        assert!(
            text.ends_with(r#""error":{"code":"code","detail":"de\ntail","retryable":false}}"#)
        );
    }
}
