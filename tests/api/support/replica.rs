//! Replicas: processes of the service that share a bucket or a Valkey.

use std::{
    process::ExitStatus,
    time::{Duration, Instant},
};

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};

use super::{Answer, FakeNvidia, ServiceProcess, metric};
use crate::query::with_query;

/// The longest wait for an answer, for a metric, and for the start and the end of a process.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The longest wait for what is almost immediate on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The pause between two looks at a state that a test waits for. Without a pause, a test that waits
/// would take a processor from the tests that run at the same time.
pub const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A setting's name and value.
pub type Setting = (&'static str, String);

/// A running replica. Its process is killed when this value is dropped.
pub struct Replica {
    pub process: ServiceProcess,
    client: Client,
    _folder: TempDir,
}

impl Replica {
    /// Starts a replica with an empty folder, and waits until it listens.
    pub async fn start(nvidia: &FakeNvidia, settings: &[Setting]) -> Self {
        let settings = [&nvidia.settings()[..], settings].concat();
        let folder = tempfile::tempdir().unwrap();
        // The start blocks its thread until the service has tested its bucket. It needs a thread of its own,
        // because the bucket may be behind a proxy that runs on this test's thread.
        let start = spawn_blocking(move || {
            let settings: Vec<_> =
                settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
            (ServiceProcess::start(folder.path(), &settings), folder)
        });
        let started = timeout(LONGEST_WAIT, start).await.expect("the service should start in time");
        let (process, folder) = started.unwrap();
        let client = Client::builder().no_proxy().timeout(LONGEST_WAIT).build().unwrap();
        Self { process, client, _folder: folder }
    }

    /// Starts three replicas with these settings, which must name the same Valkey. Waits until each replica
    /// knows all three.
    pub async fn start_three(
        nvidia: &FakeNvidia,
        [first, second, third]: [&[Setting]; 3],
    ) -> [Self; 3] {
        let replicas = [
            Self::start(nvidia, first).await,
            Self::start(nvidia, second).await,
            Self::start(nvidia, third).await,
        ];
        for replica in &replicas {
            replica.wait_for_valkey(json!({ "usable": true, "replicas": 3 }), PATIENCE).await;
        }
        replicas
    }

    /// Uploads a picture, which the replica saves.
    pub async fn upload(&self, picture: &[u8]) -> Answer {
        self.try_upload(picture).await.unwrap()
    }

    /// Uploads a picture with `save=false`.
    pub async fn upload_unsaved(&self, picture: &[u8]) -> Answer {
        let request = self.process.upload_request(&self.client, picture);
        send(with_query(request, "save=false")).await.unwrap()
    }

    /// Like [`Self::upload_unsaved`], as if the client with this address had sent the picture through a
    /// proxy.
    pub async fn upload_unsaved_from(&self, client_address: &str, picture: &[u8]) -> Answer {
        let request = self.process.upload_request(&self.client, picture);
        let request = request.header("x-forwarded-for", client_address);
        send(with_query(request, "save=false")).await.unwrap()
    }

    /// Starts to upload a picture with `save=false`. The task returns an error if the connection failed.
    pub fn start_unsaved_upload(&self, picture: &[u8]) -> JoinHandle<reqwest::Result<Answer>> {
        let request = self.process.upload_request(&self.client, picture);
        tokio::spawn(send(with_query(request, "save=false")))
    }

    /// Like [`Self::upload`], but may fail: an error means that the connection failed.
    pub async fn try_upload(&self, picture: &[u8]) -> reqwest::Result<Answer> {
        send(self.process.upload_request(&self.client, picture)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.client.get(self.process.url(path))).await.unwrap()
    }

    /// Waits until the replica reports that its bucket can be written to and read. Returns how long
    /// that took.
    pub async fn wait_until_bucket_works(&self, patience: Duration) -> Duration {
        self.wait_for_bucket(json!({ "writable": true, "readable": true }), patience).await
    }

    /// Waits until the replica reports that its bucket can neither be written to nor read.
    pub async fn wait_until_bucket_fails(&self, patience: Duration) {
        self.wait_for_bucket(json!({ "writable": false, "readable": false }), patience).await;
    }

    /// Waits until the replica reports this state of its bucket. Returns how long that took.
    async fn wait_for_bucket(&self, expected: Value, patience: Duration) -> Duration {
        let started = Instant::now();
        wait_for("the bucket's state", patience, async || {
            let ready: Value = self.get("/ready").await.json();
            assert_eq!(ready["ready"], true, "the bucket must not change the readiness");
            ready["bucket"] == expected
        })
        .await;
        started.elapsed()
    }

    /// Waits until the replica reports this state of its Valkey. Returns how long that took.
    pub async fn wait_for_valkey(&self, expected: Value, patience: Duration) -> Duration {
        let started = Instant::now();
        wait_for("the Valkey's state", patience, async || {
            let ready: Value = self.get("/ready").await.json();
            assert_eq!(ready["ready"], true, "the Valkey must not change the readiness");
            ready["valkey"] == expected
        })
        .await;
        started.elapsed()
    }

    /// Waits until a metric has this value.
    pub async fn wait_for_metric(&self, series: &str, value: f64) {
        wait_for(series, LONGEST_WAIT, async || {
            metric(&self.get("/metrics").await.text(), series) == value
        })
        .await;
    }

    /// Sends a batch to `/v1/embeddings`.
    pub async fn embed_batch(&self, batch: &Value) -> Answer {
        let url = self.process.url("/v1/embeddings");
        let request = self.client.post(url).header("content-type", "application/json");
        send(request.body(batch.to_string())).await.unwrap()
    }

    /// Tells the replica to stop, and returns its exit status and log.
    pub async fn stop(self) -> (ExitStatus, Vec<String>) {
        self.process.terminate();
        self.wait().await
    }

    /// Waits until the process ends, and returns its exit status and log.
    pub async fn wait(self) -> (ExitStatus, Vec<String>) {
        let Self { process, client, _folder } = self;
        drop(client); // closes its connections
        let ended = timeout(LONGEST_WAIT, spawn_blocking(|| process.wait())).await;
        ended.expect("the service should stop in time").unwrap()
    }
}

async fn send(request: RequestBuilder) -> reqwest::Result<Answer> {
    Answer::read(request.send().await?).await
}

/// Waits until a condition is met. The message of a panic begins with `name`.
pub async fn wait_for(name: &str, patience: Duration, condition: impl AsyncFn() -> bool) {
    let poll = async {
        while !condition().await {
            sleep(POLL_INTERVAL).await;
        }
    };
    let met = timeout(patience, poll).await;
    assert!(met.is_ok(), "{name} should be as expected within {patience:?}");
}

/// The number of the log's lines that contain a text.
pub fn count_lines(log: &[String], text: &str) -> usize {
    log.iter().filter(|line| line.contains(text)).count()
}

/// The warnings in the log that are about the bucket.
pub fn bucket_warnings(log: &[String]) -> Vec<&String> {
    let is_warning = |line: &str| line.contains("\"WARN\"") && line.contains("imagesvc::bucket");
    log.iter().filter(|line| is_warning(line)).collect()
}
