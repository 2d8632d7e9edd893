//! The limit on the calls per minute of one NVIDIA key, as the settings give it.

use std::num::NonZeroU32;

/// How many calls per minute an NVIDIA key allows, and how replicas share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimit {
    /// The calls of all replicas together.
    pub total: u32,
    /// How many replicas share these calls in equal parts. Not used if `has_valkey` is true.
    pub replicas: NonZeroU32,
    /// Whether the replicas count their calls together, in a Valkey. Otherwise each has a fixed part.
    pub has_valkey: bool,
}

impl CallLimit {
    /// The most calls that this replica can make in a minute. With a Valkey, it can make all calls if the
    /// other replicas make none. Otherwise, it can make only its part. The part is rounded down, so that
    /// the parts of all replicas together do not exceed the limit.
    pub fn calls_per_minute(self) -> u32 {
        if self.has_valkey { self.total } else { self.total / self.replicas }
    }
}
