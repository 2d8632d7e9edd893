//! The client of NVIDIA's hosted NV-DINOv2, and the only code that sees the key.
//!
//! An inference is one call, plus polls if the answer is pending (`infer`). A large picture is
//! uploaded first (`assets`). One table says what each answer means (`classify`), another what is
//! retried and when (`retry`).
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
use url::Url;
use uuid::Uuid;

use crate::{
    http_client::{self, Trust},
    shares::ClientNetwork,
    telemetry::{Metrics, causes},
};
use classify::{ALERTING_STATUSES, Progress};
use not_before::NotBefore;
use pace::{Pace, ReservationGuard};
use retry::RetryBudget;

mod assets;
mod classify;
mod infer;
mod key;
mod not_before;
mod pace;
mod proxy;
mod retry;
mod vector;
mod wire;

pub use assets::UploadedAsset;
pub use classify::{FailureKind, Operation};
pub use key::ApiKey;
pub use pace::WINDOW as PACE_WINDOW;
pub use proxy::ProxyUrl;
pub use retry::{Attempts, RetryPolicy};
pub use vector::{DIMENSIONS, Vector};
pub use wire::InlineImage;

/// The model's name in answers.
pub const MODEL: &str = "nvidia/nv-dinov2";

/// The shortest time between two polls.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The most bytes that are read of an answer. 1536 numbers take about 20 to 40 KB.
const MAX_ANSWER: usize = 1 << 20;

/// How much of a failed answer is logged, in characters.
const EXCERPT: usize = 300;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than most pauses between pictures, and shorter than gateways keep idle connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// Settings for calling NVIDIA.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where inferences are sent.
    pub infer_url: Url,
    /// Where pending answers are polled; the request's id is appended.
    pub status_url: Url,
    /// Where uploads are announced.
    pub assets_url: Url,
    /// The proxy for all these calls.
    pub proxy: Option<ProxyUrl>,
    /// The timeout of one attempt of one call.
    pub attempt_timeout: Duration,
    /// The most inference calls in any window.
    pub requests_per_minute: Option<u32>,
    /// The length of the window: a minute and a small margin.
    pub pace_window: Duration,
    /// What is retried, and when.
    pub retry: RetryPolicy,
    /// The shortest time between two polls.
    pub poll_interval: Duration,
}

/// A call to NVIDIA that failed and is not retried.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed: {kind:?}, {log_detail}")]
pub struct Error {
    /// The call that failed.
    pub operation: Operation,
    /// Why it failed.
    pub kind: FailureKind,
    /// How long NVIDIA asks to wait.
    pub retry_after: Option<Duration>,
    /// The status and the beginning of the answer; only for the log.
    pub log_detail: String,
    /// Inferences that were sent without success.
    pub attempts: u32,
    /// Whether only the caller's deadline ruled out another attempt.
    pub lacks_time: bool,
    /// Whether no connection was made, so that NVIDIA never saw the request.
    failed_to_connect: bool,
}

/// The state of the key according to NVIDIA's last answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// NVIDIA has not been called yet.
    Unknown,
    /// NVIDIA accepted the key.
    Accepted,
    /// NVIDIA refused the key.
    Refused,
}

/// Calls NVIDIA. Cheap to clone; clones share connections, retry budget and pace.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: HttpClient,
    settings: Settings,
    key: ApiKey,
    retry_budget: RetryBudget,
    pace: Option<Pace>,
    not_before: NotBefore,
    key_state: AtomicU8,
    metrics: Arc<Metrics>,
    background: TaskTracker,
}

/// Calls that a client may make. Dropping it frees them for others.
#[derive(Debug)]
pub struct Reservation {
    client: ClientNetwork,
    /// `None` if the calls have no pace.
    guard: Option<ReservationGuard>,
}

impl Reservation {
    /// Moves one call to a reservation of its own.
    pub fn split_one(&mut self) -> Self {
        let guard = self.guard.as_mut().map(ReservationGuard::split_one);
        Self { client: self.client, guard }
    }
}

/// An answer that was read completely.
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// Creates a client. Deletions of uploads outlive their request, and run on `background`.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(
        settings: Settings,
        key: ApiKey,
        metrics: Arc<Metrics>,
        background: TaskTracker,
        trust: Trust,
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
        for operation in Operation::ALL {
            for status in ALERTING_STATUSES {
                metrics.initialize_upstream_calls(operation.name(), status);
            }
        }
        Ok(Self(Arc::new(Inner {
            http: builder.build()?,
            key,
            retry_budget: RetryBudget::default(),
            not_before: NotBefore::default(),
            pace: settings.requests_per_minute.map(|limit| Pace::new(limit, settings.pace_window)),
            key_state: AtomicU8::new(KeyState::Unknown as u8),
            metrics,
            background,
            settings,
        })))
    }

    /// The state of the key according to NVIDIA's last answer.
    pub fn key_state(&self) -> KeyState {
        let state = self.0.key_state.load(Ordering::Relaxed);
        [KeyState::Accepted, KeyState::Refused]
            .into_iter()
            .find(|known| *known as u8 == state)
            .unwrap_or(KeyState::Unknown)
    }

    /// Reserves calls for a client's pictures, all or none. Their embeddings must be ready by the
    /// deadline.
    ///
    /// # Errors
    /// [`FailureKind::RateLimited`] with the time to wait, if the pace or NVIDIA's own
    /// `Retry-After` leaves no time for the calls before the deadline.
    pub fn reserve(
        &self,
        client: ClientNetwork,
        count: usize,
        deadline: Instant,
    ) -> Result<Reservation, Error> {
        if count == 0 {
            return Ok(Reservation { client, guard: None });
        }
        self.check_not_before(Operation::Infer, deadline)?;
        let pace = self.0.pace.as_ref();
        let reserved = pace.map(|pace| pace.reserve(client, count, Instant::now(), deadline));
        let guard =
            reserved.transpose().map_err(|wait| Error::pace_exceeded(Operation::Infer, wait))?;
        Ok(Reservation { client, guard })
    }

    /// The most calls, up to `at_most`, that the pace could ever allow one client within `time`.
    pub fn largest_reservation(&self, at_most: usize, time: Duration) -> usize {
        let pace = self.0.pace.as_ref();
        pace.map_or(at_most, |pace| pace.largest_reservation(at_most, time))
    }

    /// Starts to use a call that was reserved.
    pub fn attempts(&self, reservation: Reservation, deadline: Instant) -> Attempts<'_> {
        let Inner { settings, retry_budget, metrics, .. } = &*self.0;
        retry_budget.earn();
        Attempts {
            policy: &settings.retry,
            retry_budget,
            metrics,
            client: reservation.client,
            reservation: reservation.guard,
            deadline,
            failed_attempts: 0,
            inferences: 0,
        }
    }

    /// Adds the headers that every call has except the presigned upload.
    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        request.header(AUTHORIZATION, self.0.key.bearer()).header(ACCEPT, "application/json")
    }

    /// Makes one attempt of one call. An answer of any status is `Ok`; the caller classifies it.
    async fn call(
        &self,
        operation: Operation,
        request: RequestBuilder,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let started = Instant::now();
        if started >= deadline {
            // Past the deadline, a paid answer would be useless.
            return Err(Error::deadline(operation));
        }
        let attempt_deadline = deadline.min(started + self.0.settings.attempt_timeout);
        let exchange = async {
            let response = request.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = read_body(response).await?;
            // Anything but a success may be quoted in the log.
            let body = if status == StatusCode::OK { body } else { self.0.key.redact(body) };
            Ok(Reply { status, headers, body })
        };
        let outcome = match timeout_at(attempt_deadline, exchange).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                let error: reqwest::Error = error;
                // The error's own text names the URL, which may be presigned.
                let log_detail =
                    causes(&error).map(ToString::to_string).collect::<Vec<_>>().join(": ");
                let failure = Error::new(operation, FailureKind::Unavailable, log_detail);
                Err(Error { failed_to_connect: error.is_connect(), ..failure })
            }
            Err(_) if attempt_deadline == deadline => Err(Error::deadline(operation)),
            Err(_) => {
                Err(Error::new(operation, FailureKind::AttemptTimeout, "no answer in time".into()))
            }
        };
        let status = outcome.as_ref().ok().map(|reply| reply.status.as_u16());
        self.0.metrics.record_upstream_call(operation.name(), status, started.elapsed());
        if let Ok(reply) = &outcome {
            self.record_key_state(operation, reply.status);
            let asks_to_wait = matches!(
                reply.status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            );
            if let (true, true, Some(wait)) =
                (asks_to_wait, operation.reveals_key_validity(), reply.retry_after())
            {
                self.0.not_before.record(wait, Instant::now());
            }
        }
        outcome
    }

    fn record_key_state(&self, operation: Operation, status: StatusCode) {
        if !operation.reveals_key_validity() {
            return;
        }
        let state = match operation.classify(status.as_u16()) {
            Ok(Progress::Done | Progress::Pending) => KeyState::Accepted,
            Err(FailureKind::Key) => KeyState::Refused,
            Err(
                FailureKind::Account
                | FailureKind::Picture
                | FailureKind::UploadsRefused
                | FailureKind::RateLimited
                | FailureKind::Unavailable
                | FailureKind::AttemptTimeout
                | FailureKind::ResultGone
                | FailureKind::GatewayPage
                | FailureKind::InvalidAnswer
                | FailureKind::Unexpected
                | FailureKind::DeadlinePassed,
            ) => return,
        };
        self.0.key_state.store(state as u8, Ordering::Relaxed);
    }
}

impl Error {
    fn new(operation: Operation, kind: FailureKind, log_detail: String) -> Self {
        let (attempts, lacks_time, failed_to_connect) =
            (0, kind == FailureKind::DeadlinePassed, false);
        Self {
            operation,
            kind,
            retry_after: None,
            log_detail,
            attempts,
            lacks_time,
            failed_to_connect,
        }
    }

    fn deadline(operation: Operation) -> Self {
        Self::new(operation, FailureKind::DeadlinePassed, "the request's deadline passed".into())
    }

    /// The failure that an answer reports.
    fn from_reply(operation: Operation, kind: FailureKind, reply: &Reply) -> Self {
        let mut log_detail = format!("status {}", reply.status.as_u16());
        if operation.is_quotable(reply.status.as_u16()) {
            let text = String::from_utf8_lossy(&reply.body);
            log_detail.push_str(&format!(": {:?}", text.chars().take(EXCERPT).collect::<String>()));
        }
        Self { retry_after: reply.retry_after(), ..Self::new(operation, kind, log_detail) }
    }
}

impl Reply {
    /// Whether the call is done or its answer is pending.
    ///
    /// # Errors
    /// The failure that the answer reports.
    fn progress(&self, operation: Operation) -> Result<Progress, Error> {
        let classified = operation.classify(self.status.as_u16());
        classified.map_err(|kind| Error::from_reply(operation, kind, self))
    }

    fn retry_after(&self) -> Option<Duration> {
        http_client::retry_after(&self.headers, std::time::SystemTime::now())
    }
}

/// Reads the body, up to the limit for answers.
async fn read_body(mut response: Response) -> Result<Bytes, reqwest::Error> {
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok());
    let mut body = BytesMut::with_capacity(announced.unwrap_or(0).min(MAX_ANSWER));
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            body.truncate(MAX_ANSWER); // a truncated body is not valid JSON, so it is refused later
            break;
        }
    }
    Ok(body.freeze())
}

/// The URL of one item in a collection.
fn item_url(collection: &Url, id: Uuid) -> String {
    format!("{}/{id}", collection.as_str().trim_end_matches('/'))
}
