//! The service on port 0, with a folder of its own.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use imagesvc::{
    app::App,
    config::{Config, Raw},
    fetch::Lookup,
};
use reqwest::{
    Client, RequestBuilder,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use super::{Nvidia, decoder_settings};

/// A running service.
pub struct TestApp {
    pub address: SocketAddr,
    pub client: Client,
    folder: TempDir,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn vector(&self) -> Vec<f64> {
        assert_eq!(self.status, 200, "{:.500}", self.text());
        let answer = self.json();
        assert_eq!(answer["status"], "success");
        // As text: serde_json's own floats are off by a bit at times.
        let text = self.text();
        let (_, vector) = text.split_once("\"vector\":[").unwrap();
        let (vector, rest) = vector.split_once(']').unwrap();
        assert_eq!(rest, "}\n", "the vector comes last");
        let vector: Vec<f64> =
            vector.split(',').map(|number| number.trim().parse().unwrap()).collect();
        assert_eq!(vector.len(), 1536);
        assert!(vector.iter().all(|number| number.is_finite()));
        vector
    }
}

/// Asserts what every error answer holds, and gives its body back.
pub fn assert_problem(answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!(answer.status, status, "{:.500}", answer.text());
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem["status"], status);
    assert_eq!(problem["type"], "about:blank");
    assert_eq!(
        problem["title"],
        reqwest::StatusCode::from_u16(status).unwrap().canonical_reason().unwrap()
    );
    assert!(answer.text().ends_with("}\n"));
    assert_eq!(problem["request_id"], answer.header("x-request-id"));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.len() > 20 && detail.ends_with(['.', '?']), "a sentence that helps: {detail:?}");
    for leak in
        ["/tmp", "src/", "os error", "reqwest", "hyper", "planted", "upstream-secret", "127.0.0.1"]
    {
        assert!(!answer.text().contains(leak), "{leak} leaks: {}", answer.text());
    }
    problem
}

/// The value of a metric, by its name and labels as they stand in the text; 0 if it is not there.
pub fn metric(text: &str, name: &str) -> f64 {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    values.next().map_or(0.0, |value| value.parse().unwrap())
}

/// A client with an address of its own: on Linux, all of 127.0.0.0/8 is this machine.
pub fn client_from(source: [u8; 4]) -> Client {
    Client::builder()
        .no_proxy()
        .local_address(IpAddr::from(source))
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

/// A connection from such an address.
pub async fn connect_from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    socket.connect(to).await
}

impl TestApp {
    /// In front of a scripted NVIDIA.
    pub async fn against(nvidia: &Nvidia) -> Self {
        Self::configured(nvidia, &[], |_| {}).await
    }

    /// In front of a scripted NVIDIA, with more settings.
    pub async fn with_settings(nvidia: &Nvidia, settings: &[(&str, &str)]) -> Self {
        Self::configured(nvidia, settings, |_| {}).await
    }

    /// In front of a scripted NVIDIA, with what no setting tells.
    pub async fn configured(
        nvidia: &Nvidia,
        settings: &[(&str, &str)],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let upstream = nvidia.settings();
        let upstream = upstream.iter().map(|(name, value)| (*name, value.as_str()));
        let settings = upstream.chain(settings.iter().copied());
        Self::start(tempfile::tempdir().unwrap(), settings, change, Lookup::system()).await
    }

    /// In sandbox mode.
    pub async fn sandbox() -> Self {
        Self::sandbox_in(tempfile::tempdir().unwrap()).await
    }

    /// In sandbox mode, in a folder that was used before.
    pub async fn sandbox_in(folder: TempDir) -> Self {
        let settings = [("IMAGESVC_SANDBOX", "true")];
        Self::start(folder, settings, |_| {}, Lookup::system()).await
    }

    /// In front of a scripted NVIDIA, in a folder that was used before.
    pub async fn in_folder(folder: TempDir, nvidia: &Nvidia, settings: &[(&str, &str)]) -> Self {
        let upstream = nvidia.settings();
        let upstream = upstream.iter().map(|(name, value)| (*name, value.as_str()));
        let settings = upstream.chain(settings.iter().copied());
        Self::start(folder, settings, |_| {}, Lookup::system()).await
    }

    /// With names that lead where the test says.
    pub async fn with_names(
        nvidia: &Nvidia,
        settings: &[(&str, &str)],
        lookup: impl Fn(&str) -> std::io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        let upstream = nvidia.settings();
        let upstream = upstream.iter().map(|(name, value)| (*name, value.as_str()));
        let settings = upstream.chain(settings.iter().copied());
        let lookup = Lookup::custom(lookup);
        Self::start(tempfile::tempdir().unwrap(), settings, |_| {}, lookup).await
    }

    async fn start(
        folder: TempDir,
        settings: impl IntoIterator<Item = (&str, &str)>,
        change: impl FnOnce(&mut Config),
        lookup: Lookup,
    ) -> Self {
        let downloads = folder.path().to_str().unwrap().to_owned();
        let mut all = vec![
            ("IMAGESVC_HOST", "127.0.0.1"),
            ("IMAGESVC_PORT", "0"),
            ("IMAGESVC_DOWNLOADS_DIR", downloads.as_str()),
            ("IMAGESVC_MIN_FREE_BYTES", "0"),
            ("IMAGESVC_DRAIN_DELAY", "0"),
        ];
        for setting in settings {
            all.push(setting);
        }
        let mut config =
            Config::resolve(&Raw::from_pairs(all)).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(config.nvidia.retry.base, Duration::from_millis(250));
        config.nvidia.retry.base = Duration::from_nanos(1);
        assert_eq!(config.nvidia.poll_interval, Duration::from_secs(1));
        config.nvidia.poll_interval = Duration::from_millis(1);
        config.decoder.program = decoder_settings().program;
        change(&mut config);
        let app = App::build_with_lookup(config, lookup).await.unwrap();
        let address = app.address();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(app.serve(async {
            // Told to stop, or dropped with the test: both end it.
            let _ = stopped.await;
        }));
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        Self { address, client, folder, stop, served }
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
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, body: response.bytes().await.unwrap().into() }
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
    pub async fn by_address(&self, address: &str) -> Answer {
        self.send(self.address_request(address)).await
    }

    /// The same, not sent yet.
    pub fn address_request(&self, address: &str) -> RequestBuilder {
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
