//! Refuses an output that is one of the sources. Otherwise the run would change the list that it reads.

use std::{
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

/// The output is one of the sources.
#[derive(Debug, thiserror::Error)]
#[error("{output} is also a source, and would be changed while it is read: choose another --out")]
pub(super) struct SameFile {
    output: String,
}

/// Checks that no output is a source. Compares files by device and inode, not by path, because a file
/// can have several paths. If `outputs` is empty, standard output is the output.
///
/// # Errors
/// [`SameFile`] for the first output that is a source.
pub(super) fn check(sources: &[PathBuf], outputs: &[&Path]) -> Result<(), SameFile> {
    let sources: Vec<_> = sources.iter().filter_map(|path| id_of_source(path)).collect();
    let refuse = |output: String| Err(SameFile { output });
    if outputs.is_empty()
        && id_of_open(io::stdout().as_fd()).is_some_and(|id| sources.contains(&id))
    {
        return refuse("standard output".into());
    }
    // An output that does not exist yet has no id, and cannot be a source.
    for output in outputs {
        if id(fs::metadata(output)).is_some_and(|id| sources.contains(&id)) {
            return refuse(output.display().to_string());
        }
    }
    Ok(())
}

/// Identifies a file: the id of its device, and its inode number on that device.
type FileId = (u64, u64);

/// The id of a source. `-` is standard input.
fn id_of_source(path: &Path) -> Option<FileId> {
    if path == Path::new("-") { id_of_open(io::stdin().as_fd()) } else { id(fs::metadata(path)) }
}

fn id_of_open(file: BorrowedFd<'_>) -> Option<FileId> {
    id(file.try_clone_to_owned().and_then(|file| File::from(file).metadata()))
}

/// The id of a regular file. Other files have none, so they are never refused: a terminal is often both
/// standard input and standard output.
fn id(metadata: io::Result<Metadata>) -> Option<FileId> {
    let metadata = metadata.ok().filter(Metadata::is_file)?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_refused_under_any_of_its_names_but_only_if_it_is_a_source() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("nested")).unwrap();
        fs::write(at("list.jsonl"), "").unwrap();
        std::os::unix::fs::symlink("list.jsonl", at("link.jsonl")).unwrap();
        fs::hard_link(at("list.jsonl"), at("hard.jsonl")).unwrap();
        let sources = [folder.path().to_owned(), at("list.jsonl")];
        for name in ["list.jsonl", "nested/../list.jsonl", "link.jsonl", "hard.jsonl"] {
            let error = check(&sources, &[&at("other.parquet"), &at(name)]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        fs::write(at("other.jsonl"), "").unwrap();
        // An output may be inside a folder that is a source. This check refuses no folder.
        for name in ["other.jsonl", "missing.jsonl", "nested"] {
            check(&sources, &[&at(name)]).unwrap();
        }
    }
}
