//! One call to NVIDIA for the embedding of one picture: prepares the picture as
//! [`plan`](super::plan) chooses, and sends it inline or as an asset.
//!
//! If sending an asset fails, [`nvidia::Error::may_succeed_inline`] decides whether the picture is shrunk
//! and sent inline, or the call fails. A picture is decoded before its call takes a permit, so that no
//! permit is held during the decoding.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Embedding, Error, Inner, LargeImages, Prepared, Provenance,
    lease::may_call,
    plan::{Plan, can_be_sent_as_is, plan},
};
use crate::{
    decoder,
    fair_queue::Permit,
    image::{self, Content, Format, Picture, Target},
    nvidia::{self, InlineImage, Operation, Reservation, RetryState, Vector},
    shares::ClientNetwork,
    spool::{Spooled, StagingFile},
    telemetry::{in_span, span},
    valkey::Lease,
};

/// What NVIDIA receives: the picture itself, or a JPEG made from it.
struct Payload {
    content: Content,
    format: Format,
    prepared: Prepared,
    /// Whether NVIDIA accepts the content without re-encoding.
    can_be_sent_as_is: bool,
    /// Whether the picture was shrunk only because uploads do not work at the moment. Its embedding
    /// is then valid until uploads are tried again.
    is_temporary: bool,
    /// The file of a re-encoded picture, unless it is in memory. Dropping this removes the file.
    _staging_file: Option<StagingFile>,
}

impl Payload {
    fn original(picture: &Picture) -> Self {
        let (content, format) = (picture.content.clone(), picture.format);
        Self {
            content,
            format,
            prepared: Prepared::Original,
            can_be_sent_as_is: can_be_sent_as_is(picture),
            is_temporary: false,
            _staging_file: None,
        }
    }
}

impl Inner {
    /// Reserves one call for each of a client's `count` pictures. Reserves either all calls or
    /// none.
    ///
    /// # Errors
    /// [`Error::Nvidia`] if the limit on calls per minute or a `Retry-After` would delay the last call past
    /// the deadline. [`Error::QueueTooLong`] if the first call must wait for a permit, and the calls would
    /// probably take too long.
    pub(super) fn reserve(
        &self,
        client: ClientNetwork,
        count: usize,
        deadline: Instant,
    ) -> Result<Reservation, Error> {
        let reservation = self.nvidia.reserve_calls(client, count, deadline)?;
        let time_left = deadline.saturating_duration_since(Instant::now());
        let wait = self.queue.expected_wait(client);
        // If no wait is expected, a batch is tried even if it will probably take too long. Some of
        // its vectors are then cached, and the client can send the batch again.
        if !wait.is_zero() && wait + self.expected_time(count) > time_left {
            return Err(Error::QueueTooLong);
        }
        Ok(reservation)
    }

    /// Estimates how long the calls of a batch take from the start of the first call. The estimate
    /// is based on how long recent calls took. It is zero for a single picture, which is refused only
    /// if its call cannot start in time.
    fn expected_time(&self, count: usize) -> Duration {
        if count <= 1 {
            return Duration::ZERO;
        }
        // The estimate assumes rounds, each with as many calls as a batch makes at once.
        let rounds = count.div_ceil(self.settings.max_concurrent_calls_per_batch());
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
        self.queue.typical_permit_time().saturating_mul(rounds)
    }

    /// Prepares the picture, calls NVIDIA, and returns the embedding. Returns `None` if another replica
    /// has taken the lease before the call.
    ///
    /// # Errors
    /// The [`Error`] of the last attempt. Also fails if there is no outcome by the deadline.
    pub(super) async fn call(
        &self,
        picture: &Picture,
        reservation: Reservation,
        lease: Option<&Lease>,
        deadline: Instant,
    ) -> Result<Option<Embedding>, Error> {
        let mut retry_state = self.nvidia.new_retry_state(reservation, deadline);
        let client = retry_state.client_network;
        let largest_inline = self.settings.largest_inline();
        let max_len = usize::try_from(self.settings.max_image_bytes).unwrap_or(usize::MAX);
        let converted = Target::Converted { max_len };
        let shrunk = Target::Shrunk { max_len: largest_inline };
        let encode_as = |target, prepared| self.encode(picture, client, deadline, target, prepared);
        let mut payload = Payload::original(picture);
        let mut upload_error: Option<nvidia::Error> = None;
        loop {
            let may_upload = upload_error.is_none()
                && payload.prepared != Prepared::Shrunk
                && self.settings.large_images == LargeImages::Asset
                && !self.upload_breaker.is_open(Instant::now());
            let len = payload.content.len();
            match plan(payload.can_be_sent_as_is, len, may_upload, largest_inline as u64) {
                Plan::SendInline => {
                    let sent = self.send_inline(&payload, lease, &mut retry_state).await?;
                    let Some(vector) = sent else { return Ok(None) };
                    if let Some(error) = upload_error.filter(nvidia::Error::is_upload_refusal) {
                        // After a refused upload, the breaker opens only if NVIDIA accepts the
                        // picture inline. Otherwise the picture was the cause, not the upload.
                        self.open_breaker(&error, self.settings.refused_upload_pause);
                    }
                    return Ok(Some(self.embedding(vector, &payload, &retry_state)));
                }
                Plan::Upload => match self.send_uploaded(&payload, lease, &mut retry_state).await {
                    Ok(vector) => {
                        return Ok(
                            vector.map(|vector| self.embedding(vector, &payload, &retry_state))
                        );
                    }
                    Err(Error::Nvidia(error)) if error.may_succeed_inline() => {
                        // After a refusal, the inline call decides whether the breaker opens: see above.
                        if !error.is_upload_refusal() {
                            self.open_breaker(&error, self.settings.failed_upload_pause);
                        }
                        upload_error = Some(error);
                    }
                    Err(error) => return Err(error),
                },
                Plan::Reencode => {
                    let jpeg = encode_as(converted, Prepared::Jpeg).await?;
                    // The decoder returns no bytes if a JPEG of the same width and height is
                    // impossible or too long: see `Target::Converted`.
                    payload = if jpeg.content.is_empty() {
                        // Not temporary: even if uploads work, this picture must be shrunk.
                        encode_as(shrunk, Prepared::Shrunk).await?
                    } else {
                        jpeg
                    };
                }
                Plan::Shrink if payload.prepared == Prepared::Shrunk => {
                    return Err(Error::CannotShrinkEnough);
                }
                Plan::Shrink => {
                    drop(payload); // shrinking starts from the original picture
                    payload = encode_as(shrunk, Prepared::Shrunk).await?;
                    payload.is_temporary = self.settings.large_images == LargeImages::Asset;
                }
            }
        }
    }

    /// Takes a permit, and sends the payload inside the request. Returns `None` if the lease is lost.
    async fn send_inline(
        &self,
        payload: &Payload,
        lease: Option<&Lease>,
        retry_state: &mut RetryState<'_>,
    ) -> Result<Option<Vector>, Error> {
        let _permit = self.take_permit(retry_state).await?;
        if !may_call(lease).await {
            return Ok(None);
        }
        // This reads no file: spools keep contents of at most `largest_inline` bytes in memory.
        let bytes = payload.content.read_at(0, self.settings.largest_inline());
        let bytes = bytes.map_err(image::Error::from).map_err(decoder::Error::from)?;
        let image = InlineImage::new(payload.format.media_type(), &bytes);
        Ok(Some(self.nvidia.infer(&image, retry_state).await?))
    }

    /// Takes a permit, uploads the payload as an asset, and requests the asset's embedding. Returns `None`
    /// if the lease is lost.
    async fn send_uploaded(
        &self,
        payload: &Payload,
        lease: Option<&Lease>,
        retry_state: &mut RetryState<'_>,
    ) -> Result<Option<Vector>, Error> {
        let _permit = self.take_permit(retry_state).await?;
        let media_type = payload.format.media_type();
        // The upload gets half of the remaining time. If it hangs, the other half is left to shrink
        // the picture and send it inline.
        let upload_deadline = retry_state.halfway_to_deadline();
        let asset =
            self.nvidia.upload(media_type, &payload.content, retry_state, upload_deadline).await?;
        if !may_call(lease).await {
            return Ok(None);
        }
        Ok(Some(self.nvidia.infer_asset(&asset, retry_state).await?))
    }

    /// Takes a permit for a call, after any wait that NVIDIA or the limit on calls per minute
    /// requires.
    async fn take_permit(&self, retry_state: &mut RetryState<'_>) -> Result<Permit, Error> {
        let wait = async {
            self.nvidia.wait_until_ready(Operation::Infer, retry_state).await?;
            let permit =
                self.queue.take_in_time(retry_state.client_network, retry_state.deadline).await;
            permit.ok_or(Error::QueueTimeout("a call to NVIDIA"))
        };
        in_span(span!("queue"), wait).await
    }

    /// Re-encodes a picture. The result is in memory if it can be sent inline, else in a staging
    /// file.
    async fn encode(
        &self,
        picture: &Picture,
        client: ClientNetwork,
        deadline: Instant,
        target: Target,
        prepared: Prepared,
    ) -> Result<Payload, decoder::Error> {
        let spool = self.staging.spool(self.settings.largest_inline());
        let decode = self.decoder.decode(picture, client, target, deadline, spool);
        let encoded = in_span(span!("decode"), decode).await?;
        let Spooled { content, staging_file, .. } = encoded;
        Ok(Payload {
            content,
            format: Format::Jpeg,
            prepared,
            can_be_sent_as_is: true,
            is_temporary: false,
            _staging_file: staging_file,
        })
    }

    fn embedding(
        &self,
        vector: Vector,
        payload: &Payload,
        retry_state: &RetryState<'_>,
    ) -> Embedding {
        let (prepared, attempts) = (payload.prepared, retry_state.sent_inferences());
        // A temporary embedding is valid until uploads are tried again.
        let valid_until =
            payload.is_temporary.then(|| self.upload_breaker.closes_at(Instant::now()));
        Embedding { vector, prepared, provenance: Provenance::Nvidia, attempts, valid_until }
    }

    /// Stops all uploads for the duration `pause`.
    fn open_breaker(&self, error: &nvidia::Error, pause: Duration) {
        tracing::warn!(
            %error,
            pause_s = pause.as_secs(),
            "uploads to NVIDIA do not work: large pictures are shrunk for a while"
        );
        self.upload_breaker.open_until(Instant::now() + pause);
    }
}
