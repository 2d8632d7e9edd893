//! Reserves calls before they are made, so that a request that the limit on calls per minute cannot
//! serve in time is refused before it costs anything.

use std::time::Duration;

use tokio::time::Instant;

use super::{Client, Error, Inner, Operation, RetryState, pace::ReservationGuard};
use crate::shares::ClientNetwork;

/// Inference calls that a client may make. Dropping the reservation frees them for others.
#[derive(Debug)]
pub struct Reservation {
    client_network: ClientNetwork,
    /// `None` if there is no pace.
    guard: Option<ReservationGuard>,
}

impl Reservation {
    /// Moves one call to a reservation of its own.
    pub fn split_one(&mut self) -> Self {
        let guard = self.guard.as_mut().map(ReservationGuard::split_one);
        Self { client_network: self.client_network, guard }
    }
}

impl Client {
    /// Reserves inference calls for a client's pictures, all or none. Their embeddings must be ready
    /// by the deadline.
    ///
    /// # Errors
    /// [`ErrorKind::RateLimited`] with the time to wait, if the pace or a `Retry-After` of NVIDIA
    /// allows no call before the deadline.
    pub fn reserve_calls(
        &self,
        client_network: ClientNetwork,
        count: usize,
        deadline: Instant,
    ) -> Result<Reservation, Error> {
        if count == 0 {
            return Ok(Reservation { client_network, guard: None });
        }
        self.check_retry_after(Operation::Infer, deadline)?;
        let guard = match &self.0.pace {
            Some(pace) => Some(
                pace.reserve(client_network, count, Instant::now(), deadline)
                    .map_err(|wait| Error::no_call_before_deadline(Operation::Infer, wait))?,
            ),
            None => None,
        };
        Ok(Reservation { client_network, guard })
    }

    /// The most calls, up to `at_most`, that the pace can ever allow one client within `time`.
    pub fn largest_reservation(&self, at_most: usize, time: Duration) -> usize {
        let pace = self.0.pace.as_ref();
        pace.map_or(at_most, |pace| pace.largest_reservation(at_most, time))
    }

    /// Starts the calls for one picture, for which a call was reserved. The returned state is passed
    /// to each of them.
    pub fn start_calls(&self, reservation: Reservation, deadline: Instant) -> RetryState<'_> {
        let Inner { settings, retry_budget, metrics, .. } = &*self.0;
        retry_budget.add_request();
        RetryState {
            policy: &settings.retry,
            retry_budget,
            metrics,
            client_network: reservation.client_network,
            reservation: reservation.guard,
            deadline,
            failed_attempts: 0,
            sent_inferences: 0,
        }
    }
}
