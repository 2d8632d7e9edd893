//! The task that leads a new call, instead of joining a running one. It looks in the cache once more, and
//! agrees with the other replicas which of them calls NVIDIA. If this replica does, the task makes the call
//! and writes the vector.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::Instrument;

use super::{
    CacheMode, Embedder, Embedding, Error, Inner, Job, Outcome, Provenance,
    cache::CacheKey,
    lease::{self, Decision},
    single_flight::LeadGuard,
};
use crate::{nvidia::Reservation, telemetry::span, valkey::Lease};

impl Embedder {
    /// Spawns the task that leads a call. Unless the request bypasses the cache, the task makes the call only
    /// if the embedding is not in the cache, and no other replica is known to compute it.
    pub(super) fn spawn_call(
        &self,
        job: Job,
        key: CacheKey,
        reservation: Option<Reservation>,
        guard: LeadGuard<CacheKey, Outcome>,
    ) {
        let inner = Arc::clone(&self.0);
        let call = async move {
            let outcome = inner.look_up_or_call(&job, &key, reservation).await;
            drop(job); // the permits and the picture are not needed for writing the vector
            let (embedding, lease) = match outcome {
                Ok(result) => result,
                Err(error) => {
                    if guard.is_abandoned() {
                        tracing::info!(
                            %error,
                            "a call failed when no client waited for it any more"
                        );
                    }
                    return guard.fail(Err(error));
                }
            };
            let is_new = embedding.provenance == Provenance::Nvidia;
            if is_new {
                inner.cache.insert_in_memory(key, &embedding);
            }
            // The requests get the outcome before the vector is written to the disk and the bucket.
            // Other requests can join this call until the returned guard is dropped, which is after
            // the write.
            let _guard_until_written = guard.complete(Ok(embedding.clone()));
            let is_in_bucket = is_new && inner.cache.write(key, &embedding).await;
            // If the vector is not in the bucket, the lease is dropped, which releases it as not done.
            if let Some(lease) = lease.filter(|_| is_in_bucket) {
                lease.release_as_done();
            }
        };
        let call = call.instrument(span!("embed"));
        // The current span is the request's. It gives the task's log lines the request's id.
        self.0.background.spawn(call.in_current_span());
    }
}

impl Inner {
    /// Returns the embedding. If this replica has called NVIDIA with a lease, also returns the lease.
    async fn look_up_or_call(
        &self,
        job: &Job,
        key: &CacheKey,
        mut reservation: Option<Reservation>,
    ) -> Result<(Embedding, Option<Lease>), Arc<Error>> {
        // Another call may have ended since the request looked in memory. So this looks there again, and
        // also on disk, where the request of a single picture has not looked if there is no bucket.
        if let Some(found) = self.look_up_locally(key, job.cache_mode).await {
            return Ok((found, None));
        }
        let mut looked_in_bucket_at = job.looked_in_bucket_at;
        loop {
            let decision = self.decide(job, key, looked_in_bucket_at, &mut reservation).await?;
            let lease = match decision {
                Decision::Found(embedding) => return Ok((embedding, None)),
                Decision::Call(lease) => lease,
            };
            let reservation = match reservation.take() {
                Some(reservation) => reservation,
                // The request came without a reservation, gave it up while another replica held the lease,
                // or used it before this replica lost the lease.
                None => self.reserve(job.client, 1, job.deadline)?,
            };
            match self.call(&job.picture, reservation, lease.as_ref(), job.deadline).await? {
                Some(embedding) => return Ok((embedding, lease)),
                // This replica has lost the lease. Another replica may have written the vector since, so
                // this replica must look in the bucket again.
                None => looked_in_bucket_at = None,
            }
        }
    }

    /// Decides whether this replica makes the call. If there is no Valkey, or if the request bypasses
    /// the cache, this replica makes the call without asking the others. `looked_in_bucket_at` is when this
    /// replica last looked in the bucket.
    async fn decide(
        &self,
        job: &Job,
        key: &CacheKey,
        looked_in_bucket_at: Option<Instant>,
        reservation: &mut Option<Reservation>,
    ) -> Result<Decision, Error> {
        match (&self.valkey, job.cache_mode) {
            (Some(valkey), CacheMode::Use) => {
                lease::decide(
                    valkey,
                    &self.cache,
                    key,
                    looked_in_bucket_at,
                    reservation,
                    job.deadline,
                )
                .await
            }
            _ => Ok(Decision::Call(None)),
        }
    }
}
