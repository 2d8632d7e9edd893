//! Tests the bucket: writes, reads and removes an object.

use bytes::Bytes;
use sha2::{Digest, Sha256 as Hasher};
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use super::{
    Bucket, Object, Transition,
    error::{Cause, Error, Operation},
    health,
};
use crate::{image::Content, sha256::Sha256};

/// The content of the object that a test writes.
const CONTENT: &[u8] = b"imagesvc check\n";

/// The results of a test. Each part is tested even if another one failed.
#[derive(Debug)]
pub struct TestReport {
    /// An object was written.
    pub write: Result<(), Error>,
    /// The same object was read.
    pub read: Result<(), Error>,
    /// A missing object was reported as missing. S3 does so only with the permission to list the
    /// bucket; otherwise it denies access.
    pub read_missing: Result<(), Error>,
    /// The object was removed.
    pub remove: Result<(), Error>,
}

impl TestReport {
    /// All failures.
    pub fn failures(&self) -> impl Iterator<Item = &Error> {
        [&self.write, &self.read, &self.read_missing, &self.remove]
            .into_iter()
            .filter_map(|result| result.as_ref().err())
    }

    /// The first failure because of which the service must not start: the bucket refuses to be
    /// written to or read. The service can work without removals.
    pub fn refusal(&self) -> Option<&Error> {
        [&self.write, &self.read, &self.read_missing]
            .into_iter()
            .filter_map(|result| result.as_ref().err())
            .find(|error| error.is_refusal())
    }
}

impl Bucket {
    /// Writes, reads and removes an object with a new name. Takes at most as long as `timeout`.
    pub async fn self_test(&self, timeout: Duration) -> TestReport {
        let path = format!("checks/{}", Uuid::now_v7());
        let missing_path = format!("checks/{}-missing", Uuid::now_v7());
        let object = Object {
            content: Content::Memory(Bytes::from_static(CONTENT)),
            media_type: "text/plain",
            sha256: Sha256::of(Hasher::new_with_prefix(CONTENT)),
        };
        let deadline = Some(Instant::now() + timeout);
        let read = Operation::Read { max_len: 1024 };
        let write = self.request(Operation::Write, &path, Some(&object), deadline).await;
        let found = self.request(read, &path, None, deadline).await;
        let read_missing =
            self.request(Operation::ReadMissing, &missing_path, None, deadline).await;
        let remove = self.request(Operation::Remove, &path, None, deadline).await;
        let read_back = match found {
            Ok(found) if write.is_ok() && found.as_deref() != Some(CONTENT) => {
                Err(Error { operation: read, cause: Cause::Lost })
            }
            found => found.map(drop),
        };
        TestReport {
            write: write.map(drop),
            read: read_back,
            read_missing: read_missing.map(drop),
            remove: remove.map(drop),
        }
    }

    /// Records what a test found.
    pub fn record_test(&self, report: &TestReport) {
        let read_error = report.read.as_ref().err().or(report.read_missing.as_ref().err());
        for (operation, error) in
            [(Operation::Write, report.write.as_ref().err()), (Operation::ReadMissing, read_error)]
        {
            match self.0.health.record_test(operation, error.is_some()) {
                Some(Transition::Fails) => {
                    self.log_failure(operation, error);
                    health::start_testing(self);
                }
                Some(Transition::Works) => self.log_recovery(operation),
                None => {}
            }
        }
    }
}
