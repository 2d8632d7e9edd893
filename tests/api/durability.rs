//! Checks with strace in which order the service writes, syncs and names a picture.

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;

use crate::support::{Child, FakeNvidia, HUBBLE, ROCKET, is_missing};

/// The system calls that write, sync, rename and answer.
const CALLS: &str =
    "write,pwrite64,writev,sendto,sendmsg,fsync,fdatasync,rename,renameat,renameat2";

/// A system call: its text in the trace, and the lines in which it began and ended.
#[derive(Debug)]
struct Call {
    text: String,
    began: usize,
    ended: usize,
}

impl Call {
    fn is(&self, names: &[&str], holds: &str) -> bool {
        let name = self.text.split('(').next().unwrap();
        names.contains(&name) && self.text.contains(holds)
    }
}

/// Parses the calls of a trace, in the order in which they ended. strace splits a call into two
/// lines if another thread makes a call meanwhile.
fn calls(trace: &str) -> Vec<Call> {
    let mut unfinished = Vec::<(&str, Call)>::new();
    let mut calls = Vec::new();
    for (line, text) in trace.lines().enumerate() {
        let (process, text) = text.split_once(' ').unwrap();
        let text = text.trim_start();
        if let Some(text) = text.strip_suffix("<unfinished ...>") {
            unfinished.push((process, Call { text: text.to_owned(), began: line, ended: line }));
        } else if text.starts_with("<...") {
            let began = unfinished.iter().position(|(known, _)| *known == process).unwrap();
            let (_, mut call) = unfinished.swap_remove(began);
            call.text.push_str(text.split_once('>').unwrap().1);
            calls.push(Call { ended: line, ..call });
        } else {
            calls.push(Call { text: text.to_owned(), began: line, ended: line });
        }
    }
    calls
}

/// Whether processes can be traced here. If not, it prints why the test is skipped; in CI it fails.
fn may_trace() -> bool {
    if is_missing("strace") {
        return false;
    }
    let tried = Command::new("strace").args(["--output", "/dev/null", "true"]).output().unwrap();
    let may = tried.status.success();
    let said = String::from_utf8_lossy(&tried.stderr);
    assert!(may || std::env::var_os("CI").is_none(), "CI must let processes be traced: {said}");
    if !may {
        println!("skipped: no process can be traced here: {said}");
    }
    may
}

/// Waits until the trace is complete, since strace ends after the program, and reads it.
fn read_trace(path: &Path) -> String {
    let started = std::time::Instant::now();
    loop {
        let trace = std::fs::read_to_string(path).unwrap();
        let first = trace.split(' ').next().unwrap();
        let last = format!("{first} ");
        if trace.lines().any(|line| line.starts_with(&last) && line.ends_with("exited with 0 +++"))
        {
            return trace;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "the trace has no end: {trace}");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_written_synced_renamed_and_its_folder_synced_before_the_answer() {
    if !may_trace() {
        return;
    }
    let nvidia = FakeNvidia::healthy().await;
    let upstream = nvidia.settings();
    let settings: Vec<_> = upstream.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // One stays in memory until it is saved, the other goes to a staging file.
    for picture in [ROCKET, HUBBLE] {
        let folder = tempfile::tempdir().unwrap();
        let trace = folder.path().join("trace");
        let child = Child::start_traced(folder.path(), &settings, CALLS, &trace);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = child.upload_request(&client, picture).send().await.unwrap();
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(child.stop().0.code(), Some(0));
        let trace = read_trace(&trace);
        let calls = calls(&trace);
        let only = |names: &[&str], holds: &str| {
            let mut found = calls.iter().filter(|call| call.is(names, holds));
            let call = found.next().unwrap_or_else(|| panic!("no {names:?} of {holds}: {trace}"));
            assert!(found.next().is_none(), "one {names:?} of {holds}: {trace}");
            assert!(!call.text.contains(" = -1 "), "{call:?}");
            call
        };

        let path = answer["path"].as_str().unwrap();
        let name = only(&["rename", "renameat", "renameat2"], path);
        let staged = name.text.split('"').nth(1).unwrap();
        let last_write = calls
            .iter()
            .rfind(|call| call.is(&["write", "pwrite64", "writev"], &format!("{staged}>")))
            .unwrap();
        let sync = only(&["fsync", "fdatasync"], &format!("{staged}>"));
        let sync_folder = only(&["fsync", "fdatasync"], "/downloads>");
        let answered = only(&["write", "writev", "sendto", "sendmsg"], "\"HTTP/1.1 200 OK");
        for in_order in [last_write, sync, name, sync_folder, answered].windows(2) {
            let [first, second] = in_order else { unreachable!() };
            assert!(first.ended < second.began, "{first:?}, {second:?}");
        }
    }
}
