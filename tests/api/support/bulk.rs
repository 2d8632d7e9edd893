//! Runs `imagesvc embed` and `imagesvc nearest` as processes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{FakeNvidia, ServiceProcess, tiny};

/// A folder in which the commands run, and the settings in their environment.
pub struct Bulk {
    folder: TempDir,
    settings: Vec<(String, String)>,
}

impl Bulk {
    /// The service of each run calls this fake NVIDIA.
    pub fn new(nvidia: &FakeNvidia) -> Self {
        let settings = nvidia.settings().map(|(name, value)| (name.to_owned(), value));
        Self::with_settings(settings.into())
    }

    /// For runs that start no service (with `--to`, for example), or a service with `--sandbox`.
    pub fn without_nvidia() -> Self {
        Self::with_settings(Vec::new())
    }

    fn with_settings(settings: Vec<(String, String)>) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), settings }
            .setting("IMAGESVC_MIN_FREE_BYTES", "0")
            .setting("IMAGESVC_LOG_FORMAT", "json")
    }

    /// Adds a variable to the environment of the runs.
    #[allow(clippy::needless_pass_by_value, reason = "callers need no `&`")]
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder in which the commands run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file. Creates its folders.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Writes the first `count` tiny pictures, from number 0 on, to the folder `photos`.
    pub fn write_pictures(&self, count: usize) {
        for n in 0..count {
            self.write(&format!("photos/{n}.png"), tiny(n));
        }
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// The rows of a JSONL file. A missing file has none.
    pub fn rows(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// `imagesvc embed` with these arguments, which are separated by spaces.
    pub fn command(&self, arguments: &str) -> Command {
        self.command_named("embed", arguments)
    }

    fn command_named(&self, name: &str, arguments: &str) -> Command {
        let mut command = Command::new(ServiceProcess::PROGRAM);
        command
            .arg(name)
            .args(arguments.split_whitespace())
            .env_clear()
            .env("XDG_CACHE_HOME", self.path(".cache"))
            .envs(self.settings.iter().cloned())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts `imagesvc embed`.
    pub fn start(&self, arguments: &str) -> std::process::Child {
        self.command(arguments).spawn().unwrap()
    }

    /// Runs `imagesvc embed` to its end.
    pub fn run(&self, arguments: &str) -> Finished {
        self.start(arguments).into()
    }

    /// Starts `imagesvc nearest`.
    pub fn start_nearest(&self, arguments: &str) -> std::process::Child {
        self.command_named("nearest", arguments).spawn().unwrap()
    }

    /// Runs `imagesvc nearest` to its end.
    pub fn nearest(&self, arguments: &str) -> Finished {
        self.start_nearest(arguments).into()
    }
}

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<std::process::Child> for Finished {
    /// Waits until the process has ended.
    fn from(process: std::process::Child) -> Self {
        let Output { status, stdout, stderr } = process.wait_with_output().unwrap();
        let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8(text).unwrap());
        Self { code: status.code(), stdout, stderr }
    }
}

impl Finished {
    /// Asserts the exit code.
    pub fn expect_exit_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        self
    }
}
