//! The service as a process of its own.

use std::{
    io::{BufRead, BufReader, Lines},
    net::SocketAddr,
    path::Path,
    process::{ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use reqwest::{Client, RequestBuilder, header::CONTENT_TYPE};
use serde_json::json;

use super::{FORM_CONTENT_TYPE, FakeNvidia, base64_body, form};

/// A running service. Its process is killed when this value is dropped.
pub struct ServiceProcess {
    pub address: SocketAddr,
    process: std::process::Child,
    /// The lines of the log that were read so far.
    log: Arc<Mutex<Vec<String>>>,
    log_reader: Option<JoinHandle<()>>,
    /// Keeps the pipe of the log open while no thread reads the log.
    _unread_log: Option<Lines<BufReader<ChildStderr>>>,
}

impl ServiceProcess {
    /// The path of the program.
    pub const PROGRAM: &str = env!("CARGO_BIN_EXE_imagesvc");

    /// Starts the program in a folder, and waits until the program listens. The program's
    /// environment contains only these settings and a few that all tests need.
    pub fn start(folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_command(Command::new(Self::PROGRAM), folder, settings)
    }

    /// Starts the program under strace, which writes the named system calls to the file `trace`.
    pub fn start_traced(
        folder: &Path,
        settings: &[(&str, &str)],
        system_calls: &str,
        trace: &Path,
    ) -> Self {
        let mut strace = Command::new("strace");
        // With `--daemonize`, the process that is spawned becomes the program, and not strace.
        strace.args(["--daemonize", "--follow-forks", "--decode-fds=path"]);
        strace.args(["--trace", system_calls, "--output"]).arg(trace).arg(Self::PROGRAM);
        Self::start_command(strace, folder, settings)
    }

    /// Starts the program with a command in a shell. Only bash's process is killed, so it must become the
    /// program. With a single command it does: bash replaces itself with it.
    pub fn start_in_shell(command: &str, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let mut shell = Command::new("bash");
        shell.args(["-c", command]);
        Self::start_command(shell, folder, settings)
    }

    fn start_command(command: Command, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let (mut service, lines) = Self::spawn(command, folder, settings);
        let log = Arc::clone(&service.log);
        service.log_reader = Some(std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| log.lock().unwrap().push(line));
        }));
        service
    }

    /// Starts the program, and stops reading its log once the program listens.
    pub fn start_with_unread_log(folder: &Path, settings: &[(&str, &str)]) -> Self {
        let (mut service, lines) = Self::spawn(Command::new(Self::PROGRAM), folder, settings);
        service._unread_log = Some(lines);
        service
    }

    /// Runs a command that starts the program, and waits until the program listens. Also returns
    /// the lines that the program logs after that.
    fn spawn(
        mut command: Command,
        folder: &Path,
        settings: &[(&str, &str)],
    ) -> (Self, Lines<BufReader<ChildStderr>>) {
        let mut process = command
            .env_clear()
            .envs([
                ("IMAGESVC_HOST", "127.0.0.1"),
                ("IMAGESVC_PORT", "0"),
                ("IMAGESVC_MIN_FREE_BYTES", "0"),
            ])
            .envs([("IMAGESVC_DRAIN_DELAY", "0"), ("IMAGESVC_LOG_FORMAT", "json")])
            .envs(settings.iter().copied())
            .current_dir(folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut log = Vec::new();
        let address = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("the program ended before it listened: {log:?}"))
                .unwrap();
            let event: serde_json::Value = serde_json::from_str(&line)
                .unwrap_or_else(|_| panic!("the log line should be JSON: {line}"));
            log.push(line);
            if event["message"] == "listening" {
                break event["address"].as_str().unwrap().parse().unwrap();
            }
        };
        let log = Arc::new(Mutex::new(log));
        (Self { address, process, log, log_reader: None, _unread_log: None }, lines)
    }

    /// Starts the program with the settings to call a fake NVIDIA, and waits until the program listens.
    pub fn start_with(nvidia: &FakeNvidia, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let nvidia_settings = nvidia.settings();
        let mut all_settings: Vec<_> =
            nvidia_settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        all_settings.extend(settings);
        Self::start(folder, &all_settings)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Prepares a request to the upload route.
    pub fn upload_request(&self, client: &Client, picture: &[u8]) -> RequestBuilder {
        let request = client.post(self.url("/vectorize-image-upload"));
        request.header(CONTENT_TYPE, FORM_CONTENT_TYPE).body(form(picture))
    }

    /// Prepares a request to the Base64 route.
    pub fn base64_request(&self, client: &Client, picture: &[u8]) -> RequestBuilder {
        client.post(self.url("/vectorize-image-base64")).body(base64_body(picture))
    }

    /// Prepares a request to the URL route.
    pub fn url_request(&self, client: &Client, image_url: &str) -> RequestBuilder {
        let body = json!({ "image_url": image_url }).to_string();
        client.post(self.url("/vectorize-image")).body(body)
    }

    /// The highest resident memory since the start, in bytes.
    pub fn peak_memory(&self) -> u64 {
        memory_field(self.id(), "VmHWM:").unwrap()
    }

    /// The resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        memory_field(self.id(), "VmRSS:").unwrap()
    }

    /// The number of open files and sockets.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills the process with SIGKILL, so that it has no time to finish anything.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Sends SIGTERM, which tells the service to stop.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends the signal with this name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Tells the service to stop, and returns its exit status and log.
    pub fn stop(self) -> (ExitStatus, Vec<String>) {
        self.terminate();
        self.wait()
    }

    /// Waits until the process ends, and returns its exit status and log.
    pub fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.process.wait().unwrap();
        if let Some(log_reader) = self.log_reader.take() {
            log_reader.join().unwrap();
        }
        let log = std::mem::take(&mut *self.log.lock().unwrap());
        (status, log)
    }
}

/// The ids of all children of a process that are still running.
pub fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |id: &u32| {
        // If the process has ended in the meantime, this file does not exist.
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // The program's name is in parentheses, and may itself contain spaces and parentheses.
        let mut fields = stat.rsplit(')').next().unwrap().split_whitespace();
        let (state, its_parent) = (fields.next(), fields.next());
        let is_zombie = state == Some("Z");
        !is_zombie && its_parent == Some(&parent.to_string())
    };
    ids.filter(is_child).collect()
}

/// The resident memory of a process in bytes, or 0 if the process has ended.
pub fn memory_of(process_id: u32) -> u64 {
    memory_field(process_id, "VmRSS:").unwrap_or(0)
}

/// The highest resident memory of a process so far in bytes, or 0 if the process has ended.
pub fn peak_memory_of(process_id: u32) -> u64 {
    memory_field(process_id, "VmHWM:").unwrap_or(0)
}

/// Reads a size from `/proc/<id>/status`, in bytes. Returns `None` if the process has ended.
fn memory_field(process_id: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    Some(kibibytes * 1024)
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
