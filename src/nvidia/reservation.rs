//! Reserves calls before they are made. If the limit on calls per minute would delay the calls of a
//! request past its deadline, the request is refused before it costs anything.

use std::time::Duration;

use tokio::time::Instant;

use super::{Client, Error, Inner, Operation, RetryState, pace::ReservationGuard};
use crate::shares::ClientNetwork;

/// Inference calls that a client may make. Dropping the reservation frees them for other clients.
#[derive(Debug)]
pub struct Reservation {
    client_network: ClientNetwork,
    /// `None` if calls per minute are not limited.
    guard: Option<ReservationGuard>,
}

impl Reservation {
    /// Moves one of the reserved calls, if any is left, to a reservation of its own.
    pub fn split_one(&mut self) -> Self {
        let guard = self.guard.as_mut().map(ReservationGuard::split_one);
        Self { client_network: self.client_network, guard }
    }
}

impl Client {
    /// Reserves one inference call for each of a client's `count` pictures. Reserves either all calls
    /// or none.
    ///
    /// # Errors
    /// [`ErrorKind::RateLimited`] with the time to wait, if the limit on calls per minute or a
    /// `Retry-After` of NVIDIA would delay the last call past the deadline.
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

    /// The most calls, up to `at_most`, that one client can make within `time` while nobody else
    /// makes calls.
    pub fn largest_reservation(&self, at_most: usize, time: Duration) -> usize {
        let pace = self.0.pace.as_ref();
        pace.map_or(at_most, |pace| pace.largest_reservation(at_most, time))
    }

    /// Starts to count the attempts of the calls for one picture. The caller passes the returned
    /// state to each of these calls.
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
