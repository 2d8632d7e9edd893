//! Reserves calls before they are made. If the limit on calls per minute would delay the calls of a
//! request past its deadline, the request is refused before it makes any call.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Client, Error, Inner, Operation, RetryState,
    pace::{PaceLimiter, ReservationGuard},
};
use crate::shares::ClientNetwork;

/// Inference calls that are reserved for a client of the service. Dropping the reservation frees the
/// remaining calls for other clients.
#[derive(Debug)]
pub struct Reservation {
    client_network: ClientNetwork,
    /// `None` if calls per minute are not limited, or if [`Client::reserve_calls`] got a `count` of 0.
    guard: Option<ReservationGuard>,
}

impl Reservation {
    /// Moves one of the reserved calls to a new reservation, which is empty if no call is left.
    pub fn split_one(&mut self) -> Self {
        let guard = self.guard.as_mut().map(ReservationGuard::split_one);
        Self { client_network: self.client_network, guard }
    }
}

impl Client {
    /// Reserves `count` inference calls for a client of the service, one for each picture. Reserves
    /// either all calls or none.
    ///
    /// # Errors
    /// [`super::ErrorKind::RateLimited`] with the time to wait, if the limit on calls per minute or
    /// a `Retry-After` of NVIDIA would delay the last call past the deadline.
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

    /// Returns the number of calls, at most `at_most`, that the limit on calls per minute allows
    /// one client within `period` if no other client makes calls.
    pub fn largest_reservation(&self, at_most: usize, period: Duration) -> usize {
        let pace = self.0.pace.as_ref();
        pace.map_or(at_most, |pace| pace.largest_reservation(at_most, period))
    }

    /// The most calls per minute that this replica may make now. `None` means no limit. Without a
    /// Valkey, this is always the replica's part. With one, it is the whole limit, but the replica's share
    /// while the Valkey cannot be used, and shortly after that.
    pub fn call_limit(&self) -> Option<usize> {
        self.0.pace.as_ref().map(PaceLimiter::limit)
    }

    /// The number of calls that wait because of the limit on calls per minute.
    pub fn waiting(&self) -> usize {
        self.0.pace.as_ref().map_or(0, PaceLimiter::waiting)
    }

    /// Returns a new retry state for the calls for one picture. The caller passes this state to
    /// each of these calls, so that all attempts for the picture are counted together.
    pub fn new_retry_state(&self, reservation: Reservation, deadline: Instant) -> RetryState<'_> {
        let Inner { settings, retry_budget, metrics, .. } = &*self.0;
        retry_budget.add_quarter_retry(); // once for each picture
        RetryState {
            policy: &settings.retry,
            retry_budget,
            metrics,
            client_network: reservation.client_network,
            reservation: reservation.guard,
            pace_permit: None,
            deadline,
            transient_failures: 0,
            sent_inferences: 0,
        }
    }
}
