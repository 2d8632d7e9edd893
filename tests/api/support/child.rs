//! The service as a separate process.

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

use super::{FORM, FakeNvidia, base64_body, form};

const PROGRAM: &str = env!("CARGO_BIN_EXE_imagesvc");

/// A running process, killed when dropped.
pub struct Child {
    pub address: SocketAddr,
    process: std::process::Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    /// The log's lines, kept unread and open.
    _unread: Option<Lines<BufReader<ChildStderr>>>,
}

impl Child {
    /// The program's file.
    pub const PROGRAM: &str = PROGRAM;

    /// Starts the program in a folder with only these settings, and waits until it listens.
    pub fn start(folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_by(Command::new(PROGRAM), folder, settings)
    }

    /// Starts the program, and has strace write its system calls to a file.
    pub fn start_traced(folder: &Path, settings: &[(&str, &str)], calls: &str, to: &Path) -> Self {
        let mut strace = Command::new("strace");
        // With `--daemonize`, the child of this process is the program, and not the tracer.
        strace.args(["--daemonize", "--follow-forks", "--decode-fds=path", "--trace", calls]);
        strace.arg("--output").arg(to).arg(PROGRAM);
        Self::start_by(strace, folder, settings)
    }

    /// The same, started by commands that a shell reads.
    pub fn start_pasted(commands: &str, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let mut shell = Command::new("bash");
        shell.args(["-c", commands]);
        Self::start_by(shell, folder, settings)
    }

    fn start_by(command: Command, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let (mut child, lines) = Self::spawn(command, folder, settings);
        let sink = Arc::clone(&child.log);
        let reader = std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line));
        });
        child.reader = Some(reader);
        child
    }

    /// Starts the program, and reads nothing of its log once it listens.
    pub fn start_unread(folder: &Path, settings: &[(&str, &str)]) -> Self {
        let (mut child, lines) = Self::spawn(Command::new(PROGRAM), folder, settings);
        child._unread = Some(lines);
        child
    }

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
        let mut said = Vec::new();
        let address = loop {
            let line =
                lines.next().unwrap_or_else(|| panic!("the program ended: {said:?}")).unwrap();
            let event: serde_json::Value =
                serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            said.push(line);
            if event["message"] == "listening" {
                break event["address"].as_str().unwrap().parse().unwrap();
            }
        };
        let log = Arc::new(Mutex::new(said));
        (Self { address, process, log, reader: None, _unread: None }, lines)
    }

    /// Starts the program in front of a fake NVIDIA.
    pub fn start_with(nvidia: &FakeNvidia, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let upstream = nvidia.settings();
        let upstream = upstream.iter().map(|(name, value)| (*name, value.as_str()));
        Self::start(folder, &upstream.chain(settings.iter().copied()).collect::<Vec<_>>())
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Prepares an upload of a picture.
    pub fn upload_request(&self, client: &Client, picture: &[u8]) -> RequestBuilder {
        let request = client.post(self.url("/vectorize-image-upload"));
        request.header(CONTENT_TYPE, FORM).body(form(picture))
    }

    /// Prepares a request to the Base64 route.
    pub fn base64_request(&self, client: &Client, picture: &[u8]) -> RequestBuilder {
        client.post(self.url("/vectorize-image-base64")).body(base64_body(picture))
    }

    /// Prepares a request to the URL route.
    pub fn url_request(&self, client: &Client, address: &str) -> RequestBuilder {
        let body = json!({ "image_url": address }).to_string();
        client.post(self.url("/vectorize-image")).body(body)
    }

    /// The peak of the resident memory, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// The resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The number of open files and sockets.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    fn status(&self, name: &str) -> u64 {
        status(self.process.id(), name).unwrap()
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends the process at once, as a power cut would.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Tells the process to stop.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, given by its name.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Tells the process to stop, waits, and returns its exit status and log.
    pub fn stop(self) -> (ExitStatus, Vec<String>) {
        self.terminate();
        self.wait()
    }

    /// Waits until the process ends, and returns its exit status and log.
    pub fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.process.wait().unwrap();
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        let log = std::mem::take(&mut *self.log.lock().unwrap());
        (status, log)
    }
}

/// The ids of a process's running children.
pub fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |id: &u32| {
        // A process that has ended has no such file. The program's name may hold spaces and
        // parentheses.
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap().split_whitespace();
        let state = fields.next();
        state != Some("Z") && fields.next() == Some(&parent.to_string())
    };
    ids.filter(is_child).collect()
}

/// The resident memory of a process, in bytes; 0 if it has ended.
pub fn memory_of(process: u32) -> u64 {
    status(process, "VmRSS:").unwrap_or(0)
}

fn status(process: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024)
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
