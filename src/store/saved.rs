//! Gives a picture its name once it is durable: synced, renamed, and the folder synced after.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use uuid::Uuid;

use super::{Error, Folder, decision::Stage, while_};
use crate::spool::Spooled;

/// Saves a picture, unless one of the stages may not be entered. Blocks.
pub(super) fn save(
    folder: &Arc<Folder>,
    spooled: Spooled,
    extension: &str,
    enter: impl Fn(Stage) -> Result<(), Error>,
) -> Result<SavedFile, Error> {
    enter(Stage::Writing)?;
    let len = spooled.content.len();
    let staged = spooled.into_file(&folder.incoming)?;
    let file = SavedFile::new(folder, extension);
    let synced = staged.sync().map_err(while_("sync a picture"));
    if let Err(error) = synced.and_then(|()| enter(Stage::Naming)) {
        staged.remove();
        return Err(error);
    }
    let path = folder.path.join(&file.name);
    staged.move_to(&path).map_err(while_("name a picture"))?;
    let synced = sync(&folder.path).map_err(while_("sync the downloads folder"));
    if let Err(error) = synced.and_then(|()| enter(Stage::Kept)) {
        take_back(folder, &path);
        return Err(error);
    }
    folder.add_saved_bytes(len);
    Ok(file)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a picture that was named already and is told as not saved; durably, or a power cut would
/// bring it back.
fn take_back(folder: &Folder, path: &Path) {
    if let Err(error) = fs::remove_file(path).and_then(|()| sync(&folder.path)) {
        let name = path.file_name().and_then(|name| name.to_str());
        tracing::error!(%error, name, "a picture that was told as not saved could not be removed");
    }
}

/// A saved picture. As long as this is held, the picture counts as worked on and is not removed.
#[derive(Debug)]
pub struct SavedFile {
    name: String,
    id: Uuid,
    folder: Arc<Folder>,
}

impl SavedFile {
    fn new(folder: &Arc<Folder>, extension: &str) -> Self {
        let id = Uuid::now_v7();
        // Before the file has its name: it shall not be there a moment without being worked on.
        folder.at_work().insert(id);
        Self { name: format!("{id}.{extension}"), id, folder: Arc::clone(folder) }
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for SavedFile {
    fn drop(&mut self) {
        self.folder.at_work().remove(&self.id);
    }
}
