//! A fake NVIDIA, and the replies that it sends.

use std::ops::Deref;

use base64::{Engine, prelude::BASE64_STANDARD};
use image_rs::RgbImage;

use super::{
    FakeServer, Received, Reply,
    nvidia_api::{self, ASSETS_PATH, CREATE_ASSET, INFER, UPLOAD_PATH, asset_body, embedding_body},
};

/// A fake server with the routes of NVIDIA's API.
pub struct FakeNvidia(FakeServer);

impl FakeNvidia {
    /// The id that every created asset gets.
    pub const ASSET: &'static str = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9";
    /// The query of the presigned upload URL. No answer of the service may contain the word `planted`.
    pub const SIGNATURE: &'static str = "X-Amz-Signature=planted";
    /// The id of a pending result.
    pub const REQUEST_ID: &'static str = "7a6b5c4d-3e2f-4101-9203-040506070809";

    /// The picture in the last request, which must be an inline inference.
    pub fn last_inline_picture(&self) -> InlinePicture {
        InlinePicture::of(self.received().last().unwrap())
    }

    /// A server that sends the replies that a script returns. The script gets each request and the
    /// number of requests before it.
    pub async fn scripted(
        script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self(FakeServer::start(script).await)
    }

    /// A server that sends these replies in order, and then the last one again for every further request.
    pub async fn replying(replies: Vec<Reply>) -> Self {
        Self::scripted(move |_, nth| replies.get(nth).or(replies.last()).unwrap().clone()).await
    }

    /// A server that responds to every inference with an embedding, and accepts assets.
    pub async fn healthy() -> Self {
        Self::healthy_except(|_| None).await
    }

    /// A server that sends the reply that `exception` returns for a request. If `exception` returns
    /// `None`, the server sends the reply of [`Self::healthy`].
    pub async fn healthy_except(
        exception: impl Fn(&Received) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::scripted(move |request, _| {
            if let Some(reply) = exception(request) {
                return reply;
            }
            match request.line().as_str() {
                INFER => embedding(),
                CREATE_ASSET => created_asset(request),
                line if line.starts_with(&format!("PUT {UPLOAD_PATH}")) => Reply::status(200),
                line if line.starts_with(&format!("DELETE {ASSETS_PATH}/")) => Reply::status(204),
                line => panic!("the service must not call {line}, which NVIDIA does not have"),
            }
        })
        .await
    }

    /// The number of inference calls that this server has received. Each of them costs a credit.
    pub fn inference_calls(&self) -> usize {
        self.lines().iter().filter(|line| *line == INFER).count()
    }

    /// The settings with which the service calls this server.
    pub fn settings(&self) -> [(&'static str, String); 4] {
        nvidia_api::settings(self.address)
    }
}

/// NVIDIA's reply to the creation of an asset.
pub fn created_asset(request: &Received) -> Reply {
    let host = request.header("host").unwrap();
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    let (asset, signature) = (FakeNvidia::ASSET, FakeNvidia::SIGNATURE);
    let upload_url = format!("http://{host}{UPLOAD_PATH}{asset}?{signature}");
    let [media_type, description] =
        ["contentType", "description"].map(|name| body[name].as_str().unwrap());
    Reply::json(200, asset_body(asset, &upload_url, media_type, description))
}

impl Deref for FakeNvidia {
    type Target = FakeServer;

    fn deref(&self) -> &FakeServer {
        &self.0
    }
}

/// The 1536 numbers of [`embedding`], each as text. No two are equal.
pub fn numbers() -> Vec<String> {
    (0..1536).map(|n| format!("{:.7}", f64::from(n) / 1536.0 - 0.5)).collect()
}

/// NVIDIA's reply with [`numbers`] as the embedding.
pub fn embedding() -> Reply {
    embedding_of(&format!("[{}]", numbers().join(",")))
}

/// NVIDIA's reply with this JSON text as the embedding.
pub fn embedding_of(embedding: &str) -> Reply {
    Reply::json(200, embedding_body(embedding))
}

/// NVIDIA's reply while the result is pending. The service polls for the result with this id.
pub fn pending(id: &str) -> Reply {
    Reply::new(202, &[("NVCF-REQID", id), ("NVCF-STATUS", "pending-evaluation")], "")
}

/// The picture in an inline inference.
pub struct InlinePicture {
    pub media_type: String,
    pub bytes: Vec<u8>,
    /// The number of characters of the Base64 text.
    pub text_len: usize,
}

impl InlinePicture {
    pub fn of(request: &Received) -> Self {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let url = body["messages"][0]["content"]["image_url"]["url"].as_str().unwrap();
        let (media_type, text) = url.split_once(";base64,").unwrap();
        let media_type = media_type.strip_prefix("data:").unwrap().to_owned();
        Self { media_type, bytes: BASE64_STANDARD.decode(text).unwrap(), text_len: text.len() }
    }

    /// The pixels as they are stored: an EXIF orientation is not applied.
    pub fn pixels(&self) -> RgbImage {
        image_rs::load_from_memory(&self.bytes).unwrap().into_rgb8()
    }
}

/// The `n` of the inline picture, which `tiny(n)` or `variant(…, n)` made. Both append `n` to the
/// picture's bytes.
pub fn picture_number(request: &Received) -> usize {
    try_picture_number(request).unwrap()
}

/// Like [`picture_number`], but returns `None` if the request contains no inline picture.
pub fn try_picture_number(request: &Received) -> Option<usize> {
    let body = String::from_utf8_lossy(&request.body);
    let (_, text) = body.split_once(";base64,")?;
    let picture = BASE64_STANDARD.decode(text.split_once('"')?.0).unwrap();
    Some(usize::from_le_bytes(*picture.last_chunk()?))
}
