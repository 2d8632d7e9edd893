//! Leases: of all replicas, only the one that holds a picture's lease calls NVIDIA for it.
//!
//! A lease expires, so that a replica that is killed does not keep it. After the vector was written to
//! the bucket, the lease is released, and its key says `done` for a while. So a replica that looked in
//! the bucket just before the write knows that it must look again.

use std::{fmt::Display, sync::LazyLock, time::Duration};

use redis::{Script, ScriptInvocation};
use tokio::time::{Instant, interval_at};
use tokio_util::task::AbortOnDropHandle;

use super::{PREFIX, Unavailable, Valkey, millis};

static ACQUIRE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease_renew.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease_release.lua")));

/// After this time, a lease expires unless it is renewed.
const EXPIRY: Duration = Duration::from_secs(10);

/// The time between two renewals.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3);

/// [`Valkey::lease_reserve`] assumes that a renewal begins at most this late. It may then still take as
/// long as the Valkey's timeout.
const LATENESS: Duration = Duration::from_secs(1);

/// How long the key of a lease says `done` after the release. Must be longer than [`Valkey::lease_reserve`]:
/// a replica that acquires a lease does not look in the bucket again if it has looked within the reserve.
const DONE_EXPIRY: Duration = Duration::from_secs(30);

/// The reply to an attempt to acquire a lease. In tests that need no real lease, `L` is `()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseReply<L = Lease> {
    /// The caller has the lease.
    Acquired(L),
    /// Another caller has the lease.
    Held,
    /// Another caller has written the vector to the bucket.
    Done,
}

/// What a lease and its holder are called in the Valkey.
#[derive(Debug, Clone)]
struct Names {
    /// The key of the lease.
    key: String,
    /// The value of the key while this holder has the lease.
    token: String,
}

/// A held lease. It is renewed until it is released. Dropping it releases it in the background.
#[derive(Debug)]
pub struct Lease {
    valkey: Valkey,
    names: Names,
    /// How long the key says `done` after the release. Zero if the vector was not written.
    done_expiry: Duration,
    _renewal: AbortOnDropHandle<()>,
}

impl Valkey {
    /// The least time that a lease has left while its holder runs and reaches the Valkey.
    pub fn lease_reserve(&self) -> Duration {
        EXPIRY.saturating_sub(RENEWAL_INTERVAL + LATENESS + self.0.timeout)
    }

    /// Tries to acquire the lease for computing a vector. With `ignore_done`, a lease whose key says `done`
    /// is acquired, too.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn acquire_lease(
        &self,
        vector_key: impl Display,
        ignore_done: bool,
    ) -> Result<LeaseReply, Unavailable> {
        let key = format!("{PREFIX}:lease:{vector_key}");
        let token = format!("{}:{:016x}", self.0.replica, fastrand::u64(..));
        let names = Names { key, token };
        let script = acquire_script(&names.key, &names.token, ignore_done);
        let reply: String = self.run("lease", &script).await?;
        Ok(match reply.as_str() {
            "acquired" => LeaseReply::Acquired(Lease {
                valkey: self.clone(),
                done_expiry: Duration::ZERO,
                _renewal: AbortOnDropHandle::new(tokio::spawn(renew(self.clone(), names.clone()))),
                names,
            }),
            "done" => LeaseReply::Done,
            _ => LeaseReply::Held,
        })
    }

    /// Renews a lease, if its holder still has it. Returns whether it does.
    async fn renew_lease(&self, names: &Names) -> Result<bool, Unavailable> {
        self.run("lease_renew", &renew_script(&names.key, &names.token)).await
    }
}

/// The script of [`Valkey::acquire_lease`].
pub(super) fn acquire_script(
    key: &str,
    token: &str,
    ignore_done: bool,
) -> ScriptInvocation<'static> {
    let mut script = ACQUIRE.key(key);
    script.arg(token).arg(millis(EXPIRY)).arg(u8::from(ignore_done));
    script
}

/// The script of [`Valkey::renew_lease`].
pub(super) fn renew_script(key: &str, token: &str) -> ScriptInvocation<'static> {
    let mut script = RENEW.key(key);
    script.arg(token).arg(millis(EXPIRY));
    script
}

/// The script that releases a lease. A `done_expiry` of zero means that no vector was written.
pub(super) fn release_script(
    key: &str,
    token: &str,
    done_expiry: Duration,
) -> ScriptInvocation<'static> {
    let mut script = RELEASE.key(key);
    script.arg(token).arg(millis(done_expiry));
    script
}

/// Renews a lease until the task is aborted, or the lease is lost.
async fn renew(valkey: Valkey, names: Names) {
    let mut interval = interval_at(Instant::now() + RENEWAL_INTERVAL, RENEWAL_INTERVAL);
    loop {
        interval.tick().await;
        // After an error, the lease may still be valid. If it has expired, its holder notices that
        // before it calls NVIDIA.
        if valkey.renew_lease(&names).await == Ok(false) {
            return;
        }
    }
}

impl Lease {
    /// Whether this holder still has the lease. If so, the lease is renewed.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn confirm(&self) -> Result<bool, Unavailable> {
        self.valkey.renew_lease(&self.names).await
    }

    /// Releases the lease in the background. Its key then says `done`: the vector is in the bucket.
    pub fn release_as_done(mut self) {
        // Dropping `self` releases it.
        self.done_expiry = DONE_EXPIRY;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let script = release_script(&self.names.key, &self.names.token, self.done_expiry);
        let valkey = self.valkey.clone();
        self.valkey.in_background(async move {
            // If this fails, the lease expires.
            let _: Result<(), Unavailable> = valkey.run("lease_release", &script).await;
        });
    }
}
