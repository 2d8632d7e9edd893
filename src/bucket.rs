//! The bucket that keeps pictures and vectors, on S3 or on a server that speaks S3's protocol.
//!
//! `object_store` finds the credentials and signs the URLs. The requests are sent by the service's
//! own HTTP client: it streams a picture from its file, ignores proxies in the environment, and sees
//! S3's error codes, which `object_store` hides.
//!
//! Each picture's object gets a new name. The name of a vector's object is derived from the vector's
//! picture. So a write can be repeated, and need not check whether the object exists.
//!
//! Nobody waits for a failing bucket: while writes fail, they are refused at once, and while reads fail,
//! they are skipped. Meanwhile `health` tests the bucket every few seconds.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{
    BackoffConfig, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::{http_client::Trust, image::Content, sha256::Sha256, telemetry::Metrics};
use credentials::CredentialsConnector;
use error::Cause;
use health::{Health, Transition};
use removal::Removals;

mod credentials;
mod error;
mod health;
mod location;
mod removal;
mod request;
mod self_test;

pub use error::{Error, Operation};
pub use location::Location;
pub use removal::RemovalTime;
pub use self_test::TestReport;

/// The longest time for a read, including its second attempt.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// How long establishing a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an idle connection is retained. S3 closes idle connections after about 20 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The names of the variables with the credentials and the region for `object_store`. See
/// <https://docs.rs/object_store/0.14/object_store/aws/enum.AmazonS3ConfigKey.html>.
pub const AWS_VARIABLES: [&str; 13] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
];

/// Where the bucket is, and how it is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The bucket's name and the prefix of all objects' names.
    pub location: Location,
    /// The server's URL; `None` for S3 itself.
    pub endpoint: Option<Url>,
    /// The bucket's region; `None` for the region in the AWS variables, or else `us-east-1`.
    pub region: Option<String>,
    /// The longest time for a write, including its second attempt.
    pub timeout: Duration,
    /// The names and values of those [`AWS_VARIABLES`] that are set.
    pub aws_variables: Vec<(&'static str, SecretString)>,
}

/// Why the bucket's client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The AWS variables contradict each other, or one of them is invalid.
    #[error("the variables for the bucket's credentials cannot be used: {0}")]
    Credentials(object_store::Error),
    /// TLS cannot be set up.
    #[error("cannot set up the bucket's HTTP client")]
    HttpClient(#[from] reqwest::Error),
}

/// An object to be written.
#[derive(Debug, Clone)]
pub struct Object {
    /// The object's bytes.
    pub content: Content,
    /// Their media type.
    pub media_type: &'static str,
    /// Their SHA-256. S3 refuses bytes that were changed on the way.
    pub sha256: Sha256,
}

/// A bucket. Cheap to clone.
#[derive(Clone)]
pub struct Bucket(Arc<Inner>);

struct Inner {
    location: Location,
    signer: AmazonS3,
    http: reqwest::Client,
    timeout: Duration,
    health: Health,
    removals: Removals,
    /// Tracks the tasks that the shutdown waits for.
    background: TaskTracker,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("location", &self.0.location).finish_non_exhaustive()
    }
}

impl Bucket {
    /// Creates a client of the bucket. Sends nothing yet.
    ///
    /// # Errors
    /// [`SetupError`]
    pub fn new(
        settings: &Settings,
        trust: &Trust,
        background: TaskTracker,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        let http = trust
            .client_builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build()?;
        let signer = signer(settings, http.clone()).map_err(SetupError::Credentials)?;
        Ok(Self(Arc::new(Inner {
            location: settings.location.clone(),
            signer,
            http,
            timeout: settings.timeout,
            health: Health::default(),
            removals: Removals::default(),
            background,
            metrics,
        })))
    }

    /// Writes an object, or fails after [`Settings::timeout`] or at the deadline, whichever comes first.
    /// `path` is the object's name without the prefix. When this succeeds, the object is durable.
    ///
    /// # Errors
    /// [`Error`], which says whether the object may exist nevertheless.
    pub async fn write(&self, path: &str, object: &Object, deadline: Instant) -> Result<(), Error> {
        let (operation, started) = (Operation::Write, Instant::now());
        self.check(operation)?;
        let written = self.request(operation, path, Some(object), Some(deadline)).await;
        self.record(operation, written.as_ref().err(), started);
        written.map(drop)
    }

    /// Writes an object that the service can do without. A failure does not count as a failure of the
    /// bucket, so other writes are not affected.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn write_optional(&self, path: &str, object: &Object) -> Result<(), Error> {
        self.check(Operation::Write)?;
        self.request(Operation::Write, path, Some(object), None).await.map(drop)
    }

    /// Reads an object. Returns `None` if there is no such object. Returns only the beginning of
    /// an object of more than 2 MiB: the service reads only vectors, which are shorter. Takes at most a
    /// second.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn read(&self, path: &str) -> Result<Option<Bytes>, Error> {
        let (operation, started) = (Operation::Read, Instant::now());
        self.check(operation)?;
        let read = self.request(operation, path, None, None).await;
        self.record(operation, read.as_ref().err(), started);
        read
    }

    /// Spawns a task that the service's shutdown waits for.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.background.spawn(task)
    }

    /// Whether an operation works, as far as is known without trying.
    pub fn works(&self, operation: Operation) -> bool {
        !self.0.health.is_suspended(operation)
    }

    /// Checks that an operation works, as far as is known without trying.
    ///
    /// # Errors
    /// [`Error`] if this kind of operation fails at the moment, so that it must not be tried.
    pub fn check(&self, operation: Operation) -> Result<(), Error> {
        if self.works(operation) { Ok(()) } else { Err(Error::new(operation, Cause::Suspended)) }
    }

    /// Records the outcome of an operation that began at `started`, unless the error says nothing
    /// about the bucket.
    fn record(&self, operation: Operation, error: Option<&Error>, started: Instant) {
        if error.is_some_and(|error| !error.is_about_the_bucket()) {
            return;
        }
        let transition = self.0.health.record(operation, error.is_some(), started);
        self.act_on(transition, operation, error);
    }

    /// Logs that an operation fails or works again, and starts to test a failing bucket. `error` is
    /// `None` if the operation succeeded.
    fn act_on(&self, transition: Option<Transition>, operation: Operation, error: Option<&Error>) {
        match transition {
            Some(Transition::Fails) => {
                self.log_failure(operation, error);
                health::start_testing(self);
            }
            Some(Transition::Works) => self.log_recovery(operation),
            None => {}
        }
    }

    fn log_failure(&self, operation: Operation, error: Option<&Error>) {
        let cause = error.map(tracing::field::display);
        let advice = error.and_then(Error::advice);
        match operation {
            Operation::Write | Operation::Remove => tracing::warn!(
                cause,
                advice,
                "the bucket cannot be written to: pictures that are to be saved are refused until it works again"
            ),
            Operation::Read | Operation::ReadMissing => tracing::warn!(
                cause,
                advice,
                "the bucket cannot be read: vectors of other replicas are not found until it works again"
            ),
        }
    }

    fn log_recovery(&self, operation: Operation) {
        match operation {
            Operation::Write | Operation::Remove => {
                tracing::info!("the bucket can be written to again");
            }
            Operation::Read | Operation::ReadMissing => {
                tracing::info!("the bucket can be read again");
            }
        }
    }
}

/// Creates the part of `object_store` that finds credentials and signs URLs.
fn signer(settings: &Settings, http: reqwest::Client) -> object_store::Result<AmazonS3> {
    let name = settings.location.bucket();
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(name)
        // In the virtual-hosted style, the host name begins with the bucket's name. If the bucket's name has a
        // dot, S3's certificate does not cover the host name. Other servers often have no such host names.
        .with_virtual_hosted_style_request(settings.endpoint.is_none() && !name.contains('.'))
        .with_http_connector(CredentialsConnector(http))
        // This applies only to requests for credentials: other requests are not sent by `object_store`.
        .with_retry(RetryConfig {
            backoff: BackoffConfig { max_backoff: Duration::from_secs(1), ..Default::default() },
            max_retries: 2,
            retry_timeout: settings.timeout,
        });
    for (name, value) in &settings.aws_variables {
        let key: AmazonS3ConfigKey = name.to_ascii_lowercase().parse()?;
        builder = builder.with_config(key, value.expose_secret());
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    builder.build()
}
