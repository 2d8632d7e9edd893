//! The decoder's process: what it must not be able to do, and how each of its failures is answered.

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
    Answer, BuildError, FakeNvidia, ROCKET, TestApp, assert_problem, converted, decoder_settings,
    fake_decoder, metric, noise_png,
};

/// Starts a service whose decoder runs a script, and sends it a picture that must be decoded.
async fn decode_with(script: &str) -> (Answer, TestApp, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let program = fake_decoder(&folder, script);
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_REQUEST_TIMEOUT", "3s")
        .configure(|config| config.decoder.program = program)
        .start()
        .await;
    let answer = app.upload(&converted(ROCKET, ImageFormat::WebP), "rocket.webp").await;
    assert!(nvidia.lines().is_empty(), "nothing was paid");
    (answer, app, folder)
}

/// Waits until the decoder that was started last has ended.
async fn assert_ended(folder: &TempDir, script: &str) {
    let pid = fs::read_to_string(folder.path().join("pid")).unwrap();
    let started = Instant::now();
    while Path::new("/proc").join(pid.trim()).exists() {
        assert!(started.elapsed() < Duration::from_secs(10), "{script}: it still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A shell command that prints the head of a decoder's answer: its kind, and the length of what
/// follows.
fn head(letter: char, len: u8) -> String {
    format!("printf '{letter}\\{len:03o}\\0\\0\\0\\0\\0\\0\\0'; ")
}

#[tokio::test]
async fn a_decoder_killed_by_its_picture_blames_the_picture() {
    let halfway = format!("{}printf abc; kill -ABRT $$", head('d', 100));
    for script in [
        "kill -ABRT $$",
        "kill -SEGV $$",
        "kill -BUS $$",
        "kill -XCPU $$",
        "exit 101",
        &halfway,
        &format!("{}printf wrong", head('b', 5)),
        &format!("{}printf wrong", head('p', 5)),
    ] {
        let (answer, app, _folder) = decode_with(script).await;
        let problem = assert_problem(&answer, 415, "unsupported_image");
        assert!(problem["saved_as"].is_null(), "{script}");
        assert!(app.saved().is_empty(), "{script}: no file is left");
    }
}

#[tokio::test]
async fn a_decoder_killed_by_the_system_does_not_blame_the_picture() {
    let halfway = format!("{}printf abc; kill -KILL $$", head('d', 100));
    let unlimited = format!("{}printf never", head('l', 5));
    for script in ["kill -KILL $$", "kill -TERM $$", &halfway, &unlimited] {
        let (answer, app, _folder) = decode_with(script).await;
        assert_problem(&answer, 503, "overloaded");
        assert_eq!(answer.header("retry-after"), "5");
        assert_eq!(app.saved(), [answer.saved_as()], "{script}: it is kept");
        let metrics = app.get("/metrics").await.text();
        assert_eq!(metric(&metrics, "imagesvc_decodes_total{outcome=\"unavailable\"}"), 1.0);
    }
}

#[tokio::test]
async fn a_decoder_that_no_longer_starts_does_not_blame_the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let program = fake_decoder(&folder, "exit 0");
    let nvidia = FakeNvidia::healthy().await;
    let path = program.clone();
    let app =
        TestApp::builder(&nvidia).configure(|config| config.decoder.program = path).start().await;
    fs::remove_file(program).unwrap();
    let answer = app.upload(&converted(ROCKET, ImageFormat::WebP), "rocket.webp").await;
    assert_problem(&answer, 503, "overloaded");
    assert_eq!(app.saved(), [answer.saved_as()]);
}

#[tokio::test]
async fn a_decoder_that_breaks_the_protocol_is_an_internal_error() {
    for script in [
        "exit 0".to_owned(),
        "exit 1".to_owned(),
        "printf 'no answer at all'".to_owned(),
        format!("{}printf abc", head('d', 100)),
        format!("{}printf abc", head('d', 1)),
        // longer than any rendering of a picture of this size
        "printf 'd\\0\\0\\0\\0\\001\\0\\0\\0'; exec cat /dev/zero".to_owned(),
        format!("{}exec cat /dev/zero", head('d', 3)),
    ] {
        let (answer, app, _folder) = decode_with(&script).await;
        assert_problem(&answer, 500, "internal");
        assert_eq!(app.saved(), [answer.saved_as()], "{script}: it is kept");
    }
}

#[tokio::test]
async fn a_decoder_that_hangs_is_ended_at_the_deadline() {
    for script in [
        "exec sleep 600".to_owned(),
        format!("{}exec sleep 600", head('d', 9)),
        format!("{}printf abcdefghi; exec >&-; exec sleep 600", head('d', 9)),
    ] {
        let (answer, app, folder) = decode_with(&script).await;
        assert_problem(&answer, 504, "embedding_timeout");
        assert_eq!(app.saved(), [answer.saved_as()], "{script}: it is kept");
        assert_ended(&folder, &script).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_still_gets_its_decode_ended_at_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let script = "exec sleep 600";
    let program = fake_decoder(&folder, script);
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_REQUEST_TIMEOUT", "2s")
        .configure(|config| config.decoder.program = program)
        .start()
        .await;
    let picture = converted(ROCKET, ImageFormat::WebP);
    let request = app.upload_request(&picture, "rocket.webp").timeout(Duration::from_millis(500));
    assert!(request.send().await.unwrap_err().is_timeout());
    assert_ended(&folder, script).await;
}

#[tokio::test]
async fn a_service_with_a_broken_decoder_does_not_start() {
    for program in ["/no/such/program", "/bin/false", "/bin/true"] {
        let started = TestApp::sandbox()
            .configure(|config| config.decoder.program = program.into())
            .build()
            .await;
        let error = started.unwrap_err();
        assert!(matches!(error, BuildError::Decoder(_)), "{error}");
    }
}

/// Reads the limits of a decoder while it waits for its picture.
#[test]
fn a_decoder_is_limited_before_it_reads_a_byte() {
    let job = ["decode", "converted", "0", "webp", "10", "10", "1", "1000", "100000000", "7"];
    let mut child = Command::new(decoder_settings().program)
        .args(job)
        .env("PLANTED", "in the environment of whoever starts it by hand")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap();
    let started = Instant::now();
    // the last limit that the decoder sets
    while !read("limits")
        .lines()
        .any(|line| line.starts_with("Max core file size") && ends_in(line, ["0", "0", "bytes"]))
    {
        assert!(started.elapsed() < Duration::from_secs(10), "{}", read("limits"));
        std::thread::yield_now();
    }
    let limits = read("limits");
    for (name, bounds) in [
        ("Max address space", ["100000000", "100000000", "bytes"]),
        ("Max cpu time", ["7", "8", "seconds"]),
        ("Max open files", ["0", "0", "files"]),
        ("Max file size", ["0", "0", "bytes"]),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(ends_in(line, bounds), "{line}");
    }
    assert_eq!(read("oom_score_adj").trim(), "1000");
    // It has no runtime and no further threads.
    assert!(read("status").contains("Threads:\t1\n"));
    drop(child.stdin.take());
    let mut said = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    assert_eq!(said[0], b'b', "an empty input is not a picture");
    assert!(child.wait().unwrap().success());
}

fn ends_in(line: &str, bounds: [&str; 3]) -> bool {
    line.split_whitespace().rev().take(3).eq(bounds.into_iter().rev())
}

#[tokio::test]
async fn a_decoder_inherits_nothing_of_the_service_but_its_picture() {
    // This decoder writes down what it inherited instead of decoding.
    let folder = tempfile::tempdir().unwrap();
    let seen = folder.path().join("seen");
    let script = format!(
        "{{ /usr/bin/env; ls -l /proc/self/fd; }} > '{}' 2>&1; kill -ABRT $$",
        seen.display()
    );
    let program = fake_decoder(&folder, &script);
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| config.decoder.program = program)
        .start()
        .await;
    // This picture is too large for memory, so the decoder gets its file.
    let picture = converted(&noise_png(400, 400), ImageFormat::Bmp);
    assert_problem(&app.upload(&picture, "noise.bmp").await, 415, "unsupported_image");
    let seen = fs::read_to_string(seen).unwrap();
    let names = seen.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let names: Vec<_> =
        names.filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name)).collect();
    assert!(names.is_empty(), "{names:?}");
    assert!(!seen.contains("socket:"), "{seen}");
    let input = seen.lines().find(|line| line.contains(" 0 -> ")).unwrap();
    assert!(input.starts_with("lr-x"), "open for reading only: {input}");
    assert!(input.contains("/.incoming/") || input.contains(".bmp"), "{input}");
}
