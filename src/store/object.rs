//! Saves pictures in the bucket.
//!
//! A task of its own writes each picture. If the client's request ends early, the task still waits
//! for the write, and then removes the object.

use tokio::time::Instant;
use uuid::Uuid;

use super::Error;
use crate::{
    bucket::{Bucket, Object, RemovalTime},
    image::Format,
    spool::Spooled,
};

/// The path of a picture's object, without the bucket's prefix.
pub(super) fn path(name: &str) -> String {
    format!("downloads/{name}")
}

/// Saves a picture, or fails at the deadline. `permits` are held until the write ends, even if this
/// future is dropped earlier.
pub(super) async fn save(
    bucket: &Bucket,
    spooled: Spooled,
    format: Format,
    deadline: Instant,
    permits: impl Send + 'static,
) -> Result<ObjectGuard, Error> {
    let mut guard = ObjectGuard::new(bucket, format);
    let write = async move {
        let _permits = permits;
        let object = Object {
            content: spooled.content.clone(),
            media_type: format.media_type(),
            sha256: spooled.sha256,
        };
        guard.state = State::MayExist;
        let written = guard.bucket.write(&path(&guard.name), &object, deadline).await;
        drop(spooled); // the staging file is not needed any more
        guard.state = match &written {
            Ok(()) => State::Exists,
            Err(error) if error.may_have_written() => State::MayExist,
            Err(_) => State::Missing,
        };
        written.map(|()| guard)
    };
    // If this future is dropped, the task runs on. At its end, its guard is dropped and removes the object.
    Ok(bucket.spawn(write).await??)
}

/// Guards a picture that is written to the bucket. Dropping the guard removes the picture, if it may
/// exist and [`Self::confirm`] was not called.
#[derive(Debug)]
pub(super) struct ObjectGuard {
    name: String,
    bucket: Bucket,
    state: State,
    is_confirmed: bool,
}

/// Whether an object exists, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The object does not exist.
    Missing,
    /// The write has not ended, or its outcome is unknown.
    MayExist,
    /// The object was written.
    Exists,
}

impl ObjectGuard {
    fn new(bucket: &Bucket, format: Format) -> Self {
        let name = format!("{}.{}", Uuid::now_v7(), format.extension());
        Self { name, bucket: bucket.clone(), state: State::Missing, is_confirmed: false }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the picture stay when the guard is dropped.
    pub(super) fn confirm(&mut self) {
        self.is_confirmed = true;
    }

    /// Whether the picture stays when the guard is dropped.
    pub(super) fn is_confirmed(&self) -> bool {
        self.is_confirmed
    }
}

impl Drop for ObjectGuard {
    fn drop(&mut self) {
        let time = match self.state {
            _ if self.is_confirmed => return,
            State::Missing => return,
            State::MayExist => RemovalTime::Later,
            State::Exists => RemovalTime::Now,
        };
        // Without a runtime, the process is ending, and nothing can be removed.
        if tokio::runtime::Handle::try_current().is_ok() {
            // Only the handle is dropped; the removal runs on.
            drop(self.bucket.remove(path(&self.name), time));
        }
    }
}
