//! Sends one request to the bucket: signs its URL, sends it, and classifies the response. A
//! transient error is tried a second time.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use object_store::{
    path::Path,
    signer::{HeaderName, HeaderValue, Method, SignedUrlOptions, Signer},
};
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{Instrument, field::Empty};

use super::{
    Bucket, Object,
    error::{Cause, Error, Operation},
};
use crate::{
    http_client::body_of,
    telemetry::{causes, mark_failed, span},
};

/// How long a signed URL is valid. S3 compares it with its own clock, which may differ from this
/// machine's by minutes.
const URL_VALIDITY: Duration = Duration::from_secs(15 * 60);

/// The most bytes that are read of an error response.
const MAX_ERROR_LEN: usize = 4096;

/// How many times a request is sent at most.
const MAX_ATTEMPTS: u32 = 2;

/// The shortest and the longest pause before the second attempt, in milliseconds.
const PAUSE_MILLIS: std::ops::Range<u64> = 50..250;

/// The header with the SHA-256 of the body. S3 refuses a body with another one.
const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-sha256");

/// The header with the bucket's region, when a request was sent to another region.
const REGION: &str = "x-amz-bucket-region";

/// The body of an error response.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorBody {
    code: String,
    region: Option<String>,
}

impl Bucket {
    /// Sends a request, and waits for the response until the operation's own timeout, but not beyond
    /// the deadline. Returns the object's bytes for a read, and `None` if there is no such object.
    pub(super) async fn request(
        &self,
        operation: Operation,
        path: &str,
        object: Option<&Object>,
        deadline: Option<Instant>,
    ) -> Result<Option<Bytes>, Error> {
        let path = self.0.location.object(path);
        let timeout = match operation {
            Operation::Read { .. } | Operation::ReadMissing => super::READ_TIMEOUT,
            Operation::Write | Operation::Remove => self.0.timeout,
        };
        let started = Instant::now();
        let end = started + timeout;
        let span = span!(
            "bucket",
            otel.name = format!("bucket {}", operation.name()),
            otel.kind = "client",
            http.request.method = method(operation).as_str(),
            "error.type" = Empty,
        );
        let attempts = self.attempts(operation, &path, object).instrument(span.clone());
        let earlier_deadline = deadline.filter(|deadline| *deadline < end);
        let outcome = match timeout_at(earlier_deadline.unwrap_or(end), attempts).await {
            Ok(outcome) => outcome,
            Err(_) if earlier_deadline.is_some() => Err(Cause::DeadlinePassed),
            Err(_) => Err(Cause::Timeout(timeout)),
        };
        let label = match &outcome {
            Ok(None) if method(operation) == Method::GET => "none".into(),
            Ok(_) => "ok".into(),
            Err(cause) => {
                let label = cause.label();
                span.record("error.type", &*label);
                mark_failed(&span);
                label
            }
        };
        self.0.metrics.record_bucket_request(operation.name(), label, started.elapsed());
        outcome.map_err(|cause| Error { operation, cause })
    }

    async fn attempts(
        &self,
        operation: Operation,
        path: &Path,
        object: Option<&Object>,
    ) -> Result<Option<Bytes>, Cause> {
        let mut attempt = 1;
        loop {
            match self.attempt(operation, path, object).await {
                Err(cause) if cause.is_transient() && attempt < MAX_ATTEMPTS => {
                    attempt += 1;
                    sleep(Duration::from_millis(fastrand::u64(PAUSE_MILLIS))).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn attempt(
        &self,
        operation: Operation,
        path: &Path,
        object: Option<&Object>,
    ) -> Result<Option<Bytes>, Cause> {
        let method = method(operation);
        let checksum = object
            .and_then(|object| HeaderValue::from_str(&STANDARD.encode(object.sha256.bytes())).ok());
        let mut options = SignedUrlOptions::default();
        if let Some(checksum) = checksum.clone() {
            options = options.with_signed_header(CHECKSUM, checksum);
        }
        let url = self.0.signer.signed_url_opts(method.clone(), path, URL_VALIDITY, &options).await;
        let mut request = self.0.http.request(method, url.map_err(|error| no_credentials(&error))?);
        if let Some(checksum) = checksum {
            request = request.header(CHECKSUM, checksum);
        }
        if let Some(Object { content, media_type, .. }) = object {
            request = request
                .header(CONTENT_TYPE, *media_type)
                .header(CONTENT_LENGTH, content.len())
                .body(body_of(content));
        }
        let response = request.send().await.map_err(connection_error)?;
        let status = response.status();
        if status.is_success() {
            return match operation {
                Operation::Read { max_len } => read_object(response, max_len).await.map(Some),
                Operation::Write | Operation::ReadMissing | Operation::Remove => Ok(None),
            };
        }
        let region = response.headers().get(REGION).and_then(|region| region.to_str().ok());
        let region = region.map(str::to_owned);
        let body = read_start(response, MAX_ERROR_LEN).await;
        let body: Option<ErrorBody> =
            std::str::from_utf8(&body).ok().and_then(|body| quick_xml::de::from_str(body).ok());
        let (code, region_in_body) =
            body.map_or((None, None), |body| (Some(body.code), body.region));
        match (status, code.as_deref()) {
            (StatusCode::NOT_FOUND, Some("NoSuchKey")) if operation != Operation::Write => Ok(None),
            _ => {
                let region = region.or(region_in_body);
                Err(Cause::Refused { status: status.as_u16(), code, region })
            }
        }
    }
}

fn method(operation: Operation) -> Method {
    match operation {
        Operation::Write => Method::PUT,
        Operation::Read { .. } | Operation::ReadMissing => Method::GET,
        Operation::Remove => Method::DELETE,
    }
}

/// Reads an object of at most `max_len` bytes.
async fn read_object(mut response: Response, max_len: usize) -> Result<Bytes, Cause> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(connection_error)? {
        if body.len() + chunk.len() > max_len {
            return Err(Cause::TooLong(max_len));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Reads at most `max_len` bytes of an error response. If its body breaks off, the status alone must
/// suffice.
async fn read_start(mut response: Response, max_len: usize) -> BytesMut {
    let mut body = BytesMut::new();
    while body.len() < max_len
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk[..chunk.len().min(max_len - body.len())]);
    }
    body
}

/// The causes without the URL, which contains a signature.
fn connection_error(error: reqwest::Error) -> Cause {
    let error = error.without_url();
    Cause::Connection(causes(&error).last().map_or_else(|| error.to_string(), ToString::to_string))
}

/// The error of the source of the credentials, such as the instance's metadata.
fn no_credentials(error: &object_store::Error) -> Cause {
    let detail = causes(error).last().map_or_else(|| error.to_string(), ToString::to_string);
    Cause::Credentials(detail)
}
