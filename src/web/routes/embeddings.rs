//! `POST /v1/embeddings`: one picture or a batch, as OpenAI's clients send it.
//!
//! The route turns each item into a stream of bytes. The pipeline then handles this stream like the
//! stream of a single picture.

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
    base64::{ChargedBody, decode_pieces},
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
            large_body::parse_body,
            query::{BatchQuery, ErrorOption, PictureOptions, PictureQuery},
        },
        middleware::{access_log::with_causes, rate_limit::ClientLimit},
        state::AppState,
    },
};
use answer::BatchAnswer;
use input::{Batch, Item, Rules, Source};
use schema::EmbeddingsRequest;

mod answer;
mod encoding;
mod find;
mod input;
mod schema;

/// A picture of one pixel, for the examples in the OpenAPI document.
const PIXEL: &str =
    "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

/// How long after the batch was parsed a fetch may begin, as a multiple of the fetch timeout.
const MAX_FETCH_START_DELAY: u32 = 2;

/// An answer with more pictures than this is serialized on a blocking thread.
const MAX_PICTURES_OF_SMALL_ANSWER: usize = 8;

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
/// Takes up to 32 pictures at once in OpenAI's format, so the `openai` packages, LangChain and LlamaIndex
/// work with pictures. A picture is an http or https URL, a `data:` URL, or its bytes as Base64.
///
/// Vectors are raw: they are what the model computes. Send `"normalized": true` for vectors of length 1.
/// The `openai` packages request Base64 by default, which rounds each number to a 32-bit float. With
/// `"encoding_format": "float"`, each number is exactly what NVIDIA printed.
///
/// If a picture fails, the whole batch fails, unless the query contains `errors=item`. `error.param` is
/// the place of the failed picture. The embeddings that were computed before are in the cache.
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
    rate_limit: Option<Extension<ClientLimit>>,
    body: Body,
) -> Result<AxumResponse, Error> {
    let limits = &app.pipeline.limits;
    let body_limits = BodyLimits {
        max_bytes: limits.max_batch_body(),
        content: BodyContent::Batch,
        timeout: limits.body_timeout,
    };
    let admission =
        app.pipeline.admit(client, body_limits.check_declared_length(&body)?, save_mode).await?;
    let mut memory = app.pipeline.memory.empty_permit(client);
    let body = body_limits.read(body, &mut memory).await?;

    let rules = Rules { max_pictures: app.pipeline.largest_batch(), model: app.model };
    let parse = move |body| input::parse(body, rules);
    let (batch, memory) = parse_body(body, memory, parse).await?;
    let Batch { body, items, encoding } = batch;
    if let Some(Extension(rate_limit)) = rate_limit {
        count_pictures(&rate_limit, items.len()).await?;
    }
    let body = Arc::new(ChargedBody::new(body, memory));
    let sent_items: Vec<_> = items.iter().map(SentItem::of).collect();
    let latest_fetch_start = Instant::now() + MAX_FETCH_START_DELAY * app.fetcher.timeout();
    let sources = items
        .into_iter()
        .map(|item| Ok(picture_bytes(&app, client, &body, item.source?, latest_fetch_start)));
    let sources: Vec<_> = sources.collect();
    // From here on, only the sources refer to the body, and the last of them frees it.
    drop(body);
    let options = BatchOptions { cache_mode, save_mode, on_error };
    let pictures = match app.pipeline.embed_batch(admission, sources, options).await {
        Ok(pictures) => pictures,
        Err(BatchError { index, error }) => {
            // Without an index, the error is that of the whole batch.
            let sent_item = index.and_then(|index| sent_items.get(index));
            return Err(match sent_item {
                Some(sent_item) => sent_item.explain(error),
                None => explain_batch_size(error),
            });
        }
    };
    let pictures = pictures.into_iter().zip(&sent_items);
    let pictures: Vec<_> = pictures
        .map(|(picture, sent_item)| picture.map_err(|error| log_error(sent_item.explain(error))))
        .collect();
    let model = app.model;
    let answer_memory = app.pipeline.memory.empty_permit(client);
    if pictures.len() <= MAX_PICTURES_OF_SMALL_ANSWER {
        return BatchAnswer::new(pictures, encoding, model)?.into_response(answer_memory);
    }
    let serialize =
        move || BatchAnswer::new(pictures, encoding, model)?.into_response(answer_memory);
    spawn_blocking(serialize).await?
}

/// Logs and returns the error of one picture, with `errors=item`. The access log contains only one line
/// for the whole request.
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

/// Turns [`pipeline::Error::BatchTooLarge`], which comes from the limit on calls to NVIDIA, into an error
/// of the field `input`. Returns other errors unchanged.
fn explain_batch_size(error: Error) -> Error {
    match error {
        Error::Pipeline(pipeline::Error::BatchTooLarge { max, .. }) => {
            too_many_pictures(max, error.detail())
        }
        error => error,
    }
}

fn too_many_pictures(max: usize, detail: String) -> Error {
    let message = format!("List should have at most {max} items");
    Invalid::at(&["body", "input"], "too_long", &message, detail)
}

/// Counts the pictures of a batch against the client's rate limit. [`ClientLimit::count_batch`] leaves out
/// the first picture, which the rate limit's layer has already counted.
async fn count_pictures(rate_limit: &ClientLimit, count: usize) -> Result<(), Error> {
    let max = rate_limit.largest_batch();
    if count > max {
        let detail = format!(
            "This batch has {count} pictures, and you may send {max} a minute: send at most {max} at once ({BATCH_SIZE_SETTINGS})."
        );
        return Err(too_many_pictures(max, detail));
    }
    rate_limit.count_batch(count).await
}

/// Returns a stream of a picture's bytes. If the picture is in the body, the stream keeps the body in
/// memory.
fn picture_bytes(
    app: &AppState,
    client: ClientNetwork,
    body: &Arc<ChargedBody>,
    source: Source,
    latest_fetch_start: Instant,
) -> BoxStream<'static, Result<Bytes, Error>> {
    match source {
        Source::DataUrl(text) | Source::Base64(text) => {
            decode_pieces(Arc::clone(body), text).boxed()
        }
        Source::Url(url) => {
            let app = app.clone();
            let fetched = async move {
                // The pipeline receives only some pictures of a batch at the same time. If their hosts
                // are slow, the last fetches would otherwise begin after the client has given up.
                if Instant::now() > latest_fetch_start {
                    return Err(fetch::Error::Timeout.into());
                }
                fetch_picture(&app, &url, client).await
            };
            fetched.try_flatten_stream().boxed()
        }
    }
}

/// A picture's place in the request, and how the picture was sent. The sentence of the picture's error
/// depends on both.
struct SentItem {
    /// Such as `input[3]`.
    place: String,
    sent_as: SentAs,
}

/// How a picture was sent.
#[derive(PartialEq, Eq)]
enum SentAs {
    Url,
    DataUrl,
    /// A string without a scheme: Base64, or by mistake a text to embed.
    Bare,
}

impl SentItem {
    fn of(item: &Item) -> Self {
        let sent_as = match item.source {
            Ok(Source::Url(_)) => SentAs::Url,
            Ok(Source::Base64(_)) => SentAs::Bare,
            // It is unknown how an item with an error was sent. `explain` then only adds the place.
            Ok(Source::DataUrl(_)) | Err(_) => SentAs::DataUrl,
        };
        Self { place: item.place.clone(), sent_as }
    }

    /// Adds the place to an error. Replaces an error whose sentence does not fit how the picture was
    /// sent.
    fn explain(&self, error: Error) -> Error {
        let is_not_a_picture = matches!(
            error,
            Error::Base64(_)
                | Error::Pipeline(pipeline::Error::Image(
                    image::Error::Empty | image::Error::Unsupported(Unsupported::Unknown),
                ))
        );
        let error = match self.sent_as {
            SentAs::Url => explain_web_page(error),
            SentAs::Bare if is_not_a_picture => input::text_instead_of_picture(&self.place),
            SentAs::Bare | SentAs::DataUrl => error,
        };
        Error::BatchItem { param: self.place.clone(), error: Box::new(error) }
    }
}
