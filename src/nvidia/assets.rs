//! Uploading a large picture: announce it, put it to the presigned address, delete it afterwards.

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

/// What every upload is called: never the client's file name.
const DESCRIPTION: &str = "imagesvc picture";

/// How much of a file is read at once.
const READ_SIZE: usize = 64 * 1024;

const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// An uploaded picture. Dropping it deletes the upload, in a task of its own.
#[derive(Debug)]
pub struct UploadedAsset {
    id: Uuid,
    nvidia: Client,
}

impl UploadedAsset {
    /// NVIDIA's name for it.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }
}

impl Drop for UploadedAsset {
    fn drop(&mut self) {
        // Outside of a runtime (at the very end) nothing can be sent; NVIDIA deletes assets in time.
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
    /// [`Error`]; [`FailureKind::UploadsRefused`] when uploads do not work here.
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
        // An answer that makes no sense means that uploads do not work, as a refusal does. The
        // answer is not quoted: it holds a presigned address.
        let refused = |fault: &str| Error::new(operation, FailureKind::UploadsRefused, fault.into());
        let created: CreatedAsset = serde_json::from_slice(&reply.body)
            .map_err(|_| refused("no asset id and upload address"))?;
        if may_upload_to(&created.upload_url, &self.0.settings.assets_url) {
            Ok(created)
        } else {
            Err(refused("the upload address is not https"))
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
        // No Authorization: the address itself is the permission, and belongs to somebody else.
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

    /// Best effort: what is not deleted costs nothing but room at NVIDIA's.
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

/// A file's bytes, read off the async threads as the network takes them.
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

/// A picture goes to an https address; to an http one only where the settings' own are.
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
