//! Traces the service with strace, to check that it writes and syncs a picture before it answers.

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;

use crate::support::{FakeNvidia, HUBBLE, POLL_INTERVAL, ROCKET, ServiceProcess, is_missing};

/// The system calls with which the service writes, syncs and renames files, or sends answers.
const SYSTEM_CALLS: &str =
    "write,pwrite64,writev,sendto,sendmsg,fsync,fdatasync,rename,renameat,renameat2";

/// A system call in a trace.
#[derive(Debug)]
struct Call {
    text: String,
    /// The number of the trace's line in which the call began.
    first_line: usize,
    /// The number of the trace's line in which the call returned.
    last_line: usize,
}

impl Call {
    /// Whether the call has one of these names and its text contains `part`.
    fn matches(&self, names: &[&str], part: &str) -> bool {
        let name = self.text.split('(').next().unwrap();
        names.contains(&name) && self.text.contains(part)
    }
}

/// Parses the calls of a trace, in the order in which they returned. strace splits a call into two
/// lines if another thread makes a call in between.
fn parse_trace(trace: &str) -> Vec<Call> {
    let mut unfinished = Vec::<(&str, Call)>::new();
    let mut calls = Vec::new();
    for (line_number, line) in trace.lines().enumerate() {
        let (thread, text) = line.split_once(' ').unwrap();
        let text = text.trim_start();
        let call_in_this_line = |text: &str| Call {
            text: text.to_owned(),
            first_line: line_number,
            last_line: line_number,
        };
        if let Some(start) = text.strip_suffix("<unfinished ...>") {
            unfinished.push((thread, call_in_this_line(start)));
        } else if text.starts_with("<...") {
            let index = unfinished.iter().position(|(other, _)| *other == thread).unwrap();
            let (_, mut call) = unfinished.swap_remove(index);
            call.text.push_str(text.split_once('>').unwrap().1);
            call.last_line = line_number;
            calls.push(call);
        } else {
            calls.push(call_in_this_line(text));
        }
    }
    calls
}

/// Returns whether strace can trace processes here. If it cannot, prints that the test is skipped.
/// In CI, panics instead.
fn can_trace() -> bool {
    if is_missing("strace") {
        return false;
    }
    let traced = Command::new("strace").args(["--output", "/dev/null", "true"]).output().unwrap();
    let tracing_works = traced.status.success();
    let errors = String::from_utf8_lossy(&traced.stderr);
    assert!(
        tracing_works || std::env::var_os("CI").is_none(),
        "in CI, strace must be able to trace: {errors}"
    );
    if !tracing_works {
        println!("skipped: no process can be traced here: {errors}");
    }
    tracing_works
}

/// Waits until the trace is complete, and reads it. strace may still write to the trace after the
/// service has ended.
fn read_trace(path: &Path) -> String {
    let started = std::time::Instant::now();
    loop {
        let trace = std::fs::read_to_string(path).unwrap();
        // Each line begins with the id of a thread. The first line is from the main thread.
        let main_thread = trace.split(' ').next().unwrap();
        let is_end = |line: &str| {
            line.starts_with(&format!("{main_thread} ")) && line.ends_with("exited with 0 +++")
        };
        if trace.lines().any(is_end) {
            return trace;
        }
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "the trace should be complete within 20 s: {trace}"
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_answer_the_picture_is_written_synced_and_renamed_and_its_folder_is_synced() {
    if !can_trace() {
        return;
    }
    let nvidia = FakeNvidia::healthy().await;
    let settings = nvidia.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // The first picture stays in memory, and goes to a staging file only when it is saved. The second
    // is too large for that: its bytes go to a staging file as they arrive.
    for picture in [ROCKET, HUBBLE] {
        let folder = tempfile::tempdir().unwrap();
        let trace_path = folder.path().join("trace");
        let service =
            ServiceProcess::start_traced(folder.path(), &settings, SYSTEM_CALLS, &trace_path);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = service.upload_request(&client, picture).send().await.unwrap();
        let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(service.stop().0.code(), Some(0));
        let trace = read_trace(&trace_path);
        let calls = parse_trace(&trace);
        let only_call = |names: &[&str], part: &str| {
            let matching: Vec<_> = calls.iter().filter(|call| call.matches(names, part)).collect();
            assert_eq!(
                matching.len(),
                1,
                "exactly one call of {names:?} should contain {part}: {trace}"
            );
            assert!(!matching[0].text.contains(" = -1 "), "the call should succeed: {matching:?}");
            matching[0]
        };

        let path = answer["path"].as_str().unwrap();
        let rename = only_call(&["rename", "renameat", "renameat2"], path);
        let staging_path = rename.text.split('"').nth(1).unwrap();
        // strace prints a file descriptor with its path, such as `9</path/of/file>`.
        let staging_file = format!("{staging_path}>");
        let last_write = calls
            .iter()
            .rfind(|call| call.matches(&["write", "pwrite64", "writev"], &staging_file))
            .unwrap();
        let sync_file = only_call(&["fsync", "fdatasync"], &staging_file);
        let sync_folder = only_call(&["fsync", "fdatasync"], "/downloads>");
        let send_answer = only_call(&["write", "writev", "sendto", "sendmsg"], "\"HTTP/1.1 200 OK");
        for pair in [last_write, sync_file, rename, sync_folder, send_answer].windows(2) {
            let [earlier, later] = pair else { unreachable!() };
            assert!(
                earlier.last_line < later.first_line,
                "{earlier:?} should end before {later:?}"
            );
        }
    }
}
