//! Uploads a large picture: announces it, sends it to the presigned URL, and deletes it afterwards.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use reqwest::{
    Body,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use tokio::{task::spawn_blocking, time::Instant};
use url::Url;
use uuid::Uuid;

use super::{
    Attempts, Client, Error, FailureKind, Operation, item_url,
    wire::{CreateAsset, CreatedAsset},
};
use crate::image::Content;

/// The description of every upload. It never contains the client's file name.
const DESCRIPTION: &str = "imagesvc picture";

/// How much of a file is read at once, in bytes.
const READ_SIZE: usize = 64 * 1024;

const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// An uploaded picture. Dropping it deletes the upload in a task of its own.
#[derive(Debug)]
pub struct UploadedAsset {
    id: Uuid,
    nvidia: Client,
}

impl UploadedAsset {
    /// NVIDIA's id of the upload.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }
}

impl Drop for UploadedAsset {
    fn drop(&mut self) {
        // Outside of a runtime (at the very end of the process) nothing can be sent. NVIDIA itself
        // deletes assets after a while.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (nvidia, id) = (self.nvidia.clone(), self.id);
            let tracker = self.nvidia.0.background.clone();
            tracker.spawn_on(async move { nvidia.delete(id).await }, &runtime);
        }
    }
}

impl Client {
    /// Uploads a picture.
    ///
    /// # Errors
    /// [`Error`]; [`FailureKind::UploadsRefused`] if uploads do not work for this model or account.
    pub async fn upload(
        &self,
        media_type: &str,
        picture: &Content,
        attempts: &mut Attempts<'_>,
        deadline: Instant,
    ) -> Result<UploadedAsset, Error> {
        let created = loop {
            match self.create(media_type, deadline).await {
                Ok(created) => break created,
                Err(failure) => attempts.wait_for_next(failure, deadline).await?,
            }
        };
        let asset = UploadedAsset { id: created.asset_id, nvidia: self.clone() };
        loop {
            match self.put(&created, media_type, picture, deadline).await {
                Ok(()) => return Ok(asset),
                Err(failure) => attempts.wait_for_next(failure, deadline).await?,
            }
        }
    }

    async fn create(&self, media_type: &str, deadline: Instant) -> Result<CreatedAsset, Error> {
        let operation = Operation::CreateAsset;
        let announced = CreateAsset { content_type: media_type, description: DESCRIPTION };
        let body = serde_json::to_vec(&announced)
            .map_err(|error| Error::new(operation, FailureKind::Unexpected, error.to_string()))?;
        let request = self
            .authorized(self.0.http.post(self.0.settings.assets_url.clone()))
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        self.wait_for_not_before(operation, deadline).await?;
        let reply = self.call(operation, request, deadline).await?;
        reply.progress(operation)?;
        // An invalid answer counts as a refusal: uploads do not work here. The answer is not
        // quoted, because it may contain a presigned URL.
        let refused =
            |fault: &str| Error::new(operation, FailureKind::UploadsRefused, fault.into());
        let created: CreatedAsset = serde_json::from_slice(&reply.body)
            .map_err(|_| refused("no asset id and upload URL"))?;
        if may_upload_to(&created.upload_url, &self.0.settings.assets_url) {
            Ok(created)
        } else {
            Err(refused("the upload URL is not https"))
        }
    }

    async fn put(
        &self,
        created: &CreatedAsset,
        media_type: &str,
        picture: &Content,
        deadline: Instant,
    ) -> Result<(), Error> {
        let operation = Operation::UploadAsset;
        let body = match picture {
            Content::Memory(bytes) => Body::from(bytes.clone()),
            Content::File(..) => Body::wrap(StreamBody::new(frames(picture.clone()))),
        };
        // No Authorization header: the presigned URL is the permission, and its host is not
        // NVIDIA's API.
        let request = self
            .0
            .http
            .put(created.upload_url.clone())
            .header(CONTENT_TYPE, media_type)
            .header("x-amz-meta-nvcf-asset-description", DESCRIPTION)
            .header(CONTENT_LENGTH, picture.len())
            .body(body);
        let reply = self.call(operation, request, deadline).await?;
        reply.progress(operation).map(drop)
    }

    /// Best effort: an asset that is not deleted only takes space at NVIDIA.
    async fn delete(&self, id: Uuid) {
        let operation = Operation::DeleteAsset;
        let url = item_url(&self.0.settings.assets_url, id);
        let request = self.authorized(self.0.http.delete(url));
        let reply = self.call(operation, request, Instant::now() + DELETE_TIMEOUT).await;
        if let Err(failure) = reply.and_then(|reply| reply.progress(operation)) {
            tracing::debug!(%failure, "an uploaded picture was not deleted");
        }
    }
}

/// A file's bytes, read on blocking threads at the speed of the network.
fn frames(picture: Content) -> impl Stream<Item = std::io::Result<Frame<Bytes>>> + Send + Sync {
    stream::try_unfold((picture, 0), |(picture, offset)| async move {
        if offset >= picture.len() {
            return Ok(None);
        }
        let (bytes, picture) =
            spawn_blocking(move || (picture.read_at(offset, READ_SIZE), picture)).await?;
        let bytes = bytes?;
        let offset = offset + bytes.len() as u64;
        Ok(Some((Frame::data(bytes), (picture, offset))))
    })
}

/// Uploads go to https URLs. Plain http is allowed only if the setting's own URL is plain http.
fn may_upload_to(upload: &Url, assets: &Url) -> bool {
    upload.scheme() == "https" || (upload.scheme() == "http" && assets.scheme() == "http")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_not_sent_in_the_clear_unless_the_settings_are() {
        let may = |upload: &str, assets: &str| {
            may_upload_to(&upload.parse().unwrap(), &assets.parse().unwrap())
        };
        assert!(may("https://bucket.example/x", "https://api.nvcf.nvidia.com/v2/nvcf/assets"));
        assert!(may("https://bucket.example/x", "http://127.0.0.1:1/"));
        assert!(may("http://127.0.0.1:1/x", "http://127.0.0.1:1/"));
        assert!(!may("http://bucket.example/x", "https://api.nvcf.nvidia.com/v2/nvcf/assets"));
        assert!(!may("ftp://bucket.example/x", "http://127.0.0.1:1/"));
    }
}
