//! Checks the bucket: writes, reads and removes an object in it, and tries to read a missing one.

use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::finding::{Finding, State};
use crate::{
    bucket::{Bucket, Operation, Settings},
    causes::causes,
    http_client::Trust,
    telemetry::Metrics,
};

/// The longest time for writing the object. Also the longest time for removing it. The reads have a shorter
/// limit of their own.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Checks the bucket. Returns a finding for each failure, or one finding if nothing fails.
pub(super) async fn check_bucket(settings: &Settings, trust: &Trust) -> Vec<Finding> {
    let finding = |state, text: String| Finding::new("bucket", state, text);
    let bucket = match Bucket::new(settings, trust, TaskTracker::new(), Metrics::new()) {
        Ok(bucket) => bucket,
        Err(error) => {
            let cause = causes(&error).last().map(|cause| format!(" ({cause})"));
            return vec![finding(State::Fault, format!("{error}{}", cause.unwrap_or_default()))];
        }
    };
    let report = bucket.self_test(TIMEOUT).await;
    let mut findings: Vec<Finding> = Vec::new();
    for error in report.failures() {
        let advice = error.advice().map(|advice| format!(": {advice}"));
        let text = format!("{error}{}", advice.unwrap_or_default());
        // Without removals, the service works, but objects that nobody needs remain.
        let state = match error.operation {
            Operation::Remove => State::Note,
            Operation::Write | Operation::Read | Operation::ReadMissing => State::Fault,
        };
        findings.push(finding(state, text));
    }
    if findings.is_empty() {
        let text = "an object was written, read and removed";
        findings.push(finding(State::Ok, format!("{}: {text}", settings.location)));
    }
    findings
}
