//! The limit on the calls per minute of one NVIDIA key, as the settings give it.

use std::num::NonZeroU32;

/// How many calls per minute an NVIDIA key allows, and how services share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimit {
    /// The calls of all services together.
    pub total: u32,
    /// How many services share these calls. With a Valkey, this number holds only until the Valkey
    /// reports another one.
    pub replicas: NonZeroU32,
    /// Whether a Valkey divides the calls among the services. Otherwise each service has a fixed part.
    pub has_valkey: bool,
}

impl CallLimit {
    /// The most calls that this service can make in a minute. With a Valkey, these are the calls of all
    /// services. Otherwise, they are this service's part. It is rounded down, so that the parts of all
    /// services together do not exceed the limit.
    pub fn calls_per_minute(self) -> u32 {
        if self.has_valkey { self.total } else { self.total / self.replicas }
    }
}
