//! Counts the calls to NVIDIA of all replicas, so that together they respect the limit on calls per
//! minute.
//!
//! The calls of the last window are stored with their times, as `nvidia/pace` does it for one replica.
//! Their key in the Valkey has no expiry: with some eviction policies, a server that runs out of memory
//! removes only keys with an expiry. Without this key, the limit would be exceeded.

use std::{sync::LazyLock, time::Duration};

use redis::{Script, ScriptInvocation};

use super::{PREFIX, Unavailable, Valkey, micros};
use crate::sha256::Sha256;

static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("pace.lua")));
static RECORD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("pace_record.lua")));
static RETURN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("pace_return.lua")));

/// How many calls, the oldest first, are searched for [`PaceReply::ages_of_others`]. The limit on calls
/// still counts all calls.
const MAX_SEARCHED_CALLS: usize = 1000;

/// Identifies a call of this replica.
pub type CallId = u64;

/// The name under which the Valkey counts the calls of an NVIDIA key.
#[derive(Debug, Clone)]
pub struct PaceKey(String);

impl PaceKey {
    /// `key_hash` is a hash of NVIDIA's key. The first 16 digits of it identify the key, but do not
    /// reveal it.
    pub fn new(key_hash: Sha256) -> Self {
        let hash = key_hash.to_string();
        Self(format!("{PREFIX}:pace:{}", &hash[..16]))
    }
}

/// The reply to an attempt to take a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaceReply {
    /// Whether a turn was taken, so that the call may be made now.
    pub is_granted: bool,
    /// How long a call must wait for a turn. Zero if a turn was taken, or could be taken now.
    pub wait: Duration,
    /// The ages of the calls that other replicas made in the window, the oldest first. Only the
    /// `MAX_SEARCHED_CALLS` oldest calls of all replicas are searched for them.
    pub ages_of_others: Vec<Duration>,
}

impl Valkey {
    /// Takes a turn for a call, if fewer than `limit` calls were made in the window. Without a `call`,
    /// takes no turn, and only returns the wait and the calls of others.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn take_turn(
        &self,
        key: &PaceKey,
        limit: usize,
        window: Duration,
        call: Option<CallId>,
    ) -> Result<PaceReply, Unavailable> {
        let script = take_script(&key.0, limit, window, &self.0.replica, call);
        let (is_granted, wait, ages): (bool, u64, Vec<u64>) = self.run("pace", &script).await?;
        let ages_of_others = ages.into_iter().map(Duration::from_micros).collect();
        Ok(PaceReply { is_granted, wait: Duration::from_micros(wait), ages_of_others })
    }

    /// Records calls of this replica with their ages. If a call is already recorded with another time,
    /// the later time counts.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn record_calls(
        &self,
        key: &PaceKey,
        window: Duration,
        calls: impl IntoIterator<Item = (CallId, Duration)>,
    ) -> Result<(), Unavailable> {
        let calls = calls.into_iter().map(|(call, age)| (self.call_name(call), age));
        let script = record_script(&key.0, window, calls);
        let _: usize = self.run("pace_record", &script).await?;
        Ok(())
    }

    /// Gives back the turn of a call that is not made.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn return_turn(&self, key: &PaceKey, call: CallId) -> Result<(), Unavailable> {
        let script = return_script(&key.0, &self.call_name(call));
        let _: usize = self.run("pace_return", &script).await?;
        Ok(())
    }

    fn call_name(&self, call: CallId) -> String {
        format!("{}:{call}", self.0.replica)
    }
}

pub(super) fn take_script(
    key: &str,
    limit: usize,
    window: Duration,
    replica: &str,
    call: Option<CallId>,
) -> ScriptInvocation<'static> {
    let call = call.map(|call| call.to_string()).unwrap_or_default();
    let mut script = TAKE.key(key);
    script.arg(limit).arg(micros(window)).arg(replica).arg(call).arg(MAX_SEARCHED_CALLS);
    script
}

pub(super) fn record_script(
    key: &str,
    window: Duration,
    calls: impl IntoIterator<Item = (String, Duration)>,
) -> ScriptInvocation<'static> {
    let mut script = RECORD.key(key);
    script.arg(micros(window));
    for (name, age) in calls {
        script.arg(name).arg(micros(age));
    }
    script
}

pub(super) fn return_script(key: &str, name: &str) -> ScriptInvocation<'static> {
    let mut script = RETURN.key(key);
    script.arg(name);
    script
}
