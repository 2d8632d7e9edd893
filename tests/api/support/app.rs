//! The service on port 0, with a folder of its own.

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

use super::{Answer, FakeNvidia, FakeServer, decoder_settings, metric};

/// A running service.
pub struct TestApp {
    pub address: SocketAddr,
    pub client: Client,
    folder: TempDir,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

/// What a service is started with.
pub struct Builder {
    settings: Vec<(String, String)>,
    configure: Box<dyn FnOnce(&mut Config) + Send>,
    lookup: Lookup,
    folder: TempDir,
}

impl Builder {
    fn new() -> Self {
        let builder = Self {
            settings: Vec::new(),
            configure: Box::new(|_| {}),
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

    /// Sets a setting; the last value counts.
    #[allow(clippy::needless_pass_by_value, reason = "callers read better that way")]
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sets several settings.
    pub fn settings(self, settings: &[(&str, &str)]) -> Self {
        settings.iter().fold(self, |builder, (name, value)| builder.setting(name, value))
    }

    /// Lets it fetch from this server, although it is on this machine.
    pub fn may_fetch_from(self, server: &FakeServer) -> Self {
        self.setting("IMAGESVC_FETCH_ALLOW", server.address)
    }

    /// Changes what no setting tells.
    pub fn configure(mut self, change: impl FnOnce(&mut Config) + Send + 'static) -> Self {
        self.configure = Box::new(change);
        self
    }

    /// Lets the names of hosts lead where the test says.
    pub fn lookup(
        mut self,
        lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        self.lookup = Lookup::custom(lookup);
        self
    }

    /// Keeps pictures in a folder that was used before.
    pub fn folder(mut self, folder: TempDir) -> Self {
        self.folder = folder;
        self
    }

    /// What the settings resolve to.
    pub fn config(&self) -> Config {
        let downloads = self.folder.path().to_str().unwrap();
        let settings = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let all = [("IMAGESVC_DOWNLOADS_DIR", downloads)].into_iter().chain(settings);
        let mut config = Config::resolve(&RawSettings::from_pairs(all))
            .unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(config.nvidia.retry.base, Duration::from_millis(250));
        config.nvidia.retry.base = Duration::from_nanos(1);
        assert_eq!(config.nvidia.poll_interval, Duration::from_secs(1));
        config.nvidia.poll_interval = Duration::from_millis(1);
        config.decoder.program = decoder_settings().program;
        config
    }

    /// Builds the service without serving it, and gives its folder beside it.
    pub async fn build(self) -> Result<(App, TempDir), BuildError> {
        let mut config = self.config();
        (self.configure)(&mut config);
        Ok((App::build_with_lookup(config, self.lookup).await?, self.folder))
    }

    /// Starts the service.
    pub async fn start(self) -> TestApp {
        let (app, folder) = self.build().await.unwrap();
        let address = app.address();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(app.serve(async {
            // Told to stop, or dropped with the test: both end it.
            let _ = stopped.await;
        }));
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        TestApp { address, client, folder, stop, served }
    }
}

impl TestApp {
    /// Starts a service in front of a fake NVIDIA, with nothing else set.
    pub async fn start(nvidia: &FakeNvidia) -> Self {
        Self::builder(nvidia).start().await
    }

    /// A service in front of a fake NVIDIA, not started yet.
    pub fn builder(nvidia: &FakeNvidia) -> Builder {
        let settings = nvidia.settings().into_iter();
        settings.fold(Builder::new(), |builder, (name, value)| builder.setting(name, value))
    }

    /// A service in sandbox mode, not started yet.
    pub fn sandbox() -> Builder {
        Builder::new().setting("IMAGESVC_SANDBOX", true)
    }

    /// Stops the service and waits until it drained, and its folder is free.
    pub async fn stop(self) -> TempDir {
        self.stop.send(()).unwrap();
        self.served.await.unwrap();
        // A program that another test is just starting holds all files of this process for a
        // moment, the folder's lock among them.
        if let Ok(lock) = std::fs::File::open(self.folder.path().join(".lock")) {
            let started = std::time::Instant::now();
            while lock.try_lock().is_err() {
                assert!(started.elapsed() < Duration::from_secs(10), "the folder stays locked");
                tokio::task::yield_now().await;
            }
        }
        self.folder
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }

    /// What [`Self::send`] does, by another client.
    pub async fn send_by(&self, client: &Client, request: RequestBuilder) -> Answer {
        let request = request.build().unwrap();
        self.send(RequestBuilder::from_parts(client.clone(), request)).await
    }

    /// Waits until the metrics are as wanted.
    pub async fn wait_for(&self, wanted: impl Fn(&dyn Fn(&str) -> f64) -> bool) {
        let mut last = String::new();
        let reach = async {
            loop {
                last = self.get("/metrics").await.text();
                if wanted(&|name| metric(&last, name)) {
                    break;
                }
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(20), reach).await;
        assert!(reached.is_ok(), "{last}");
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.client.get(self.url(path))).await
    }

    pub async fn post(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Answer {
        let request =
            self.client.post(self.url(path)).header(CONTENT_TYPE, content_type).body(body.into());
        self.send(request).await
    }

    /// By the upload route, as curl does it.
    pub async fn upload(&self, picture: &[u8], name: &str) -> Answer {
        self.send(self.upload_request(picture, name)).await
    }

    /// An upload that is not sent yet.
    pub fn upload_request(&self, picture: &[u8], name: &str) -> RequestBuilder {
        let part =
            format!("name=\"file\"; filename=\"{name}\"\r\nContent-Type: application/octet-stream");
        self.form_request(&[(&part, picture)])
    }

    /// A form of parts, each given by what follows `form-data; `, and its bytes.
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

    /// By the Base64 route.
    pub async fn base64(&self, picture: &[u8]) -> Answer {
        self.send(self.base64_request(picture)).await
    }

    /// The same, not sent yet.
    pub fn base64_request(&self, picture: &[u8]) -> RequestBuilder {
        let body =
            json!({ "image_base64": BASE64_STANDARD.encode(picture), "filename": "a picture" });
        self.json_request("/vectorize-image-base64", &body)
    }

    /// By the URL route.
    pub async fn by_url(&self, address: &str) -> Answer {
        self.send(self.url_request(address)).await
    }

    /// The same, not sent yet.
    pub fn url_request(&self, address: &str) -> RequestBuilder {
        self.json_request("/vectorize-image", &json!({ "image_url": address }))
    }

    fn json_request(&self, path: &str, body: &Value) -> RequestBuilder {
        let request = self.client.post(self.url(path)).header(CONTENT_TYPE, "application/json");
        request.body(body.to_string())
    }

    /// The downloads folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The names in the downloads folder, without the service's own.
    pub fn saved(&self) -> Vec<String> {
        names(self.folder.path())
    }

    /// The bytes of a saved picture.
    pub fn saved_bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.')).collect()
}
