//! The command `imagesvc check`.

use std::{
    ffi::OsStr,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use crate::support::{FakeNvidia, Reply};

/// Runs the program in a folder, with these settings. Unless they say otherwise, the port is any free
/// one, and no disk space is reserved.
fn run<V: AsRef<OsStr>>(
    folder: &Path,
    arguments: &[&str],
    settings: impl IntoIterator<Item = (&'static str, V)>,
) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imagesvc"));
    command
        .env_clear()
        .envs([("IMAGESVC_MIN_FREE_BYTES", "0"), ("IMAGESVC_PORT", "0")])
        .envs(settings);
    command.current_dir(folder).args(arguments).output().unwrap()
}

/// The results that the program printed, each joined to one line. Asserts that every printed line fits a
/// terminal of 80 columns, except a line with a single long word.
fn results(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for line in text.lines() {
        assert!(line.len() <= 80 || line.split_whitespace().count() == 1, "{line}");
    }
    // The lines of a result after its first are indented.
    text.replace("\n                ", " ")
}

const NO_SETTINGS: [(&str, &str); 0] = [];

#[test]
fn if_nothing_is_wrong_all_results_are_ok_or_notes_and_the_exit_code_is_0() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["check", "--sandbox"], NO_SETTINGS);
    let text = results(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let states: Vec<_> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert!(
        states.len() >= 4 && states.iter().all(|state| ["ok", "note"].contains(state)),
        "there should be at least 4 results, each ok or a note: {text}"
    );
    // `run` sets the port 0, which stands for any free port.
    assert!(text.contains(":0 can be listened on"), "{text}");
    assert!(!folder.path().join("downloads").exists(), "the check must create no folder");
}

#[test]
fn a_port_that_is_in_use_is_a_note_because_the_service_may_be_running() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let port = address.port().to_string();
    let settings = [("IMAGESVC_HOST", "127.0.0.1"), ("IMAGESVC_PORT", &port)];
    let output = run(folder.path(), &["check", "--sandbox"], settings);
    let text = results(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let result = text.lines().find(|line| line.contains(&format!("{address} is in use"))).unwrap();
    assert!(result.starts_with("note"), "{text}");
}

#[test]
fn flags_work_before_and_after_the_command() {
    let folder = tempfile::tempdir().unwrap();
    // No disk has so much free space, so the check of the disk fails if the command reads the flag.
    for arguments in [
        &["--sandbox", "--min-free-bytes", "900000000GiB", "check"][..],
        &["check", "--sandbox", "--min-free-bytes", "900000000GiB"],
    ] {
        let output = run(folder.path(), arguments, NO_SETTINGS);
        assert_eq!(output.status.code(), Some(1));
        assert!(results(&output).contains("FAULT disk"), "{}", results(&output));
    }
}

#[test]
fn two_failed_checks_both_print_what_to_do_and_the_exit_code_is_1() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("downloads"), "a file in place of the folder").unwrap();
    let settings = [
        ("NVIDIA_API_KEY", "nvapi-planted"),
        ("NVIDIA_INFER_URL", "https://no-such-host.invalid/infer"),
    ];
    let output = run(folder.path(), &["check"], settings);
    let text = results(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAULT folder") && text.contains("its owner"), "{text}");
    assert!(text.contains("FAULT dns") && text.contains("/etc/resolv.conf"), "{text}");
    assert!(!text.contains("planted"), "the key must not be printed");
}

#[test]
fn an_unresolvable_host_and_missing_certificates_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    // An address needs no DNS. Without `--live`, the check connects to none of these URLs.
    let resolvable = "http://127.0.0.1:1/";
    let settings = [
        ("NVIDIA_API_KEY", "nvapi-1"),
        ("NVIDIA_INFER_URL", resolvable),
        ("NVIDIA_STATUS_URL", resolvable),
        ("NVIDIA_ASSETS_URL", "https://no-such-host.invalid/assets"),
        ("SSL_CERT_FILE", "/nowhere"),
        ("SSL_CERT_DIR", "/nowhere"),
    ];
    let output = run(folder.path(), &["check"], settings);
    let text = results(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAULT dns") && text.contains("no-such-host.invalid"), "{text}");
    assert!(text.contains("FAULT ca") && text.contains("install ca-certificates"), "{text}");
}

#[test]
fn with_invalid_settings_all_errors_are_printed_and_the_exit_code_is_2() {
    let folder = tempfile::tempdir().unwrap();
    // The port is no number, and the key for NVIDIA is missing.
    let output = run(folder.path(), &["check"], [("IMAGESVC_PORT", "many")]);
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("IMAGESVC_PORT") && errors.contains("NVIDIA_API_KEY"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_with_live_the_check_makes_one_paid_call_and_reports_an_error_of_that_call() {
    let folder = tempfile::tempdir().unwrap();
    let nvidia = FakeNvidia::healthy().await;
    let output = run(folder.path(), &["check"], nvidia.settings());
    assert_eq!(nvidia.count(), 0, "without --live, no call must be made: {}", results(&output));
    let output = run(folder.path(), &["check", "--live"], nvidia.settings());
    assert_eq!(output.status.code(), Some(0), "{}", results(&output));
    assert!(results(&output).contains("an embedding was computed in"));
    assert_eq!(nvidia.count(), 1);

    let refusing_nvidia = FakeNvidia::replying(vec![Reply::status(401)]).await;
    let output = run(folder.path(), &["check", "--live"], refusing_nvidia.settings());
    assert_eq!(output.status.code(), Some(1));
    assert!(results(&output).contains("renew NVIDIA_API_KEY"), "{}", results(&output));
}
