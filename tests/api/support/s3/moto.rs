//! moto, an imitation of S3 in Python, as a process of its own, with commands to look into the bucket and
//! to change it.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command as StdCommand, Stdio},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
    time::timeout,
};

use super::{LONGEST_WAIT, bucket_settings, python};
use crate::support::python_lacks;

/// A running moto with one bucket. A user and a role may list the bucket, may write, read and delete
/// objects whose keys begin with the prefix, and may do nothing else. The process is killed when this
/// value is dropped.
pub struct MotoServer {
    pub address: SocketAddr,
    pub region: String,
    pub bucket: String,
    pub prefix: String,
    /// The credentials of the user.
    pub user: Credentials,
    process: Child,
    pipes: Mutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

/// Credentials with which the service signs its requests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Credentials {
    pub key_id: String,
    pub secret: String,
    /// Only temporary credentials have a token.
    pub token: Option<String>,
}

impl Credentials {
    /// The settings with these credentials.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let token = self.token.iter().map(|token| ("AWS_SESSION_TOKEN", token.clone()));
        let (key_id, secret) = (self.key_id.clone(), self.secret.clone());
        [("AWS_ACCESS_KEY_ID", key_id), ("AWS_SECRET_ACCESS_KEY", secret)]
            .into_iter()
            .chain(token)
            .collect()
    }
}

/// The first line that the server prints.
#[derive(Deserialize)]
struct Started {
    address: SocketAddr,
    region: String,
    bucket: String,
    prefix: String,
    key_id: String,
    secret: String,
}

impl MotoServer {
    /// Starts the server. If moto is not installed, returns `None`, or panics if this is CI.
    pub async fn start() -> Option<Self> {
        let python = python();
        if python_lacks(&python, "boto3, flask, moto; assert moto.__version__ == '5.2.5'") {
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/s3/server.py");
        let mut process = Command::new(python)
            .arg(script)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // moto logs every request here.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = timeout(LONGEST_WAIT, lines.next_line()).await;
        let line = line.expect("moto should start in time").unwrap();
        let line = line.expect("moto should start, but its process ended");
        let started: Started = serde_json::from_str(&line).unwrap();
        Some(Self {
            address: started.address,
            region: started.region,
            bucket: started.bucket,
            prefix: started.prefix,
            user: Credentials { key_id: started.key_id, secret: started.secret, token: None },
            process,
            pipes: Mutex::new((commands, lines)),
        })
    }

    /// The settings with which the service uses this bucket as the user.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        self.settings_through(self.address)
    }

    /// Like [`Self::settings`], but with the address of a proxy in front of the server.
    pub fn settings_through(&self, endpoint: SocketAddr) -> Vec<(&'static str, String)> {
        [self.settings_without_credentials_through(endpoint), self.user.settings()].concat()
    }

    /// Like [`Self::settings`], but the credentials must come from elsewhere.
    pub fn settings_without_credentials(&self) -> Vec<(&'static str, String)> {
        self.settings_without_credentials_through(self.address)
    }

    /// Like [`Self::settings_through`], but the credentials must come from elsewhere.
    pub fn settings_without_credentials_through(
        &self,
        endpoint: SocketAddr,
    ) -> Vec<(&'static str, String)> {
        bucket_settings(endpoint, &self.region, &self.bucket, &self.prefix)
    }

    /// The endpoint of an instance's metadata, as moto imitates it. It hands out credentials of the
    /// role; these credentials do not expire.
    pub fn metadata_endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The full keys of all objects, with the prefix, sorted.
    pub async fn keys(&self) -> Vec<String> {
        serde_json::from_value(self.run(json!(["keys"])).await).unwrap()
    }

    /// The keys of the objects in `<prefix>/<folder>/`, sorted, each without `<prefix>/<folder>/`.
    pub async fn keys_in(&self, folder: &str) -> Vec<String> {
        let beginning = format!("{}/{folder}/", self.prefix);
        let keys = self.keys().await.into_iter();
        keys.filter_map(|key| key.strip_prefix(&beginning).map(str::to_owned)).collect()
    }

    /// The bytes of an object, or `None` if there is no such object.
    pub async fn read(&self, full_key: &str) -> Option<Vec<u8>> {
        let result = self.run(json!(["read", full_key])).await;
        result.as_str().map(|text| BASE64_STANDARD.decode(text).unwrap())
    }

    /// Creates or replaces an object, as an administrator who may do everything.
    pub async fn write(&self, full_key: &str, bytes: &[u8]) {
        self.run(json!(["write", full_key, BASE64_STANDARD.encode(bytes)])).await;
    }

    /// Deletes an object, as an administrator who may do everything.
    pub async fn delete(&self, full_key: &str) {
        self.run(json!(["delete", full_key])).await;
    }

    /// Denies these actions, such as `s3:PutObject`, to the user and the role. Each call replaces the one
    /// before: all other actions are allowed as at the start.
    pub async fn deny(&self, actions: &[&str]) {
        self.run(json!(["deny", actions])).await;
    }

    /// Replaces the policy of the user and the role.
    pub async fn set_policy(&self, policy: &Value) {
        self.run(json!(["set_policy", policy])).await;
    }

    /// Applies lifecycle rules to the bucket, and returns the rules that it then has.
    pub async fn set_lifecycle(&self, configuration: &Value) -> Value {
        self.run(json!(["set_lifecycle", configuration])).await
    }

    /// Calls an operation of S3, such as `put_object`, as the user. The parameters have the names of
    /// boto3. Returns `ok`, the error code that the server answers, or else the name of the exception in
    /// Python.
    pub async fn attempt(&self, operation: &str, parameters: &Value) -> String {
        self.attempt_as(&self.user, self.address, operation, parameters).await
    }

    /// Like [`Self::attempt`], but with these credentials and at this endpoint, which may be another server.
    pub async fn attempt_as(
        &self,
        credentials: &Credentials,
        endpoint: SocketAddr,
        operation: &str,
        parameters: &Value,
    ) -> String {
        let Credentials { key_id, secret, token } = credentials;
        let endpoint = format!("http://{endpoint}");
        let command = json!(["attempt", endpoint, [key_id, secret, token], operation, parameters]);
        self.run(command).await.as_str().unwrap().to_owned()
    }

    /// Creates the bucket again after [`Self::delete_bucket`].
    pub async fn create_bucket(&self) {
        self.run(json!(["create_bucket"])).await;
    }

    /// Deletes the bucket with all objects.
    pub async fn delete_bucket(&self) {
        self.run(json!(["delete_bucket"])).await;
    }

    /// New temporary credentials of the role.
    pub async fn assume_role(&self) -> Credentials {
        serde_json::from_value(self.run(json!(["assume_role"])).await).unwrap()
    }

    /// Makes temporary credentials invalid.
    pub async fn revoke(&self, credentials: &Credentials) {
        self.run(json!(["revoke", credentials.key_id])).await;
    }

    /// Suspends the process. Until [`Self::resume`], it accepts connections but answers nothing.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Continues the suspended process.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let id = self.process.id().expect("moto should be running");
        let kill = format!("kill -{name} {id}");
        assert!(StdCommand::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Sends a command to the process, and returns its result.
    async fn run(&self, command: Value) -> Value {
        let mut pipes = self.pipes.lock().await;
        let (commands, lines) = &mut *pipes;
        let exchange = async {
            commands.write_all(format!("{command}\n").as_bytes()).await.unwrap();
            lines.next_line().await.unwrap().expect("moto should be running")
        };
        let line = timeout(LONGEST_WAIT, exchange).await.expect("moto should answer in time");
        let mut answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer.get("error"), None, "{:.200}", command.to_string());
        answer["result"].take()
    }
}
