//! Asks NVIDIA for the embedding of one picture, by the plan that [`plan`](super::plan)
//! makes.
//!
//! Which failures mean that it must go without an upload, `nvidia/classify.rs` says. A picture is
//! decoded before it takes its permit for NVIDIA: none is held that is not used.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Embedding, Error, Inner, LargeImages, Prepared, Provenance,
    plan::{Plan, goes_as_it_is, plan},
};
use crate::{
    decoder,
    fair_queue::Permit,
    image::{self, Content, Format, Picture, Target},
    nvidia::{self, Attempts, InlineImage, Vector},
    shares::ClientNetwork,
    spool::{Spooled, Staged},
};

/// What NVIDIA is given.
struct Payload {
    content: Content,
    format: Format,
    prepared: Prepared,
    /// Whether NVIDIA can be given it.
    is_ready: bool,
    /// The file that it is in, if it was re-encoded to one; removed when dropped.
    _staged: Option<Staged>,
}

impl Payload {
    fn original(picture: &Picture) -> Self {
        let (content, format) = (picture.content.clone(), picture.format);
        let is_ready = goes_as_it_is(picture);
        Self { content, format, prepared: Prepared::Original, is_ready, _staged: None }
    }
}

impl Inner {
    /// Computes the embedding before the deadline.
    ///
    /// # Errors
    /// [`Error`]
    pub(super) async fn ask(
        &self,
        picture: &Picture,
        client: ClientNetwork,
        deadline: Instant,
    ) -> Result<Embedding, Error> {
        let mut attempts = self.nvidia.begin(client, deadline)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if self.queue.expected_wait(client) > left {
            return Err(Error::WaitTooLong);
        }
        let largest_inline = self.settings.largest_inline();
        let max_len = usize::try_from(self.settings.max_image_bytes).unwrap_or(usize::MAX);
        let converted = Target::Converted { max_len };
        let shrunk = Target::Shrunk { max_len: largest_inline };
        let encode = |target, prepared| self.encode(picture, client, deadline, target, prepared);
        let mut payload = Payload::original(picture);
        let mut refusal: Option<nvidia::Error> = None;
        loop {
            let may_upload = refusal.is_none()
                && payload.prepared != Prepared::Shrunk
                && self.settings.large_images == LargeImages::Asset
                && !self.uploads.is_open(Instant::now());
            let len = payload.content.len();
            match plan(payload.is_ready, len, may_upload, largest_inline as u64) {
                Plan::SendInline => {
                    let vector = self.send_inline(&payload, &mut attempts).await?;
                    if let Some(refusal) = refusal.filter(nvidia::Error::is_refusal) {
                        // Only now: a picture that NVIDIA takes in no way says nothing of uploads.
                        self.spare_uploads(&refusal, self.settings.asset_memory);
                    }
                    return Ok(self.asked(vector, &payload, &attempts));
                }
                Plan::Upload => match self.send_uploaded(&payload, &mut attempts).await {
                    Ok(vector) => return Ok(self.asked(vector, &payload, &attempts)),
                    Err(Error::Nvidia(failure)) if failure.is_about_uploads() => {
                        if !failure.is_refusal() {
                            self.spare_uploads(&failure, self.settings.outage_memory);
                        }
                        refusal = Some(failure);
                    }
                    Err(error) => return Err(error),
                },
                Plan::Reencode => {
                    let jpeg = encode(converted, Prepared::Jpeg).await?;
                    let is_too_long = jpeg.content.is_empty();
                    payload =
                        if is_too_long { encode(shrunk, Prepared::Shrunk).await? } else { jpeg };
                }
                Plan::Shrink if payload.prepared == Prepared::Shrunk => {
                    return Err(Error::StillTooLarge);
                }
                Plan::Shrink => {
                    drop(payload); // the picture itself is what is shrunk
                    payload = encode(shrunk, Prepared::Shrunk).await?;
                }
            }
        }
    }

    /// Sends bytes in the request itself, once it is their turn.
    async fn send_inline(
        &self,
        payload: &Payload,
        attempts: &mut Attempts<'_>,
    ) -> Result<Vector, Error> {
        let _permit = self.permit(attempts).await?;
        // No file is read: whatever fits inline is spooled in memory.
        let bytes = payload.content.read_at(0, self.settings.largest_inline());
        let bytes = bytes.map_err(image::Error::from).map_err(decoder::Error::from)?;
        let image = InlineImage::new(payload.format.media_type(), &bytes);
        Ok(self.nvidia.infer(&image, attempts).await?)
    }

    /// Uploads bytes and asks for their embedding, once it is their turn.
    async fn send_uploaded(
        &self,
        payload: &Payload,
        attempts: &mut Attempts<'_>,
    ) -> Result<Vector, Error> {
        let _permit = self.permit(attempts).await?;
        let media_type = payload.format.media_type();
        // An upload that hangs shall leave the time to do without.
        let by = attempts.halfway();
        let asset = self.nvidia.upload(media_type, &payload.content, attempts, by).await?;
        Ok(self.nvidia.infer_asset(&asset, attempts).await?)
    }

    async fn permit(&self, attempts: &Attempts<'_>) -> Result<Permit, Error> {
        self.nvidia.ready(attempts.deadline).await?;
        let permit = self.queue.take_in_time(attempts.client, attempts.deadline).await;
        permit.ok_or(Error::Busy("a call to NVIDIA"))
    }

    /// Re-encodes a picture. What fits inline is in memory, what does not is in a staging file.
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
        let Spooled { content, staged, .. } = encoded;
        let format = Format::Jpeg;
        Ok(Payload { content, format, prepared, is_ready: true, _staged: staged })
    }

    fn asked(&self, vector: Vector, payload: &Payload, attempts: &Attempts<'_>) -> Embedding {
        let (prepared, tries) = (payload.prepared, attempts.inferences());
        let is_makeshift =
            prepared == Prepared::Shrunk && self.settings.large_images == LargeImages::Asset;
        let valid_until = is_makeshift.then(|| self.uploads.closes(Instant::now()));
        Embedding { vector, prepared, provenance: Provenance::Asked, tries, valid_until }
    }

    /// Does without uploads for a while.
    fn spare_uploads(&self, failure: &nvidia::Error, memory: Duration) {
        tracing::warn!(
            error = %failure,
            spared_s = memory.as_secs(),
            "NVIDIA does not take uploads: large pictures are shrunk instead"
        );
        self.uploads.open_until(Instant::now() + memory);
    }
}
