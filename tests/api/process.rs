//! The exit codes and the output of the program.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::support::{FakeServer, ROCKET, ServiceProcess, documents::Document};

/// A command that runs the program in a folder, without any settings.
fn program(folder: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imagesvc"));
    command.env_clear().current_dir(folder);
    command
}

#[test]
fn without_a_key_the_error_mentions_the_key_and_the_sandbox_and_the_exit_code_is_2() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("NVIDIA_API_KEY") && text.contains("--sandbox"), "{text}");
    assert!(
        !folder.path().join("downloads").exists(),
        "with invalid settings the program must create no folder"
    );
}

#[test]
fn all_invalid_flags_variables_and_dotenv_lines_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    // The port in `.env` is valid, but the flag `--port` takes precedence, and its value is invalid.
    // The client key is invalid because it contains a space.
    std::fs::write(folder.path().join(".env"), "NVIDIA_TIMEOUT=soon\nIMAGESVC_PORT=1\n").unwrap();
    let output = program(folder.path())
        .args(["--sandbox", "--port", "many"])
        .env("IMAGESVC_API_KEYS", "planted key")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    for name in ["NVIDIA_TIMEOUT", "IMAGESVC_PORT", "IMAGESVC_API_KEYS"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    assert!(!text.contains("planted"), "an error must not contain an invalid key: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_agent_of_several_words_is_read_from_a_dotenv_file_written_on_windows() {
    let picture_server = FakeServer::serving(ROCKET).await;
    let readme = Document::read("README.md").text;
    // The first agent is from README.md. Both agents contain spaces, but `.env` has no quotes around them.
    let (_, rest) = readme.split_once("`my-app").unwrap();
    let documented_agent = format!("my-app{}", rest.split('`').next().unwrap());
    for agent in
        [documented_agent.as_str(), "Mozilla/5.0 (compatible; my-app/1.0; +https://example.com)"]
    {
        let folder = tempfile::tempdir().unwrap();
        // Programs for Windows may begin a file with a byte order mark, and end its lines with
        // CRLF.
        let text = format!(
            "\u{feff}IMAGESVC_SANDBOX=true\r\nIMAGESVC_FETCH_USER_AGENT={agent}\r\n\r\n# to test\r\n\
             IMAGESVC_FETCH_ALLOW={}\r\n",
            picture_server.address
        );
        std::fs::write(folder.path().join(".env"), text).unwrap();
        let service = ServiceProcess::start(folder.path(), &[]);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer =
            service.url_request(&client, &picture_server.url("/photo")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(picture_server.received().last().unwrap().header("user-agent"), Some(agent));
    }
}

#[test]
fn version_and_help_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    let version = program(folder.path()).arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        concat!("imagesvc ", env!("CARGO_PKG_VERSION"), "\n")
    );
    let help = program(folder.path()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(
        help.contains("--port") && help.contains("IMAGESVC_PORT") && help.contains("--sandbox")
    );
}

#[test]
fn the_hidden_settings_command_prints_settings_in_two_formats_and_needs_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let settings_as = |format| program(folder.path()).args(["settings", format]).output().unwrap();
    for (format, line) in [
        ("markdown", "| `IMAGESVC_HOST` | `0.0.0.0` | The address to listen on |\n"),
        ("env", "# The address to listen on\n#IMAGESVC_HOST=0.0.0.0\n"),
    ] {
        let output = settings_as(format);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(settings_as("toml").status.code(), Some(2));
    let help = program(folder.path()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("\n  check ") && !help.contains("\n  settings"), "{help}");
}

#[test]
fn the_program_logs_its_address_and_its_model_and_locks_its_folder_and_stops_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = program(folder.path())
        .args(["--sandbox", "--port", "0", "--host", "127.0.0.1", "--drain-delay", "0"])
        .env("NVIDIA_API_KEY", "nvapi-planted")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let mut text = String::new();
    while !text.contains("listening") {
        text.push_str(&lines.next().unwrap().unwrap());
    }
    assert!(text.contains("\"address\":\"127.0.0.1:"), "{text}");
    assert!(text.contains("ignored"), "the log should say that the key is ignored: {text}");
    assert!(text.contains("sandbox/perceptual"), "{text}");
    assert!(!text.contains("nvapi-planted"), "the log must not contain the key: {text}");

    // A second process in the same folder does not start.
    let output = program(folder.path()).args(["--sandbox", "--port", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("in use by another imagesvc"));

    let kill = Command::new("sh").args(["-c", &format!("kill {}", process.id())]).status().unwrap();
    assert!(kill.success());
    assert_eq!(process.wait().unwrap().code(), Some(0));
}
