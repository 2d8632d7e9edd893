//! `imagesvc check`: checks everything that the service needs, and explains how to fix each fault.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    time::Duration,
};

use rustix::fs::{Access, access};
use tokio::{
    net::lookup_host,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::{
    causes::causes,
    config::{Config, Upstream},
    decoder::Decoder,
    disk_space::{FreeSpace, Shortage, free_space},
    http_client::Trust,
    nvidia::{ApiKey, Client, ErrorKind, InlineImage},
    sandbox,
    shares::ClientNetwork,
    store,
    telemetry::Metrics,
};
use bucket::check_bucket;
use finding::{Finding, State};
use valkey::check_valkey;

mod bucket;
mod finding;
mod valkey;

/// How long the look-up of a host name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The timeout of the decoder's test, which decodes one pixel.
const DECODE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the paid call to NVIDIA may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs all checks, prints each result, and returns true if no check found a fault. If `live` is true, one
/// check makes a paid call, but not with the sandbox.
pub(super) async fn check(config: &Config, live: bool) -> bool {
    let mut findings = vec![Finding::new("settings", State::Ok, "all are valid")];
    for warning in &config.warnings {
        findings.push(Finding::new("settings", State::Note, warning));
    }
    findings.push(check_address(config.server.listen));
    findings.push(check_folder(&config.store.folder));
    findings.push(check_disk(&config.store));
    findings.push(check_decoder(config).await);
    if let Some(settings) = &config.bucket {
        findings.extend(check_bucket(settings, &Trust::probe()).await);
    }
    if let Some(settings) = &config.valkey {
        findings.extend(check_valkey(settings).await);
    }
    match &config.upstream {
        Upstream::Sandbox => {
            let text = "the sandbox needs no certificates, no DNS and no key";
            findings.push(Finding::new("nvidia", State::Note, text));
        }
        Upstream::Nvidia(key) => {
            let trust = Trust::probe();
            findings.push(check_certificate_authorities(&trust));
            findings.push(check_dns(config).await);
            findings.push(if live {
                check_call(config, key.clone(), &trust).await
            } else {
                Finding::new("nvidia", State::Note, "not called; check --live makes one paid call")
            });
        }
    }
    #[allow(clippy::print_stdout, reason = "the command prints its findings")]
    for finding in &findings {
        println!("{finding}");
    }
    findings.iter().all(|finding| finding.state != State::Fault)
}

fn check_address(address: SocketAddr) -> Finding {
    let finding = |state, text: String| Finding::new("listen", state, text);
    match TcpListener::bind(address) {
        Ok(_) => finding(State::Ok, format!("{address} can be listened on")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            finding(State::Note, format!("{address} is in use: perhaps this service runs already"))
        }
        Err(error) => {
            let kind = error.kind();
            let advice = "set IMAGESVC_HOST to an address of this machine, and IMAGESVC_PORT to a port above 1023";
            finding(State::Fault, format!("{address} cannot be listened on ({kind}): {advice}"))
        }
    }
}

/// Checks whether the downloads folder can be written to. Does not create the folder: if root ran this
/// check, root would own the new folder, and the service could not write to it.
fn check_folder(folder: &Path) -> Finding {
    let finding = |state, text: String| Finding::new("folder", state, text);
    let path = folder.display();
    let fault = |error: io::Error| {
        let kind = error.kind();
        let advice = "change its owner to the user that runs the service";
        finding(State::Fault, format!("{path} cannot be written to ({kind}): {advice}"))
    };
    match folder.try_exists() {
        Err(error) => return fault(error),
        Ok(true) => {}
        Ok(false) => {
            let existing_parent = folder.ancestors().skip(1).find(|ancestor| ancestor.is_dir());
            // If no part of a relative path exists, the service creates it in the working directory.
            let existing_parent = existing_parent.unwrap_or(Path::new("."));
            // To create a folder in another folder, a process needs both permissions.
            return match access(existing_parent, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(()) => {
                    let text = "does not exist yet: the service creates it at its start";
                    finding(State::Note, format!("{path} {text}"))
                }
                Err(error) => {
                    let parent = existing_parent.display();
                    let kind = io::Error::from(error).kind();
                    let advice =
                        "change the owner of that folder to the user that runs the service";
                    let text = format!("{path} cannot be created in {parent} ({kind}): {advice}");
                    finding(State::Fault, text)
                }
            };
        }
    }
    // If the service once ran as another user, its lock file may belong to that user.
    let lock = folder.join(".lock");
    if lock.exists()
        && let Err(error) = File::options().append(true).open(lock)
    {
        return fault(error);
    }
    // The service writes received pictures to `.incoming` first.
    let incoming = folder.join(".incoming");
    for tested in [folder, &incoming].into_iter().filter(|tested| tested.exists()) {
        let test_file = tested.join(format!(".check-{}", Uuid::new_v4()));
        if let Err(error) = File::create_new(&test_file).and_then(|_| fs::remove_file(&test_file)) {
            return fault(error);
        }
    }
    finding(State::Ok, format!("{path} can be written to"))
}

fn check_disk(settings: &store::Settings) -> Finding {
    let existing = settings.folder.ancestors().find(|ancestor| ancestor.exists());
    // If no part of a relative path exists, the folder will be in the working directory.
    match free_space(existing.unwrap_or(Path::new("."))) {
        Ok(free) => check_free_space(free, settings.space.min_free_bytes()),
        Err(error) => {
            let text = format!("its free space cannot be read: {error}");
            Finding::new("disk", State::Fault, text)
        }
    }
}

fn check_free_space(measured: FreeSpace, reserve: u64) -> Finding {
    let finding = |state, text: String| Finding::new("disk", state, text);
    let mib = |bytes: u64| bytes >> 20;
    match (measured.check(reserve), measured.inodes) {
        (Ok(()), None) => finding(State::Ok, format!("{} MiB are free", mib(measured.bytes))),
        (Ok(()), Some(inodes)) => {
            let text = format!("{} MiB and {} inodes are free", mib(measured.bytes), inodes.free);
            finding(State::Ok, text)
        }
        (Err(Shortage::Bytes { free, reserve, .. }), _) => {
            let text = format!(
                "{} MiB are free, and {} MiB must stay free: remove files, or limit the size of the \
                 saved pictures with IMAGESVC_DOWNLOADS_MAX_BYTES",
                mib(free),
                mib(reserve)
            );
            finding(State::Fault, text)
        }
        (Err(Shortage::Inodes { free, reserve, .. }), _) => {
            let text = format!(
                "{free} inodes are free, and {reserve} must stay free: remove files (df -i shows the \
                 inodes), or create a file system with more inodes"
            );
            finding(State::Fault, text)
        }
    }
}

async fn check_decoder(config: &Config) -> Finding {
    let decoder = Decoder::new(config.decoder.clone(), Metrics::new());
    match decoder.self_test(Instant::now() + DECODE_TIMEOUT).await {
        Ok(()) => Finding::new("decoder", State::Ok, "a child process can decode pictures"),
        Err(error) => {
            let cause = causes(&error).last().map(|cause| format!(": {cause}")).unwrap_or_default();
            let advice =
                "the service must be able to start its own program as a child, and to limit it";
            Finding::new("decoder", State::Fault, format!("{error}{cause}: {advice}"))
        }
    }
}

fn check_certificate_authorities(trust: &Trust) -> Finding {
    if trust.has_authorities() {
        Finding::new("ca", State::Ok, "the system has certificate authorities")
    } else {
        let text = "the system has no certificate authorities, so no https call works: install ca-certificates";
        Finding::new("ca", State::Fault, text)
    }
}

/// Looks up NVIDIA's hosts. If a proxy is set, looks up only the proxy, because the proxy itself looks
/// up NVIDIA's hosts. A fault names the first host that cannot be looked up.
async fn check_dns(config: &Config) -> Finding {
    let nvidia = &config.nvidia;
    let mut hosts: Vec<_> = match &nvidia.proxy {
        Some(proxy) => proxy.host_and_port().into_iter().collect(),
        None => [&nvidia.infer_url, &nvidia.status_url, &nvidia.assets_url]
            .into_iter()
            .filter_map(|url| Some((url.host_str()?, url.port_or_known_default()?)))
            .collect(),
    };
    hosts.sort_unstable();
    hosts.dedup();
    for (host, port) in &hosts {
        let host_without_brackets = host.trim_matches(['[', ']']); // an IPv6 address in a URL
        let addresses = timeout(LOOKUP_TIMEOUT, lookup_host((host_without_brackets, *port))).await;
        let addresses = addresses.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = addresses {
            let text = format!(
                "{host} cannot be looked up ({error}): check /etc/resolv.conf and the network's DNS"
            );
            return Finding::new("dns", State::Fault, text);
        }
    }
    let names: Vec<_> = hosts.into_iter().map(|(host, _)| host).collect();
    Finding::new("dns", State::Ok, format!("{} can be looked up", names.join(", ")))
}

/// Makes one paid call to NVIDIA.
async fn check_call(config: &Config, key: ApiKey, trust: &Trust) -> Finding {
    let finding = |state, text: String| Finding::new("nvidia", state, text);
    let mut settings = config.nvidia.clone();
    settings.retry.max_attempts = 1; // a retry could be a second paid call
    let (tasks, valkey) = (TaskTracker::new(), None);
    let client = match Client::new(settings, key, Metrics::new(), tasks, trust, valkey) {
        Ok(client) => client,
        Err(error) => return finding(State::Fault, format!("cannot create the client: {error}")),
    };
    let picture = InlineImage::new("image/jpeg", sandbox::PHOTO);
    let started = Instant::now();
    let deadline = started + CALL_TIMEOUT;
    let outcome = match client.reserve_calls(ClientNetwork::UNKNOWN, 1, deadline) {
        Ok(reservation) => {
            client.infer(&picture, &mut client.new_retry_state(reservation, deadline)).await
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok(_) => finding(
            State::Ok,
            format!("an embedding was computed in {:.1} s", started.elapsed().as_secs_f64()),
        ),
        Err(error) => {
            let advice = match error.kind {
                ErrorKind::KeyRefused => "renew NVIDIA_API_KEY",
                ErrorKind::AccountRefused => {
                    "check the account's credits and its access to NV-DINOv2"
                }
                ErrorKind::RateLimited => "wait a minute; set NVIDIA_REQUESTS_PER_MINUTE",
                ErrorKind::Unavailable
                | ErrorKind::AttemptTimeout
                | ErrorKind::GatewayPage
                | ErrorKind::DeadlinePassed => {
                    "check that the network allows outgoing connections, and see NVIDIA's status page"
                }
                ErrorKind::PictureRefused
                | ErrorKind::UploadsRefused
                | ErrorKind::PolledResultGone
                | ErrorKind::InvalidResponse
                | ErrorKind::Unexpected => "see NVIDIA's status page, and try again later",
            };
            finding(State::Fault, format!("{error}: {advice}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_space::{DiskSpace, Inodes};

    #[test]
    fn a_missing_folder_is_not_created_and_a_file_in_place_of_the_folder_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("downloads");
        assert_eq!(check_folder(&missing).state, State::Note);
        assert!(!missing.exists());
        assert_eq!(check_folder(folder.path()).state, State::Ok);
        assert!(
            fs::read_dir(folder.path()).unwrap().next().is_none(),
            "the check must remove its test file"
        );
        fs::write(&missing, "no folder").unwrap();
        assert_eq!(check_folder(&missing).state, State::Fault);
    }

    #[test]
    fn an_unusable_address_is_a_fault_and_an_address_in_use_is_a_note() {
        let state_of = |address: SocketAddr| check_address(address).state;
        assert_eq!(state_of(([127, 0, 0, 1], 0).into()), State::Ok);
        // No machine has this address: it is reserved for documentation (RFC 5737).
        assert_eq!(state_of(([192, 0, 2, 1], 0).into()), State::Fault);
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        assert_eq!(state_of(listener.local_addr().unwrap()), State::Note);
    }

    #[test]
    fn a_disk_with_less_free_space_than_the_reserve_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let downloads = folder.path().join("downloads");
        let settings = |reserve| store::Settings {
            folder: downloads.clone(),
            space: DiskSpace::new(downloads.clone(), reserve),
            retention: store::Retention::default(),
        };
        assert_eq!(check_disk(&settings(0)).state, State::Ok);
        let full = check_disk(&settings(u64::MAX));
        assert_eq!(full.state, State::Fault);
        assert!(full.to_string().starts_with("FAULT disk      "), "{full}");
    }

    #[test]
    fn too_few_free_inodes_are_a_fault_if_the_number_of_inodes_is_fixed() {
        let check_with_inodes =
            |inodes| check_free_space(FreeSpace { bytes: 1 << 30, inodes }, 1 << 20);
        // `None` is for a file system that creates inodes when they are needed. In others, one inode in
        // a hundred must stay free: here 10 of 1000. The next picture needs one more.
        assert_eq!(check_with_inodes(None).state, State::Ok);
        assert_eq!(check_with_inodes(Some(Inodes { free: 500, total: 1000 })).state, State::Ok);
        let full = check_with_inodes(Some(Inodes { free: 10, total: 1000 }));
        assert_eq!(full.state, State::Fault);
        assert!(full.text.contains("10 inodes are free") && full.text.contains("df -i"), "{full}");
    }
}
