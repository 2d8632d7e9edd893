//! NVIDIA's API as its server sees it: the key that it accepts, the paths, and the bodies of
//! requests and replies. All fakes of NVIDIA use this file, including the fake in `benches/`.

use std::net::SocketAddr;

/// The NVIDIA API key in the service's settings. Tests search logs and answers for it, because the
/// service must never reveal it.
pub const KEY: &str = "nvapi-planted-key";

/// The method and path of the request for an embedding.
pub const INFER: &str = "POST /v1/cv/nvidia/nv-dinov2";
/// The method and path of the request that creates an asset.
pub const CREATE_ASSET: &str = "POST /v2/nvcf/assets";

pub const INFER_PATH: &str = INFER.split_at("POST ".len()).1;
pub const ASSETS_PATH: &str = CREATE_ASSET.split_at("POST ".len()).1;
pub const STATUS_PATH: &str = "/v1/status";
/// The start of the path of a presigned upload URL. Each fake chooses the rest.
pub const UPLOAD_PATH: &str = "/upload/";

/// The settings that point the service to a fake NVIDIA at this address.
pub fn settings(address: SocketAddr) -> [(&'static str, String); 4] {
    let url = |path| format!("http://{address}{path}");
    [
        ("NVIDIA_API_KEY", KEY.to_owned()),
        ("NVIDIA_INFER_URL", url(INFER_PATH)),
        ("NVIDIA_STATUS_URL", url(STATUS_PATH)),
        ("NVIDIA_ASSETS_URL", url(ASSETS_PATH)),
    ]
}

/// The body of a request for the embedding of an inline picture.
pub fn inline_body(media_type: &str, base64: &str) -> String {
    format!(
        r#"{{"messages":[{{"content":{{"type":"image_url","image_url":{{"url":"data:{media_type};base64,{base64}"}}}}}}]}}"#
    )
}

/// The body of NVIDIA's reply with this JSON text as the embedding.
pub fn embedding_body(embedding: &str) -> String {
    format!(
        r#"{{"metadata":[{{"embedding":{embedding},"frame_num":0}}],"created":1,"model":"nv-dinov2","object":"inference.completion","usage":{{"inference_response_time":1}}}}"#
    )
}

/// The body of NVIDIA's reply to the creation of an asset with this id.
pub fn asset_body(asset_id: &str, upload_url: &str, media_type: &str, description: &str) -> String {
    format!(
        r#"{{"assetId":"{asset_id}","uploadUrl":"{upload_url}","contentType":"{media_type}","description":"{description}"}}"#
    )
}
