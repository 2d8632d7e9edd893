//! Makes a picture durable: syncs it, renames it, and then syncs its folder.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use uuid::Uuid;

use super::{Error, Folder, cannot, decision::Stage};
use crate::spool::Spooled;

/// Saves a picture. Calls `enter` before each stage. If `enter` returns an error, the picture is
/// removed. Blocks the thread.
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
    let staging_file = spooled.into_file(&folder.incoming)?;
    let saved_file = SavedFileGuard::new(folder, extension);
    let synced = staging_file.sync().map_err(cannot("sync a picture"));
    if let Err(error) = synced.and_then(|()| enter(Stage::Renaming)) {
        staging_file.remove();
        return Err(error);
    }
    let path = folder.path.join(&saved_file.name);
    staging_file.move_to(&path).map_err(cannot("rename a picture"))?;
    let synced = sync(&folder.path).map_err(cannot("sync the downloads folder"));
    if let Err(error) = synced.and_then(|()| enter(Stage::Saved)) {
        remove_unsaved(folder, &path);
        return Err(error);
    }
    folder.add_saved_bytes(len);
    Ok(saved_file)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a picture that was renamed but is reported as not saved. The removal is synced; otherwise
/// the picture could reappear after a power cut.
fn remove_unsaved(folder: &Folder, path: &Path) {
    if let Err(error) = fs::remove_file(path).and_then(|()| sync(&folder.path)) {
        let name = path.file_name().and_then(|name| name.to_str());
        tracing::error!(%error, name, "a picture that was reported as not saved could not be removed");
    }
}

/// A saved picture. Retention does not remove the picture before this guard is dropped.
#[derive(Debug)]
pub struct SavedFileGuard {
    name: String,
    id: Uuid,
    folder: Arc<Folder>,
}

impl SavedFileGuard {
    fn new(folder: &Arc<Folder>, extension: &str) -> Self {
        let id = Uuid::now_v7();
        // The id is marked as in use before a file has it. So retention never removes the file while
        // its request is running.
        folder.in_use().insert(id);
        Self { name: format!("{id}.{extension}"), id, folder: Arc::clone(folder) }
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for SavedFileGuard {
    fn drop(&mut self) {
        self.folder.in_use().remove(&self.id);
    }
}
