//! The Valkey (or Redis) in which replicas agree who calls NVIDIA for a picture, how many calls all of
//! them make per minute, and how many requests each client may send.
//!
//! Nothing in it must last. If it cannot be used, each replica decides alone, and no request fails.
//! Each agreement is one script, so it needs one round trip, and only the server's clock matters.
//!
//! A request never waits for a second command after one has failed: the first failure makes
//! [`Valkey`] unavailable. A task then connects again every half second. `redis` has a connection
//! manager that reconnects by itself, but there, each command would wait for the new connection.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use redis::{Client, FromRedisValue, ScriptInvocation, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::telemetry::Metrics;

mod client_limit;
mod error;
mod lease;
mod maintenance;
mod pace;
mod probe;
#[cfg(test)]
pub(crate) mod test_server;
mod url;

pub use client_limit::ClientLimitReply;
pub use error::{Failure, StartError};
pub use lease::{LEASE_RESERVE, Lease, LeaseReply, LeaseToken};
pub use pace::{CallId, PaceKey, PaceReply};
pub use probe::{Probe, probe};
pub use url::ValkeyUrl;

/// The beginning of all keys. Its braces are a hash tag, which keeps all keys in one slot.
const PREFIX: &str = "{imagesvc}";

/// Where the Valkey is, and how it is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The server's address and credentials.
    pub url: ValkeyUrl,
    /// The longest time that a request waits for a command.
    pub timeout: Duration,
    /// How many replicas there are, as long as the Valkey has not told.
    pub replicas: u32,
}

/// The Valkey cannot be used at the moment, so the replica decides alone. The log contains the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Valkey cannot be used")]
pub struct Unavailable;

/// The connection to the Valkey. Cheap to clone.
#[derive(Clone)]
pub struct Valkey(Arc<Inner>);

struct Inner {
    client: Client,
    timeout: Duration,
    /// Identifies this replica. A replica has a new id after each start.
    replica: String,
    /// `None` while the Valkey cannot be used.
    connection: Mutex<Option<Connection>>,
    /// How many replicas there were when the Valkey was last asked.
    replicas: AtomicU32,
    /// Changes when the Valkey works again, or has lost its data.
    generation: watch::Sender<u64>,
    /// Notified when a command has failed.
    failed: Notify,
    /// The task that maintains the connection.
    maintenance: Mutex<Option<AbortOnDropHandle<()>>>,
    /// Tracks the tasks that the shutdown waits for.
    background: TaskTracker,
    metrics: Arc<Metrics>,
}

/// A connection that works, as far as is known.
#[derive(Clone)]
struct Connection {
    /// Differs from the number of every other connection.
    number: u64,
    commands: MultiplexedConnection,
}

impl fmt::Debug for Valkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Valkey").field("replica", &self.0.replica).finish_non_exhaustive()
    }
}

impl Valkey {
    /// Connects, and starts the task that maintains the connection. If the server cannot be reached,
    /// logs a warning, and the task tries again.
    ///
    /// # Errors
    /// [`StartError`] if the server refuses to be used.
    pub async fn start(
        settings: &Settings,
        background: TaskTracker,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let valkey = Self(Arc::new(Inner {
            client: settings.url.client()?,
            timeout: settings.timeout,
            replica: format!("{:016x}", fastrand::u64(..)),
            connection: Mutex::new(None),
            replicas: AtomicU32::new(settings.replicas.max(1)),
            generation: watch::Sender::new(0),
            failed: Notify::new(),
            maintenance: Mutex::new(None),
            background,
            metrics,
        }));
        maintenance::start(&valkey).await?;
        Ok(valkey)
    }

    /// Whether the Valkey can be used, as far as is known without trying.
    pub fn works(&self) -> bool {
        self.connection().is_some()
    }

    /// How many replicas use the Valkey, as far as is known. At least 1.
    pub fn replicas(&self) -> u32 {
        self.0.replicas.load(Ordering::Relaxed)
    }

    /// A number that changes when the Valkey works again, or has lost its data.
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// Runs a script. If this fails, no other command is sent until the Valkey works again.
    ///
    /// # Errors
    /// [`Unavailable`]
    async fn run<T: FromRedisValue>(
        &self,
        name: &'static str,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, Unavailable> {
        let Connection { number, mut commands } = self.connection().clone().ok_or(Unavailable)?;
        let started = Instant::now();
        // `redis` sends a script's text only if the server does not know it, so this may take more
        // than one command.
        let reply = timeout(self.0.timeout, script.invoke_async(&mut commands)).await;
        let reply =
            reply.map_err(|_| Failure::Timeout).and_then(|reply| reply.map_err(Failure::from));
        let outcome = reply.as_ref().err().map_or("ok", Failure::name);
        self.0.metrics.record_valkey_command(name, outcome, started.elapsed());
        reply.map_err(|failure| {
            self.fail(number, &failure);
            Unavailable
        })
    }

    /// Stops to use a connection.
    fn fail(&self, number: u64, failure: &Failure) {
        // Several commands may fail at once. Only the first one finds the connection. Later ones find
        // none, or a new one.
        let is_first = self.connection().take_if(|used| used.number == number).is_some();
        if is_first {
            tracing::warn!(
                cause = %failure,
                advice = failure.advice(),
                "Valkey cannot be used: until it works again, each replica has a fixed part of the calls per minute, and may pay for pictures that other replicas pay for"
            );
            self.0.failed.notify_one();
        }
    }

    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        // The connection is valid even if a thread panicked while it held the lock.
        self.0.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
