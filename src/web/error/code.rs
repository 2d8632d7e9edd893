//! The table of error codes and their statuses.

use std::fmt;

use axum::http::StatusCode;
use serde::{Serialize, Serializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:ident;)*) => {
        /// The stable name of an error. Its text never changes, unlike the sentence in `detail`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code's text in answers, logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The HTTP status of responses with this code.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }
        }
    };
}

codes! {
    /// Malformed JSON, a field that is missing or has the wrong type, no `file` part, a malformed form,
    /// a body that ended early, an invalid query, or too many pictures in a batch.
    ValidationFailed = "validation_failed", UNPROCESSABLE_ENTITY;
    /// `image_url` is not an absolute http(s) URL, or contains a user name or password.
    InvalidUrl = "invalid_url", BAD_REQUEST;
    /// The URL, or a URL that it redirects to, is not allowed: for example a private address.
    UrlNotAllowed = "url_not_allowed", FORBIDDEN;
    /// The download failed. For example, the host is unknown, it refused the connection, TLS failed,
    /// the status was neither 200 nor 203, or the body ended early.
    DownloadFailed = "download_failed", BAD_GATEWAY;
    /// The download did not finish by its deadline.
    DownloadTimeout = "download_timeout", GATEWAY_TIMEOUT;
    /// `image_base64` is not Base64.
    InvalidBase64 = "invalid_base64", BAD_REQUEST;
    /// The picture has no bytes.
    EmptyImage = "empty_image", BAD_REQUEST;
    /// The picture is damaged, or its format or a feature of its format is not supported. Or the URL leads
    /// to a web page instead of a picture.
    UnsupportedImage = "unsupported_image", UNSUPPORTED_MEDIA_TYPE;
    /// The picture has more bytes or pixels than the limit, needs too much memory to be decoded, or is
    /// in a body that is too long.
    ImageTooLarge = "image_too_large", PAYLOAD_TOO_LARGE;
    /// The request has no `Host`, more than one `Host`, or a malformed `Host`.
    InvalidHost = "invalid_host", BAD_REQUEST;
    /// The body has a `Content-Encoding`, but only uncompressed bodies are accepted.
    UnsupportedContentEncoding = "unsupported_content_encoding", UNSUPPORTED_MEDIA_TYPE;
    /// The body has a `Transfer-Encoding` other than `chunked`.
    UnsupportedTransferEncoding = "unsupported_transfer_encoding", NOT_IMPLEMENTED;
    /// The service requires a client key, and the request has none or a wrong one.
    Unauthorized = "unauthorized", UNAUTHORIZED;
    /// A web page sent the request, but the page's origin or the host name in `Host` is not allowed.
    CrossOrigin = "cross_origin", FORBIDDEN;
    /// The client has reached its own rate limit.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS;
    /// The service refused the request because it has too much work.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE;
    /// The service stopped before the request was finished.
    ShuttingDown = "shutting_down", SERVICE_UNAVAILABLE;
    /// The client did not send its body in time.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT;
    /// NVIDIA refused this picture, or it cannot be made small enough for NVIDIA.
    EmbeddingRejected = "embedding_rejected", UNPROCESSABLE_ENTITY;
    /// NVIDIA refused the service's key.
    EmbeddingUnauthorized = "embedding_unauthorized", BAD_GATEWAY;
    /// The NVIDIA account is out of credits, or has no access to the model.
    EmbeddingExhausted = "embedding_exhausted", SERVICE_UNAVAILABLE;
    /// NVIDIA's own limit or the service's limit on calls to NVIDIA is reached, and allows no further call
    /// before the deadline.
    EmbeddingRateLimited = "embedding_rate_limited", SERVICE_UNAVAILABLE;
    /// The call to NVIDIA and all retries failed.
    EmbeddingUnavailable = "embedding_unavailable", BAD_GATEWAY;
    /// The request's deadline passed while the service waited for NVIDIA or decoded the picture.
    EmbeddingTimeout = "embedding_timeout", GATEWAY_TIMEOUT;
    /// NVIDIA's response contains no valid embedding.
    EmbeddingInvalid = "embedding_invalid", BAD_GATEWAY;
    /// The disk has too few free bytes or inodes, not counting the reserve that must stay free.
    StorageFull = "storage_full", INSUFFICIENT_STORAGE;
    /// The picture could not be saved or read back, although the disk is not full.
    StorageFailed = "storage_failed", INTERNAL_SERVER_ERROR;
    /// The bucket does not take pictures at the moment. NVIDIA was not called for this picture.
    StorageUnavailable = "storage_unavailable", SERVICE_UNAVAILABLE;
    /// A parameter has a value that this service does not support, such as `dimensions`
    /// other than 1536.
    UnsupportedParameter = "unsupported_parameter", BAD_REQUEST;
    /// There is no such model.
    ModelNotFound = "model_not_found", NOT_FOUND;
    /// There is no such route.
    NotFound = "not_found", NOT_FOUND;
    /// The route does not accept the method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;
    /// A bug in the service.
    Internal = "internal", INTERNAL_SERVER_ERROR;
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The stable name of an error."))
            .enum_values(Some(Self::ALL.iter().map(|code| code.as_str())))
            .into()
    }
}

impl ToSchema for Code {}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
