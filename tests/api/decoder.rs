//! The decoder's child process: its limits, and the answers to requests whose decoder fails.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use image_rs::ImageFormat;
use tempfile::TempDir;

use crate::support::{
    Answer, BuildError, FakeNvidia, POLL_INTERVAL, ROCKET, TestApp, assert_problem, converted,
    decoder_settings, fake_decoder, metric, noise_png,
};

/// Starts a service whose decoder runs a script, and uploads a picture that must be decoded.
/// Asserts that the service does not call NVIDIA.
async fn decode_with(script: &str) -> (Answer, TestApp, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let program = fake_decoder(&folder, script);
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        // A decoder that hangs is killed at this deadline.
        .setting("IMAGESVC_REQUEST_TIMEOUT", "3s")
        .configure(|config| config.decoder.program = program)
        .start()
        .await;
    let answer = app.upload(&converted(ROCKET, ImageFormat::WebP), "rocket.webp").await;
    assert!(nvidia.lines().is_empty(), "NVIDIA must not be called");
    (answer, app, folder)
}

/// Waits up to 10 s until the fake decoder in this folder has exited. Every fake decoder writes its process
/// id to the file `pid`.
async fn assert_exits(folder: &TempDir, script: &str) {
    let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
    let started = Instant::now();
    while Path::new("/proc").join(pid.trim()).exists() {
        assert!(started.elapsed() < Duration::from_secs(10), "{script}: the decoder must exit");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A shell command that prints the header of a decoder's result. The header is a letter for the
/// result's kind, and then, in eight bytes, the number of bytes that follow. The letter is `d` for
/// a rendered picture and `b` for a broken picture. It is `p` for a panic of the decoder, and `l`
/// for limits that could not be set.
fn header(letter: char, len: u8) -> String {
    format!("printf '{letter}\\{len:03o}\\0\\0\\0\\0\\0\\0\\0'; ")
}

#[tokio::test]
async fn a_picture_that_is_broken_or_crashes_its_decoder_is_unsupported_and_not_saved() {
    // The announced result has 100 bytes, but only three are printed.
    let aborts_halfway = format!("{}printf abc; kill -ABRT $$", header('d', 100));
    for script in [
        "kill -ABRT $$",
        "kill -SEGV $$",
        "kill -BUS $$",
        // The kernel sends this signal at the limit of processor time.
        "kill -XCPU $$",
        // A Rust program exits with this code after a panic.
        "exit 101",
        &aborts_halfway,
        // The decoder itself reports a broken picture, or a panic, with the message `wrong`.
        &format!("{}printf wrong", header('b', 5)),
        &format!("{}printf wrong", header('p', 5)),
    ] {
        let (answer, app, _folder) = decode_with(script).await;
        let problem = assert_problem(&answer, 415, "unsupported_image");
        assert!(problem["saved_as"].is_null(), "{script}");
        assert!(app.saved().is_empty(), "{script}: nothing must be saved");
    }
}

#[tokio::test]
async fn a_picture_whose_decoder_is_killed_or_cannot_limit_itself_is_saved_and_answered_503() {
    let killed_halfway = format!("{}printf abc; kill -KILL $$", header('d', 100));
    let cannot_lower_limits = format!("{}printf wrong", header('l', 5));
    // The signals KILL and TERM come from outside, for example if the machine runs out of memory. They
    // say nothing about the picture.
    for script in ["kill -KILL $$", "kill -TERM $$", &killed_halfway, &cannot_lower_limits] {
        let (answer, app, _folder) = decode_with(script).await;
        assert_problem(&answer, 503, "overloaded");
        // The service's default, in seconds: the error itself sets no time.
        assert_eq!(answer.header("retry-after"), "5");
        assert_eq!(app.saved(), [answer.saved_as()], "{script}: the picture must be saved");
        let metrics = app.get("/metrics").await.text();
        assert_eq!(metric(&metrics, "imagesvc_decodes_total{outcome=\"unavailable\"}"), 1.0);
    }
}

#[tokio::test]
async fn a_picture_whose_decoder_cannot_be_started_is_saved_and_answered_503() {
    let folder = tempfile::tempdir().unwrap();
    let program = fake_decoder(&folder, "exit 0");
    let nvidia = FakeNvidia::healthy().await;
    let decoder_path = program.clone();
    let app = TestApp::builder(&nvidia)
        .configure(|config| config.decoder.program = decoder_path)
        .start()
        .await;
    // The service has tested its decoder at start. Now the program disappears.
    fs::remove_file(program).unwrap();
    let answer = app.upload(&converted(ROCKET, ImageFormat::WebP), "rocket.webp").await;
    assert_problem(&answer, 503, "overloaded");
    assert_eq!(app.saved(), [answer.saved_as()]);
}

#[tokio::test]
async fn a_decoder_that_breaks_the_protocol_causes_an_internal_error() {
    for script in [
        "exit 0".to_owned(),
        "exit 1".to_owned(),
        "printf 'no result at all'".to_owned(),
        // First fewer bytes than the header announces, then more.
        format!("{}printf abc", header('d', 100)),
        format!("{}printf abc", header('d', 1)),
        // The announced length is 4 GiB, which is more than any rendered picture has.
        "printf 'd\\0\\0\\0\\0\\001\\0\\0\\0'; exec cat /dev/zero".to_owned(),
        // Endless bytes, of which the header announces three.
        format!("{}exec cat /dev/zero", header('d', 3)),
    ] {
        let (answer, app, _folder) = decode_with(&script).await;
        assert_problem(&answer, 500, "internal");
        assert_eq!(app.saved(), [answer.saved_as()], "{script}: the picture must be saved");
    }
}

#[tokio::test]
async fn a_decoder_that_hangs_is_killed_at_the_deadline() {
    for script in [
        // These decoders hang before, in the middle of, and after their result.
        "exec sleep 600".to_owned(),
        format!("{}exec sleep 600", header('d', 9)),
        format!("{}printf abcdefghi; exec >&-; exec sleep 600", header('d', 9)),
    ] {
        let (answer, app, folder) = decode_with(&script).await;
        assert_problem(&answer, 504, "embedding_timeout");
        assert_eq!(app.saved(), [answer.saved_as()], "{script}: the picture must be saved");
        assert_exits(&folder, &script).await;
    }
}

#[tokio::test]
async fn a_decoder_that_hangs_is_killed_even_if_its_client_has_disconnected() {
    let folder = tempfile::tempdir().unwrap();
    let script = "exec sleep 600";
    let program = fake_decoder(&folder, script);
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        // The decoder is killed at this deadline.
        .setting("IMAGESVC_REQUEST_TIMEOUT", "2s")
        .configure(|config| config.decoder.program = program)
        .start()
        .await;
    let picture = converted(ROCKET, ImageFormat::WebP);
    // The client disconnects before the request's deadline.
    let request = app.upload_request(&picture, "rocket.webp").timeout(Duration::from_millis(500));
    assert!(request.send().await.unwrap_err().is_timeout());
    assert_exits(&folder, script).await;
}

#[tokio::test]
async fn a_service_with_a_broken_decoder_does_not_start() {
    // The first cannot be started. The second fails, and the third succeeds without any result.
    for program in ["/no/such/program", "/bin/false", "/bin/true"] {
        let built = TestApp::sandbox()
            .configure(|config| config.decoder.program = program.into())
            .build()
            .await;
        let error = built.unwrap_err();
        assert!(matches!(error, BuildError::Decoder(_)), "{error}");
    }
}

/// Reads the limits of a decoder while the decoder waits for its picture.
#[test]
fn a_decoder_lowers_its_limits_before_it_reads_a_byte() {
    // The job is to convert a WebP of 10 × 10 pixels with the orientation 1. The limit of the JPEG's
    // length, 0, does not matter: the input is empty, so no JPEG is made. The last three arguments are
    // the memory estimate in bytes, the limit of the address space in bytes, and the limit of the
    // processor time in seconds.
    let job = ["decode", "converted", "0", "webp", "10", "10", "1", "1000", "100000000", "7"];
    let mut child = Command::new(decoder_settings().program)
        .args(job)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap();
    let started = Instant::now();
    // This is the last limit that the decoder sets.
    while !read("limits")
        .lines()
        .any(|line| line.starts_with("Max core file size") && ends_in(line, ["0", "0", "bytes"]))
    {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "the decoder should set its limits within 10 s: {}",
            read("limits")
        );
        std::thread::sleep(POLL_INTERVAL);
    }
    let limits = read("limits");
    for (name, expected) in [
        ("Max address space", ["100000000", "100000000", "bytes"]),
        // The hard limit comes one second after the soft limit.
        ("Max cpu time", ["7", "8", "seconds"]),
        ("Max open files", ["0", "0", "files"]),
        ("Max file size", ["0", "0", "bytes"]),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(ends_in(line, expected), "{line}");
    }
    // If the machine runs out of memory, the kernel kills this process first.
    assert_eq!(read("oom_score_adj").trim(), "1000");
    // The decoder has no asynchronous runtime and only one thread.
    assert!(read("status").contains("Threads:\t1\n"));
    // The input ends without a byte.
    drop(child.stdin.take());
    let mut result = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut result).unwrap();
    assert_eq!(result[0], b'b', "an empty input must be reported as a broken picture");
    assert!(child.wait().unwrap().success());
}

/// Whether these are the last words of the line.
fn ends_in(line: &str, words: [&str; 3]) -> bool {
    line.split_whitespace().rev().take(3).eq(words.into_iter().rev())
}

#[tokio::test]
async fn a_decoder_inherits_no_variables_sockets_or_files_and_can_only_read_its_picture() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("inherited");
    // Lists the variables and the open files of the decoder in a file.
    let script = format!(
        "{{ /usr/bin/env && echo env ran; ls -l /proc/self/fd; }} > '{}' 2>&1; kill -ABRT $$",
        list.display()
    );
    let program = fake_decoder(&folder, &script);
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| config.decoder.program = program)
        .start()
        .await;
    // This picture of 480 KB is too large to stay in memory, so the decoder reads its file.
    let picture = converted(&noise_png(400, 400), ImageFormat::Bmp);
    assert_problem(&app.upload(&picture, "noise.bmp").await, 415, "unsupported_image");
    let inherited = fs::read_to_string(list).unwrap();
    assert!(inherited.contains("env ran"), "the variables should be listed: {inherited}");
    let variables = inherited.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let set_by_the_shell = ["PWD", "OLDPWD", "SHLVL", "_"];
    let variables: Vec<_> = variables.filter(|name| !set_by_the_shell.contains(name)).collect();
    assert!(variables.is_empty(), "the decoder must inherit no variables: {variables:?}");
    assert!(!inherited.contains("socket:"), "the decoder must inherit no socket: {inherited}");
    let input = inherited.lines().find(|line| line.contains(" 0 -> ")).unwrap();
    assert!(input.starts_with("lr-x"), "the file must be open for reading only: {input}");
    // The service saves a picture while it decodes it, so the file may already have its final name.
    assert!(input.contains("/.incoming/") || input.contains(".bmp"), "{input}");
    let downloads = app.folder().to_str().unwrap();
    let open_downloads: Vec<_> =
        inherited.lines().filter(|line| line.contains(downloads)).collect();
    assert_eq!(open_downloads, [input], "the decoder must inherit no other file of the service");
}
