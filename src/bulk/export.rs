//! Makes a Parquet or NumPy file from the rows when a run ends.
//!
//! During the run, the rows are appended to a `.jsonl` file, so that a killed run can be continued: no row
//! can be appended to a complete Parquet or NumPy file. The Parquet or NumPy file is written under another
//! name and then renamed, so that it is complete or absent.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    task::{JoinError, JoinHandle, spawn_blocking},
    time::{Instant, interval_at},
};

use super::{
    error::{BulkError, Outcome},
    interrupt::Interrupt,
    item::ItemReader,
    output::OutputError,
    progress::{LINE_INTERVAL, write_line},
};
use crate::config::{ExportFile, ExportFormat};
use rows::RowFile;

#[cfg(feature = "parquet")]
mod columns;
mod npy;
#[cfg(feature = "parquet")]
mod parquet;
mod rows;

/// Why the file cannot be made.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("line {line}: {detail}")]
    Row { line: u64, detail: String },
    /// The rows have too many fields, or vectors that are too long for the format.
    #[cfg(feature = "parquet")]
    #[error("{0}")]
    Columns(String),
    #[cfg(feature = "parquet")]
    #[error("{0}")]
    Parquet(::parquet::errors::ParquetError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the command was interrupted")]
    Interrupted,
}

/// The file to make, and the rows from which it is made.
#[derive(Debug)]
pub(super) struct Export {
    file: ExportFile,
    rows_path: PathBuf,
    /// The open `.jsonl` file. It stays locked as long as this handle is open.
    rows: File,
    reader: ItemReader,
    /// How many rows the new file has so far. The last of them may still be in memory.
    exported: Arc<AtomicU64>,
}

/// Checks that the run may create or replace the file. Called before anything is written.
///
/// # Errors
/// Something other than a regular file is at the path; or the file exists without `rows_path`, so no
/// earlier run has made it.
pub(super) fn check(file: &ExportFile, rows_path: &Path) -> Result<(), BulkError> {
    let path = file.path.display();
    match fs::symlink_metadata(&file.path) {
        Ok(metadata) if !metadata.is_file() => {
            let detail = format!("{path} is not a regular file: choose another --out");
            Err(BulkError::Output(detail))
        }
        Ok(_) if !rows_path.exists() => Err(BulkError::Output(format!(
            "{path} exists without {}, so this command has not made it, and does not replace it: \
             move it away, or choose another --out",
            rows_path.display()
        ))),
        _ => Ok(()),
    }
}

impl Export {
    /// Prepares to make `file` from the rows in the open file `rows`, which the caller has locked. Removes
    /// the incomplete file of a run that was killed.
    ///
    /// # Errors
    /// The incomplete file cannot be removed.
    pub(super) fn prepare(
        file: ExportFile,
        rows_path: &Path,
        rows: &File,
        reader: &ItemReader,
    ) -> Result<Self, OutputError> {
        let incomplete = temporary_path(&file.path);
        remove(&incomplete).map_err(|error| OutputError::Io(incomplete, error))?;
        // The lock holds until this clone is closed as well.
        let rows = rows.try_clone();
        let rows = rows.map_err(|error| OutputError::Io(rows_path.to_owned(), error))?;
        let (rows_path, reader) = (rows_path.to_owned(), reader.clone());
        Ok(Self { file, rows_path, rows, reader, exported: Arc::default() })
    }

    /// Makes the file, unless the run ended early. Returns how the command ends.
    ///
    /// # Errors
    /// The run's error, or why the file cannot be made.
    pub(super) async fn finish(
        self,
        run_result: Result<Outcome, BulkError>,
        interrupt: &mut Interrupt,
    ) -> Result<Outcome, BulkError> {
        match &run_result {
            Ok(Outcome::Success | Outcome::SomeFailed) => {}
            Ok(Outcome::Stopped | Outcome::Interrupted) | Err(BulkError::Write(_)) => {
                say_not_made(&self.file.path);
                return run_result;
            }
            // `Run::send_all` returns any other error before it sends a picture, so nobody expects the file.
            Err(_) => return run_result,
        }
        let (path, rows_path) = (self.file.path.clone(), self.rows_path.clone());
        write_line(&format!("making {}", path.display()));
        match self.make(interrupt).await {
            Ok(count) => {
                write_line(&format!("{} contains {count} rows", path.display()));
                run_result
            }
            Err(ExportError::Interrupted) => {
                say_not_made(&path);
                Ok(Outcome::Interrupted)
            }
            Err(error) => {
                let (path, rows_path) = (path.display(), rows_path.display());
                Err(BulkError::Export(format!("{path} cannot be made from {rows_path}: {error}")))
            }
        }
    }

    /// Makes the file on another thread. Returns the number of its rows.
    async fn make(self, interrupt: &mut Interrupt) -> Result<u64, ExportError> {
        let path = self.file.path.clone();
        let exported = Arc::clone(&self.exported);
        let is_interrupted = Arc::new(AtomicBool::new(false));
        let flag_for_task = Arc::clone(&is_interrupted);
        let mut task = spawn_blocking(move || self.write(&flag_for_task));
        let report = || write_line(&progress_line(&path, &exported));
        let joined = tokio::select! {
            joined = with_progress(&mut task, report) => joined,
            () = interrupt.wait() => {
                is_interrupted.store(true, Ordering::Relaxed);
                interrupt.exit_at_next_signal();
                task.await
            }
        };
        joined.unwrap_or_else(|error| Err(io::Error::from(error).into()))
    }

    /// Writes the file completely or not at all. Blocks the thread.
    fn write(&self, is_interrupted: &AtomicBool) -> Result<u64, ExportError> {
        let temporary_path = temporary_path(&self.file.path);
        // `create_new` does not follow a link, which could lead to a file of somebody else.
        let file = File::options().write(true).create_new(true).open(&temporary_path)?;
        let written = self.write_to(&file, is_interrupted).and_then(|count| {
            file.sync_all()?;
            fs::rename(&temporary_path, &self.file.path)?;
            Ok(count)
        });
        match written {
            Ok(count) => {
                sync_folder(&self.file.path)?;
                Ok(count)
            }
            Err(error) => {
                // If this fails as well, the next run removes the file.
                let _ = fs::remove_file(&temporary_path);
                Err(error)
            }
        }
    }

    /// Writes the rows to an open file. Returns their number.
    fn write_to(&self, file: &File, is_interrupted: &AtomicBool) -> Result<u64, ExportError> {
        let Self { rows, reader, exported, .. } = self;
        let rows = RowFile { file: rows, reader, exported, is_interrupted };
        match self.file.format {
            #[cfg(feature = "parquet")]
            ExportFormat::Parquet => parquet::write(&rows, file),
            ExportFormat::Npy => npy::write(&rows, file),
        }
    }
}

/// Waits for the task. Calls `report` every [`LINE_INTERVAL`], since a file of a million rows takes
/// minutes.
async fn with_progress<T>(
    task: &mut JoinHandle<T>,
    mut report: impl FnMut(),
) -> Result<T, JoinError> {
    let mut ticker = interval_at(Instant::now() + LINE_INTERVAL, LINE_INTERVAL);
    loop {
        tokio::select! {
            joined = &mut *task => return joined,
            _ = ticker.tick() => report(),
        }
    }
}

/// A line that says how much of the file is written.
fn progress_line(path: &Path, exported: &AtomicU64) -> String {
    format!("making {}: {} rows are written", path.display(), exported.load(Ordering::Relaxed))
}

/// The path under which the file is written. It is in the same folder, since a file cannot be renamed
/// to another file system.
fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Removes a file if it exists.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Syncs the folder of a file, so that the file's new name survives a power cut.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn say_not_made(path: &Path) {
    let exists = fs::exists(path).unwrap_or(false);
    let state = if exists { "is still of an earlier run" } else { "was not made" };
    write_line(&format!("{} {state}: run again to make it", path.display()));
}

#[cfg(test)]
mod tests;
