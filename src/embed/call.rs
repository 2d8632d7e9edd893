//! One call to NVIDIA for the embedding of one picture: prepares the picture as
//! [`plan`](super::plan) chooses, and sends it inline or as an upload.
//!
//! `nvidia/classify.rs` decides which failures mean that the picture must be sent without an
//! upload. A picture is decoded before it takes a permit for NVIDIA, so that no permit is held
//! unused.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Embedding, Error, Inner, LargeImages, Prepared, Provenance,
    plan::{Plan, can_be_sent_as_is, plan},
};
use crate::{
    decoder,
    fair_queue::Permit,
    image::{self, Content, Format, Picture, Target},
    nvidia::{self, InlineImage, RetryState, Vector},
    shares::ClientNetwork,
    spool::{Spooled, StagingFile},
};

/// What NVIDIA receives: the picture itself, or a JPEG made from it.
struct Payload {
    content: Content,
    format: Format,
    prepared: Prepared,
    /// Whether NVIDIA accepts it without re-encoding.
    is_ready: bool,
    /// Whether it was shrunk only because uploads do not work at the moment.
    is_temporary: bool,
    /// The file that a re-encoded picture may be in; removed when this is dropped.
    _staging_file: Option<StagingFile>,
}

impl Payload {
    fn original(picture: &Picture) -> Self {
        let (content, format) = (picture.content.clone(), picture.format);
        Self {
            content,
            format,
            prepared: Prepared::Original,
            is_ready: can_be_sent_as_is(picture),
            is_temporary: false,
            _staging_file: None,
        }
    }
}

impl Inner {
    /// Returns the embedding, or fails by the deadline.
    ///
    /// # Errors
    /// [`Error`]
    pub(super) async fn call(
        &self,
        picture: &Picture,
        client: ClientNetwork,
        deadline: Instant,
    ) -> Result<Embedding, Error> {
        let mut retry_state = self.nvidia.reserve_call(client, deadline)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if self.queue.expected_wait(client) > left {
            return Err(Error::QueueTooLong);
        }
        let largest_inline = self.settings.largest_inline();
        let max_len = usize::try_from(self.settings.max_image_bytes).unwrap_or(usize::MAX);
        let converted = Target::Converted { max_len };
        let shrunk = Target::Shrunk { max_len: largest_inline };
        let encode = |target, prepared| self.encode(picture, client, deadline, target, prepared);
        let mut payload = Payload::original(picture);
        let mut upload_failure: Option<nvidia::Error> = None;
        loop {
            let may_upload = upload_failure.is_none()
                && payload.prepared != Prepared::Shrunk
                && self.settings.large_images == LargeImages::Asset
                && !self.upload_breaker.is_open(Instant::now());
            let len = payload.content.len();
            match plan(payload.is_ready, len, may_upload, largest_inline as u64) {
                Plan::SendInline => {
                    let vector = self.send_inline(&payload, &mut retry_state).await?;
                    if let Some(failure) = upload_failure.filter(nvidia::Error::is_upload_refusal) {
                        // Opens the breaker only after the picture was accepted inline: if NVIDIA
                        // rejects the picture either way, the uploads are not to blame.
                        self.open_breaker(&failure, self.settings.asset_memory);
                    }
                    return Ok(self.embedding(vector, &payload, &retry_state));
                }
                Plan::Upload => match self.send_uploaded(&payload, &mut retry_state).await {
                    Ok(vector) => return Ok(self.embedding(vector, &payload, &retry_state)),
                    Err(Error::Nvidia(failure)) if failure.may_succeed_inline() => {
                        if !failure.is_upload_refusal() {
                            self.open_breaker(&failure, self.settings.outage_memory);
                        }
                        upload_failure = Some(failure);
                    }
                    Err(error) => return Err(error),
                },
                Plan::Reencode => {
                    let jpeg = encode(converted, Prepared::Jpeg).await?;
                    // The decoder returns nothing if no JPEG of the same size is short enough.
                    let is_too_long = jpeg.content.is_empty();
                    payload =
                        if is_too_long { encode(shrunk, Prepared::Shrunk).await? } else { jpeg };
                }
                Plan::Shrink if payload.prepared == Prepared::Shrunk => {
                    return Err(Error::StillTooLarge);
                }
                Plan::Shrink => {
                    drop(payload); // shrinking starts from the original picture
                    payload = encode(shrunk, Prepared::Shrunk).await?;
                    payload.is_temporary = self.settings.large_images == LargeImages::Asset;
                }
            }
        }
    }

    /// Sends the payload inside the request, once it has a permit.
    async fn send_inline(
        &self,
        payload: &Payload,
        retry_state: &mut RetryState<'_>,
    ) -> Result<Vector, Error> {
        let _permit = self.permit(retry_state).await?;
        // This reads no file: whatever is small enough to go inline was spooled in memory.
        let bytes = payload.content.read_at(0, self.settings.largest_inline());
        let bytes = bytes.map_err(image::Error::from).map_err(decoder::Error::from)?;
        let image = InlineImage::new(payload.format.media_type(), &bytes);
        Ok(self.nvidia.infer(&image, retry_state).await?)
    }

    /// Uploads the payload and asks for its embedding, once it has a permit.
    async fn send_uploaded(
        &self,
        payload: &Payload,
        retry_state: &mut RetryState<'_>,
    ) -> Result<Vector, Error> {
        let _permit = self.permit(retry_state).await?;
        let media_type = payload.format.media_type();
        // If the upload hangs, half of the time is left to shrink the picture and send it inline.
        let by = retry_state.halfway_to_deadline();
        let asset = self.nvidia.upload(media_type, &payload.content, retry_state, by).await?;
        Ok(self.nvidia.infer_asset(&asset, retry_state).await?)
    }

    async fn permit(&self, retry_state: &RetryState<'_>) -> Result<Permit, Error> {
        self.nvidia.wait_until_ready(retry_state.deadline).await?;
        let permit =
            self.queue.take_in_time(retry_state.client_network, retry_state.deadline).await;
        permit.ok_or(Error::QueueTimeout("a call to NVIDIA"))
    }

    /// Re-encodes a picture: into memory if the result can go inline, else into a staging file.
    async fn encode(
        &self,
        picture: &Picture,
        client: ClientNetwork,
        deadline: Instant,
        target: Target,
        prepared: Prepared,
    ) -> Result<Payload, decoder::Error> {
        let spool = self.staging.spool(self.settings.largest_inline());
        let encoded = self.decoder.decode(picture, client, target, deadline, spool).await?;
        let Spooled { content, staging_file, .. } = encoded;
        Ok(Payload {
            content,
            format: Format::Jpeg,
            prepared,
            is_ready: true,
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
        let (prepared, count) = (payload.prepared, retry_state.sent_inferences());
        let valid_until =
            payload.is_temporary.then(|| self.upload_breaker.closes_at(Instant::now()));
        Embedding { vector, prepared, provenance: Provenance::Nvidia, attempts: count, valid_until }
    }

    /// Stops uploading for a while.
    fn open_breaker(&self, failure: &nvidia::Error, memory: Duration) {
        tracing::warn!(
            error = %failure,
            spared_s = memory.as_secs(),
            "uploads to NVIDIA do not work: large pictures are shrunk for a while"
        );
        self.upload_breaker.open_until(Instant::now() + memory);
    }
}
