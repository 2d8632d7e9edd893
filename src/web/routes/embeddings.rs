//! `POST /v1/embeddings`: one picture or a batch, as OpenAI's clients send it.
//!
//! The route turns each item into a stream of bytes, and the pipeline does the rest: it is the same
//! path as that of single pictures.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Extension, body::Body, extract::State, response::Response as AxumResponse};
use bytes::Bytes;
use futures_util::{StreamExt, TryFutureExt, stream::BoxStream};
use tokio::{task::spawn_blocking, time::Instant};
use utoipa::{
    IntoResponses,
    openapi::{RefOr, Response},
};

use super::{
    base64::{ChargedBody, LARGE_BODY, decode_pieces},
    openapi::error_responses,
    url::{explain_web_page, fetch as fetch_picture},
};
use crate::{
    fetch,
    image::{self, Unsupported},
    pipeline::{self, BatchError, BatchOptions},
    shares::ClientNetwork,
    web::{
        error::{BATCH_SIZE_SETTINGS, Code, Error, Invalid},
        extract::{
            body::{BodyContent, BodyLimits},
            cache_control::{CacheControl, CacheControlHeader},
            query::{BatchQuery, ErrorOption, PictureOptions, PictureQuery},
        },
        middleware::{access_log::with_causes, rate_limit::ClientLimit},
        state::AppState,
    },
};
use answer::BatchAnswer;
use input::{Batch, Bounds, Item, Source};
use schema::EmbeddingsRequest;

mod answer;
mod encoding;
mod find;
mod input;
mod schema;

/// A picture of one pixel, for the examples in the OpenAPI document.
const PIXEL: &str =
    "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

/// How many times the timeout of a fetch the fetches of a batch may take until the last one begins.
const MAX_FETCH_ROUNDS: u32 = 2;

/// Answers with more pictures than this are written on a blocking thread.
const LARGE_ANSWER: usize = 8;

/// The errors of this route.
struct BatchErrors;

impl IntoResponses for BatchErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        error_responses::of_pictures(&[
            Code::UnsupportedParameter,
            Code::ModelNotFound,
            Code::InvalidUrl,
            Code::UrlNotAllowed,
            Code::DownloadFailed,
            Code::DownloadTimeout,
            Code::InvalidBase64,
        ])
    }
}

/// Vectorize one picture or a batch, as OpenAI's clients send it
///
/// If a picture fails, the whole batch fails: `error.param` names the picture, and the embeddings
/// that were computed by then are in the cache.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "OpenAI",
    params(PictureQuery, BatchQuery, CacheControlHeader),
    request_body(
        content = EmbeddingsRequest,
        examples(
            ("a batch" = (value = json!({
                "model": "nvidia/nv-dinov2",
                "input": [PIXEL, { "image_url": { "url": PIXEL } }]
            }))),
            ("a single picture, its vector as base64" = (value = json!({
                "input": PIXEL,
                "encoding_format": "base64"
            }))),
            ("chat messages" = (value = json!({
                "messages": [{
                    "role": "user",
                    "content": [{ "type": "image_url", "image_url": { "url": PIXEL } }]
                }]
            }))),
        )
    ),
    responses(
        (
            status = 200, description = "The pictures' embeddings, in the order of the request", body = BatchAnswer,
            headers(("x-cache" = String, description = "`miss` if the service called NVIDIA for this answer, else `hit`"))
        ),
        BatchErrors,
    )
)]
#[allow(clippy::too_many_arguments, reason = "each is an extractor")]
pub(super) async fn embeddings(
    State(app): State<AppState>,
    client: ClientNetwork,
    CacheControl(cache_mode): CacheControl,
    PictureOptions { save_mode }: PictureOptions,
    ErrorOption(on_error): ErrorOption,
    limit: Option<Extension<ClientLimit>>,
    body: Body,
) -> Result<AxumResponse, Error> {
    let limits = &app.pipeline.limits;
    let body_limits = BodyLimits {
        max_bytes: limits.max_batch_body(),
        content: BodyContent::Batch,
        timeout: limits.body_timeout,
    };
    let admission = app.pipeline.admit(client, body_limits.declared_length(&body)?).await?;
    let mut memory = app.pipeline.memory.empty(client);
    let body = body_limits.read(body, &mut memory).await?;

    let bounds = Bounds { pictures: app.pipeline.largest_batch(), model: app.model };
    let batch = if body.len() < LARGE_BODY {
        input::parse(body, bounds)?
    } else {
        // The thread owns the memory's share, since it goes on working if the client leaves.
        let parse = move || Ok::<_, Error>((input::parse(body, bounds)?, memory));
        let batch;
        (batch, memory) = spawn_blocking(parse).await??;
        batch
    };
    let Batch { body, items, encoding } = batch;
    if let Some(Extension(limit)) = limit {
        count_pictures(&limit, items.len())?;
    }
    let body = Arc::new(ChargedBody::new(body, memory));
    let places: Vec<_> = items.iter().map(Place::of).collect();
    let latest_fetch = Instant::now() + MAX_FETCH_ROUNDS * app.fetcher.timeout();
    let sources =
        items.into_iter().map(|item| Ok(stream(&app, client, &body, item.source?, latest_fetch)));
    let sources: Vec<_> = sources.collect();
    drop(body);
    let options = BatchOptions { cache_mode, save_mode, on_error };
    let pictures = match app.pipeline.embed_batch(admission, sources, options).await {
        Ok(pictures) => pictures,
        Err(BatchError { index, error }) => {
            let place = index.and_then(|index| places.get(index));
            return Err(match place {
                Some(place) => place.explain(error),
                None => explain_size(error),
            });
        }
    };
    let pictures = pictures.into_iter().zip(&places);
    let pictures: Vec<_> = pictures
        .map(|(picture, place)| picture.map_err(|error| log_error(place.explain(error))))
        .collect();
    let model = app.model;
    let memory = app.pipeline.memory.empty(client);
    if pictures.len() <= LARGE_ANSWER {
        return BatchAnswer::new(pictures, encoding, model)?.into_response(memory);
    }
    let write = move || BatchAnswer::new(pictures, encoding, model)?.into_response(memory);
    spawn_blocking(write).await?
}

/// Logs the error of a picture whose batch goes on, since the access log has only the whole request.
fn log_error(error: Error) -> Error {
    let code = error.code();
    if code.status().is_server_error() {
        tracing::warn!(
            code = code.as_str(),
            error = with_causes(&error),
            "a picture of a batch failed"
        );
    } else {
        tracing::info!(
            code = code.as_str(),
            error = with_causes(&error),
            "a picture of a batch failed"
        );
    }
    error
}

/// Turns the error for a batch with too many new pictures into one about the field.
fn explain_size(error: Error) -> Error {
    match error {
        Error::Pipeline(pipeline::Error::BatchTooLarge { largest, .. }) => {
            too_many(largest, error.detail())
        }
        error => error,
    }
}

fn too_many(largest: usize, detail: String) -> Error {
    let message = format!("List should have at most {largest} items");
    Invalid::at(&["body", "input"], "too_long", &message, detail)
}

/// Counts the pictures of a batch against the client's rate limit.
fn count_pictures(limit: &ClientLimit, pictures: usize) -> Result<(), Error> {
    let largest = limit.largest_batch();
    if pictures > largest {
        let detail = format!(
            "This batch has {pictures} pictures, and you may send {largest} a minute: send at most {largest} at once ({BATCH_SIZE_SETTINGS})."
        );
        return Err(too_many(largest, detail));
    }
    limit.count_batch(pictures)
}

/// The bytes of a picture. The body is dropped when all its pictures have been read.
fn stream(
    app: &AppState,
    client: ClientNetwork,
    body: &Arc<ChargedBody>,
    source: Source,
    latest_fetch: Instant,
) -> BoxStream<'static, Result<Bytes, Error>> {
    match source {
        Source::DataUrl(text) | Source::Base64(text) => {
            decode_pieces(Arc::clone(body), text).boxed()
        }
        Source::Url(url) => {
            let app = app.clone();
            let fetch = async move {
                // Eight pictures are fetched at the same time. Behind slow hosts, the last ones of a
                // batch would otherwise begin after the client has given up.
                if Instant::now() > latest_fetch {
                    return Err(fetch::Error::Timeout.into());
                }
                fetch_picture(&app, &url, client).await
            };
            fetch.try_flatten_stream().boxed()
        }
    }
}

/// Where a picture is in the request, and how it was sent; for its error.
struct Place {
    /// Such as `input[3]`.
    name: String,
    kind: PlaceKind,
}

/// How a picture was sent.
#[derive(PartialEq, Eq)]
enum PlaceKind {
    Url,
    DataUrl,
    /// As a string without a scheme, which may be text instead.
    Bare,
}

impl Place {
    fn of(item: &Item) -> Self {
        let kind = match item.source {
            Ok(Source::Url(_)) => PlaceKind::Url,
            Ok(Source::Base64(_)) => PlaceKind::Bare,
            Ok(Source::DataUrl(_)) | Err(_) => PlaceKind::DataUrl,
        };
        Self { name: item.place.clone(), kind }
    }

    /// Adds the place to an error, and replaces errors that mean something else for this kind.
    fn explain(&self, error: Error) -> Error {
        let is_no_picture = matches!(
            error,
            Error::Base64(_)
                | Error::Pipeline(pipeline::Error::Image(
                    image::Error::Empty | image::Error::Unsupported(Unsupported::Unknown),
                ))
        );
        let error = match self.kind {
            PlaceKind::Url => explain_web_page(error),
            PlaceKind::Bare if is_no_picture => input::is_text(&self.name),
            PlaceKind::Bare | PlaceKind::DataUrl => error,
        };
        Error::BatchItem { param: self.name.clone(), error: Box::new(error) }
    }
}
