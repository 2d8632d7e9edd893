//! Gives a picture its name once it is durable: synced, renamed, and the folder synced after.

use std::{fs::File, sync::Arc};

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
    let mut staged = spooled.into_file(&folder.incoming)?;
    staged.sync().map_err(while_("sync a picture"))?;
    let file = SavedFile::new(folder, extension);
    enter(Stage::Naming)?;
    // Until it is kept, a failure takes the file back.
    staged.rename(folder.path.join(&file.name)).map_err(while_("name a picture"))?;
    File::open(&folder.path)
        .and_then(|folder| folder.sync_all())
        .map_err(while_("sync the downloads folder"))?;
    enter(Stage::Kept)?;
    staged.keep();
    folder.add_saved_bytes(len);
    Ok(file)
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
