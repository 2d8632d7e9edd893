//! The script that reports that a replica runs or stops.

use std::{sync::LazyLock, time::Duration};

use redis::{Script, ScriptInvocation};

use super::millis;

static REPORT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("report.lua")));

/// The script that reports that a replica runs, or, if `expiry` is zero, that it stops. Without another
/// report, the replica counts as stopped after `expiry`. The reply is whether the Valkey already knew
/// the replica, and how many replicas it knows now.
pub(super) fn report_script(
    key: &str,
    replica: &str,
    expiry: Duration,
) -> ScriptInvocation<'static> {
    let mut script = REPORT.key(key);
    script.arg(replica).arg(millis(expiry));
    script
}
