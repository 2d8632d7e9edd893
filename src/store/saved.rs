//! Makes a picture durable: syncs it, renames it, and then syncs its folder.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use tokio::runtime::Handle;
use uuid::Uuid;

use super::{Error, Folder, cannot, decision::Stage};
use crate::spool::Spooled;

/// Saves a picture. Calls `enter` at the start of each stage. If `enter` returns an error, removes
/// the picture. Blocks the thread.
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

/// A saved picture. Retention does not remove the picture before this guard is dropped. If the
/// guard was not confirmed, no client knows of the picture, so dropping the guard removes the
/// picture.
#[derive(Debug)]
pub struct SavedFileGuard {
    name: String,
    id: Uuid,
    folder: Arc<Folder>,
    is_confirmed: bool,
}

impl SavedFileGuard {
    fn new(folder: &Arc<Folder>, extension: &str) -> Self {
        let id = Uuid::now_v7();
        // The id is marked as in use before there is a file with this id. So retention never
        // removes the file while its request is running.
        folder.in_use().insert(id);
        let name = format!("{id}.{extension}");
        Self { name, id, folder: Arc::clone(folder), is_confirmed: false }
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets the picture stay.
    pub fn confirm(&mut self) {
        self.is_confirmed = true;
    }

    /// Whether the picture stays.
    pub fn is_confirmed(&self) -> bool {
        self.is_confirmed
    }
}

impl Drop for SavedFileGuard {
    /// Inside a runtime the picture is removed on another thread, because a disk that hangs must not
    /// block the threads that answer.
    fn drop(&mut self) {
        let (id, folder) = (self.id, Arc::clone(&self.folder));
        if self.is_confirmed {
            folder.in_use().remove(&id);
            return;
        }
        let path = folder.path.join(&self.name);
        let remove = move || {
            remove_unsaved(&folder, &path);
            folder.in_use().remove(&id);
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}
