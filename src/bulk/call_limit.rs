//! The limit on the calls per minute, as far as it concerns a run.

use crate::{config::Config, nvidia::CallLimit};

/// The limit on the calls per minute, and how replicas share it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunLimit {
    /// The limit, and how many replicas share it.
    pub(super) limit: CallLimit,
    /// Whether a Valkey divides the calls among the replicas. Otherwise each replica has a fixed part.
    pub(super) has_valkey: bool,
}

impl RunLimit {
    /// The limit in the settings, if there is one.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let has_valkey = config.valkey.is_some();
        config.nvidia.call_limit.map(|limit| Self { limit, has_valkey })
    }

    /// The most calls that the run can make in a minute. With a Valkey, these are the calls of all
    /// replicas. Otherwise, they are this replica's part. Never 0.
    pub(super) fn calls_per_minute(self) -> u32 {
        let calls = if self.has_valkey { self.limit.total } else { self.limit.part() };
        calls.max(1)
    }
}
