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

use super::{FORM, FakeNvidia, base64_body, form};

const PROGRAM: &str = env!("CARGO_BIN_EXE_imagesvc");

/// A running process; killed when dropped.
pub struct Child {
    pub address: SocketAddr,
    process: std::process::Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    /// What it logs, where nobody reads that.
    _unread: Option<Lines<BufReader<ChildStderr>>>,
}

impl Child {
    /// Starts the program in a folder, with these settings and nothing else, and waits until it
    /// listens.
    pub fn start(folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_by(Command::new(PROGRAM), folder, settings)
    }

    /// The same, with the program's system calls written to a file by strace.
    pub fn start_traced(folder: &Path, settings: &[(&str, &str)], calls: &str, to: &Path) -> Self {
        let mut strace = Command::new("strace");
        // `--daemonize`: the process that is started here is the program itself, and no tracer.
        strace.args(["--daemonize", "--follow-forks", "--decode-fds=path", "--trace", calls]);
        strace.arg("--output").arg(to).arg(PROGRAM);
        Self::start_by(strace, folder, settings)
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

    /// The same, but from when it listens nobody reads its log.
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
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {said:?}")).unwrap();
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

    /// Starts the program in a folder, in front of a fake NVIDIA.
    pub fn start_with(nvidia: &FakeNvidia, folder: &Path, settings: &[(&str, &str)]) -> Self {
        let upstream = nvidia.settings();
        let upstream = upstream.iter().map(|(name, value)| (*name, value.as_str()));
        Self::start(folder, &upstream.chain(settings.iter().copied()).collect::<Vec<_>>())
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// An upload of a picture, not sent yet.
    pub fn upload_request(&self, client: &Client, picture: &[u8]) -> RequestBuilder {
        let request = client.post(self.url("/vectorize-image-upload"));
        request.header(CONTENT_TYPE, FORM).body(form(picture))
    }

    /// The same by the Base64 route.
    pub fn base64_request(&self, client: &Client, picture: &[u8]) -> RequestBuilder {
        client.post(self.url("/vectorize-image-base64")).body(base64_body(picture))
    }

    /// The same by the URL route.
    pub fn url_request(&self, client: &Client, address: &str) -> RequestBuilder {
        let body = json!({ "image_url": address }).to_string();
        client.post(self.url("/vectorize-image")).body(body)
    }

    /// The most memory that was ever resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// The memory that is resident now, in bytes.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// How many files and sockets it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    fn status(&self, name: &str) -> u64 {
        status(self.process.id(), name).unwrap()
    }

    /// Its number, as the system knows it.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it as a power cut would.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Tells it to stop.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends it a signal, by its name.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Tells it to stop, waits, and gives its exit status and all that it logged.
    pub fn stop(self) -> (ExitStatus, Vec<String>) {
        self.terminate();
        self.wait()
    }

    /// Waits for its end, and gives its exit status and all that it logged.
    pub fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.process.wait().unwrap();
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        let log = std::mem::take(&mut *self.log.lock().unwrap());
        (status, log)
    }
}

/// The numbers of a process's children that have not ended.
pub fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |id: &u32| {
        // What ended meanwhile has no file any more. The name may hold spaces and parentheses.
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap().split_whitespace();
        let state = fields.next();
        state != Some("Z") && fields.next() == Some(&parent.to_string())
    };
    ids.filter(is_child).collect()
}

/// The memory of a process that is resident now, in bytes; 0 if it has ended.
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
