//! Reads the items of the sources one by one, with only one in memory.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::item::{Item, ItemReader, Picture};

pub(super) use limited::MAX_ROW_BYTES;

mod delimited;
mod folder;
mod json;
mod limited;
mod lines;

/// A function that takes each item. It returns whether it wants more items.
pub(super) type Sink<'a> = dyn FnMut(Item) -> bool + 'a;

/// Why a source cannot be read completely.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {detail}")]
pub(super) struct SourceError {
    path: String,
    detail: String,
}

/// What a source is. The kind of a file depends on its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    Picture,
    /// Text with one path or URL per line.
    Lines,
    /// CSV or TSV, with this delimiter.
    Delimited(u8),
    /// A JSON array of objects.
    Json,
    /// One JSON object per line.
    JsonLines,
}

impl Kind {
    fn of(path: &Path, is_folder: bool) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
        match extension.to_ascii_lowercase().as_str() {
            _ if is_folder => Self::Folder,
            _ if is_standard_input(path) => Self::Lines,
            "txt" => Self::Lines,
            "csv" => Self::Delimited(b','),
            "tsv" => Self::Delimited(b'\t'),
            "json" => Self::Json,
            "jsonl" | "ndjson" => Self::JsonLines,
            _ => Self::Picture,
        }
    }
}

/// Whether a source is standard input.
pub(super) fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-")
}

/// Checks that all sources exist and that files can be opened, so that a misspelt path is reported before
/// the run starts.
///
/// # Errors
/// The first source that does not exist or cannot be opened, or a second standard input.
pub(super) fn check(sources: &[PathBuf]) -> Result<(), SourceError> {
    let mut standard_inputs = 0;
    for path in sources {
        if is_standard_input(path) {
            standard_inputs += 1;
        } else {
            check_exists(path).map_err(|error| cannot_read(path, &error))?;
        }
    }
    if standard_inputs > 1 {
        let detail = "standard input can be read only once".into();
        return Err(SourceError { path: "-".into(), detail });
    }
    Ok(())
}

/// Opens and closes a file or a folder. A pipe is not opened: after the close, its writer would fail.
fn check_exists(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() || metadata.is_dir() {
        File::open(path)?;
    }
    Ok(())
}

/// Reads the items of all sources, until `sink` wants no more. Blocks the thread.
///
/// # Errors
/// The first source that cannot be read completely. `sink` has got all items before the error.
pub(super) fn read(
    sources: &[PathBuf],
    reader: &ItemReader,
    sink: &mut Sink<'_>,
) -> Result<(), SourceError> {
    for path in sources {
        if !read_one(path, reader, sink)? {
            break;
        }
    }
    Ok(())
}

/// Reads the items of a source, until `sink` wants no more. Returns whether it still wants more. Blocks
/// the thread.
///
/// # Errors
/// Those of [`read`].
pub(super) fn read_one(
    path: &Path,
    reader: &ItemReader,
    sink: &mut Sink<'_>,
) -> Result<bool, SourceError> {
    let is_folder = !is_standard_input(path) && path.is_dir();
    let place = path.display().to_string();
    let result = match Kind::of(path, is_folder) {
        Kind::Folder => folder::read(path, reader, sink),
        Kind::Picture => Ok(sink(reader.plain(Picture::File(path.to_owned())))),
        Kind::Lines => lines::read_plain(open(path)?, &place, reader, sink),
        Kind::JsonLines => lines::read_objects(open(path)?, &place, reader, sink),
        Kind::Delimited(delimiter) => delimited::read(open(path)?, delimiter, &place, reader, sink),
        Kind::Json => json::read(open(path)?, &place, reader, sink),
    };
    result.map_err(|error| cannot_read(path, &error))
}

fn open(path: &Path) -> Result<Box<dyn Read>, SourceError> {
    let input: Box<dyn Read> = if is_standard_input(path) {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(|error| cannot_read(path, &error))?)
    };
    limited::without_bom(input).map_err(|error| cannot_read(path, &error))
}

fn cannot_read(path: &Path, error: &io::Error) -> SourceError {
    SourceError { path: path.display().to_string(), detail: error.to_string() }
}

#[cfg(test)]
mod tests;
