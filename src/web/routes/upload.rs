//! `POST /vectorize-image-upload`: takes a picture as a file in a multipart form (RFC 7578).

use std::collections::BTreeMap;

use axum::{body::Body, extract::State, http::HeaderMap};
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
            boundary::read_boundary,
            cache_control::{CacheControl, CacheControlHeader},
            file_name,
            multipart::{EXAMPLE, Form, invalid},
            query::{PictureOptions, PictureQuery},
        },
        state::AppState,
    },
};

/// The most bytes of a body besides the picture: other fields, and the headers of the parts.
const FORM_OVERHEAD: u64 = 1 << 20;

/// A form with a picture.
#[derive(ToSchema)]
#[schema(as = UploadForm)]
#[allow(dead_code, reason = "describes the body; `Form` reads it")]
pub(super) struct UploadRequest {
    /// The file with the picture.
    #[schema(value_type = String, format = Binary, content_media_type = "application/octet-stream")]
    file: Vec<u8>,
}

/// The errors of this route.
struct UploadErrors;

impl IntoResponses for UploadErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        error_responses::of_pictures(&[Code::EmptyImage])
    }
}

/// Vectorize an uploaded picture
///
/// The service saves the picture, and answers with its embedding. An app sends the picture as a form with a
/// part named `file`. The form may also come from a browser, or from `curl -F`:
///
/// ```bash
/// curl -X POST http://localhost:8000/vectorize-image-upload \
///   -F "file=@tests/fixtures/rocket.jpg"
/// ```
#[utoipa::path(
    post,
    path = "/vectorize-image-upload",
    tag = "pictures",
    params(PictureQuery, CacheControlHeader),
    request_body(content = UploadRequest, content_type = "multipart/form-data"),
    responses(
        (
            status = 200, description = "The picture's embedding", body = Answer,
            headers(("x-cache" = String, description = "`miss` if the service called NVIDIA for this answer, else `hit`"))
        ),
        UploadErrors,
    )
)]
pub(super) async fn vectorize_image_upload(
    State(app): State<AppState>,
    client: ClientNetwork,
    CacheControl(cache_mode): CacheControl,
    PictureOptions { save_mode }: PictureOptions,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer, Error> {
    let boundary = read_boundary(&headers)?;
    let limits = &app.pipeline.limits;
    let body_limits = BodyLimits {
        max_bytes: limits.max_image_bytes + FORM_OVERHEAD,
        content: BodyContent::Picture { max_picture_bytes: limits.max_image_bytes },
        timeout: limits.body_timeout,
    };
    body_limits.check_declared_length(&body)?; // refuses a declared length over the limit
    // The body is never in memory as a whole, so it counts as 0 bytes.
    let admission = app.pipeline.admit(client, 0, save_mode).await?;

    let memory = app.pipeline.memory.empty_permit(client);
    let mut form = Form::new(body_limits.stream(body)?, &boundary, memory);
    let file = form.find_file().await?;
    let name = file.name.clone();
    let received = match app.pipeline.receive(admission, form.into_stream(file)).await {
        // A part without a file name is probably text. With curl, this happens if the `@` is
        // missing.
        Err(Error::Pipeline(pipeline::Error::Image(
            image::Error::Empty | image::Error::Unsupported(Unsupported::Unknown),
        ))) if name.is_none() => {
            return Err(invalid(
                "The field file contains text, not a picture",
                format!(
                    "The field file contains text, not a file: with curl, put an @ before the file's name ({EXAMPLE})."
                ),
            ));
        }
        received => received?,
    };
    let vectorized = app.pipeline.embed(received, cache_mode, save_mode).await?;
    let original_filename = name.as_deref().and_then(file_name::printable);
    Ok(Answer::new(vectorized, app.model).with_original_filename(original_filename))
}
