//! Decides whether the service's load, the disk and the bucket allow a request to start.

use std::time::Duration;

use super::{Error, Pipeline, SaveMode};
use crate::{
    base64_text,
    shares::{ClientNetwork, Clients, Shares},
};

/// Memory for bodies is counted in multiples of this many bytes. This is also the memory that a
/// picture needs while its bytes arrive and are written to a staging file.
pub(super) const MEMORY_STEP: u64 = 64 * 1024;

/// The limits of one request and of all requests together.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The maximum length of a picture, in bytes.
    pub max_image_bytes: u64,
    /// The maximum number of pixels of a picture.
    pub max_image_pixels: u64,
    /// The maximum memory for the bodies of all requests and of their calls to NVIDIA together, in bytes.
    pub max_buffered_bytes: u64,
    /// The maximum number of received pictures at work: their headers are read, or they are saved or
    /// embedded.
    pub max_at_work: usize,
    /// The maximum number of pictures in one batch.
    pub max_batch: usize,
    /// The maximum time from a picture's last byte to the answer.
    pub request_timeout: Duration,
    /// The maximum time for receiving a body.
    pub body_timeout: Duration,
    /// Whether several clients share the limits, or a single client uses the service.
    pub clients: Clients,
}

/// The resource that is exhausted.
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
    /// The label value in metrics.
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

impl Limits {
    /// The maximum length of a batch's body, in bytes. It is a quarter of the memory for bodies, but
    /// at least the length of the largest picture as Base64.
    pub fn max_batch_body(&self) -> u64 {
        (self.max_buffered_bytes / 4).max(base64_text::body_limit(self.max_image_bytes))
    }
}

/// Creates the limit on memory for bodies, which all requests share. `inline_memory` is the memory,
/// in bytes, that a call to NVIDIA needs if its body contains the picture.
pub fn memory_limit(limits: &Limits, inline_memory: u64) -> Shares {
    let largest = max_request_memory(limits.max_image_bytes, inline_memory);
    match limits.clients {
        Clients::Many => Shares::new(limits.max_buffered_bytes, largest, MEMORY_STEP),
        Clients::One => Shares::undivided(limits.max_buffered_bytes, MEMORY_STEP),
    }
}

/// Creates the limit on the number of received pictures at work, which all requests share.
pub fn pictures_at_work_limit(limits: &Limits) -> Shares {
    let total = limits.max_at_work as u64;
    let step = 1; // permits are not rounded up
    match limits.clients {
        Clients::Many => {
            let largest = 1; // the permit of a single picture
            Shares::new(total, largest, step)
        }
        Clients::One => Shares::undivided(total, step),
    }
}

/// Returns the maximum memory that a request with one picture needs, in bytes: the memory for the longest
/// Base64 body, and `inline_memory` as in [`memory_limit`].
pub fn max_request_memory(max_image_bytes: u64, inline_memory: u64) -> u64 {
    let body = base64_text::body_limit(max_image_bytes);
    body.next_multiple_of(MEMORY_STEP) + inline_memory.next_multiple_of(MEMORY_STEP)
}

impl Pipeline {
    /// Returns how many pictures one batch may have: [`Limits::max_batch`], or fewer if one client
    /// cannot get enough permits or memory for them, but at least one. Each picture needs a permit,
    /// and memory in addition to that of the body.
    pub fn largest_batch(&self) -> usize {
        let permits = self.at_work.most_for_one_client();
        let memory = self.memory.most_for_one_client();
        let memory_besides_body = memory.saturating_sub(self.limits.max_batch_body());
        let memory_per_picture = self.embedder.inline_memory().next_multiple_of(MEMORY_STEP).max(1);
        let pictures = permits.min(memory_besides_body / memory_per_picture);
        let pictures = usize::try_from(pictures).unwrap_or(usize::MAX);
        self.limits.max_batch.min(pictures).max(1)
    }

    /// Admits a client's request whose body needs up to `body_bytes` of memory. Routes call this
    /// before they read the body, so that a refused request costs no bandwidth and no disk space.
    ///
    /// No memory is reserved for the body. Otherwise, clients that declare long bodies and then send
    /// nothing would keep other clients out.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if too many pictures are at work, if too little memory is free, or if
    /// the picture would wait for NVIDIA for more than half of the request timeout.
    /// [`Error::Store`] if the disk is full or its free space cannot be measured, or if the picture is
    /// to be saved and the bucket fails.
    pub async fn admit(
        &self,
        client: ClientNetwork,
        body_bytes: u64,
        save_mode: SaveMode,
    ) -> Result<Admission, Error> {
        if !self.at_work.would_grant(client, 1) {
            return Err(Error::Overloaded(OverloadReason::AtWork));
        }
        if self.embedder.expected_wait(client) > self.limits.request_timeout / 2 {
            return Err(Error::Overloaded(OverloadReason::Queue));
        }
        if !self.memory.would_grant(client, body_bytes + self.embedder.inline_memory()) {
            return Err(Error::Overloaded(OverloadReason::Memory));
        }
        if save_mode == SaveMode::Save {
            self.store.check_bucket()?;
        }
        // The disk is checked last. A disk that hangs then delays only requests that pass the other
        // checks.
        self.store.check_space().await?;
        Ok(Admission(client))
    }
}
