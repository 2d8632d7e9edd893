//! The limit on the calls per minute of one NVIDIA key, as the settings give it.

/// How many calls per minute an NVIDIA key allows, and how many services use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimit {
    /// The calls of all services together.
    pub total: u32,
    /// How many services share these calls. With a Valkey, this number holds only until the Valkey
    /// reports another one. Never 0.
    pub replicas: u32,
}

impl CallLimit {
    /// This service's part without a Valkey. Rounded down, so that the parts of all services together do
    /// not exceed the limit.
    pub fn part(self) -> u32 {
        self.total / self.replicas.max(1)
    }
}
