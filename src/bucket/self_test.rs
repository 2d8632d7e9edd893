//! Tests the bucket: writes, reads and removes an object.

use bytes::Bytes;
use sha2::{Digest, Sha256 as Hasher};
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use super::{
    Bucket, Object, RemovalTime,
    error::{Cause, Error, Operation},
};
use crate::{image::Content, sha256::Sha256};

/// The content of the object that a self-test writes.
const CONTENT: &[u8] = b"imagesvc check\n";

/// The results of a self-test. A part that cannot be tested because another one failed counts as a success.
#[derive(Debug)]
pub struct TestReport {
    /// When the self-test began.
    pub started: Instant,
    /// An object was written.
    pub write: Result<(), Error>,
    /// The same object was read. If it was not written, this says only whether the bucket can be read.
    pub read: Result<(), Error>,
    /// A missing object was reported as missing. S3 does so only with the permission to list the
    /// bucket; otherwise it denies access. Not tested if `read` was refused.
    pub read_missing: Result<(), Error>,
    /// The object was removed. Not tested if it was not written.
    pub remove: Result<(), Error>,
}

impl TestReport {
    /// All failures.
    pub fn failures(&self) -> impl Iterator<Item = &Error> {
        [&self.write, &self.read, &self.read_missing, &self.remove]
            .into_iter()
            .filter_map(|result| result.as_ref().err())
    }

    /// The first failure because of which the service must not start: the bucket refused a write or a
    /// read, or lost the object. The service can work without removals.
    pub fn refusal(&self) -> Option<&Error> {
        [&self.write, &self.read, &self.read_missing]
            .into_iter()
            .filter_map(|result| result.as_ref().err())
            .find(|error| error.is_refusal())
    }
}

impl Bucket {
    /// Writes, reads and removes an object with a new name, and reads a missing object. A write or a
    /// removal takes at most as long as `timeout`, and a read at most a second.
    pub async fn self_test(&self, timeout: Duration) -> TestReport {
        let started = Instant::now();
        let path = format!("checks/{}", Uuid::now_v7());
        let missing_path = format!("checks/{}-missing", Uuid::now_v7());
        let object = Object {
            content: Content::Memory(Bytes::from_static(CONTENT)),
            media_type: "text/plain",
            sha256: Sha256::of(Hasher::new_with_prefix(CONTENT)),
        };
        let deadline = || Some(Instant::now() + timeout);
        let write = self.request(Operation::Write, &path, Some(&object), deadline()).await;
        let read = self.request(Operation::Read, &path, None, None).await;
        let read_missing = match &read {
            // `read_missing` would be refused too, and would blame the permission to list the bucket.
            Err(error) if error.is_refusal() => Ok(None),
            _ => self.request(Operation::ReadMissing, &missing_path, None, None).await,
        };
        let remove = match &write {
            // The object may still arrive. A background task removes it later, so the test need not wait.
            Err(error) if error.may_have_written() => {
                drop(self.remove(path, RemovalTime::Later));
                Ok(None)
            }
            Err(_) => Ok(None),
            Ok(_) => self.request(Operation::Remove, &path, None, deadline()).await,
        };
        let read = match read {
            Ok(content) if write.is_ok() && content.as_deref() != Some(CONTENT) => {
                Err(Error::new(Operation::Read, Cause::Lost))
            }
            read => read.map(drop),
        };
        TestReport {
            started,
            write: write.map(drop),
            read,
            read_missing: read_missing.map(drop),
            remove: remove.map(drop),
        }
    }

    /// Records what a self-test found.
    pub fn record_test(&self, report: &TestReport) {
        // `Health` counts both kinds of reads together.
        let read_error = report.read.as_ref().err().or(report.read_missing.as_ref().err());
        for (operation, error) in
            [(Operation::Write, report.write.as_ref().err()), (Operation::Read, read_error)]
        {
            let has_failed = error.is_some();
            let transition = self.0.health.record_test(operation, has_failed, report.started);
            self.act_on(transition, operation, error);
        }
        if let Err(error) = &report.remove
            && error.is_refusal()
        {
            let advice = error.advice();
            tracing::warn!(%error, advice, "pictures whose requests fail cannot be removed from the bucket");
        }
    }
}
