//! The script that reports a replica.

use std::{sync::LazyLock, time::Duration};

use redis::{Script, ScriptInvocation};

use super::millis;

static REPORT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("report.lua")));

/// Reports a replica, which counts as stopped after `expiry` without another report. With an expiry of
/// zero, reports that the replica stops. The reply is whether the server knew the replica, and the number
/// of replicas.
pub(super) fn report_script(
    key: &str,
    replica: &str,
    expiry: Duration,
) -> ScriptInvocation<'static> {
    let mut script = REPORT.key(key);
    script.arg(replica).arg(millis(expiry));
    script
}
