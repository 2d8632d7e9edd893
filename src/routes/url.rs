//! `POST /vectorize-image`: a picture by its address.

use axum::{body::Body, extract::State};
use futures_util::TryStreamExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{answer::Answer, json};
use crate::{
    app::AppState,
    error::{Error, Problem},
    guard::body::Receiving,
};

/// An address may have 8 KiB, and escapes take six bytes for one.
const BODY_LIMIT: u64 = 64 * 1024;

const EXAMPLE: &str = r#"{"image_url": "https://example.com/photo.jpg"}"#;

/// Where the picture is.
#[derive(ToSchema)]
#[schema(as = ImageUrl)]
#[allow(dead_code, reason = "describes the body; `Fields` reads it")]
pub(super) struct UrlRequest {
    /// An absolute http or https address of a JPEG, PNG, WebP, GIF, BMP or TIFF picture.
    #[schema(
        example = "https://upload.wikimedia.org/wikipedia/commons/e/e4/Morgan_Freeman_Deauville_2018.jpg"
    )]
    image_url: String,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    image_url: Option<&'a RawValue>,
}

/// Vectorize a picture by its address
///
/// The service fetches the picture, saves it and answers with its embedding.
#[utoipa::path(
    post,
    path = "/vectorize-image",
    tag = "pictures",
    request_body = UrlRequest,
    responses(
        (status = 200, description = "The picture's embedding", body = Answer),
        (status = 400, description = "`invalid_url`, `empty_image`", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`url_not_allowed`", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "`request_timeout`", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`image_too_large`", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported_image`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`validation_failed`, `embedding_rejected`", body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "`storage_failed`, `internal`", body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "`download_failed`, `embedding_unauthorized`, `embedding_unavailable`, `embedding_invalid`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`overloaded`, `embedding_exhausted`, `embedding_rate_limited`", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "`download_timeout`, `embedding_timeout`", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "`storage_full`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn vectorize_image(
    State(app): State<AppState>,
    body: Body,
) -> Result<Answer, Error> {
    let admission = app.vectorizer.admit(BODY_LIMIT).await?;
    let limits = &app.vectorizer.limits;
    let receiving = Receiving { limit: BODY_LIMIT, timeout: limits.body_timeout };
    let address = parse(receiving.read(body).await?)?;

    let fetched = app.fetcher.fetch(&address).await?;
    match fetched.length {
        Some(bytes) if bytes > limits.max_image_bytes => {
            return Err(Error::TooManyBytes { limit: limits.max_image_bytes, size: Some(bytes) });
        }
        _ => {}
    }
    let done =
        app.vectorizer.vectorize(admission, fetched.into_stream().map_err(Error::from)).await?;
    Ok(Answer::new(done, app.model).fetched_from(address))
}

fn parse(body: Vec<u8>) -> Result<String, Error> {
    let body = json::clean(body);
    let fields: Fields<'_> = json::parse(&body, EXAMPLE)?;
    let address = json::required(fields.image_url, "image_url", EXAMPLE)?;
    Ok(json::text(address, "image_url")?.into_owned())
}
