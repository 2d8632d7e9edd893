//! The Valkey (or Redis) in which replicas agree who calls NVIDIA for a picture, how many calls all of
//! them make per minute, and how many requests each client may send.
//!
//! Nothing in it needs to last. If it cannot be used, each replica decides alone, and no request fails.
//! Scripts in the Valkey decide. So a decision usually takes one round trip, and only the Valkey's
//! clock matters.
//!
//! After a command has failed, no request sends another one until a task has connected again. So
//! further requests do not wait for a Valkey that does not reply. The task waits half a second before
//! each attempt to connect. The connection manager of `redis` is not used: with it, each command
//! would wait for the new connection.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{Client, FromRedisValue, ScriptInvocation, aio::MultiplexedConnection};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout},
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::telemetry::Metrics;
use replica_count::ReplicaCount;

mod client_limit;
mod error;
mod lease;
mod maintenance;
mod pace;
mod probe;
mod replica_count;
mod report;
#[cfg(test)]
pub(crate) mod test_server;
mod url;

pub use client_limit::ClientLimitReply;
pub use error::{Failure, StartError};
pub use lease::{Lease, LeaseReply};
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
    /// The assumed number of replicas, until the Valkey reports it.
    pub replicas: u32,
}

/// The Valkey cannot be used at the moment, so the replica decides alone. The log contains the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Valkey cannot be used")]
pub struct Unavailable;

/// This replica's access to the Valkey. Clones are cheap, and share the connection.
#[derive(Clone)]
pub struct Valkey(Arc<Inner>);

struct Inner {
    client: Client,
    timeout: Duration,
    /// Identifies this replica. A replica has a new id after each start.
    replica: String,
    /// `None` while the Valkey cannot be used.
    connection: Mutex<Option<Connection>>,
    replicas: Mutex<ReplicaCount>,
    /// See [`Valkey::generation`].
    generation: watch::Sender<u64>,
    /// Notified when a command has failed, so that the task connects again.
    failed: Notify,
    /// The task that maintains the connection.
    maintenance: Mutex<Option<AbortOnDropHandle<()>>>,
    /// Has one permit, so that at most one thread connects at a time. A thread of its own connects,
    /// because connecting may block.
    may_connect: Arc<Semaphore>,
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
    /// [`StartError`] if the server refuses this client, or if the URL cannot be used.
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
            replicas: Mutex::new(ReplicaCount::new(settings.replicas)),
            generation: watch::Sender::new(0),
            failed: Notify::new(),
            maintenance: Mutex::new(None),
            may_connect: Arc::new(Semaphore::new(1)),
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
        self.replica_count().count()
    }

    /// A number that changes when this replica must record its NVIDIA calls in the Valkey again: with
    /// each new connection, and when the Valkey has forgotten this replica.
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

    /// Stops using the connection with this number, on which a command has failed.
    fn fail(&self, number: u64, failure: &Failure) {
        // Several commands may fail at once. Only the first one finds the connection. Later ones find
        // none, or a new one.
        let is_first = self.connection().take_if(|used| used.number == number).is_some();
        if is_first {
            tracing::warn!(
                cause = %failure,
                advice = failure.advice(),
                "Valkey cannot be used: until it works again, this replica decides alone"
            );
            self.0.failed.notify_one();
        }
    }

    /// The longest time that a request waits for a command.
    pub fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// Runs a task that the service's shutdown waits for. Does nothing outside of a runtime: the
    /// service has then stopped already.
    pub(crate) fn in_background(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            self.0.background.spawn_on(task, &runtime);
        }
    }

    fn replica_count(&self) -> MutexGuard<'_, ReplicaCount> {
        // The count is valid even if a thread panicked while it held the lock.
        self.0.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        // The connection is valid even if a thread panicked while it held the lock.
        self.0.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A duration as an argument of a script, in milliseconds.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A duration as an argument of a script, in microseconds.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
