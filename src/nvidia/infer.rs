//! Requests an embedding: one POST, then polls if the answer is pending.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{StatusCode, header::CONTENT_TYPE};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{
    Attempts, Client, Error, FailureKind, InlineImage, Operation, Reply, UploadedAsset, Vector,
    classify::Progress,
    item_url,
    wire::{NO_MESSAGES, parse_answer},
};
use crate::shares::ClientNetwork;

/// One inference, for an inline or an uploaded picture.
struct Inference {
    body: Bytes,
    asset: Option<Uuid>,
    infer: Operation,
    poll: Operation,
}

impl Client {
    /// Requests the embedding of an inline picture.
    ///
    /// # Errors
    /// [`Error`] of the last attempt.
    pub async fn infer(
        &self,
        image: &InlineImage,
        attempts: &mut Attempts<'_>,
    ) -> Result<Vector, Error> {
        let inference = Inference {
            body: image.body(),
            asset: None,
            infer: Operation::Infer,
            poll: Operation::Poll,
        };
        self.infer_with_retries(&inference, attempts).await
    }

    /// Requests the embedding of an uploaded picture.
    ///
    /// # Errors
    /// [`Error`] of the last attempt.
    pub async fn infer_asset(
        &self,
        asset: &UploadedAsset,
        attempts: &mut Attempts<'_>,
    ) -> Result<Vector, Error> {
        let inference = Inference {
            body: Bytes::from_static(NO_MESSAGES),
            asset: Some(asset.id()),
            infer: Operation::InferAsset,
            poll: Operation::PollAsset,
        };
        self.infer_with_retries(&inference, attempts).await
    }

    async fn infer_with_retries(
        &self,
        inference: &Inference,
        attempts: &mut Attempts<'_>,
    ) -> Result<Vector, Error> {
        loop {
            match self.infer_once(inference, attempts).await {
                Ok(vector) => return Ok(vector),
                Err(failure) => attempts.wait_for_next(failure, attempts.deadline).await?,
            }
        }
    }

    async fn infer_once(
        &self,
        inference: &Inference,
        attempts: &mut Attempts<'_>,
    ) -> Result<Vector, Error> {
        let deadline = attempts.deadline;
        loop {
            self.wait_for_not_before(inference.infer, deadline).await?;
            drop(attempts.reservation.take()); // the permit replaces the reservation
            self.wait_for_pace(inference.infer, attempts.client, deadline).await?;
            // While this call waited for its permit, NVIDIA may have answered another call with
            // `Retry-After`: then it waits anew.
            if self.check_not_before(inference.infer, deadline)?.is_none() {
                break;
            }
        }
        attempts.inferences += 1;
        let request = self
            .authorized(self.0.http.post(self.0.settings.infer_url.clone()))
            .header(CONTENT_TYPE, "application/json")
            .body(inference.body.clone());
        let request = match inference.asset {
            Some(id) => request
                .header("NVCF-INPUT-ASSET-REFERENCES", id.to_string())
                .header("NVCF-FUNCTION-ASSET-IDS", id.to_string()),
            None => request,
        };
        let reply = self.call(inference.infer, request, deadline).await?;
        let reply = match reply.progress(inference.infer)? {
            Progress::Done => reply,
            Progress::Pending => self.poll(inference.poll, &reply, deadline).await?,
        };
        parse_answer(&reply.body).map_err(|fault| {
            let is_html = reply.body.trim_ascii_start().starts_with(b"<");
            let kind = if is_html { FailureKind::GatewayPage } else { FailureKind::InvalidAnswer };
            // The parse error may quote the answer, and an answer may repeat the key.
            let fault = String::from_utf8_lossy(&self.0.key.redact(fault.into())).into_owned();
            Error::new(inference.infer, kind, fault)
        })
    }

    /// Polls until the answer is complete. NVIDIA delivers a result only once: if a poll's answer
    /// is lost or the result is gone, the failure is transient, and the inference is sent again.
    async fn poll(
        &self,
        poll: Operation,
        pending: &Reply,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let id = pending
            .headers
            .get("NVCF-REQID")
            .and_then(|id| Uuid::try_parse_ascii(id.as_bytes()).ok());
        let Some(id) = id else {
            return Err(Error::from_reply(poll, FailureKind::Unexpected, pending));
        };
        let url = item_url(&self.0.settings.status_url, id);
        let mut wait = self.0.settings.poll_interval;
        let mut gateway_failed_before = false;
        loop {
            let next = Instant::now() + wait;
            if next >= deadline {
                return Err(Error::deadline(poll));
            }
            sleep_until(next).await;
            wait = self.0.settings.poll_interval;
            let reply =
                match self.call(poll, self.authorized(self.0.http.get(&url)), deadline).await {
                    Ok(reply) => reply,
                    // NVIDIA never saw the poll, so the result is still there.
                    Err(failure) if failure.failed_to_connect => continue,
                    Err(failure) if failure.kind.is_transient() => {
                        return Err(Error { kind: FailureKind::ResultGone, ..failure });
                    }
                    Err(failure) => return Err(failure),
                };
            match reply.progress(poll) {
                Ok(Progress::Done) => return Ok(reply),
                Ok(Progress::Pending) => {}
                // NVIDIA refused the poll before it was processed. The result is still there, and a
                // new inference would be a second payment.
                Err(failure) if failure.kind == FailureKind::RateLimited => {
                    wait = wait.max(failure.retry_after.unwrap_or_default());
                    if Instant::now() + wait >= deadline {
                        return Err(failure);
                    }
                }
                // A gateway's failure says nothing about the result, so one more poll is worth it.
                Err(failure) if is_gateway_error(reply.status) && !gateway_failed_before => {
                    gateway_failed_before = true;
                    wait = wait.max(failure.retry_after.unwrap_or_default());
                    if Instant::now() + wait >= deadline {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn wait_for_pace(
        &self,
        operation: Operation,
        client: ClientNetwork,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Some(pace) = &self.0.pace else { return Ok(()) };
        match pace.take(client, Instant::now(), deadline) {
            Ok(permit) => permit.wait().await,
            // Where there is nothing to wait for, the deadline has passed, and the pace is not the reason.
            Err(Duration::ZERO) => return Err(Error::deadline(operation)),
            Err(wait) => return Err(Error::pace_exceeded(operation, wait)),
        }
        Ok(())
    }
}

/// Whether a status comes from a gateway that could not reach the server that holds the result.
fn is_gateway_error(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE)
}

impl Error {
    /// The error for a call that the service's own pace does not allow before the deadline.
    pub(super) fn pace_exceeded(operation: Operation, wait: Duration) -> Self {
        let log_detail = "the service's own pace allows no call in time".into();
        let error = Self::new(operation, FailureKind::RateLimited, log_detail);
        Self { retry_after: Some(wait), lacks_time: true, ..error }
    }
}
