//! Describes the errors of each route in the OpenAPI document.

use std::collections::BTreeMap;

use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

use crate::web::error::{Code, PROBLEM_JSON};

/// The errors of every route that takes pictures.
const ERRORS_OF_EVERY_PICTURE_ROUTE: &[Code] = &[
    Code::ValidationFailed,
    Code::UnsupportedImage,
    Code::ImageTooLarge,
    Code::InvalidHost,
    Code::UnsupportedContentEncoding,
    Code::UnsupportedTransferEncoding,
    Code::Unauthorized,
    Code::CrossOrigin,
    Code::RateLimited,
    Code::Overloaded,
    Code::ShuttingDown,
    Code::RequestTimeout,
    Code::EmbeddingRejected,
    Code::EmbeddingUnauthorized,
    Code::EmbeddingExhausted,
    Code::EmbeddingRateLimited,
    Code::EmbeddingUnavailable,
    Code::EmbeddingTimeout,
    Code::EmbeddingInvalid,
    Code::StorageFull,
    Code::StorageFailed,
    Code::StorageUnavailable,
    Code::Internal,
];

/// The error responses of a route that takes pictures. `codes` are its errors that are not in
/// [`ERRORS_OF_EVERY_PICTURE_ROUTE`].
pub(in crate::web::routes) fn of_pictures(codes: &[Code]) -> BTreeMap<String, RefOr<Response>> {
    of(codes.iter().chain(ERRORS_OF_EVERY_PICTURE_ROUTE))
}

/// The error responses of a route with these errors: one for each status, with a list of its codes.
pub(in crate::web::routes) fn of<'a>(
    codes: impl IntoIterator<Item = &'a Code>,
) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status = BTreeMap::<String, Vec<Code>>::new();
    for code in codes {
        by_status.entry(code.status().as_str().to_owned()).or_default().push(*code);
    }
    by_status.into_iter().map(|(status, codes)| (status, response(&codes).into())).collect()
}

fn response(codes: &[Code]) -> Response {
    let codes: Vec<_> = codes.iter().map(|code| format!("`{code}`")).collect();
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(codes.join(", ")).content(PROBLEM_JSON, content).build()
}
