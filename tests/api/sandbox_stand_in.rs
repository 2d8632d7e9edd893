//! The sandbox's stand-in for NVIDIA refuses the same requests as NVIDIA. These tests call its
//! router directly, without the service.

use std::net::SocketAddr;

use ::base64::{Engine, prelude::BASE64_STANDARD};
use axum::{Router, body::Body, extract::Request, http::HeaderMap};
use imagesvc::{
    decoder::Decoder, disk_space::DiskSpace, sandbox, spool::Staging, telemetry::Metrics,
};
use serde_json::json;
use tower::ServiceExt;

use crate::support::{
    ROCKET as PHOTO, decoder_settings,
    nvidia_api::{ASSETS_PATH, INFER_PATH, STATUS_PATH, inline_body},
};

const BEARER: (&str, &str) = ("authorization", "Bearer nvapi-right");
const JSON: (&str, &str) = ("content-type", "application/json");

// The methods and paths of requests.
const INFER: (&str, &str) = ("POST", INFER_PATH);
const CREATE: (&str, &str) = ("POST", ASSETS_PATH);

fn stand_in() -> Router {
    let decoder = Decoder::new(decoder_settings(), Metrics::new());
    let (folder, min_free_bytes) = (std::env::temp_dir(), 0);
    let staging = Staging::new(folder.clone(), DiskSpace::new(folder, min_free_bytes));
    // Nothing listens on this address. It is only the beginning of upload URLs.
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let max_pixels = 64_000_000; // the default limit of the service
    sandbox::stand_in_router(address, "nvapi-right", max_pixels, decoder, staging)
}

/// Sends a request, and returns the response's status, JSON and headers.
async fn send(
    router: &Router,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> (u16, serde_json::Value, HeaderMap) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (parts.status.as_u16(), serde_json::from_slice(&body).unwrap_or_default(), parts.headers)
}

#[tokio::test]
async fn an_invalid_inference_request_gets_the_status_that_nvidia_would_send() {
    let router = &stand_in();
    let photo_text = BASE64_STANDARD.encode(PHOTO);
    let valid = inline_body("image/jpeg", &photo_text);
    assert_eq!(send(router, INFER, &[BEARER, JSON], valid.clone()).await.0, 200);
    for (headers, body, expected) in [
        // No key, another key, and no `Bearer`.
        (vec![JSON], valid.clone(), 401),
        (vec![("authorization", "Bearer nvapi-wrong"), JSON], valid.clone(), 401),
        (vec![("authorization", "nvapi-right"), JSON], valid.clone(), 401),
        // No content type.
        (vec![BEARER], valid.clone(), 415),
        // A media type that is not the photograph's, and one that the model does not accept.
        (vec![BEARER, JSON], inline_body("image/png", &photo_text), 422),
        (vec![BEARER, JSON], inline_body("image/webp", &photo_text), 422),
        // Invalid Base64, and the Base64 of only the first 300 bytes of the photograph.
        (vec![BEARER, JSON], inline_body("image/jpeg", "no base64"), 422),
        (vec![BEARER, JSON], inline_body("image/jpeg", &photo_text[..400]), 422),
        // A Base64 text that is one character too long.
        (vec![BEARER, JSON], inline_body("image/jpeg", &"A".repeat(200_000)), 413),
        // Fields that NVIDIA's API does not have.
        (vec![BEARER, JSON], valid.replace("\"messages\"", "\"model\":\"x\",\"messages\""), 422),
        (vec![BEARER, JSON], valid.replace("{\"content\"", "{\"role\":\"user\",\"content\""), 422),
        // Neither an inline picture nor the headers that name an asset.
        (vec![BEARER, JSON], json!({ "messages": [] }).to_string(), 400),
        // Invalid JSON.
        (vec![BEARER, JSON], "{".into(), 422),
    ] {
        let (status, answer, _) = send(router, INFER, &headers, body.clone()).await;
        assert_eq!(status, expected, "{headers:?} {body:.80} {answer}");
    }
}

/// The body of a request that creates an asset.
fn creation_body() -> String {
    json!({ "contentType": "image/jpeg", "description": "d" }).to_string()
}

/// Creates an asset. Returns its id, and the path to which the picture must be uploaded.
async fn created_asset(router: &Router) -> (String, String) {
    let (_, asset, _) = send(router, CREATE, &[BEARER, JSON], creation_body()).await;
    let upload_path =
        asset["uploadUrl"].as_str().unwrap().strip_prefix("http://127.0.0.1:1").unwrap();
    (asset["assetId"].as_str().unwrap().to_owned(), upload_path.to_owned())
}

/// Uploads the photograph to the path of a presigned URL, and returns the status.
async fn put(router: &Router, path: &str, headers: &[(&str, &str)]) -> u16 {
    send(router, ("PUT", path), headers, PHOTO).await.0
}

/// The headers that an upload of `length` bytes needs. The first two are part of the URL's
/// signature.
fn upload_headers(length: &str) -> [(&str, &str); 3] {
    [
        ("content-type", "image/jpeg"),
        ("x-amz-meta-nvcf-asset-description", "d"),
        ("content-length", length),
    ]
}

#[tokio::test]
async fn an_invalid_request_to_create_an_asset_gets_the_status_that_nvidia_would_send() {
    let router = &stand_in();
    assert_eq!(send(router, CREATE, &[JSON], creation_body()).await.0, 401);
    assert_eq!(send(router, CREATE, &[BEARER], creation_body()).await.0, 415);
    let tiff = creation_body().replace("jpeg", "tiff");
    assert_eq!(send(router, CREATE, &[BEARER, JSON], tiff).await.0, 400);
}

#[tokio::test]
async fn the_stand_in_refuses_an_upload_with_a_key_or_without_a_length_or_a_matching_signature() {
    let router = &stand_in();
    let (_, upload_path) = created_asset(router).await;
    let length = PHOTO.len().to_string();
    let headers = upload_headers(&length);
    let [content_type, description, content_length] = headers;
    let with_key = [content_type, description, content_length, BEARER];
    assert_eq!(put(router, &upload_path, &with_key).await, 400);
    // An upload without a length counts as chunked, which the stand-in does not implement.
    let without_length = [content_type, description];
    assert_eq!(put(router, &upload_path, &without_length).await, 501);
    let without_content_type = [description, content_length];
    assert_eq!(put(router, &upload_path, &without_content_type).await, 403);
    let other_description = (description.0, "e");
    let with_other_description = [content_type, other_description, content_length];
    assert_eq!(put(router, &upload_path, &with_other_description).await, 403);
    let path_with_wrong_signature = upload_path.replace("signature=", "signature=x");
    assert_eq!(put(router, &path_with_wrong_signature, &headers).await, 403);
    assert_eq!(put(router, &upload_path, &headers).await, 200);
}

#[tokio::test]
async fn an_uploaded_asset_can_be_embedded_its_result_polled_once_and_the_asset_deleted_once() {
    let router = &stand_in();
    let (id, upload_path) = created_asset(router).await;
    let references =
        [BEARER, JSON, ("nvcf-input-asset-references", &*id), ("nvcf-function-asset-ids", &*id)];
    let body = json!({ "messages": [] }).to_string();
    assert_eq!(
        send(router, INFER, &references, body.clone()).await.0,
        400,
        "an asset that was not uploaded must be refused"
    );
    let length = PHOTO.len().to_string();
    assert_eq!(put(router, &upload_path, &upload_headers(&length)).await, 200);
    assert_eq!(
        send(router, INFER, &references[..3], body.clone()).await.0, // without the last header
        400,
        "a request with only one of the two asset headers must be refused"
    );
    let (status, _, headers) = send(router, INFER, &references, body).await;
    assert_eq!(status, 202, "the result should have to be polled");
    let poll = format!("{STATUS_PATH}/{}", headers["nvcf-reqid"].to_str().unwrap());
    assert_eq!(send(router, ("GET", &poll), &[], "").await.0, 401);
    assert_eq!(send(router, ("GET", &poll), &[BEARER], "").await.0, 200);
    assert_eq!(
        send(router, ("GET", &poll), &[BEARER], "").await.0,
        404,
        "a result must be delivered only once"
    );
    let delete = format!("{ASSETS_PATH}/{id}");
    assert_eq!(send(router, ("DELETE", &delete), &[], "").await.0, 401);
    assert_eq!(send(router, ("DELETE", &delete), &[BEARER], "").await.0, 204);
    assert_eq!(send(router, ("DELETE", &delete), &[BEARER], "").await.0, 404);
}
