//! The client of NVIDIA's hosted NV-DINOv2, and the only code that sees the key.
//!
//! `infer` makes an inference: one call, then polls until NVIDIA has finished. `assets` uploads a
//! large picture before its inference. `pace` limits the inference calls per minute. `classify`
//! decides what each response status means. `retry` decides whether and when a failed call is
//! repeated.
//!
//! The API: <https://docs.api.nvidia.com/nim/reference/nvidia-nv-dinov2-infer> and
//! <https://docs.api.nvidia.com/cloud-functions/reference/createasset>.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Client as HttpClient, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, HeaderMap},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use url::Url;
use uuid::Uuid;

use crate::{
    causes::causes,
    http_client::{self, Trust},
    shares::Clients,
    telemetry::Metrics,
    valkey::{PaceKey, Valkey},
};
use classify::{ALERTING_STATUSES, Progress};
use pace::{PaceLimiter, SharedLimit};
use retry::RetryBudget;
use retry_after::RetryAfterWait;

mod assets;
mod call_limit;
mod call_span;
mod classify;
mod infer;
mod key;
mod pace;
mod proxy;
mod reservation;
mod retry;
mod retry_after;
mod vector;
mod wire;

pub use assets::UploadedAsset;
pub use call_limit::CallLimit;
pub use classify::{ErrorKind, Operation};
pub use key::ApiKey;
pub use pace::WINDOW as PACE_WINDOW;
pub use proxy::ProxyUrl;
pub use reservation::Reservation;
pub use retry::{RetryPolicy, RetryState};
pub use vector::{DIMENSIONS, Vector};
pub use wire::InlineImage;

/// The name of the model in the service's answers.
pub const MODEL: &str = "nvidia/nv-dinov2";

/// The usual value of [`Settings::poll_interval`]. Tests and the sandbox set a shorter time.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// At most this many bytes of a response body are read. An embedding takes about 20 to 40 KB.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// At most this many characters of an error response are logged.
const MAX_EXCERPT_CHARS: usize = 300;

/// How long it may take to connect to NVIDIA or to the proxy.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Idle connections are closed after this time. This is longer than most pauses between pictures,
/// but shorter than the time after which gateways close idle connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// Settings for calling NVIDIA.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where inferences are sent.
    pub infer_url: Url,
    /// Where pending results are polled. NVIDIA's id of the inference is appended.
    pub status_url: Url,
    /// Where assets are created and deleted.
    pub assets_url: Url,
    /// The proxy for all calls to NVIDIA. `None` means that they go directly to NVIDIA.
    pub proxy: Option<ProxyUrl>,
    /// The timeout of one attempt of one call.
    pub attempt_timeout: Duration,
    /// The limit on the inference calls in any period of length `pace_window`; `None` means no limit.
    pub call_limit: Option<CallLimit>,
    /// The length of the period for `call_limit`: a minute and a small margin. Tests set a shorter time.
    pub pace_window: Duration,
    /// Whether the service has many clients, which share the inference calls, or only one.
    pub clients: Clients,
    /// How often and how soon a failed call is retried.
    pub retry: RetryPolicy,
    /// The shortest time between two polls.
    pub poll_interval: Duration,
}

/// The error of a call to NVIDIA.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed: {kind:?}, {log_detail}")]
pub struct Error {
    /// The call that failed.
    pub operation: Operation,
    /// Why the call failed.
    pub kind: ErrorKind,
    /// How long to wait before another call, if that is known.
    pub retry_after: Option<Duration>,
    /// Details such as the status and the beginning of the response. They go to the log only.
    pub log_detail: String,
    /// How many inferences were sent for the picture, none of them with success.
    pub sent_inferences: u32,
    /// Whether another attempt would be made if the deadline were later.
    pub only_deadline_prevents_retry: bool,
    /// Whether the connection failed, so that NVIDIA never received the request.
    failed_to_connect: bool,
}

/// The state of the API key according to NVIDIA's latest response that shows it. For example, a response
/// of status 500 does not show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// No response has shown the state yet.
    Unknown,
    /// NVIDIA accepted the key.
    Accepted,
    /// NVIDIA refused the key.
    Refused,
}

/// The client of NVIDIA's API. Clones are cheap. They share the connections, the retry budget and
/// the limit on inference calls per minute.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: HttpClient,
    settings: Settings,
    key: ApiKey,
    retry_budget: RetryBudget,
    /// The limit on inference calls per minute, if there is one.
    pace: Option<PaceLimiter>,
    /// Until when a `Retry-After` of NVIDIA forbids new calls of this process.
    retry_after_wait: RetryAfterWait,
    /// A [`KeyState`] as a number.
    key_state: AtomicU8,
    metrics: Arc<Metrics>,
    /// Tracks the tasks that delete assets.
    background: TaskTracker,
}

/// A response and its body, up to [`MAX_RESPONSE_BYTES`].
struct ApiResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// Creates a client. The client deletes assets in tasks that `background` tracks, so that
    /// requests do not wait for the deletion. With a Valkey, all replicas share the limit on calls per
    /// minute, and the client must be created in a Tokio runtime.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(
        settings: Settings,
        key: ApiKey,
        metrics: Arc<Metrics>,
        background: TaskTracker,
        trust: &Trust,
        valkey: Option<Valkey>,
    ) -> Result<Self, reqwest::Error> {
        let builder = trust
            .client_builder()
            .user_agent(concat!("imagesvc/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT);
        let builder = match &settings.proxy {
            Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy.url())?),
            None => builder.no_proxy(),
        };
        // The alert `ImagesvcKeyRefused` in docs/operating.md needs these counters at 0 from the start. If a
        // counter first appeared with the value 1, Prometheus would see no increase.
        for operation in Operation::ALL {
            for status in ALERTING_STATUSES {
                metrics.initialize_upstream_calls(operation.name(), status);
            }
        }
        let http = builder.build()?;
        let pace = settings.call_limit.map(|limit| {
            let shared = valkey.map(|valkey| SharedLimit::new(valkey, PaceKey::new(key.hash())));
            let calls = limit.calls_per_minute();
            PaceLimiter::new(calls, settings.pace_window, settings.clients, shared)
        });
        Ok(Self(Arc::new(Inner {
            http,
            key,
            retry_budget: RetryBudget::default(),
            retry_after_wait: RetryAfterWait::default(),
            pace,
            key_state: AtomicU8::new(KeyState::Unknown as u8),
            metrics,
            background,
            settings,
        })))
    }

    /// The state of the API key.
    pub fn key_state(&self) -> KeyState {
        let state = self.0.key_state.load(Ordering::Relaxed);
        [KeyState::Accepted, KeyState::Refused]
            .into_iter()
            .find(|known| *known as u8 == state)
            .unwrap_or(KeyState::Unknown)
    }

    /// Adds the headers of every call to NVIDIA's API. An upload to a presigned URL must not have them.
    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        request.header(AUTHORIZATION, self.0.key.bearer()).header(ACCEPT, "application/json")
    }

    /// Makes one attempt of one call. A response of any status is `Ok`; the caller classifies it.
    async fn call(
        &self,
        operation: Operation,
        request: RequestBuilder,
        deadline: Instant,
    ) -> Result<ApiResponse, Error> {
        let started = Instant::now();
        if started >= deadline {
            // Nobody would use the response, but an inference would still be paid for.
            return Err(Error::deadline_passed(operation));
        }
        let attempt_deadline = deadline.min(started + self.0.settings.attempt_timeout);
        let (http, request) = request.build_split();
        let span = call_span::start(operation, request.as_ref().ok());
        let exchange = async {
            let response = http.execute(request?).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = read_body(response).await?;
            // The log may quote the body of an error response, so the key is removed from the body.
            let body = if status == StatusCode::OK { body } else { self.0.key.redact(body) };
            Ok(ApiResponse { status, headers, body })
        };
        let outcome = match timeout_at(attempt_deadline, exchange).instrument(span.clone()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                // The compiler needs this to know the error type of `exchange`.
                let error: reqwest::Error = error;
                // Only the causes are logged: the error's own text contains the URL, which may be
                // presigned.
                let log_detail =
                    causes(&error).map(ToString::to_string).collect::<Vec<_>>().join(": ");
                let failed_to_connect = error.is_connect();
                let error = Error::new(operation, ErrorKind::Unavailable, log_detail);
                Err(Error { failed_to_connect, ..error })
            }
            Err(_) if attempt_deadline == deadline => Err(Error::deadline_passed(operation)),
            Err(_) => {
                Err(Error::new(operation, ErrorKind::AttemptTimeout, "no response in time".into()))
            }
        };
        call_span::record(&span, &outcome);
        let status = outcome.as_ref().ok().map(|response| response.status.as_u16());
        self.0.metrics.record_upstream_call(operation.name(), status, started.elapsed());
        if let Ok(response) = &outcome
            && operation.affects_other_calls()
        {
            self.record_key_state(operation, response.status);
            let asks_to_wait = matches!(
                response.status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            );
            if asks_to_wait && let Some(wait) = response.retry_after() {
                self.0.retry_after_wait.record(wait, Instant::now());
            }
        }
        outcome
    }

    fn record_key_state(&self, operation: Operation, status: StatusCode) {
        let state = match operation.classify(status.as_u16()) {
            Ok(Progress::Done | Progress::Pending) => KeyState::Accepted,
            Err(ErrorKind::KeyRefused) => KeyState::Refused,
            Err(
                ErrorKind::AccountRefused
                | ErrorKind::PictureRefused
                | ErrorKind::UploadsRefused
                | ErrorKind::RateLimited
                | ErrorKind::Unavailable
                | ErrorKind::AttemptTimeout
                | ErrorKind::PolledResultGone
                | ErrorKind::GatewayPage
                | ErrorKind::InvalidResponse
                | ErrorKind::Unexpected
                | ErrorKind::DeadlinePassed,
            ) => return,
        };
        self.0.key_state.store(state as u8, Ordering::Relaxed);
    }
}

impl Error {
    fn new(operation: Operation, kind: ErrorKind, log_detail: String) -> Self {
        Self {
            operation,
            kind,
            retry_after: None,
            log_detail,
            sent_inferences: 0,
            only_deadline_prevents_retry: kind == ErrorKind::DeadlinePassed,
            failed_to_connect: false,
        }
    }

    fn deadline_passed(operation: Operation) -> Self {
        Self::new(operation, ErrorKind::DeadlinePassed, "the request's deadline passed".into())
    }

    /// Creates the error for a response that was classified as `kind`.
    fn from_response(operation: Operation, kind: ErrorKind, response: &ApiResponse) -> Self {
        let mut log_detail = format!("status {}", response.status.as_u16());
        if operation.may_quote_body(response.status.as_u16()) {
            let text = String::from_utf8_lossy(&response.body);
            let excerpt: String = text.chars().take(MAX_EXCERPT_CHARS).collect();
            log_detail.push_str(&format!(": {excerpt:?}"));
        }
        Self { retry_after: response.retry_after(), ..Self::new(operation, kind, log_detail) }
    }
}

impl ApiResponse {
    /// Returns whether the call is done or its result is pending.
    ///
    /// # Errors
    /// If the status means that the call failed.
    fn check_status(&self, operation: Operation) -> Result<Progress, Error> {
        let classified = operation.classify(self.status.as_u16());
        classified.map_err(|kind| Error::from_response(operation, kind, self))
    }

    fn retry_after(&self) -> Option<Duration> {
        http_client::retry_after(&self.headers, std::time::SystemTime::now())
    }
}

/// Reads the body, up to [`MAX_RESPONSE_BYTES`].
async fn read_body(mut response: Response) -> Result<Bytes, reqwest::Error> {
    let content_length = response.content_length().and_then(|length| usize::try_from(length).ok());
    let mut body = BytesMut::with_capacity(content_length.unwrap_or(0).min(MAX_RESPONSE_BYTES));
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_RESPONSE_BYTES {
            // A truncated body is not valid JSON, so parsing it fails.
            body.truncate(MAX_RESPONSE_BYTES);
            break;
        }
    }
    Ok(body.freeze())
}

/// Appends an id to the URL of a collection.
fn item_url(collection: &Url, id: Uuid) -> String {
    format!("{}/{id}", collection.as_str().trim_end_matches('/'))
}
