//! The service inside the test's process, on a free port and with its own downloads folder.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use imagesvc::{app::App, config::RawSettings, fetch::Lookup};
pub use imagesvc::{app::BuildError, config::Config};
use reqwest::{Client, RequestBuilder, header::CONTENT_TYPE};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{
    Answer, FakeBucket, FakeNvidia, FakeServer, POLL_INTERVAL, ValkeyServer, decoder_settings,
    metric,
};

/// A running service. The service stops when this value is dropped.
pub struct TestApp {
    pub address: SocketAddr,
    /// The HTTP client for requests to this service.
    pub client: Client,
    folder: TempDir,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

/// A service that has not started yet.
pub struct Builder {
    settings: Vec<(String, String)>,
    change_config: Box<dyn FnOnce(&mut Config) + Send>,
    lookup: Lookup,
    folder: TempDir,
}

impl Builder {
    fn new() -> Self {
        let builder = Self {
            settings: Vec::new(),
            change_config: Box::new(|_| {}),
            lookup: Lookup::system(),
            folder: tempfile::tempdir().unwrap(),
        };
        builder.settings(&[
            ("IMAGESVC_HOST", "127.0.0.1"),
            ("IMAGESVC_PORT", "0"),
            ("IMAGESVC_MIN_FREE_BYTES", "0"),
            ("IMAGESVC_DRAIN_DELAY", "0"),
        ])
    }

    /// Adds a setting. If a setting is added twice, the last value counts.
    #[allow(clippy::needless_pass_by_value, reason = "callers need no `&`")]
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds several settings.
    pub fn settings(self, settings: &[(&str, &str)]) -> Self {
        settings.iter().fold(self, |builder, (name, value)| builder.setting(name, value))
    }

    /// Shares calls and limits with other replicas through this Valkey.
    pub fn valkey(self, valkey: &ValkeyServer) -> Self {
        valkey
            .settings()
            .into_iter()
            .fold(self, |builder, (name, value)| builder.setting(name, value))
    }

    /// Saves pictures and vectors in this bucket.
    pub fn bucket(self, bucket: &FakeBucket) -> Self {
        let settings = bucket.settings().into_iter();
        settings.fold(self, |builder, (name, value)| builder.setting(name, value))
    }

    /// Allows the service to fetch from this server, although its address is a loopback address.
    pub fn may_fetch_from(self, server: &FakeServer) -> Self {
        self.setting("IMAGESVC_FETCH_ALLOW", server.address)
    }

    /// Changes values of the resolved configuration that have no setting of their own. A second call
    /// replaces the change of the first.
    pub fn configure(mut self, change: impl FnOnce(&mut Config) + Send + 'static) -> Self {
        self.change_config = Box::new(change);
        self
    }

    /// Resolves host names with this function.
    pub fn lookup(
        mut self,
        lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        self.lookup = Lookup::custom(lookup);
        self
    }

    /// Uses the downloads folder of an earlier service.
    pub fn folder(mut self, folder: TempDir) -> Self {
        self.folder = folder;
        self
    }

    /// Resolves the settings, without the changes of [`Self::configure`]. Shortens the waits before
    /// calls to NVIDIA are retried and before results are polled, so that tests are fast.
    pub fn config(&self) -> Config {
        let downloads = self.folder.path().to_str().unwrap();
        let settings = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let all_settings = [("IMAGESVC_DOWNLOADS_DIR", downloads)].into_iter().chain(settings);
        let mut config = Config::resolve(&RawSettings::from_pairs(all_settings))
            .unwrap_or_else(|errors| panic!("{errors}"));
        // The defaults are checked here, because no test can see them after this.
        assert_eq!(config.nvidia.retry.base, Duration::from_millis(250));
        config.nvidia.retry.base = Duration::from_nanos(1);
        assert_eq!(config.nvidia.poll_interval, Duration::from_secs(1));
        config.nvidia.poll_interval = Duration::from_millis(1);
        // The default is the program of this process, which is the test binary.
        config.decoder.program = decoder_settings().program;
        config
    }

    /// Builds the service without serving. Returns the service and its downloads folder.
    pub async fn build(self) -> Result<(App, TempDir), BuildError> {
        let mut config = self.config();
        (self.change_config)(&mut config);
        Ok((App::build_with_lookup(config, self.lookup).await?, self.folder))
    }

    /// Starts the service.
    pub async fn start(self) -> TestApp {
        let (app, folder) = self.build().await.unwrap();
        let address = app.address();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(app.serve(async {
            // An error means that the test dropped the `TestApp`. The service stops in this case,
            // too.
            let _ = stopped.await;
        }));
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        TestApp { address, client, folder, stop, server }
    }
}

impl TestApp {
    /// Starts a service that calls a fake NVIDIA, with default settings.
    pub async fn start(nvidia: &FakeNvidia) -> Self {
        Self::builder(nvidia).start().await
    }

    /// Prepares a service that calls a fake NVIDIA.
    pub fn builder(nvidia: &FakeNvidia) -> Builder {
        let settings = nvidia.settings().into_iter();
        settings.fold(Builder::new(), |builder, (name, value)| builder.setting(name, value))
    }

    /// Prepares a service in sandbox mode.
    pub fn sandbox() -> Builder {
        Builder::new().setting("IMAGESVC_SANDBOX", true)
    }

    /// Stops the service, waits until it has drained and its folder is unlocked, and returns the
    /// folder.
    pub async fn stop(self) -> TempDir {
        self.stop.send(()).unwrap();
        self.server.await.unwrap();
        // Another test may be starting a program. Until its `exec`, the forked child has all files
        // of this process open, including the lock file of this folder. The folder stays locked until then.
        // There is no lock file here if the test's settings contain another downloads folder.
        if let Ok(lock) = std::fs::File::open(self.folder.path().join(".lock")) {
            let started = std::time::Instant::now();
            while lock.try_lock().is_err() {
                assert!(
                    started.elapsed() < Duration::from_secs(10),
                    "the folder should be unlocked within 10 s"
                );
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            // Closing the file would not suffice: a child that is forked now has this file open, too.
            lock.unlock().unwrap();
        }
        self.folder
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a request, and reads the whole answer.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    /// Sends a request with this client in place of `self.client`.
    pub async fn send_by(&self, client: &Client, request: RequestBuilder) -> Answer {
        let request = request.build().unwrap();
        self.send(RequestBuilder::from_parts(client.clone(), request)).await
    }

    /// Waits until the service's metrics meet a condition. The condition gets a function that returns the
    /// value of a series.
    pub async fn wait_for(&self, condition: impl Fn(&dyn Fn(&str) -> f64) -> bool) {
        let mut metrics = String::new();
        let poll = async {
            loop {
                metrics = self.get("/metrics").await.text();
                if condition(&|series| metric(&metrics, series)) {
                    break;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        let polled = tokio::time::timeout(Duration::from_secs(20), poll).await;
        assert!(polled.is_ok(), "the metrics should meet the condition within 20 s: {metrics}");
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.client.get(self.url(path))).await
    }

    pub async fn post(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Answer {
        let request =
            self.client.post(self.url(path)).header(CONTENT_TYPE, content_type).body(body.into());
        self.send(request).await
    }

    /// Sends a picture to the upload route, in a form like that of curl.
    pub async fn upload(&self, picture: &[u8], name: &str) -> Answer {
        self.send(self.upload_request(picture, name)).await
    }

    /// Prepares a request to the upload route.
    pub fn upload_request(&self, picture: &[u8], name: &str) -> RequestBuilder {
        let head =
            format!("name=\"file\"; filename=\"{name}\"\r\nContent-Type: application/octet-stream");
        self.form_request(&[(&head, picture)])
    }

    /// Sends a form to the upload route. Each part is a pair: the rest of its head after
    /// `Content-Disposition: form-data; `, and its bytes.
    pub async fn upload_parts(&self, parts: &[(&str, &[u8])]) -> Answer {
        self.send(self.form_request(parts)).await
    }

    fn form_request(&self, parts: &[(&str, &[u8])]) -> RequestBuilder {
        let mut body = Vec::new();
        for (head, bytes) in parts {
            body.extend(
                format!("--b0undary\r\nContent-Disposition: form-data; {head}\r\n\r\n").as_bytes(),
            );
            body.extend(*bytes);
            body.extend(b"\r\n");
        }
        body.extend(b"--b0undary--\r\n");
        self.client
            .post(self.url("/vectorize-image-upload"))
            .header(CONTENT_TYPE, "multipart/form-data; boundary=b0undary")
            .body(body)
    }

    /// Sends a picture to the Base64 route.
    pub async fn base64(&self, picture: &[u8]) -> Answer {
        self.send(self.base64_request(picture)).await
    }

    /// Prepares a request to the Base64 route.
    pub fn base64_request(&self, picture: &[u8]) -> RequestBuilder {
        let body =
            json!({ "image_base64": BASE64_STANDARD.encode(picture), "filename": "a picture" });
        self.json_request("/vectorize-image-base64", &body)
    }

    /// Sends the URL of a picture to the URL route.
    pub async fn by_url(&self, url: &str) -> Answer {
        self.send(self.url_request(url)).await
    }

    /// Prepares a request to the URL route.
    pub fn url_request(&self, url: &str) -> RequestBuilder {
        self.json_request("/vectorize-image", &json!({ "image_url": url }))
    }

    /// Sends this body to the route for batches.
    pub async fn batch(&self, body: &Value) -> Answer {
        self.send(self.json_request("/v1/embeddings", body)).await
    }

    pub fn json_request(&self, path: &str, body: &Value) -> RequestBuilder {
        let request = self.client.post(self.url(path)).header(CONTENT_TYPE, "application/json");
        request.body(body.to_string())
    }

    /// The downloads folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The names of the saved pictures.
    pub fn saved(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// Waits until this many pictures are saved.
    pub async fn wait_for_saved_count(&self, count: usize) {
        let started = std::time::Instant::now();
        while self.saved().len() != count {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{count} pictures should be saved within 20 s: {:?}",
                self.saved()
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The bytes of a saved picture.
    pub fn saved_bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }
}
