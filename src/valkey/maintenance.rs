//! Maintains the connection: connects again after a failure, and reports this replica every second.

use std::{
    sync::{Arc, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use redis::{AsyncConnectionConfig, ScriptInvocation, aio::MultiplexedConnection};
use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Connection, Failure, Inner, PREFIX, StartError, Unavailable, Valkey, probe::run_scripts,
    report::report_script,
};

/// The time between two reports. A report also notices a failure that no request has noticed.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The wait before each attempt to connect again.
const CONNECT_INTERVAL: Duration = Duration::from_millis(500);

/// A replica that has not reported for this time counts as stopped.
const REPLICA_EXPIRY: Duration = Duration::from_secs(10);

/// Connects for the first time, and starts the task that maintains the connection.
///
/// # Errors
/// [`StartError`] if the server refuses this client.
pub(super) async fn start(valkey: &Valkey) -> Result<(), StartError> {
    if let Err(failure) = valkey.connect_and_test().await {
        // A script may have failed after the connection worked.
        *valkey.connection() = None;
        match failure.into_start_error() {
            Ok(start_error) => return Err(start_error),
            Err(failure) => tracing::warn!(
                cause = %failure,
                advice = failure.advice(),
                "Valkey cannot be reached: the service starts without it, and tries again"
            ),
        }
    }
    // The task holds a weak reference, so that it ends when nobody else uses the Valkey.
    let task = tokio::spawn(maintain(Arc::downgrade(&valkey.0)));
    *valkey.maintenance() = Some(AbortOnDropHandle::new(task));
    Ok(())
}

/// Reports this replica while the Valkey works, and connects again while it does not.
async fn maintain(valkey: Weak<Inner>) {
    while let Some(valkey) = valkey.upgrade().map(Valkey) {
        if valkey.works() {
            // A failure is logged where it is noticed.
            let _: Result<(), Unavailable> = valkey.report().await;
            tokio::select! {
                () = sleep(REPORT_INTERVAL) => {}
                () = valkey.0.failed.notified() => {}
            }
        } else {
            // Waits before the first attempt after a failure, too. Otherwise, a command that always fails
            // would always cause a new connection at once.
            sleep(CONNECT_INTERVAL).await;
            match valkey.connect().await {
                Ok(()) => tracing::info!(replicas = valkey.replicas(), "Valkey works again"),
                Err(failure) => {
                    tracing::debug!(cause = %failure, "Valkey still cannot be used");
                }
            }
        }
    }
}

/// The reply to a report: whether the Valkey knew this replica, and the number of replicas.
type ReportReply = (bool, u32);

impl Valkey {
    /// Connects, and runs all scripts once, to find missing permissions.
    async fn connect_and_test(&self) -> Result<(), Failure> {
        self.connect().await?;
        let connection = self.connection().clone();
        if let Some(Connection { mut commands, .. }) = connection {
            run_scripts(&mut commands).await?;
        }
        Ok(())
    }

    /// Connects and reports. If both succeed, requests use the connection from then on.
    async fn connect(&self) -> Result<(), Failure> {
        let (command_timeout, client) = (self.0.timeout, self.0.client.clone());
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(command_timeout))
            .set_response_timeout(Some(command_timeout));
        // Nothing closes the semaphore, so `permit` is never `None`.
        let permit = Arc::clone(&self.0.may_connect).acquire_owned().await.ok();
        // With TLS, `redis` reads the system's certificates from files, which blocks.
        let runtime = Handle::current();
        let connect = spawn_blocking(move || {
            let _permit = permit; // held until this thread ends, even if the future is dropped earlier
            runtime.block_on(client.get_multiplexed_async_connection_with_config(&config))
        });
        // `redis` stops connecting after one timeout, but cannot interrupt the reading of files.
        let connected =
            timeout(2 * command_timeout, connect).await.map_err(|_| Failure::Timeout)?;
        let mut commands: MultiplexedConnection = connected??;
        let report = self.report_of_this_replica(REPLICA_EXPIRY).invoke_async(&mut commands).await;
        let (was_known, replicas): ReportReply = report?;
        self.replica_count().store(was_known, replicas, Instant::now());
        // With a new generation, this replica records its recent calls again. A request that finds the
        // connection must find the new generation, too.
        let mut connection = self.connection();
        let generation = *self.0.generation.borrow() + 1;
        self.0.generation.send_replace(generation);
        *connection = Some(Connection { number: generation, commands });
        Ok(())
    }

    /// Reports that this replica runs, and counts the replicas.
    async fn report(&self) -> Result<(), Unavailable> {
        let (was_known, replicas): ReportReply =
            self.run("report", &self.report_of_this_replica(REPLICA_EXPIRY)).await?;
        self.replica_count().store(was_known, replicas, Instant::now());
        if !was_known {
            tracing::info!(
                "the Valkey forgot this replica: it has lost its data, or this replica was suspended; the replica's recent calls are recorded again"
            );
            self.0.generation.send_modify(|generation| *generation += 1);
        }
        Ok(())
    }

    /// The script that reports this replica. Without a further report, the replica counts as
    /// stopped after `expiry`.
    fn report_of_this_replica(&self, expiry: Duration) -> ScriptInvocation<'static> {
        report_script(&format!("{PREFIX}:replicas"), &self.0.replica, expiry)
    }

    fn maintenance(&self) -> MutexGuard<'_, Option<AbortOnDropHandle<()>>> {
        // The task is valid even if a thread panicked while it held the lock.
        self.0.maintenance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports that this replica stops, and ends the task. From then on, nothing connects again after a
    /// failure.
    pub async fn leave(&self) {
        // Otherwise, the task would report that this replica runs.
        drop(self.maintenance().take());
        // Waits for a thread that still connects, because it would panic when the runtime ends. Three
        // timeouts are enough: the thread needs little more than one, unless the reading of files hangs.
        let _ = timeout(3 * self.0.timeout, self.0.may_connect.acquire()).await;
        // With this expiry, the replica counts as stopped at once. If the report fails, the replica
        // counts as stopped after `REPLICA_EXPIRY`.
        let script = self.report_of_this_replica(Duration::ZERO);
        let _: Result<ReportReply, Unavailable> = self.run("report", &script).await;
    }
}
