//! The script that reports that a replica runs or stops.

use std::{sync::LazyLock, time::Duration};

use redis::{Script, ScriptInvocation};

use super::millis;

static REPORT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("report.lua")));

/// The script that reports that a replica runs, or that it stops if `expiry` is zero. Without another
/// report, the replica counts as stopped after `expiry`. The reply is whether the server already knew the
/// replica, and the number of replicas now.
pub(super) fn report_script(
    key: &str,
    replica: &str,
    expiry: Duration,
) -> ScriptInvocation<'static> {
    let mut script = REPORT.key(key);
    script.arg(replica).arg(millis(expiry));
    script
}
