//! Tests the Valkey for `imagesvc check`. The service also runs the scripts when it starts.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Cmd, InfoDict, RedisError, RedisResult, Value,
    aio::MultiplexedConnection,
};

use super::{
    Failure, PREFIX, Settings,
    client_limit::count_script,
    lease::{acquire_script, release_script, renew_script},
    pace::{CallId, record_script, return_script, take_script},
    report::report_script,
};

/// How long connecting and each command of [`probe`] may take. This is longer than in the service, so
/// that `imagesvc check` can say how slow a server is.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What [`probe`] found out about the server.
#[derive(Debug)]
pub struct Probe {
    /// The server's time, since the beginning of 1970.
    pub clock: Duration,
    /// How long one command took, without connecting.
    pub round_trip: Duration,
    /// Which keys the server removes when its memory is full: its `maxmemory_policy`. `None` if it does
    /// not say.
    pub eviction_policy: Option<String>,
}

/// Connects, runs all scripts, and asks the server for its clock and its eviction policy.
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
    run_scripts(&mut connection).await?;
    // Some hosted servers forbid `CONFIG GET`, but allow `INFO`.
    let mut info = Cmd::new();
    info.arg("INFO").arg("memory");
    let info: Result<InfoDict, RedisError> = info.query_async(&mut connection).await;
    let eviction_policy = info.ok().and_then(|info| info.get("maxmemory_policy"));
    let clock = Duration::from_secs(seconds) + Duration::from_micros(micros);
    Ok(Probe { clock, round_trip, eviction_policy })
}

/// Runs every script, so that a missing permission is known before a request needs it. The scripts use
/// keys that nothing else uses. They remove these keys, or let them expire soon.
pub(super) async fn run_scripts(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    const ID: &str = "check";
    const CALL: CallId = 1;
    const CALLS_PER_WINDOW: usize = 1;
    const ONE_SECOND: Duration = Duration::from_secs(1);
    let key = |name: &str| format!("{PREFIX}:check:{name}");
    let [replicas, pace, client, lease] = ["replicas", "pace", "client", "lease"].map(key);
    // The name under which `take_script` stores this call of the replica `ID`.
    let call_name = format!("{ID}:{CALL}");
    for script in [
        report_script(&replicas, ID, ONE_SECOND),
        // With an expiry of zero, this removes the replica that the line above reports.
        report_script(&replicas, ID, Duration::ZERO),
        take_script(&pace, CALLS_PER_WINDOW, ONE_SECOND, ID, Some(CALL)),
        record_script(&pace, ONE_SECOND, [(call_name.clone(), Duration::ZERO)]),
        return_script(&pace, &call_name),
        count_script(&client, ONE_SECOND, ONE_SECOND),
        acquire_script(&lease, ID, false),
        renew_script(&lease, ID),
        release_script(&lease, ID, Duration::ZERO),
    ] {
        let _: Value = script.invoke_async(connection).await?;
    }
    Ok(())
}
