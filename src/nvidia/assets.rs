//! Uploads a large picture as an asset: creates the asset, sends the picture to the presigned URL,
//! and deletes the asset after the inference.

use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::{
    Client, Error, ErrorKind, Operation, RetryState, item_url,
    wire::{CreateAsset, CreatedAsset},
};
use crate::{http_client::body_of, image::Content};

/// The description of every asset. It never contains the client's file name.
const DESCRIPTION: &str = "imagesvc picture";

/// How long the deletion of an asset may take.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// An asset at NVIDIA. It contains the picture as soon as [`Client::upload`] returns. Dropping this value
/// starts a background task that deletes the asset.
#[derive(Debug)]
pub struct UploadedAsset {
    id: Uuid,
    nvidia: Client,
}

impl UploadedAsset {
    /// NVIDIA's id of the asset.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }
}

impl Drop for UploadedAsset {
    fn drop(&mut self) {
        // At the very end of the process there may be no runtime. The asset is then not deleted here,
        // but NVIDIA deletes old assets itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (nvidia, id) = (self.nvidia.clone(), self.id);
            let tracker = self.nvidia.0.background.clone();
            tracker.spawn_on(async move { nvidia.delete_asset(id).await }, &runtime);
        }
    }
}

impl Client {
    /// Uploads a picture before `deadline`, which may be earlier than the deadline of
    /// `retry_state`.
    ///
    /// # Errors
    /// The [`Error`] of the last attempt. The error's kind is [`ErrorKind::UploadsRefused`] if
    /// NVIDIA refuses the upload, or if its response names no asset or no usable URL.
    pub async fn upload(
        &self,
        media_type: &str,
        picture: &Content,
        retry_state: &mut RetryState<'_>,
        deadline: Instant,
    ) -> Result<UploadedAsset, Error> {
        let created = loop {
            match self.create_asset(media_type, deadline).await {
                Ok(created) => break created,
                // Returns the error if no other attempt is allowed.
                Err(error) => retry_state.wait_for_next(error, deadline).await?,
            }
        };
        // If sending the picture fails, dropping `asset` deletes the empty asset at NVIDIA.
        let asset = UploadedAsset { id: created.asset_id, nvidia: self.clone() };
        loop {
            match self.send_picture(&created, media_type, picture, deadline).await {
                Ok(()) => return Ok(asset),
                Err(error) => retry_state.wait_for_next(error, deadline).await?,
            }
        }
    }

    async fn create_asset(
        &self,
        media_type: &str,
        deadline: Instant,
    ) -> Result<CreatedAsset, Error> {
        let operation = Operation::CreateAsset;
        let asset = CreateAsset { content_type: media_type, description: DESCRIPTION };
        let body = serde_json::to_vec(&asset)
            .map_err(|error| Error::new(operation, ErrorKind::Unexpected, error.to_string()))?;
        let request = self
            .authorized(self.0.http.post(self.0.settings.assets_url.clone()))
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        self.wait_for_retry_after(operation, deadline).await?;
        let response = self.call(operation, request, deadline).await?;
        response.check_status(operation)?;
        // An invalid response counts as a refusal of uploads, so that the picture is shrunk and sent inline.
        // The error does not quote the response, because the response may contain a presigned URL.
        let refused =
            |detail: &str| Error::new(operation, ErrorKind::UploadsRefused, detail.into());
        let created: CreatedAsset = serde_json::from_slice(&response.body)
            .map_err(|_| refused("the response lacks an asset id or an upload URL"))?;
        if may_upload_to(&created.upload_url, &self.0.settings.assets_url) {
            Ok(created)
        } else {
            Err(refused("the upload URL is not https"))
        }
    }

    /// Sends the picture to the presigned URL.
    async fn send_picture(
        &self,
        created: &CreatedAsset,
        media_type: &str,
        picture: &Content,
        deadline: Instant,
    ) -> Result<(), Error> {
        let operation = Operation::UploadAsset;
        // No `Authorization` header: the presigned URL grants access, and its host must not
        // receive the key.
        let request = self
            .0
            .http
            .put(created.upload_url.clone())
            .header(CONTENT_TYPE, media_type)
            // NVIDIA requires the same description as in the request that created the asset.
            .header("x-amz-meta-nvcf-asset-description", DESCRIPTION)
            .header(CONTENT_LENGTH, picture.len())
            .body(body_of(picture));
        let response = self.call(operation, request, deadline).await?;
        response.check_status(operation).map(drop)
    }

    /// Deletes an asset. If this fails, the error is only logged: the asset does no harm, and
    /// NVIDIA deletes old assets itself.
    async fn delete_asset(&self, id: Uuid) {
        let operation = Operation::DeleteAsset;
        let url = item_url(&self.0.settings.assets_url, id);
        let request = self.authorized(self.0.http.delete(url));
        let response = self.call(operation, request, Instant::now() + DELETE_TIMEOUT).await;
        if let Err(error) = response.and_then(|response| response.check_status(operation)) {
            tracing::debug!(%error, "an asset was not deleted");
        }
    }
}

/// Whether a picture may be sent to this URL. An https URL is always allowed. An http URL is
/// allowed only if the configured URL of the asset API is http as well, as in tests.
fn may_upload_to(upload_url: &Url, assets_url: &Url) -> bool {
    upload_url.scheme() == "https"
        || (upload_url.scheme() == "http" && assets_url.scheme() == "http")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_uploaded_over_http_only_if_the_asset_api_is_http() {
        let is_allowed = |upload: &str, assets: &str| {
            may_upload_to(&upload.parse().unwrap(), &assets.parse().unwrap())
        };
        assert!(is_allowed(
            "https://bucket.example/x",
            "https://api.nvcf.nvidia.com/v2/nvcf/assets"
        ));
        assert!(is_allowed("https://bucket.example/x", "http://127.0.0.1:1/"));
        assert!(is_allowed("http://127.0.0.1:1/x", "http://127.0.0.1:1/"));
        assert!(!is_allowed(
            "http://bucket.example/x",
            "https://api.nvcf.nvidia.com/v2/nvcf/assets"
        ));
        assert!(!is_allowed("ftp://bucket.example/x", "http://127.0.0.1:1/"));
    }
}
