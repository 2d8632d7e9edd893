//! Counts the rows of the sources while the first rows are sent, so that the progress can show how much
//! time is left. The run itself reads only a limited number of rows ahead, so it would know the total only
//! near its end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread,
};

use super::{item::ItemReader, source};

/// The number of rows of the sources, which a thread counts. If this is dropped, that thread ends at the
/// next row.
#[derive(Debug)]
pub(super) struct Counter(Arc<OnceLock<u64>>);

impl Counter {
    /// Starts to count, unless a source can be read only once.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(super) fn start(sources: Vec<PathBuf>, reader: ItemReader) -> io::Result<Self> {
        let rows = Arc::new(OnceLock::new());
        if sources.iter().all(|path| can_be_read_twice(path)) {
            let thread_rows = Arc::clone(&rows);
            thread::Builder::new().name("count".into()).spawn(move || {
                let mut count = 0;
                let mut is_needed = true;
                let read = source::read(&sources, &reader, &mut |_| {
                    count += 1;
                    // The other reference is that of the `Counter`.
                    is_needed = Arc::strong_count(&thread_rows) > 1;
                    is_needed
                });
                // An error is ignored here: the thread that feeds the run reports the same error.
                if read.is_ok() && is_needed {
                    let _ = thread_rows.set(count); // never fails: no other thread sets the number
                }
            })?;
        }
        Ok(Self(rows))
    }

    /// The number of rows, once all are counted. It stays `None` if a source cannot be read to its end, or
    /// can be read only once.
    pub(super) fn rows(&self) -> Option<u64> {
        self.0.get().copied()
    }
}

/// Whether a source is a regular file or a folder, and not standard input, a pipe or a device.
fn can_be_read_twice(path: &Path) -> bool {
    let is_file_or_folder = |metadata: fs::Metadata| metadata.is_file() || metadata.is_dir();
    !source::is_standard_input(path) && fs::metadata(path).is_ok_and(is_file_or_folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(path: PathBuf) -> Counter {
        let reader = ItemReader { location_field: None, id_field: None, prefix: String::new() };
        Counter::start(vec![path], reader).unwrap()
    }

    #[test]
    fn the_rows_of_a_list_are_counted_but_those_of_standard_input_and_devices_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list.txt");
        fs::write(&list, "a.jpg\n\nb.jpg\n").unwrap();
        let counter = start(list);
        while counter.rows().is_none() {
            thread::yield_now();
        }
        assert_eq!(counter.rows(), Some(2));
        for source in ["-", "/dev/null"] {
            let counter = start(source.into());
            // A thread that counts would have a second reference until it has set the number.
            assert_eq!((counter.rows(), Arc::strong_count(&counter.0)), (None, 1), "{source}");
        }
    }
}
