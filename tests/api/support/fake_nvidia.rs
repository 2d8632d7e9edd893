//! A fake NVIDIA.

use std::ops::Deref;

use base64::{Engine, prelude::BASE64_STANDARD};
use image_rs::RgbImage;

use super::{
    FakeServer, Received, Reply,
    nvidia_api::{self, ASSETS_PATH, CREATE_ASSET, INFER, UPLOAD_PATH, asset_body, embedding_body},
};

/// A fake server with NVIDIA's addresses on it.
pub struct FakeNvidia(FakeServer);

impl FakeNvidia {
    /// The picture that was sent to it last, which must have been inline.
    pub fn last_inline(&self) -> Inline {
        Inline::of(self.received().last().unwrap())
    }

    /// The asset that uploads are told to be.
    pub const ASSET: &'static str = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9";
    /// The query of the address that uploads go to.
    pub const SIGNATURE: &'static str = "X-Amz-Signature=planted";

    /// Answers every call by a script.
    pub async fn scripted(
        script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self(FakeServer::start(script).await)
    }

    /// Answers call after call, the last reply again and again.
    pub async fn replying(replies: Vec<Reply>) -> Self {
        Self::scripted(move |_, nth| replies.get(nth).or(replies.last()).unwrap().clone()).await
    }

    /// Answers every inference at once, and takes uploads.
    pub async fn healthy() -> Self {
        Self::with_uploads(|_| None).await
    }

    /// Takes uploads and answers inferences, except where the script says otherwise.
    pub async fn with_uploads(
        except: impl Fn(&Received) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::scripted(move |request, _| {
            if let Some(reply) = except(request) {
                return reply;
            }
            match request.line().as_str() {
                INFER => embedding(),
                CREATE_ASSET => created_asset(request),
                line if line.starts_with(&format!("PUT {UPLOAD_PATH}")) => Reply::status(200),
                line if line.starts_with(&format!("DELETE {ASSETS_PATH}/")) => Reply::status(204),
                line => panic!("NVIDIA has no {line}"),
            }
        })
        .await
    }

    /// The settings that lead to it.
    pub fn settings(&self) -> [(&'static str, String); 4] {
        nvidia_api::settings(self.address)
    }
}

/// NVIDIA's answer to an announced upload.
pub fn created_asset(request: &Received) -> Reply {
    let host = request.header("host").unwrap();
    let announced: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    let (asset, signature) = (FakeNvidia::ASSET, FakeNvidia::SIGNATURE);
    let upload_url = format!("http://{host}{UPLOAD_PATH}{asset}?{signature}");
    let [media_type, description] =
        ["contentType", "description"].map(|name| announced[name].as_str().unwrap());
    Reply::json(200, asset_body(asset, &upload_url, media_type, description))
}

impl Deref for FakeNvidia {
    type Target = FakeServer;

    fn deref(&self) -> &FakeServer {
        &self.0
    }
}

/// 1536 numbers as text.
pub fn numbers() -> Vec<String> {
    (0..1536).map(|n| format!("{:.7}", f64::from(n) / 1536.0 - 0.5)).collect()
}

/// NVIDIA's answer with [`numbers`].
pub fn embedding() -> Reply {
    embedding_of(&format!("[{}]", numbers().join(",")))
}

/// NVIDIA's answer with an embedding of any text.
pub fn embedding_of(embedding: &str) -> Reply {
    Reply::json(200, embedding_body(embedding))
}

/// NVIDIA's answer that the embedding comes later, under this id.
pub fn pending(id: &str) -> Reply {
    Reply::new(202, &[("NVCF-REQID", id), ("NVCF-STATUS", "pending-evaluation")], "")
}

/// The picture that an inference carries.
pub struct Inline {
    pub media_type: String,
    pub bytes: Vec<u8>,
    /// Of its Base64 text.
    pub text_len: usize,
}

impl Inline {
    pub fn of(request: &Received) -> Self {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let url = body["messages"][0]["content"]["image_url"]["url"].as_str().unwrap();
        let (media_type, text) = url.split_once(";base64,").unwrap();
        let media_type = media_type.strip_prefix("data:").unwrap().to_owned();
        Self { media_type, bytes: BASE64_STANDARD.decode(text).unwrap(), text_len: text.len() }
    }

    /// Its pixels, as they lie.
    pub fn pixels(&self) -> RgbImage {
        image_rs::load_from_memory(&self.bytes).unwrap().into_rgb8()
    }
}

/// The number of a tiny picture that an inference asks for.
pub fn picture_number(request: &Received) -> usize {
    try_picture_number(request).unwrap()
}

/// The same, of a request that may be about something else.
pub fn try_picture_number(request: &Received) -> Option<usize> {
    let body = String::from_utf8_lossy(&request.body);
    let (_, text) = body.split_once(";base64,")?;
    let picture = BASE64_STANDARD.decode(text.split_once('"')?.0).unwrap();
    Some(usize::from_le_bytes(*picture.last_chunk()?))
}
