//! `rclone serve s3` as a process of its own. Its objects are files.

use std::{env, net::SocketAddr, path::PathBuf, process::Stdio};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{Credentials, LONGEST_WAIT, bucket_settings, program_beside_python};
use crate::support::is_missing;

/// A running rclone with one bucket. It checks signatures, and allows everything to its user. The
/// process is killed when this value is dropped.
pub struct RcloneServer {
    pub address: SocketAddr,
    pub user: Credentials,
    folder: TempDir,
    _process: Child,
}

const BUCKET: &str = "test-pictures";
const PREFIX: &str = "imagesvc";

impl RcloneServer {
    /// Starts the server. If rclone is not installed, returns `None`; with `CI` set, panics instead.
    pub async fn start() -> Option<Self> {
        let program = program_beside_python("rclone");
        if is_missing(&program) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let objects = folder.path().join("objects");
        std::fs::create_dir_all(objects.join(BUCKET)).unwrap();
        let user = Credentials {
            key_id: "AKIAEXAMPLE".to_owned(),
            secret: "an-example/of+a-secret".to_owned(),
            token: None,
        };
        let mut process = Command::new(program)
            .args(["serve", "s3", "--addr", "127.0.0.1:0", "--auth-key"])
            .arg(format!("{},{}", user.key_id, user.secret))
            .arg(&objects)
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder.path())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = async {
            loop {
                let line = log.next_line().await.unwrap();
                let line = line.expect("rclone should start, but its process ended");
                if let Some((_, rest)) = line.split_once("Starting s3 server on [http://") {
                    break rest.split_once('/').unwrap().0.parse().unwrap();
                }
            }
        };
        let address = timeout(LONGEST_WAIT, address).await.expect("rclone should start in time");
        // The task reads the whole log, since rclone would block on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Some(Self { address, user, folder, _process: process })
    }

    /// The settings with which the service uses this bucket.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        self.settings_through(self.address)
    }

    /// Like [`Self::settings`], but with the address of a proxy in front of the server.
    pub fn settings_through(&self, endpoint: SocketAddr) -> Vec<(&'static str, String)> {
        let settings = bucket_settings(endpoint, "eu-central-1", BUCKET, PREFIX);
        [settings, self.user.settings()].concat()
    }

    /// The path of an object's file, or of a folder of objects. `key` does not begin with the prefix.
    pub fn path_of(&self, key: &str) -> PathBuf {
        self.folder.path().join("objects").join(BUCKET).join(PREFIX).join(key)
    }

    /// The keys of the objects in `<prefix>/<folder>/`, sorted, each without `<prefix>/<folder>/`.
    /// Leaves out names that begin with a dot.
    pub fn keys_in(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path_of(folder)) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }
}
