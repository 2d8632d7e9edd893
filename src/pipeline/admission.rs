//! Admission: whether a request may start, given what is already at work.

use std::time::Duration;

use super::{Error, Pipeline};
use crate::{
    base64_text,
    shares::{ClientNetwork, Shares},
};

/// Memory is counted in steps of this size as bytes arrive. A picture on its way to its staging
/// file keeps one step in memory.
pub(super) const MEMORY_STEP: u64 = 64 * 1024;

/// The limits of one request and of all requests together.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest picture, in bytes.
    pub max_image_bytes: u64,
    /// The largest picture, in pixels.
    pub max_image_pixels: u64,
    /// The most memory for bodies, all requests together, in bytes.
    pub max_buffered_bytes: u64,
    /// The most received pictures at work at once.
    pub max_in_flight: usize,
    /// The time from the picture's last byte to the answer.
    pub request_timeout: Duration,
    /// The most time for receiving a body.
    pub body_timeout: Duration,
}

/// Which resource is exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OverloadReason {
    /// Permits for pictures at work.
    AtWork,
    /// The queue for calls to NVIDIA.
    Queue,
    /// Memory for bodies.
    Memory,
}

impl OverloadReason {
    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::AtWork => "at_work",
            Self::Queue => "queue",
            Self::Memory => "memory",
        }
    }
}

/// Proof that a client's request was admitted.
#[derive(Debug)]
pub struct Admission(ClientNetwork);

impl Admission {
    /// The client that sent the request.
    pub(super) fn client(self) -> ClientNetwork {
        self.0
    }
}

/// The memory for bodies, shared by all requests.
pub fn shared_memory(limits: &Limits, inline_memory: u64) -> Shares {
    let largest = largest_request(limits.max_image_bytes, inline_memory);
    Shares::new(limits.max_buffered_bytes, largest, MEMORY_STEP)
}

/// The most memory that one request takes, in bytes: a Base64 body, and what every picture needs.
pub fn largest_request(max_image_bytes: u64, inline_memory: u64) -> u64 {
    let body = base64_text::body_limit(max_image_bytes);
    body.next_multiple_of(MEMORY_STEP) + inline_memory.next_multiple_of(MEMORY_STEP)
}

impl Pipeline {
    /// Admits a client's request whose body takes up to `body_bytes` of memory. It checks the
    /// declared length but reserves no memory for it: otherwise clients that declare much and send
    /// nothing would lock others out. This happens before the body is read, so that a request that
    /// must be refused costs no bandwidth and no disk.
    ///
    /// # Errors
    /// [`Error::Store`] without room on the disk; [`Error::Overloaded`] if too many pictures are at
    /// work, if the queue to NVIDIA would take half of the request's time (an admitted request must
    /// also be served), or if too much memory is in use.
    pub async fn admit(&self, client: ClientNetwork, body_bytes: u64) -> Result<Admission, Error> {
        if !self.at_work.has_room(client, 1) {
            return Err(Error::Overloaded(OverloadReason::AtWork));
        }
        if self.embedder.expected_wait(client) > self.limits.request_timeout / 2 {
            return Err(Error::Overloaded(OverloadReason::Queue));
        }
        if !self.memory.has_room(client, body_bytes + self.embedder.inline_memory()) {
            return Err(Error::Overloaded(OverloadReason::Memory));
        }
        // Last, so that a hanging disk delays only requests that nothing else refuses.
        self.store.check_space().await?;
        Ok(Admission(client))
    }
}
