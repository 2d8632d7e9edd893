//! Requests an embedding: one POST, then polls if the result is pending.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{StatusCode, header::CONTENT_TYPE};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{
    ApiResponse, Client, Error, ErrorKind, InlineImage, Operation, RetryState, UploadedAsset,
    Vector,
    classify::Progress,
    item_url,
    pace::ReservationGuard,
    wire::{ASSET_INFERENCE_BODY, parse_response},
};

/// The parts of an inference that differ between an inline picture and an asset.
struct Inference {
    body: Bytes,
    asset_id: Option<Uuid>,
    infer_operation: Operation,
    poll_operation: Operation,
}

impl Client {
    /// Requests the embedding of an inline picture.
    ///
    /// # Errors
    /// The [`Error`] of the last attempt.
    pub async fn infer(
        &self,
        image: &InlineImage,
        retry_state: &mut RetryState<'_>,
    ) -> Result<Vector, Error> {
        let inference = Inference {
            body: image.body(),
            asset_id: None,
            infer_operation: Operation::Infer,
            poll_operation: Operation::Poll,
        };
        self.infer_with_retries(&inference, retry_state).await
    }

    /// Requests the embedding of an asset.
    ///
    /// # Errors
    /// The [`Error`] of the last attempt.
    pub async fn infer_asset(
        &self,
        asset: &UploadedAsset,
        retry_state: &mut RetryState<'_>,
    ) -> Result<Vector, Error> {
        let inference = Inference {
            body: Bytes::from_static(ASSET_INFERENCE_BODY),
            asset_id: Some(asset.id()),
            infer_operation: Operation::InferAsset,
            poll_operation: Operation::PollAsset,
        };
        self.infer_with_retries(&inference, retry_state).await
    }

    /// Waits until the next inference may be sent: every `Retry-After` of NVIDIA has passed, and the
    /// limit on calls per minute allows the call. The module `embed` waits here before it takes one of its
    /// permits for simultaneous calls, so that no such permit is idle during the wait.
    ///
    /// # Errors
    /// [`ErrorKind::RateLimited`] with the time to wait, if the wait does not end before the deadline.
    /// [`ErrorKind::DeadlinePassed`] if the deadline has passed already.
    pub async fn wait_until_ready(
        &self,
        operation: Operation,
        retry_state: &mut RetryState<'_>,
    ) -> Result<(), Error> {
        let deadline = retry_state.deadline;
        // An expired permit is dropped: the limiter may already have allowed another call in its place.
        retry_state.pace_permit.take_if(|permit| permit.is_expired());
        loop {
            self.wait_for_retry_after(operation, deadline).await?;
            // `pace` is `None` without a limit on calls per minute.
            if let Some(pace) = &self.0.pace
                && retry_state.pace_permit.is_none()
            {
                // The permit replaces the reservation. Reserved calls of a batch may be made all at once if
                // the limit allows that. All other calls, such as retries, are spread over time.
                let reservation = retry_state.reservation.take();
                let is_spread = reservation.as_ref().is_none_or(ReservationGuard::is_spread);
                drop(reservation);
                let client_network = retry_state.client_network;
                let permit = pace.take_permit(client_network, is_spread, deadline).await;
                retry_state.pace_permit = Some(permit.map_err(|wait| match wait {
                    // The limiter returns zero if the deadline has passed.
                    Duration::ZERO => Error::deadline_passed(operation),
                    _ => Error::no_call_before_deadline(operation, wait),
                })?);
            }
            // Another call may have received a `Retry-After` during the wait for the permit. This call then
            // waits again, without the permit: an unused permit counts as a call.
            if self.check_retry_after(operation, deadline)?.is_none() {
                return Ok(());
            }
            retry_state.pace_permit = None;
        }
    }

    async fn infer_with_retries(
        &self,
        inference: &Inference,
        retry_state: &mut RetryState<'_>,
    ) -> Result<Vector, Error> {
        loop {
            match self.infer_once(inference, retry_state).await {
                Ok(vector) => return Ok(vector),
                Err(error) => retry_state.wait_for_next(error, retry_state.deadline).await?,
            }
        }
    }

    async fn infer_once(
        &self,
        inference: &Inference,
        retry_state: &mut RetryState<'_>,
    ) -> Result<Vector, Error> {
        let (operation, deadline) = (inference.infer_operation, retry_state.deadline);
        self.wait_until_ready(operation, retry_state).await?;
        if let Some(permit) = retry_state.pace_permit.take() {
            permit.use_now().await;
        }
        retry_state.sent_inferences += 1;
        let request = self
            .authorized(self.0.http.post(self.0.settings.infer_url.clone()))
            .header(CONTENT_TYPE, "application/json")
            .body(inference.body.clone());
        let request = match inference.asset_id {
            Some(id) => request
                .header("NVCF-INPUT-ASSET-REFERENCES", id.to_string())
                .header("NVCF-FUNCTION-ASSET-IDS", id.to_string()),
            None => request,
        };
        let response = self.call(operation, request, deadline).await?;
        let response = match response.check_status(operation)? {
            Progress::Done => response,
            Progress::Pending => self.poll(inference.poll_operation, &response, deadline).await?,
        };
        parse_response(&response.body).map_err(|message| {
            let is_html = response.body.trim_ascii_start().starts_with(b"<");
            let kind = if is_html { ErrorKind::GatewayPage } else { ErrorKind::InvalidResponse };
            // The message may quote the response, and the response may contain the key.
            let message = self.0.key.redact(message.into());
            Error::new(operation, kind, String::from_utf8_lossy(&message).into_owned())
        })
    }

    /// Polls until the result is ready. NVIDIA delivers a result only once. If the response with
    /// the result is lost, or if NVIDIA no longer has the result, the returned error is transient,
    /// so that the inference is sent again.
    async fn poll(
        &self,
        operation: Operation,
        pending: &ApiResponse,
        deadline: Instant,
    ) -> Result<ApiResponse, Error> {
        let id = pending
            .headers
            .get("NVCF-REQID")
            .and_then(|value| Uuid::try_parse_ascii(value.as_bytes()).ok());
        let Some(id) = id else {
            return Err(Error::from_response(operation, ErrorKind::Unexpected, pending));
        };
        let url = item_url(&self.0.settings.status_url, id);
        let mut wait = self.0.settings.poll_interval;
        let mut was_unreachable = false;
        loop {
            let next_poll = Instant::now() + wait;
            if next_poll >= deadline {
                return Err(Error::deadline_passed(operation));
            }
            sleep_until(next_poll).await;
            wait = self.0.settings.poll_interval;
            let response = match self
                .call(operation, self.authorized(self.0.http.get(&url)), deadline)
                .await
            {
                Ok(response) => response,
                // NVIDIA never received the poll, so it still has the result. The loop polls again.
                Err(error) if error.failed_to_connect => continue,
                Err(error) if error.kind.is_transient() => {
                    return Err(Error { kind: ErrorKind::PolledResultGone, ..error });
                }
                Err(error) => return Err(error),
            };
            match response.check_status(operation) {
                Ok(Progress::Done) => return Ok(response),
                Ok(Progress::Pending) => {}
                // NVIDIA refused the poll without processing it, so it still has the result. The
                // poll is repeated, because a new inference would have to be paid for.
                Err(error) if error.kind == ErrorKind::RateLimited => {
                    wait = wait.max(error.retry_after.unwrap_or_default());
                    if Instant::now() + wait >= deadline {
                        return Err(error);
                    }
                }
                // NVIDIA may still have the result, so one more poll is made.
                Err(error) if is_server_unreachable(response.status) && !was_unreachable => {
                    was_unreachable = true;
                    wait = wait.max(error.retry_after.unwrap_or_default());
                    if Instant::now() + wait >= deadline {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a gateway sends this status if it cannot reach NVIDIA's server. A 504 says less: the server may
/// have received the poll, and delivered the result.
fn is_server_unreachable(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE)
}

impl Error {
    /// The error if the limit on calls per minute does not allow the call before the deadline. The limit
    /// would allow the call after `wait`.
    pub(super) fn no_call_before_deadline(operation: Operation, wait: Duration) -> Self {
        let log_detail =
            "NVIDIA_REQUESTS_PER_MINUTE allows no further call before the deadline".into();
        let error = Self::new(operation, ErrorKind::RateLimited, log_detail);
        Self { retry_after: Some(wait), only_deadline_prevents_retry: true, ..error }
    }
}
