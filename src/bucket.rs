//! The bucket in which pictures and vectors last, on S3 or on a server that speaks S3's protocol.
//!
//! `object_store` finds the credentials and signs the URLs. The requests are sent by the service's
//! own HTTP client: it streams a picture from its file, ignores proxies in the environment, and sees
//! S3's error codes, which `object_store` hides.
//!
//! An object's name is either new or derived from its content. So a write can be repeated, and needs
//! no condition.
//!
//! While the bucket fails, nobody waits for it: writes are refused at once, and reads are skipped.
//! Meanwhile `health` tests the bucket every few seconds.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{
    BackoffConfig, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::{http_client::Trust, image::Content, sha256::Sha256, telemetry::Metrics};
use credentials::CredentialsClient;
use health::{Health, Transition};

mod credentials;
mod error;
mod health;
mod location;
mod request;
mod self_test;

pub use error::{Error, Operation};
pub use location::Location;
pub use self_test::TestReport;

/// The longest time that a request waits for a read.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// How long establishing a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an idle connection is retained. S3 closes idle connections after about 20 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// At most this many removals wait for the bucket.
const MAX_REMOVALS: usize = 256;

/// A removal is tried at most this many times.
const REMOVAL_ATTEMPTS: usize = 60;

/// The pause between two attempts of a removal.
const REMOVAL_PAUSE: Duration = Duration::from_secs(1);

/// The names of the variables from which `object_store` takes credentials. See
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
    /// The longest time for a write, with its repetition.
    pub timeout: Duration,
    /// The values of [`AWS_VARIABLES`] that are set.
    pub aws_variables: Vec<(&'static str, SecretString)>,
}

/// Why the bucket's client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The AWS variables contradict each other, or one of them is invalid.
    #[error(
        "the bucket's credentials are incomplete: set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    Credentials(#[source] object_store::Error),
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
    removals: Arc<Semaphore>,
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
        trust: Trust,
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
            removals: Arc::new(Semaphore::new(MAX_REMOVALS)),
            background,
            metrics,
        })))
    }

    /// Writes an object before the deadline. `path` follows the prefix. When this returns, the
    /// object is durable.
    ///
    /// # Errors
    /// [`Error`]. The object may exist nevertheless, unless the error says that it was refused.
    pub async fn write(&self, path: &str, object: &Object, deadline: Instant) -> Result<(), Error> {
        let operation = Operation::Write;
        self.check(operation)?;
        let written = self.request(operation, path, Some(object), Some(deadline)).await;
        self.record(operation, written.as_ref().err());
        written.map(drop)
    }

    /// Reads an object of at most `max_len` bytes. Returns `None` if there is no such object. Takes
    /// at most a second.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn read(&self, path: &str, max_len: usize) -> Result<Option<Bytes>, Error> {
        let operation = Operation::Read { max_len };
        self.check(operation)?;
        let read = self.request(operation, path, None, None).await;
        self.record(operation, read.as_ref().err());
        read
    }

    /// Removes an object in the background, after `delay`. A removal that fails is repeated up to 60
    /// times, but not after the service has begun to stop.
    pub fn remove(&self, path: String, delay: Duration) -> JoinHandle<()> {
        let bucket = self.clone();
        let Ok(permit) = Arc::clone(&self.0.removals).try_acquire_owned() else {
            return tokio::spawn(async move { log_remaining(&path, "too many removals wait") });
        };
        self.0.background.spawn(async move {
            let _permit = permit;
            sleep(delay).await;
            for _ in 0..REMOVAL_ATTEMPTS {
                match bucket.request(Operation::Remove, &path, None, None).await {
                    Ok(_) => return,
                    Err(error) if bucket.0.background.is_closed() => {
                        return log_remaining(&path, error);
                    }
                    Err(error) => tracing::debug!(%error, path, "a removal is repeated"),
                }
                sleep(REMOVAL_PAUSE).await;
            }
            log_remaining(&path, "the bucket failed for too long");
        })
    }

    /// Spawns a task that the service's shutdown waits for.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.background.spawn(task)
    }

    /// Checks that the bucket was not found to fail. Sends nothing.
    ///
    /// # Errors
    /// [`Error`] if it fails at the moment, so that the operation would not be tried.
    pub fn check(&self, operation: Operation) -> Result<(), Error> {
        if self.0.health.is_failing(operation) { Err(Error::suspended(operation)) } else { Ok(()) }
    }

    /// Records the outcome of a request that a client waited for.
    fn record(&self, operation: Operation, error: Option<&Error>) {
        if error.is_some_and(|error| !error.is_about_the_bucket()) {
            return;
        }
        match self.0.health.record(operation, error.is_some()) {
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
            Operation::Read { .. } | Operation::ReadMissing => tracing::warn!(
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
            Operation::Read { .. } | Operation::ReadMissing => {
                tracing::info!("the bucket can be read again");
            }
        }
    }

    /// Whether the bucket can be written to, as far as is known.
    pub fn is_writable(&self) -> bool {
        !self.0.health.is_failing(Operation::Write)
    }

    /// Whether the bucket can be read, as far as is known.
    pub fn is_readable(&self) -> bool {
        !self.0.health.is_failing(Operation::Read { max_len: 0 })
    }
}

fn log_remaining(path: &str, cause: impl fmt::Display) {
    tracing::warn!(%cause, path, "an object that nobody needs remains in the bucket");
}

/// Creates the part of `object_store` that finds credentials and signs URLs.
fn signer(settings: &Settings, http: reqwest::Client) -> object_store::Result<AmazonS3> {
    let name = settings.location.bucket();
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(name)
        // The certificate of S3 covers only one label before `.s3`. Other servers often have no
        // wildcard host names.
        .with_virtual_hosted_style_request(settings.endpoint.is_none() && !name.contains('.'))
        .with_http_connector(CredentialsClient(http))
        // These retries are for requests of credentials.
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
