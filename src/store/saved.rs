//! Makes a picture durable: it is synced, then renamed, then its folder is synced.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use uuid::Uuid;

use super::{Error, Folder, cannot, decision::Stage};
use crate::spool::Spooled;

/// Saves a picture, unless `enter` refuses a stage. Blocks.
pub(super) fn save(
    folder: &Arc<Folder>,
    spooled: Spooled,
    extension: &str,
    enter: impl Fn(Stage) -> Result<(), Error>,
) -> Result<SavedFileGuard, Error> {
    if let Err(error) = enter(Stage::Writing) {
        spooled.discard();
        return Err(error);
    }
    let len = spooled.content.len();
    let staged = spooled.into_file(&folder.incoming)?;
    let file = SavedFileGuard::new(folder, extension);
    let synced = staged.sync().map_err(cannot("sync a picture"));
    if let Err(error) = synced.and_then(|()| enter(Stage::Naming)) {
        staged.remove();
        return Err(error);
    }
    let path = folder.path.join(&file.name);
    staged.move_to(&path).map_err(cannot("name a picture"))?;
    let synced = sync(&folder.path).map_err(cannot("sync the downloads folder"));
    if let Err(error) = synced.and_then(|()| enter(Stage::Kept)) {
        remove_unsaved(folder, &path);
        return Err(error);
    }
    folder.add_saved_bytes(len);
    Ok(file)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a picture that was renamed but is reported as not saved. The removal is synced, or a
/// power cut could bring the picture back.
fn remove_unsaved(folder: &Folder, path: &Path) {
    if let Err(error) = fs::remove_file(path).and_then(|()| sync(&folder.path)) {
        let name = path.file_name().and_then(|name| name.to_str());
        tracing::error!(%error, name, "a picture that was reported as not saved could not be removed");
    }
}

/// A saved picture. Until this is dropped, retention does not remove the picture.
#[derive(Debug)]
pub struct SavedFileGuard {
    name: String,
    id: Uuid,
    folder: Arc<Folder>,
}

impl SavedFileGuard {
    fn new(folder: &Arc<Folder>, extension: &str) -> Self {
        let id = Uuid::now_v7();
        // Before the rename, so that retention never sees the file unprotected.
        folder.at_work().insert(id);
        Self { name: format!("{id}.{extension}"), id, folder: Arc::clone(folder) }
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for SavedFileGuard {
    fn drop(&mut self) {
        self.folder.at_work().remove(&self.id);
    }
}
