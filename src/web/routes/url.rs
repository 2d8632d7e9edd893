//! `POST /vectorize-image`: takes a picture by its URL.

use std::collections::BTreeMap;

use axum::{body::Body, extract::State};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{RefOr, Response},
};

use super::{answer::Answer, openapi::error_responses};
use crate::{
    image::{self, Unsupported},
    pipeline,
    shares::ClientNetwork,
    web::{
        error::{Code, Error},
        extract::{
            body::{BodyContent, BodyLimits},
            cache_control::{CacheControl, CacheControlHeader},
            json,
            query::{PictureOptions, PictureQuery},
        },
        state::AppState,
    },
};

/// The most bytes of the body. The longest URL has 8 KiB. It fits even if every byte is a JSON escape,
/// such as `\u002f`, which takes six bytes.
const MAX_BODY_BYTES: u64 = 64 * 1024;

const EXAMPLE: &str = r#"{"image_url": "https://example.com/photo.jpg"}"#;

/// The URL of a picture.
#[derive(ToSchema)]
#[schema(as = ImageUrl)]
#[allow(dead_code, reason = "describes the body; `Fields` reads it")]
pub(super) struct UrlRequest {
    #[cfg_attr(
        feature = "heic",
        doc = "The absolute http or https URL of a JPEG, PNG, WebP, GIF, BMP, TIFF or HEIC picture."
    )]
    #[cfg_attr(
        not(feature = "heic"),
        doc = "The absolute http or https URL of a JPEG, PNG, WebP, GIF, BMP or TIFF picture."
    )]
    #[schema(
        min_length = 1,
        example = "https://upload.wikimedia.org/wikipedia/commons/e/e4/Morgan_Freeman_Deauville_2018.jpg"
    )]
    image_url: String,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    image_url: Option<&'a RawValue>,
}

/// The errors of this route.
struct UrlErrors;

impl IntoResponses for UrlErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        error_responses::of_pictures(&[
            Code::InvalidUrl,
            Code::UrlNotAllowed,
            Code::DownloadFailed,
            Code::DownloadTimeout,
        ])
    }
}

/// Vectorize a picture by its URL
///
/// The service fetches the picture from a public address, saves it, and answers with its embedding. Some
/// hosts, such as Wikimedia, refuse clients that do not identify themselves. For these, the operator sets
/// `IMAGESVC_FETCH_USER_AGENT` to a name with a contact.
///
/// ```bash
/// curl -X POST http://localhost:8000/vectorize-image \
///   -H "Content-Type: application/json" \
///   -d '{
///         "image_url": "http://localhost:8000/sandbox/photo.jpg"
///       }'
/// ```
#[utoipa::path(
    post,
    path = "/vectorize-image",
    tag = "pictures",
    params(PictureQuery, CacheControlHeader),
    request_body = UrlRequest,
    responses(
        (
            status = 200, description = "The picture's embedding", body = Answer,
            headers(("x-cache" = String, description = "`miss` if the service called NVIDIA for this answer, else `hit`"))
        ),
        UrlErrors,
    )
)]
pub(super) async fn vectorize_image(
    State(app): State<AppState>,
    client: ClientNetwork,
    CacheControl(cache_mode): CacheControl,
    PictureOptions { save_mode }: PictureOptions,
    body: Body,
) -> Result<Answer, Error> {
    // The body contains only a URL, so the check for free memory counts 0 bytes for it.
    let admission = app.pipeline.admit(client, 0, save_mode).await?;
    let limits = &app.pipeline.limits;
    let body_limits = BodyLimits {
        max_bytes: MAX_BODY_BYTES,
        content: BodyContent::Url,
        timeout: limits.body_timeout,
    };
    let mut memory = app.pipeline.memory.empty_permit(client);
    let url = parse(body_limits.read(body, &mut memory).await?)?;
    drop(memory); // only the URL is still in memory

    let bytes = fetch(&app, &url, client).await?;
    let received = app.pipeline.receive(admission, bytes).await.map_err(explain_web_page)?;
    let vectorized = app.pipeline.embed(received, cache_mode, save_mode).await?;
    Ok(Answer::new(vectorized, app.model).with_source_url(url))
}

/// Fetches a picture on behalf of a client. Refuses a picture whose declared length exceeds the limit.
/// The stream fails if the host sends more bytes than the limit.
pub(super) async fn fetch(
    app: &AppState,
    url: &str,
    client: ClientNetwork,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
    let max_bytes = app.pipeline.limits.max_image_bytes;
    let fetched = app.fetcher.fetch(url, client).await?;
    if let Some(length) = fetched.length.filter(|length| *length > max_bytes) {
        return Err(pipeline::Error::TooManyBytes { limit: max_bytes, size: Some(length) }.into());
    }
    Ok(fetched.into_stream(max_bytes).map_err(Error::from))
}

/// Replaces the error for a web page by an error whose sentence is about the URL. People often copy
/// the URL of a page that shows a picture.
pub(super) fn explain_web_page(error: Error) -> Error {
    match error {
        Error::Pipeline(pipeline::Error::Image(image::Error::Unsupported(
            Unsupported::WebPage,
        ))) => Error::LeadsToWebPage,
        other => other,
    }
}

fn parse(body: Vec<u8>) -> Result<String, Error> {
    let body = json::clean(body);
    let fields: Fields<'_> = json::parse(&body, EXAMPLE)?;
    let url = json::required_string(fields.image_url, "image_url", EXAMPLE)?;
    Ok(json::text(url, "image_url")?.into_owned())
}
