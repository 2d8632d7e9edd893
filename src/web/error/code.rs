//! The stable names of errors, and the status of each: one table.

use std::fmt;

use axum::http::StatusCode;
use serde::{Serialize, Serializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:ident;)*) => {
        /// The stable name of an error. `detail` is for people and may change; this does not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As it stands in answers, logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The status that goes with it.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }
        }
    };
}

codes! {
    /// Malformed JSON, a missing or wrong-typed field, no `file` part, broken multipart.
    ValidationFailed = "validation_failed", UNPROCESSABLE_ENTITY;
    /// Not an absolute http(s) address, or one with a user name or password.
    InvalidUrl = "invalid_url", BAD_REQUEST;
    /// The address, or one that it redirects to, is not fetched.
    UrlNotAllowed = "url_not_allowed", FORBIDDEN;
    /// No such host, refused, TLS, a status other than 200, a cut body.
    DownloadFailed = "download_failed", BAD_GATEWAY;
    /// The fetch ran past its deadline.
    DownloadTimeout = "download_timeout", GATEWAY_TIMEOUT;
    /// `image_base64` is no Base64.
    InvalidBase64 = "invalid_base64", BAD_REQUEST;
    /// No bytes.
    EmptyImage = "empty_image", BAD_REQUEST;
    /// Not one of the formats that are read, a kind of one that is not, or damaged.
    UnsupportedImage = "unsupported_image", UNSUPPORTED_MEDIA_TYPE;
    /// More bytes or pixels than the limit.
    ImageTooLarge = "image_too_large", PAYLOAD_TOO_LARGE;
    /// No `Host`, more than one, or a malformed one.
    InvalidHost = "invalid_host", BAD_REQUEST;
    /// The body has a `Content-Encoding`: send it uncompressed.
    UnsupportedContentEncoding = "unsupported_content_encoding", UNSUPPORTED_MEDIA_TYPE;
    /// The body has another `Transfer-Encoding` than `chunked`.
    UnsupportedTransferEncoding = "unsupported_transfer_encoding", NOT_IMPLEMENTED;
    /// A key is wanted, and none or a wrong one was sent.
    Unauthorized = "unauthorized", UNAUTHORIZED;
    /// A web page of another site sent this, and the settings do not allow that site.
    CrossOrigin = "cross_origin", FORBIDDEN;
    /// This client's own limit is used up.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS;
    /// Shed before work began.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE;
    /// The service stops, and the request was not done in time.
    ShuttingDown = "shutting_down", SERVICE_UNAVAILABLE;
    /// The client did not send its body in time.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT;
    /// NVIDIA refused this picture.
    EmbeddingRejected = "embedding_rejected", UNPROCESSABLE_ENTITY;
    /// NVIDIA refused the service's key.
    EmbeddingUnauthorized = "embedding_unauthorized", BAD_GATEWAY;
    /// The account is out of credits, or the model is gone for it.
    EmbeddingExhausted = "embedding_exhausted", SERVICE_UNAVAILABLE;
    /// NVIDIA's rate limit outlasted the retries.
    EmbeddingRateLimited = "embedding_rate_limited", SERVICE_UNAVAILABLE;
    /// NVIDIA's failures outlasted the retries.
    EmbeddingUnavailable = "embedding_unavailable", BAD_GATEWAY;
    /// The deadline passed while waiting for NVIDIA.
    EmbeddingTimeout = "embedding_timeout", GATEWAY_TIMEOUT;
    /// NVIDIA's answer is no embedding.
    EmbeddingInvalid = "embedding_invalid", BAD_GATEWAY;
    /// No room left on the disk beside the reserve of bytes and inodes.
    StorageFull = "storage_full", INSUFFICIENT_STORAGE;
    /// Any other failure to save.
    StorageFailed = "storage_failed", INTERNAL_SERVER_ERROR;
    /// No such route.
    NotFound = "not_found", NOT_FOUND;
    /// No such method on this route.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;
    /// A bug.
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
