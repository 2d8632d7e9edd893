//! Counts the requests of each client at all replicas.

use std::{sync::LazyLock, time::Duration};

use redis::{Script, ScriptInvocation};

use super::{PREFIX, Unavailable, Valkey, micros};
use crate::sha256::Sha256;

static COUNT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("client_limit.lua")));

/// The reply to an attempt to count requests of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimitReply {
    /// How long the client must wait; zero if its requests are counted.
    pub wait: Duration,
    /// By how much the client's theoretical arrival time is ahead of the clock after this attempt. Each
    /// counted request moves this time forward by the limit's interval. This time is never behind the clock.
    pub ahead: Duration,
}

impl Valkey {
    /// Counts requests of a client, if its limit allows them. `client` is a hash that identifies the client
    /// and does not reveal its client key. `cost` is the number of requests multiplied by the limit's
    /// interval between two requests. `burst` is the largest allowed [`ClientLimitReply::ahead`].
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn count_requests(
        &self,
        client: Sha256,
        cost: Duration,
        burst: Duration,
    ) -> Result<ClientLimitReply, Unavailable> {
        // Half of the hash is enough, and takes less memory.
        let hash = client.to_string();
        let script = count_script(&format!("{PREFIX}:client:{}", &hash[..32]), cost, burst);
        let (wait, ahead): (u64, u64) = self.run("client_limit", &script).await?;
        Ok(ClientLimitReply {
            wait: Duration::from_micros(wait),
            ahead: Duration::from_micros(ahead),
        })
    }
}

pub(super) fn count_script(
    key: &str,
    cost: Duration,
    burst: Duration,
) -> ScriptInvocation<'static> {
    let mut script = COUNT.key(key);
    script.arg(micros(cost)).arg(micros(burst));
    script
}
