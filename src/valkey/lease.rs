//! Leases: of all replicas, only the one that holds a picture's lease calls NVIDIA for it.
//!
//! A lease expires, so that a replica that is killed does not keep it. A released lease says for a
//! while that the vector is in the bucket. So a replica that looked there just before the vector was
//! written knows that it must look again.

use std::{
    fmt::Display,
    sync::{Arc, LazyLock},
    time::Duration,
};

use redis::Script;
use tokio::time::{Instant, interval_at};
use tokio_util::task::AbortOnDropHandle;

use super::{PREFIX, Unavailable, Valkey, maintenance::millis};

static ACQUIRE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease.lua")));
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease_renew.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease_release.lua")));

/// After this time, a lease expires unless it is renewed.
const EXPIRY: Duration = Duration::from_secs(10);

/// The time between two renewals.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3);

/// A running holder's lease has always more than this time left: the difference between the two times
/// above, less a second in which a renewal may be late.
pub const LEASE_RESERVE: Duration = Duration::from_secs(6);

/// How long a released lease says that the vector is in the bucket. This is longer than any request
/// may take between its look-up in the bucket and its call.
const DONE_EXPIRY: Duration = Duration::from_secs(120);

/// The reply to an attempt to acquire a lease.
#[derive(Debug)]
pub enum LeaseReply {
    /// This call has the lease.
    Acquired(Lease),
    /// Another call has the lease.
    Held,
    /// Another call has written the vector to the bucket.
    Done,
}

/// What a [`Lease`] is for, and who holds it.
#[derive(Debug, Clone)]
pub struct LeaseToken(Arc<Names>);

#[derive(Debug)]
struct Names {
    key: String,
    token: String,
}

/// A held lease. It is renewed until it is released. Dropping it releases it in the background.
#[derive(Debug)]
pub struct Lease {
    valkey: Valkey,
    token: LeaseToken,
    is_released: bool,
    _renewal: AbortOnDropHandle<()>,
}

impl Valkey {
    /// Creates a token for one call for a picture. `picture` identifies the picture.
    pub fn lease_token(&self, picture: impl Display) -> LeaseToken {
        let key = format!("{PREFIX}:lease:{picture}");
        let token = format!("{}:{:016x}", self.0.replica, fastrand::u64(..));
        LeaseToken(Arc::new(Names { key, token }))
    }

    /// Tries to acquire a lease. If `ignore_done` is set, it is acquired even if the vector was
    /// written to the bucket.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn acquire_lease(
        &self,
        token: &LeaseToken,
        ignore_done: bool,
    ) -> Result<LeaseReply, Unavailable> {
        let mut script = ACQUIRE.key(&token.0.key);
        script.arg(&token.0.token).arg(millis(EXPIRY)).arg(u8::from(ignore_done));
        let reply: String = self.run("lease", &script).await?;
        Ok(match reply.as_str() {
            "acquired" => LeaseReply::Acquired(Lease {
                valkey: self.clone(),
                token: token.clone(),
                is_released: false,
                _renewal: AbortOnDropHandle::new(tokio::spawn(renew(self.clone(), token.clone()))),
            }),
            "done" => LeaseReply::Done,
            _ => LeaseReply::Held,
        })
    }

    /// Renews a lease. Returns whether its holder still has it.
    async fn renew_lease(&self, token: &LeaseToken) -> Result<bool, Unavailable> {
        let mut script = RENEW.key(&token.0.key);
        script.arg(&token.0.token).arg(millis(EXPIRY));
        self.run("lease_renew", &script).await
    }

    async fn release_lease(
        &self,
        token: &LeaseToken,
        done_expiry: Duration,
    ) -> Result<(), Unavailable> {
        let mut script = RELEASE.key(&token.0.key);
        script.arg(&token.0.token).arg(millis(done_expiry));
        self.run("lease_release", &script).await
    }
}

/// Renews a lease until the task is aborted, or another call has the lease.
async fn renew(valkey: Valkey, token: LeaseToken) {
    let mut interval = interval_at(Instant::now() + RENEWAL_INTERVAL, RENEWAL_INTERVAL);
    loop {
        interval.tick().await;
        // While the Valkey cannot be used, the lease may expire. Its holder notices that before it
        // calls NVIDIA.
        if valkey.renew_lease(&token).await == Ok(false) {
            return;
        }
    }
}

impl Lease {
    /// Whether this call still has the lease. If so, the lease is renewed.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn confirm(&self) -> Result<bool, Unavailable> {
        self.valkey.renew_lease(&self.token).await
    }

    /// Releases the lease. `is_written` says whether the vector is in the bucket.
    pub async fn release(mut self, is_written: bool) {
        self.is_released = true;
        let done_expiry = if is_written { DONE_EXPIRY } else { Duration::ZERO };
        // If this fails, the lease expires.
        let _: Result<(), Unavailable> = self.valkey.release_lease(&self.token, done_expiry).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_released {
            let (valkey, token) = (self.valkey.clone(), self.token.clone());
            self.valkey.0.background.spawn(async move {
                let _: Result<(), Unavailable> = valkey.release_lease(&token, Duration::ZERO).await;
            });
        }
    }
}
