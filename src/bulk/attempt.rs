//! Makes one attempt to embed the picture of a row.

use tokio::time::{Instant, sleep};

use super::{
    classify::Action,
    client::{Embedded, ServiceClient},
    lanes::Job,
};

/// Sends the job's picture. If the job's previous attempt has failed, first waits for the rest of the
/// backoff, which began at that failure.
pub(super) async fn attempt(
    client: ServiceClient,
    mut job: Job,
) -> (Job, Result<Embedded, Action>) {
    sleep(job.attempts.backoff()).await;
    let timeout = job.attempts.next_timeout();
    job.started = Instant::now();
    let result = match &job.item.picture {
        Ok(picture) => client.embed(picture, timeout).await,
        // Not reached: only rows with a picture are queued.
        Err(failure) => Err(Action::NotSent(failure.clone())),
    };
    (job, result)
}
