//! Reads a folder, with all folders inside it.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{
    super::item::{ItemReader, Picture},
    Sink,
};

/// The extensions of the names of pictures.
const EXTENSIONS: [&str; 12] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "heic", "heif"];

/// Passes the files that have the extension of a picture to `sink`. Ignores hidden files and hidden
/// folders. Does not follow symbolic links to folders, because such links may form a loop. Stops and
/// returns `false` if `sink` wants no more items.
///
/// # Errors
/// The folder itself cannot be read. A subfolder that cannot be read becomes an item with a failure.
pub(super) fn read(folder: &Path, reader: &ItemReader, sink: &mut Sink<'_>) -> io::Result<bool> {
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        match read_folder(&current, &mut folders, reader, sink) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) if current == folder => return Err(error),
            Err(error) => {
                let place = current.to_string_lossy();
                let detail = format!("The folder cannot be read: {error}.");
                if !sink(reader.unreadable(&place, None, detail)) {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// Passes the pictures of one folder to `sink`, and adds its subfolders to `folders`. Stops and returns
/// `false` if `sink` wants no more items.
fn read_folder(
    folder: &Path,
    folders: &mut Vec<PathBuf>,
    reader: &ItemReader,
    sink: &mut Sink<'_>,
) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        } else if is_picture_name(&name) {
            let path = entry.path();
            // `Path::is_dir` follows links, so a link to a folder is ignored. A link to a missing file
            // becomes an item, which fails later.
            if !path.is_dir() && !sink(reader.plain(Picture::File(path))) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn is_picture_name(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}
