//! Maps errors of the inner modules, which know nothing of HTTP, to codes and sentences. Does the same with
//! errors of the extractors `head` and `body`.
//!
//! A sentence says what is wrong and, where possible, what to do. `code.rs` maps codes to statuses.

use super::{BATCH_SIZE_SETTINGS, BUSY_DETAIL, Code, INTERNAL_DETAIL};
use crate::{
    decoder, embed, fetch,
    image::{self, Format},
    nvidia::ErrorKind,
    pipeline, store,
    web::extract::{
        body::{BodyContent, BodyError},
        head::HeadError,
    },
};

pub(super) fn head_code(error: &HeadError) -> Code {
    match error {
        HeadError::NoHost | HeadError::ManyHosts | HeadError::MalformedHost => Code::InvalidHost,
        HeadError::ContentEncoding(_) => Code::UnsupportedContentEncoding,
        HeadError::TransferEncoding(_) => Code::UnsupportedTransferEncoding,
    }
}

pub(super) fn head_detail(error: &HeadError) -> String {
    match error {
        HeadError::NoHost => {
            "This request has no Host, which HTTP/1.1 requires: send one with the service's name or address.".into()
        }
        HeadError::ManyHosts => "This request has more than one Host: send exactly one.".into(),
        HeadError::MalformedHost => {
            "The Host of this request is malformed: send a name or an address, with a port if needed, such as \
             images.example.com or 192.0.2.7:8000."
                .into()
        }
        HeadError::ContentEncoding(coding) => format!(
            "The request's body has Content-Encoding: {coding}, which the service does not decode: send it \
            uncompressed, without that header."
        ),
        HeadError::TransferEncoding(coding) => format!(
            "The request's body has Transfer-Encoding: {coding}, but the service accepts only chunked: \
            send it uncompressed, with a Content-Length or with Transfer-Encoding: chunked."
        ),
    }
}

pub(super) fn body_code(error: &BodyError) -> Code {
    match error {
        BodyError::TooLarge { .. } => Code::ImageTooLarge,
        BodyError::TooSlow => Code::RequestTimeout,
        BodyError::NoMemory => Code::Overloaded,
        BodyError::Incomplete(_) => Code::ValidationFailed,
    }
}

pub(super) fn body_detail(error: &BodyError) -> String {
    match error {
        BodyError::TooLarge { max_bytes, content } => match content {
            BodyContent::Picture { max_picture_bytes } => picture_too_large(*max_picture_bytes),
            BodyContent::Batch => format!(
                "The request's body is larger than the limit of {}: send fewer pictures at once ({BATCH_SIZE_SETTINGS}).",
                format_bytes(*max_bytes)
            ),
            BodyContent::Url => format!(
                "The request's body is larger than the limit of {} for this route.",
                format_bytes(*max_bytes)
            ),
        },
        BodyError::TooSlow => "The request's body did not arrive in time; send it again.".into(),
        BodyError::NoMemory => BUSY_DETAIL.into(),
        BodyError::Incomplete(_) => "The request's body ended early; send it again.".into(),
    }
}

pub(super) fn pipeline_code(error: &pipeline::Error) -> Code {
    use pipeline::Error;
    match error {
        Error::Overloaded(_) => Code::Overloaded,
        Error::TooManyBytes { .. } => Code::ImageTooLarge,
        Error::Image(error) => image_code(error),
        Error::Store(error) if error.is_full() => Code::StorageFull,
        Error::Store(store::Error::Bucket(error)) if !error.is_about_the_object() => {
            Code::StorageUnavailable
        }
        Error::Store(_) => Code::StorageFailed,
        // `embed` calls the decoder, so `Undecodable` contains an error of `embed`.
        Error::Undecodable(error) | Error::Embed { error, .. } => embed_code(error),
        Error::BatchTooLarge { .. } => Code::ValidationFailed,
        Error::Panicked(_) => Code::Internal,
    }
}

pub(super) fn pipeline_detail(error: &pipeline::Error) -> String {
    use pipeline::Error;
    match error {
        Error::Overloaded(_) => BUSY_DETAIL.into(),
        Error::TooManyBytes { limit, size: Some(bytes) } => {
            format!("The picture has {}, the limit is {}.", format_bytes(*bytes), format_bytes(*limit))
        }
        Error::TooManyBytes { limit, size: None } => picture_too_large(*limit),
        Error::Image(error) => image_detail(error),
        Error::Store(error) if error.is_full() => {
            "The service's disk is full; nothing was saved. The service's operator must free disk space.".into()
        }
        Error::Store(store::Error::Bucket(error)) if !error.is_about_the_object() => {
            "The service's storage is not available at the moment, so the picture was not saved; try again after the \
             time in Retry-After, or with ?save=false."
                .into()
        }
        Error::Store(_) => "The picture could not be saved; try again later.".into(),
        Error::Undecodable(error) | Error::Embed { error, .. } => embed_detail(error),
        Error::BatchTooLarge { new_pictures, max } => format!(
            "This batch has {new_pictures} pictures without a cached embedding, but the service may call NVIDIA for only \
             {max} within one request's time: send at most {max} at once ({BATCH_SIZE_SETTINGS})."
        ),
        Error::Panicked(_) => INTERNAL_DETAIL.into(),
    }
}

fn picture_too_large(max_bytes: u64) -> String {
    format!("The picture is larger than the limit of {}.", format_bytes(max_bytes))
}

pub(super) fn fetch_code(error: &fetch::Error) -> Code {
    use fetch::{Error, policy::UrlError};
    match error {
        Error::Url(UrlError::Invalid(_)) => Code::InvalidUrl,
        Error::Url(UrlError::Denied(_)) => Code::UrlNotAllowed,
        Error::Timeout => Code::DownloadTimeout,
        Error::TooManyBytes { .. } => Code::ImageTooLarge,
        Error::NoSuchHost(_)
        | Error::LookupFailed(_)
        | Error::Connect(_)
        | Error::NoAnswer(_)
        | Error::Interrupted { .. }
        | Error::Status { .. }
        | Error::BadRedirects
        | Error::Encoded(_)
        | Error::BadGzip(_)
        | Error::Empty => Code::DownloadFailed,
    }
}

pub(super) fn fetch_detail(error: &fetch::Error) -> String {
    use fetch::Error;
    match error {
        Error::Url(refusal) => refusal.to_string(),
        Error::Timeout => "The host of image_url took too long to deliver the picture.".into(),
        Error::NoSuchHost(_) => "The host of image_url could not be found; check the URL.".into(),
        Error::LookupFailed(_) => {
            "The host of image_url could not be looked up just now; try again later.".into()
        }
        Error::Connect(_) => "The service could not connect to the host of image_url.".into(),
        Error::NoAnswer(_) => "The host of image_url sent no response that can be read.".into(),
        Error::Interrupted { has_started: true, .. } => {
            "The host of image_url ended its response in the middle of the picture.".into()
        }
        Error::Interrupted { has_started: false, .. } => {
            "The host of image_url ended its response before the picture began.".into()
        }
        Error::TooManyBytes { limit } => picture_too_large(*limit),
        Error::Status { status, .. } => {
            format!("The host of image_url answered with status {status} instead of a picture.")
        }
        Error::BadRedirects => "image_url redirects too often, or without a valid Location.".into(),
        Error::Encoded(coding) => {
            format!(
                "The host of image_url sent the picture with Content-Encoding: {coding}, which the service does not decode."
            )
        }
        Error::BadGzip(_) => "The host of image_url sent the picture in damaged gzip.".into(),
        Error::Empty => "The host of image_url answered without a picture.".into(),
    }
}

fn image_code(error: &image::Error) -> Code {
    use image::Error;
    match error {
        Error::Empty => Code::EmptyImage,
        Error::Unsupported(_) | Error::BadHeader(_) | Error::Broken { .. } => {
            Code::UnsupportedImage
        }
        Error::TooManyPixels { .. } | Error::TooMuchToDecode { .. } => Code::ImageTooLarge,
        Error::Unreadable(_) => Code::StorageFailed,
    }
}

fn image_detail(error: &image::Error) -> String {
    use image::Error;
    match error {
        Error::Empty => "The picture is empty: no bytes were received.".into(),
        Error::Unsupported(what) => what.to_string(),
        Error::BadHeader(format) => {
            format!(
                "This begins like a {format} picture, but its header cannot be read; is the file complete?"
            )
        }
        Error::Broken { format, .. } => {
            let other_format = if *format == Format::Jpeg { "PNG" } else { "JPEG" };
            format!(
                "This {format} picture cannot be decoded; is it damaged? Sending it as a {other_format} may help."
            )
        }
        Error::TooManyPixels { pixels, limit } => {
            format!("The picture has {pixels} pixels, the limit is {limit}; scale it down.")
        }
        Error::TooMuchToDecode { .. } => {
            "Decoding the picture needs more memory than this service allows; scale it down.".into()
        }
        Error::Unreadable(_) => "The picture could not be read back; try again later.".into(),
    }
}

fn decoder_code(error: &decoder::Error) -> Code {
    use decoder::Error;
    match error {
        Error::Image(error) => image_code(error),
        Error::QueueTimeout | Error::Timeout => Code::EmbeddingTimeout,
        Error::Unavailable { .. } => Code::Overloaded,
        Error::Spool(error) if error.is_full() => Code::StorageFull,
        Error::Spool(_) => Code::StorageFailed,
        Error::ProtocolViolation(_) | Error::Panicked(_) => Code::Internal,
    }
}

fn decoder_detail(error: &decoder::Error) -> String {
    use decoder::Error;
    match error {
        Error::Image(error) => image_detail(error),
        Error::QueueTimeout => {
            "The service was too busy to decode the picture in time; try again.".into()
        }
        Error::Timeout => "Decoding the picture took too long; try again, or scale it down.".into(),
        Error::Unavailable { .. } => BUSY_DETAIL.into(),
        Error::Spool(error) if error.is_full() => {
            "The service's disk is full; the service's operator must free disk space.".into()
        }
        Error::Spool(_) => "The picture could not be re-encoded; try again later.".into(),
        Error::ProtocolViolation(_) | Error::Panicked(_) => INTERNAL_DETAIL.into(),
    }
}

fn embed_code(error: &embed::Error) -> Code {
    match error {
        embed::Error::Decoder(error) => decoder_code(error),
        embed::Error::QueueTimeout(_) => Code::EmbeddingTimeout,
        embed::Error::QueueTooLong => Code::Overloaded,
        embed::Error::CannotShrinkEnough => Code::EmbeddingRejected,
        embed::Error::CallPanicked => Code::Internal,
        embed::Error::Nvidia(error) => match error.kind {
            ErrorKind::PictureRefused => Code::EmbeddingRejected,
            ErrorKind::KeyRefused => Code::EmbeddingUnauthorized,
            ErrorKind::AccountRefused => Code::EmbeddingExhausted,
            ErrorKind::RateLimited => Code::EmbeddingRateLimited,
            ErrorKind::DeadlinePassed | ErrorKind::AttemptTimeout => Code::EmbeddingTimeout,
            ErrorKind::InvalidResponse | ErrorKind::GatewayPage => Code::EmbeddingInvalid,
            ErrorKind::Unavailable
            | ErrorKind::PolledResultGone
            | ErrorKind::Unexpected
            | ErrorKind::UploadsRefused => Code::EmbeddingUnavailable,
        },
    }
}

fn embed_detail(error: &embed::Error) -> String {
    match error {
        embed::Error::Decoder(error) => return decoder_detail(error),
        embed::Error::QueueTimeout(_) => {
            return "The service was too busy to call NVIDIA in time; try again.".into();
        }
        embed::Error::QueueTooLong => return BUSY_DETAIL.into(),
        embed::Error::CannotShrinkEnough => {
            return "The picture cannot be made small enough for NVIDIA; try another one.".into();
        }
        embed::Error::CallPanicked | embed::Error::Nvidia(_) => {}
    }
    match embed_code(error) {
        Code::EmbeddingRejected => "NVIDIA does not accept this picture; try another one, or a plain JPEG.",
        Code::EmbeddingUnauthorized => {
            "NVIDIA refuses the service's key; the service's operator must renew NVIDIA_API_KEY."
        }
        Code::EmbeddingExhausted => {
            "The service's NVIDIA account is out of credits or has no access to the model; the service's operator must \
             resolve this."
        }
        Code::EmbeddingRateLimited => "The service may make no further call to NVIDIA now; try again after the time in Retry-After.",
        Code::EmbeddingTimeout => "NVIDIA did not answer in time; try again.",
        Code::EmbeddingInvalid => "NVIDIA's response contained no valid embedding; try again later.",
        Code::Internal => INTERNAL_DETAIL,
        _ => "NVIDIA is not available at the moment; try again later.",
    }
    .into()
}

/// Formats a number of bytes: in MiB if it is a multiple of 1 MiB, otherwise in bytes.
fn format_bytes(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes >= MIB && bytes.is_multiple_of(MIB) {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{bytes} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_that_cannot_be_shrunk_enough_gets_the_code_but_not_the_detail_of_a_refusal() {
        let error = embed::Error::CannotShrinkEnough;
        assert_eq!(embed_code(&error), Code::EmbeddingRejected);
        let detail = embed_detail(&error);
        assert!(detail.starts_with("The picture cannot be made small enough"), "{detail}");
    }

    #[test]
    fn multiples_of_a_mebibyte_are_formatted_in_mebibytes_and_other_sizes_in_bytes() {
        assert_eq!(format_bytes(20 << 20), "20 MiB");
        assert_eq!(format_bytes(1000), "1000 bytes");
        assert_eq!(format_bytes((20 << 20) + 1), "20971521 bytes");
    }
}
