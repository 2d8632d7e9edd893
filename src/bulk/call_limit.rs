//! The limit on the calls per minute, as far as it concerns a run.

use crate::{config::Config, nvidia::CallLimit};

/// The limit on the calls per minute, and who divides the calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunLimit {
    pub(super) limit: CallLimit,
    /// Whether a Valkey divides the calls among the replicas.
    pub(super) has_valkey: bool,
}

impl RunLimit {
    /// The limit in the settings, if there is one.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let has_valkey = config.valkey.is_some();
        config.nvidia.call_limit.map(|limit| Self { limit, has_valkey })
    }

    /// The calls that the run may make in a minute, if other replicas leave it all that they may leave.
    /// Never 0.
    pub(super) fn calls(self) -> u32 {
        let calls = if self.has_valkey { self.limit.total } else { self.limit.part() };
        calls.max(1)
    }
}
