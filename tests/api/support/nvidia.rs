//! A scripted NVIDIA.

use std::ops::Deref;

use super::{Received, Reply, Server};

/// The key that the service is given.
pub const KEY: &str = "nvapi-planted-key";

/// A server with NVIDIA's addresses on it.
pub struct Nvidia(Server);

impl Nvidia {
    /// Answers every call by a script.
    pub async fn scripted(
        script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self(Server::start(script).await)
    }

    /// Answers call after call, the last reply again and again.
    pub async fn replying(replies: Vec<Reply>) -> Self {
        Self::scripted(move |_, nth| replies.get(nth).or(replies.last()).unwrap().clone()).await
    }

    /// Answers every inference at once, and takes uploads.
    pub async fn well() -> Self {
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
                "POST /v1/cv/nvidia/nv-dinov2" => embedding(),
                "POST /v2/nvcf/assets" => Reply::json(200, created(request)),
                line if line.starts_with("PUT /upload/") => Reply::status(200),
                line if line.starts_with("DELETE /v2/nvcf/assets/") => Reply::status(204),
                line => panic!("NVIDIA has no {line}"),
            }
        })
        .await
    }

    /// The settings that lead to it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("NVIDIA_API_KEY", KEY.into()),
            ("NVIDIA_INFER_URL", self.url("/v1/cv/nvidia/nv-dinov2")),
            ("NVIDIA_STATUS_URL", self.url("/v1/status")),
            ("NVIDIA_ASSETS_URL", self.url("/v2/nvcf/assets")),
        ]
    }
}

impl Nvidia {
    /// The asset that uploads are told to be.
    pub const ASSET: &'static str = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9";
}

fn created(request: &Received) -> String {
    let host = request.header("host").unwrap();
    let announced: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    serde_json::json!({
        "assetId": Nvidia::ASSET,
        "uploadUrl": format!("http://{host}/upload/{}?X-Amz-Signature=planted", Nvidia::ASSET),
        "contentType": announced["contentType"],
        "description": announced["description"],
    })
    .to_string()
}

impl Deref for Nvidia {
    type Target = Server;

    fn deref(&self) -> &Server {
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
    Reply::json(
        200,
        format!(
            r#"{{"metadata":[{{"embedding":{embedding},"frame_num":0}}],"created":1,"model":"nv-dinov2","object":"inference.completion","usage":{{"inference_response_time":1}}}}"#
        ),
    )
}

/// The number of a tiny picture that an inference asks for.
pub fn number(request: &Received) -> usize {
    try_number(request).unwrap()
}

/// The same, of a request that may be about something else.
pub fn try_number(request: &Received) -> Option<usize> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let body = String::from_utf8_lossy(&request.body);
    let (_, text) = body.split_once(";base64,")?;
    let picture = BASE64_STANDARD.decode(text.split_once('"')?.0).unwrap();
    Some(usize::from_le_bytes(*picture.last_chunk()?))
}
