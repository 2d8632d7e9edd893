//! Checks the Valkey: the permissions of the user in its URL, its clock, its speed, and which keys it
//! removes when its memory is full.

use std::time::{Duration, SystemTime};

use super::finding::{Finding, State};
use crate::{
    causes::causes,
    valkey::{Probe, Settings, probe},
};

/// A larger difference between the Valkey's clock and this machine's is noted. It is not a fault,
/// because the service uses only the Valkey's clock.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(5);

/// Checks the Valkey.
pub(super) async fn check_valkey(settings: &Settings) -> Vec<Finding> {
    match probe(settings).await {
        Ok(probe) => findings(settings, &probe, SystemTime::now()),
        Err(error) => {
            let cause = causes(&error).last().map(|cause| format!(" ({cause})"));
            let advice = error.advice().map(|advice| format!(": {advice}"));
            let text = format!(
                "{} cannot be used: {error}{}{}",
                settings.url,
                cause.unwrap_or_default(),
                advice.unwrap_or_default()
            );
            vec![Finding::new("valkey", State::Fault, text)]
        }
    }
}

fn findings(settings: &Settings, probe: &Probe, now: SystemTime) -> Vec<Finding> {
    let finding = |state, text: String| Finding::new("valkey", state, text);
    let mut findings = Vec::new();
    if probe.round_trip > settings.timeout {
        findings.push(finding(
            State::Fault,
            format!(
                "a command took {} ms, and the service waits at most {} ms: place the Valkey nearer, or \
                 raise IMAGESVC_VALKEY_TIMEOUT",
                probe.round_trip.as_millis(),
                settings.timeout.as_millis()
            ),
        ));
    }
    match probe.eviction_policy.as_deref() {
        Some(policy) if policy.starts_with("allkeys") => findings.push(finding(
            State::Note,
            format!(
                "its maxmemory-policy is {policy}: when its memory is full, it forgets the calls to \
                 NVIDIA, and replicas exceed NVIDIA_REQUESTS_PER_MINUTE; use noeviction or volatile-lru"
            ),
        )),
        Some(_) => {}
        None => findings.push(finding(
            State::Note,
            "it does not tell its maxmemory-policy: use noeviction or volatile-lru".into(),
        )),
    }
    let here = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if here.abs_diff(probe.clock) > MAX_CLOCK_DIFFERENCE {
        let seconds = here.abs_diff(probe.clock).as_secs();
        findings.push(finding(
            State::Note,
            format!("its clock and this machine's differ by {seconds} s: check both"),
        ));
    }
    if findings.is_empty() {
        findings.push(finding(
            State::Ok,
            format!("{}: all scripts were run, and the clock was read", settings.url),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::valkey::{ValkeyUrl, test_server::RedisServer};

    /// The timeout of the service, in milliseconds.
    const TIMEOUT: u64 = 250;

    /// The time of this machine in these tests, in seconds.
    const NOW: u64 = 1000;

    fn settings(url: &str) -> Settings {
        let url = ValkeyUrl::parse(url).unwrap();
        Settings { url, timeout: Duration::from_millis(TIMEOUT), replicas: 1 }
    }

    /// The findings' states and texts for a server that answers like this.
    fn findings_of(policy: Option<&str>, round_trip_ms: u64, clock: u64) -> Vec<(State, String)> {
        let probe = Probe {
            clock: Duration::from_secs(clock),
            round_trip: Duration::from_millis(round_trip_ms),
            eviction_policy: policy.map(str::to_owned),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let findings = findings(&settings("redis://:hunter2@cache.example"), &probe, now);
        findings.into_iter().map(|finding| (finding.state, finding.text)).collect()
    }

    #[test]
    fn a_fault_or_note_names_its_cause_and_no_finding_contains_the_password() {
        for (policy, round_trip_ms, clock, state, part) in [
            (Some("noeviction"), 1, NOW, State::Ok, "cache.example:6379"),
            (Some("volatile-lru"), 1, NOW + 5, State::Ok, "cache.example:6379"),
            (Some("allkeys-lru"), 1, NOW, State::Note, "allkeys-lru"),
            (None, 1, NOW, State::Note, "maxmemory-policy"),
            (Some("noeviction"), TIMEOUT + 1, NOW, State::Fault, "IMAGESVC_VALKEY_TIMEOUT"),
            (Some("noeviction"), 1, NOW - 6, State::Note, "6 s"),
        ] {
            let found = findings_of(policy, round_trip_ms, clock);
            let [(found_state, text)] = &found[..] else { panic!("{found:?}") };
            assert_eq!(*found_state, state, "{text}");
            assert!(text.contains(part) && !text.contains("hunter2"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_server_that_refuses_the_password_or_a_command_or_does_not_listen_is_a_fault() {
        let Some(server) = RedisServer::start(&["--requirepass", "right"]) else { return };
        let url = |password| format!("redis://:{password}@127.0.0.1:{}", server.port());
        let found = check_valkey(&settings(&url("right"))).await;
        assert_eq!(found[0].state, State::Ok, "{}", found[0]);
        let found = check_valkey(&settings(&url("wrong"))).await;
        assert_eq!(found[0].state, State::Fault);
        assert!(found[0].text.contains("check the user and the password"), "{}", found[0]);
        assert!(!found[0].text.contains("wrong"), "{}", found[0]);
        // This user may run every command except one that the scripts need.
        let client = redis::Client::open(url("right")).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut create = redis::cmd("ACL");
        create.arg(&["SETUSER", "limited", "on", ">right", "~*", "+@all", "-zrange"]);
        let () = create.query_async(&mut connection).await.unwrap();
        let url_of_limited = format!("redis://limited:right@127.0.0.1:{}", server.port());
        let found = check_valkey(&settings(&url_of_limited)).await;
        assert_eq!(found[0].state, State::Fault);
        assert!(found[0].text.contains("docs/scaling.md"), "{}", found[0]);
        let url = server.url();
        drop(server);
        assert_eq!(check_valkey(&settings(&url)).await[0].state, State::Fault);
    }
}
