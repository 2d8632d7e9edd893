//! Makes one attempt to embed a picture, within the picture's deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    classify::Action,
    client::{Embedded, ServiceClient},
    lanes::Job,
};

/// The longest time for one request. This is more than the service itself allows for receiving and
/// embedding a picture.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(420);

/// The longest time from the first attempt of a picture to its last attempt.
const PICTURE_TIMEOUT: Duration = Duration::from_secs(900);

/// The least time for one request, even if the picture's deadline is nearer.
const MIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The wait before the second attempt. It doubles with each further attempt.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);

/// Sends the job's picture. Waits before each attempt except the first.
pub(super) async fn attempt(
    client: ServiceClient,
    mut job: Job,
) -> (Job, Result<Embedded, Action>) {
    let deadline = *job.deadline.get_or_insert(Instant::now() + PICTURE_TIMEOUT);
    if let Some(doublings) = job.attempts.checked_sub(1) {
        sleep(FIRST_BACKOFF * 2_u32.pow(doublings)).await;
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = left.clamp(MIN_REQUEST_TIMEOUT, REQUEST_TIMEOUT);
    let result = match &job.item.picture {
        Ok(picture) => client.embed(picture, timeout).await,
        Err(failure) => Err(Action::Fail(failure.clone())),
    };
    (job, result)
}
