//! Makes a picture durable: syncs it, renames it, and then syncs its folder.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    super::{Error, cannot},
    Folder,
    decision::Stage,
};
use crate::spool::Spooled;

/// Saves a picture. Calls `enter` at the start of each stage, and stops if `enter` returns an error. After
/// an error, removes the picture. Blocks the thread.
pub(in crate::store) fn save(
    folder: &Arc<Folder>,
    spooled: Spooled,
    extension: &str,
    enter: impl Fn(Stage) -> Result<(), Error>,
) -> Result<FileGuard, Error> {
    if let Err(error) = enter(Stage::Writing) {
        spooled.discard();
        return Err(error);
    }
    let len = spooled.content.len();
    let staging_file = spooled.into_file(&folder.incoming)?;
    let mut file_guard = FileGuard::new(folder, extension);
    let synced = staging_file.sync().map_err(cannot("sync a picture"));
    if let Err(error) = synced.and_then(|()| enter(Stage::Renaming)) {
        staging_file.remove();
        return Err(error);
    }
    let path = folder.path.join(&file_guard.name);
    staging_file.move_to(&path).map_err(cannot("rename a picture"))?;
    file_guard.has_file = true;
    let synced = sync(&folder.path).map_err(cannot("sync the downloads folder"));
    if let Err(error) = synced.and_then(|()| enter(Stage::Saved)) {
        remove_unsaved(folder, &path);
        file_guard.has_file = false;
        return Err(error);
    }
    folder.add_saved_bytes(len);
    Ok(file_guard)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a picture that was renamed, but that no client knows of. The removal is synced; otherwise
/// the picture could reappear after a power cut.
fn remove_unsaved(folder: &Folder, path: &Path) {
    if let Err(error) = fs::remove_file(path).and_then(|()| sync(&folder.path)) {
        let name = path.file_name().and_then(|name| name.to_str());
        tracing::error!(%error, name, "a picture that no client knows of could not be removed");
    }
}

/// Guards a picture in the folder, or one that is being saved. Retention does not remove the picture
/// before this guard is dropped. If the guard was not confirmed, no client knows of the picture, so
/// dropping the guard removes the picture.
#[derive(Debug)]
pub(in crate::store) struct FileGuard {
    name: String,
    id: Uuid,
    folder: Arc<Folder>,
    /// Whether the picture has been renamed into the folder, and was not removed since.
    has_file: bool,
    is_confirmed: bool,
}

impl FileGuard {
    fn new(folder: &Arc<Folder>, extension: &str) -> Self {
        let id = Uuid::now_v7();
        // The id is marked as in use before there is a file with this id. So retention never
        // removes the file while its request is running.
        folder.ids_in_use().insert(id);
        let name = format!("{id}.{extension}");
        Self { name, id, folder: Arc::clone(folder), has_file: false, is_confirmed: false }
    }

    /// The file's name.
    pub(in crate::store) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the picture stay when the guard is dropped.
    pub(in crate::store) fn confirm(&mut self) {
        self.is_confirmed = true;
    }

    /// Whether the picture stays when the guard is dropped.
    pub(in crate::store) fn is_confirmed(&self) -> bool {
        self.is_confirmed
    }
}

impl Drop for FileGuard {
    /// If there is a Tokio runtime, another thread removes an unconfirmed picture: a disk that hangs must
    /// not block the threads that answer.
    fn drop(&mut self) {
        let (id, folder) = (self.id, Arc::clone(&self.folder));
        if self.is_confirmed || !self.has_file {
            folder.ids_in_use().remove(&id);
            return;
        }
        let path = folder.path.join(&self.name);
        let remove = move || {
            remove_unsaved(&folder, &path);
            folder.ids_in_use().remove(&id);
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)), // drops only the task's handle
            Err(_) => remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bytes::Bytes;
    use tracing::subscriber::with_default;

    use super::*;
    use crate::{
        disk_space::DiskSpace,
        store::{Retention, Settings, Store},
    };

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failed_save_leaves_no_picture_in_the_folder_and_no_error_in_the_log() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for failing_stage in [Stage::Writing, Stage::Renaming, Stage::Saved] {
            let temp_dir = tempfile::tempdir().unwrap();
            let path = temp_dir.path();
            let store = Store::open(&Settings {
                folder: path.to_owned(),
                space: DiskSpace::new(path.to_owned(), 0),
                retention: Retention::default(),
            });
            let folder = store.unwrap().folder;
            let spooled = runtime.block_on(async {
                // Up to 100 bytes stay in memory, so `save` must write them to the disk.
                let mut spool = folder.incoming.spool_for_disk(100);
                spool.write(&Bytes::from_static(b"picture")).await.unwrap();
                spool.finish().await.unwrap()
            });
            let log = Log::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
            with_default(subscriber, || {
                let enter = |stage| match stage == failing_stage {
                    true => Err(Error::Timeout),
                    false => Ok(()),
                };
                assert!(matches!(save(&folder, spooled, "png", enter), Err(Error::Timeout)));
            });
            let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
            let pictures = files.filter(|name| !name.to_string_lossy().starts_with('.'));
            assert_eq!(pictures.count(), 0);
            assert!(folder.ids_in_use().is_empty());
            let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert_eq!(log, "", "failed at {failing_stage:?}");
        }
    }
}
