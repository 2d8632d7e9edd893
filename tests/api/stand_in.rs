//! The sandbox's stand-in is as strict as NVIDIA.

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

fn stand_in() -> Router {
    let decoder = Decoder::new(decoder_settings(), Metrics::new());
    let staging = Staging::new(std::env::temp_dir(), DiskSpace::new(std::env::temp_dir(), 0));
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    sandbox::router(address, "nvapi-right", 64_000_000, decoder, staging)
}

async fn send(
    router: &Router,
    line: (&str, &str),
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> (u16, serde_json::Value, HeaderMap) {
    let request = Request::builder().method(line.0).uri(line.1);
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (parts, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (parts.status.as_u16(), serde_json::from_slice(&body).unwrap_or_default(), parts.headers)
}

const INFER: (&str, &str) = ("POST", INFER_PATH);
const CREATE: (&str, &str) = ("POST", ASSETS_PATH);

#[tokio::test]
async fn an_inference_is_refused_as_nvidia_refuses_it() {
    let router = &stand_in();
    let photo = BASE64_STANDARD.encode(PHOTO);
    let good = inline_body("image/jpeg", &photo);
    assert_eq!(send(router, INFER, &[BEARER, JSON], good.clone()).await.0, 200);
    for (headers, body, status) in [
        (vec![JSON], good.clone(), 401),
        (vec![("authorization", "Bearer nvapi-wrong"), JSON], good.clone(), 401),
        (vec![("authorization", "nvapi-right"), JSON], good.clone(), 401),
        (vec![BEARER], good.clone(), 415),
        (vec![BEARER, JSON], inline_body("image/png", &photo), 422),
        (vec![BEARER, JSON], inline_body("image/webp", &photo), 422),
        (vec![BEARER, JSON], inline_body("image/jpeg", "no base64"), 422),
        (vec![BEARER, JSON], inline_body("image/jpeg", &photo[..400]), 422),
        (vec![BEARER, JSON], inline_body("image/jpeg", &"A".repeat(200_000)), 413),
        (vec![BEARER, JSON], good.replace("\"messages\"", "\"model\":\"x\",\"messages\""), 422),
        (vec![BEARER, JSON], good.replace("{\"content\"", "{\"role\":\"user\",\"content\""), 422),
        (vec![BEARER, JSON], json!({ "messages": [] }).to_string(), 400),
        (vec![BEARER, JSON], "{".into(), 422),
    ] {
        let (got, problem, _) = send(router, INFER, &headers, body.clone()).await;
        assert_eq!(got, status, "{headers:?} {body:.80} {problem}");
    }
}

#[tokio::test]
async fn an_upload_needs_the_signed_headers_and_no_key() {
    let router = &stand_in();
    let create = json!({ "contentType": "image/jpeg", "description": "d" }).to_string();
    assert_eq!(send(router, CREATE, &[JSON], create.clone()).await.0, 401);
    assert_eq!(send(router, CREATE, &[BEARER], create.clone()).await.0, 415);
    assert_eq!(send(router, CREATE, &[BEARER, JSON], create.replace("jpeg", "tiff")).await.0, 400);
    let (_, created, _) = send(router, CREATE, &[BEARER, JSON], create).await;
    let upload = created["uploadUrl"].as_str().unwrap().strip_prefix("http://127.0.0.1:1").unwrap();
    let length = PHOTO.len().to_string();
    let good = [
        ("content-type", "image/jpeg"),
        ("x-amz-meta-nvcf-asset-description", "d"),
        ("content-length", length.as_str()),
    ];
    let put = async |path: &str, headers: &[(&str, &str)]| {
        send(router, ("PUT", path), headers, PHOTO).await.0
    };
    assert_eq!(put(upload, &[&good[..], &[BEARER]].concat()).await, 400);
    assert_eq!(put(upload, &good[..2]).await, 501);
    assert_eq!(put(upload, &good[1..]).await, 403);
    assert_eq!(
        put(upload, &[good[0], ("x-amz-meta-nvcf-asset-description", "e"), good[2]]).await,
        403
    );
    assert_eq!(put(&upload.replace("signature=", "signature=x"), &good).await, 403);
    let id = created["assetId"].as_str().unwrap();
    let references =
        [BEARER, JSON, ("nvcf-input-asset-references", id), ("nvcf-function-asset-ids", id)];
    let nothing = json!({ "messages": [] }).to_string();
    assert_eq!(
        send(router, INFER, &references, nothing.clone()).await.0,
        400,
        "the picture is not uploaded yet"
    );

    assert_eq!(put(upload, &good).await, 200);
    assert_eq!(
        send(router, INFER, &references[..3], nothing.clone()).await.0,
        400,
        "both headers are required"
    );
    let (status, _, headers) = send(router, INFER, &references, nothing).await;
    assert_eq!(status, 202);
    let poll = format!("{STATUS_PATH}/{}", headers["nvcf-reqid"].to_str().unwrap());
    assert_eq!(send(router, ("GET", &poll), &[], "").await.0, 401);
    assert_eq!(send(router, ("GET", &poll), &[BEARER], "").await.0, 200);
    assert_eq!(send(router, ("GET", &poll), &[BEARER], "").await.0, 404, "delivered once");
    let delete = format!("{ASSETS_PATH}/{id}");
    assert_eq!(send(router, ("DELETE", &delete), &[], "").await.0, 401);
    assert_eq!(send(router, ("DELETE", &delete), &[BEARER], "").await.0, 204);
    assert_eq!(send(router, ("DELETE", &delete), &[BEARER], "").await.0, 404);
}
