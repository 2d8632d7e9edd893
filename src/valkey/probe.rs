//! Tests the Valkey for `imagesvc check`.

use std::time::Duration;

use redis::{AsyncConnectionConfig, Cmd, InfoDict, RedisError};

use super::{Failure, PREFIX, Settings, maintenance::report_script};

/// How long connecting may take, and each command. This is longer than for the service, so that a slow
/// server gets a note about its speed in place of an error.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the server says about itself.
#[derive(Debug)]
pub struct Probe {
    /// The server's time, since the beginning of 1970.
    pub clock: Duration,
    /// How long a command took.
    pub round_trip: Duration,
    /// Which keys the server removes when its memory is full: its `maxmemory_policy`.
    pub eviction_policy: Option<String>,
}

/// Connects, runs a script that writes a key and removes it, and asks the server for its clock and its
/// eviction policy.
///
/// # Errors
/// The failure of the first command that fails.
pub async fn probe(settings: &Settings) -> Result<Probe, Failure> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT));
    let client = settings.url.client()?;
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let started = tokio::time::Instant::now();
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut connection).await?;
    let round_trip = started.elapsed();
    // A replica of this name is never counted, because it has a key of its own.
    for expiry in [TIMEOUT, Duration::ZERO] {
        let script = report_script(format!("{PREFIX}:check"), "check", expiry);
        let _: (bool, u32) = script.invoke_async(&mut connection).await?;
    }
    // Hosted servers forbid CONFIG GET, but not INFO.
    let mut info = Cmd::new();
    info.arg("INFO").arg("memory");
    let info: Result<InfoDict, RedisError> = info.query_async(&mut connection).await;
    let eviction_policy = info.ok().and_then(|info| info.get("maxmemory_policy"));
    let clock = Duration::from_secs(seconds) + Duration::from_micros(micros);
    Ok(Probe { clock, round_trip, eviction_policy })
}
