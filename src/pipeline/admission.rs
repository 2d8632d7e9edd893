//! Admission: who is let in, by what is at work, and what all may ask for together.

use std::time::Duration;

use super::{Error, Pipeline};
use crate::{
    base64_text,
    shares::{ClientNetwork, Shares},
};

/// Memory is counted in steps of so many bytes, as it comes. It is also what is kept of a picture
/// on its way to its file.
pub(super) const STEP: u64 = 64 * 1024;

/// What one request, and all requests together, may ask for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest picture, in bytes.
    pub max_image_bytes: u64,
    /// The largest picture, in pixels.
    pub max_image_pixels: u64,
    /// Memory for bodies, all requests together, in bytes.
    pub max_buffered_bytes: u64,
    /// Received pictures that are at work.
    pub max_in_flight: usize,
    /// From the whole picture to the answer.
    pub request_timeout: Duration,
    /// The longest that receiving a body may take.
    pub body_timeout: Duration,
}

/// What there is too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shed {
    /// Pictures that were received and are at work.
    AtWork,
    /// Pictures that wait for their call to NVIDIA.
    Queue,
    /// Memory for bodies.
    Memory,
}

impl Shed {
    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::AtWork => "at_work",
            Self::Queue => "queue",
            Self::Memory => "memory",
        }
    }
}

/// That a client's request may be received.
#[derive(Debug)]
pub struct Admission(ClientNetwork);

impl Admission {
    /// Whose request it is.
    pub(super) fn client(self) -> ClientNetwork {
        self.0
    }
}

/// The memory that all requests share.
pub fn shared_memory(limits: &Limits, inline_memory: u64) -> Shares {
    let largest = largest_request(limits.max_image_bytes, inline_memory);
    Shares::new(limits.max_buffered_bytes, largest, STEP)
}

/// The most memory that one request takes, in bytes: a Base64 body, and what every picture takes.
pub fn largest_request(max_image_bytes: u64, inline_memory: u64) -> u64 {
    let body = base64_text::body_limit(max_image_bytes);
    body.next_multiple_of(STEP) + inline_memory.next_multiple_of(STEP)
}

impl Pipeline {
    /// Admits a client's request whose body, of so many bytes, is held in memory as it comes. That
    /// is declared, and costs nothing yet: so nothing is set aside for it either.
    ///
    /// # Errors
    /// [`Error::Store`] without room on the disk; [`Error::Overloaded`] when too many pictures are
    /// at work, when those that go first to NVIDIA would take half of this one's time (whoever is
    /// let in must also be served), or when too much memory is in use now.
    pub async fn admit(&self, client: ClientNetwork, body_bytes: u64) -> Result<Admission, Error> {
        if !self.at_work.has_room(client, 1) {
            return Err(Error::Overloaded(Shed::AtWork));
        }
        if self.embedder.expected_wait(client) > self.limits.request_timeout / 2 {
            return Err(Error::Overloaded(Shed::Queue));
        }
        if !self.memory.has_room(client, body_bytes + self.embedder.inline_memory()) {
            return Err(Error::Overloaded(Shed::Memory));
        }
        // Last: a disk that hangs delays only those whom nothing else keeps out.
        self.store.check_room().await?;
        Ok(Admission(client))
    }
}
