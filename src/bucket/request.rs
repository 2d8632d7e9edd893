//! Sends one request to the bucket: signs the URL, sends the request, and classifies the response.
//! After a transient error, sends the request a second time.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use object_store::{
    path::Path,
    signer::{HeaderName, HeaderValue, Method, SignedUrlOptions, Signer},
};
use reqwest::{
    Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{Instrument, field::Empty};

use super::{
    Bucket, Object,
    error::{Cause, Error, ErrorResponse, Operation},
};
use crate::{
    causes::causes,
    http_client::body_of,
    telemetry::{mark_failed, span},
};

/// How long a signed URL is valid. S3 checks this with its own clock, which may differ from this
/// machine's by minutes.
const URL_VALIDITY: Duration = Duration::from_secs(15 * 60);

/// Reading an object ends when more than this many bytes are read. The service reads only vectors, which
/// have less than 1.1 MB.
const MAX_OBJECT_LEN: usize = 2 << 20;

/// Reading an error response ends when more than this many bytes are read.
const MAX_ERROR_LEN: usize = 4096;

/// The most characters of a message about missing credentials. The library's message may contain a
/// whole response.
const MAX_DETAIL_CHARS: usize = 200;

/// How long the source of the credentials may take.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(3);

/// If a client's deadline ends a request to the bucket after at least this time, the bucket counts as
/// failing. A deadline that ends it earlier says nothing about the bucket.
const LONG_WAIT: Duration = Duration::from_secs(5);

/// How many times a request is sent at most.
const MAX_ATTEMPTS: u32 = 2;

/// The shortest and the longest pause before the second attempt, in milliseconds.
const PAUSE_MILLIS: std::ops::Range<u64> = 50..250;

/// The header with the SHA-256 of the body. S3 refuses a body that has another SHA-256.
const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-sha256");

/// The header of an error response with the bucket's region, if the request was sent to another region.
const REGION: &str = "x-amz-bucket-region";

/// The body of an error response.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorBody {
    code: String,
    message: Option<String>,
    region: Option<String>,
}

impl Bucket {
    /// Sends a request, and waits for the response until the operation's own timeout, but not beyond
    /// the deadline. After [`Operation::Read`], returns the object's bytes, or `None` if there is no such
    /// object. After other operations, returns `None`.
    pub(super) async fn request(
        &self,
        operation: Operation,
        path: &str,
        object: Option<&Object>,
        deadline: Option<Instant>,
    ) -> Result<Option<Bytes>, Error> {
        let path = self.0.location.object(path);
        let max_wait = match operation {
            Operation::Read | Operation::ReadMissing => super::READ_TIMEOUT,
            Operation::Write | Operation::Remove => self.0.timeout,
        };
        let started = Instant::now();
        let end = started + max_wait;
        let mut may_have_written = false;
        let span = span!(
            "bucket",
            otel.name = format!("bucket {}", operation.name()),
            otel.kind = "client",
            http.request.method = method(operation).as_str(),
            "error.type" = Empty,
        );
        // On the heap: otherwise, the future of every picture would contain this large future, even
        // without a bucket.
        let attempts = Box::pin(
            self.attempts(operation, &path, object, &mut may_have_written).instrument(span.clone()),
        );
        let earlier_deadline = deadline.filter(|deadline| *deadline < end);
        let outcome = match timeout_at(earlier_deadline.unwrap_or(end), attempts).await {
            Ok(outcome) => outcome,
            // The operation's own timeout may be shorter than `LONG_WAIT`, but always counts as a failure.
            Err(_) if started.elapsed() < LONG_WAIT.min(max_wait) => Err(Cause::DeadlinePassed),
            Err(_) => Err(Cause::Timeout(started.elapsed())),
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
        outcome.map_err(|cause| {
            may_have_written |= cause.may_have_written();
            Error { operation, cause, may_have_written }
        })
    }

    /// Sends a request up to twice. Sets `may_have_written` if the first attempt may have written the
    /// object. This is not part of the result, because the caller may drop this future at a timeout.
    async fn attempts(
        &self,
        operation: Operation,
        path: &Path,
        object: Option<&Object>,
        may_have_written: &mut bool,
    ) -> Result<Option<Bytes>, Cause> {
        let mut attempt = 1;
        loop {
            match self.attempt(operation, path, object).await {
                Err(cause) if cause.is_transient() && attempt < MAX_ATTEMPTS => {
                    *may_have_written |= cause.may_have_written();
                    attempt += 1;
                    sleep(Duration::from_millis(fastrand::u64(PAUSE_MILLIS))).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Sends a request once. If it succeeds, the result is that of [`Self::request`].
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
        let sign = self.0.signer.signed_url_opts(method.clone(), path, URL_VALIDITY, &options);
        // To sign takes no time, but the credentials may have to be fetched first.
        let url = match timeout(CREDENTIALS_TIMEOUT, sign).await {
            Ok(url) => url.map_err(|error| no_credentials(&error))?,
            Err(_) => {
                return Err(Cause::Credentials(format!(
                    "their source did not answer within {CREDENTIALS_TIMEOUT:?}"
                )));
            }
        };
        let mut request = self.0.http.request(method, url);
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
                Operation::Read => {
                    let bytes = read_start(response, MAX_OBJECT_LEN).await;
                    bytes.map(|bytes| Some(bytes.freeze())).map_err(connection_error)
                }
                Operation::Write | Operation::ReadMissing | Operation::Remove => Ok(None),
            };
        }
        let region = response.headers().get(REGION).and_then(|region| region.to_str().ok());
        let region = region.map(str::to_owned);
        // If the body cannot be read, the error has neither a code nor a message.
        let body = read_start(response, MAX_ERROR_LEN).await.unwrap_or_default();
        let body: Option<ErrorBody> =
            std::str::from_utf8(&body).ok().and_then(|body| quick_xml::de::from_str(body).ok());
        let (code, message, region_in_body) = match body {
            Some(ErrorBody { code, message, region }) => (Some(code), message, region),
            None => (None, None, None),
        };
        match code.as_deref() {
            Some("NoSuchKey") if operation != Operation::Write => Ok(None),
            // The object was moved to an archive, so it cannot be read. It counts as missing.
            Some("InvalidObjectState") if operation == Operation::Read => Ok(None),
            _ => {
                let (status, region) = (status.as_u16(), region.or(region_in_body));
                Err(Cause::ErrorResponse(ErrorResponse { status, code, message, region }))
            }
        }
    }
}

fn method(operation: Operation) -> Method {
    match operation {
        Operation::Write => Method::PUT,
        Operation::Read | Operation::ReadMissing => Method::GET,
        Operation::Remove => Method::DELETE,
    }
}

/// Reads a body until it ends, or until there are more than `max_len` bytes.
async fn read_start(mut response: Response, max_len: usize) -> reqwest::Result<BytesMut> {
    let mut body = BytesMut::new();
    while body.len() <= max_len
        && let Some(chunk) = response.chunk().await?
    {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns [`Cause::Connection`] with the text of the innermost error. The URL is left out, because it
/// contains a signature.
fn connection_error(error: reqwest::Error) -> Cause {
    let was_sent = !error.is_connect();
    let error = error.without_url();
    let detail = causes(&error).last().map_or_else(|| error.to_string(), ToString::to_string);
    Cause::Connection { detail, was_sent }
}

/// The error of the source of the credentials, such as the instance's metadata.
fn no_credentials(error: &object_store::Error) -> Cause {
    let detail = causes(error).last().map_or_else(|| error.to_string(), ToString::to_string);
    let one_line = detail.split_whitespace().collect::<Vec<_>>().join(" ");
    Cause::Credentials(one_line.chars().take(MAX_DETAIL_CHARS).collect())
}
