//! The service sends no request to a picture host, to NVIDIA or to a Valkey if the server's certificate
//! is invalid.

use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd,
};
use tokio_rustls::rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use crate::support::{
    Answer, FakeServer, ROCKET, RedisServer, Reply, ServiceProcess, assert_problem, embedding,
    free_address,
    nvidia_api::{ASSETS_PATH, INFER_PATH, KEY, STATUS_PATH},
};

/// A certificate authority for tests.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Returns a new certificate for `name`, which expires on the first day of `expiry_year`, and its
    /// key.
    fn sign(&self, name: &str, expiry_year: i32) -> (Certificate, KeyPair) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(expiry_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }

    /// Returns a server configuration with a new certificate: see [`Self::sign`].
    fn server_config(&self, name: &str, expiry_year: i32) -> ServerConfig {
        let (certificate, key) = self.sign(name, expiry_year);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }

    /// Writes the authority's certificate to a file in `folder`. Returns the environment variable that
    /// makes a service trust this authority and no other.
    fn trust_variable(&self, folder: &Path) -> (&'static str, String) {
        let file = folder.join("authority.pem");
        std::fs::write(&file, &self.pem).unwrap();
        ("SSL_CERT_FILE", file.to_str().unwrap().to_owned())
    }
}

/// Server configurations whose certificates no client of `localhost` should accept. Each comes with
/// a description of its certificate.
fn invalid_configs(authority: &Authority) -> [(&'static str, ServerConfig); 3] {
    [
        ("for another name", authority.server_config("other.example", 2100)),
        ("expired", authority.server_config("localhost", 2021)),
        ("by an authority that nobody trusts", Authority::new().server_config("localhost", 2100)),
    ]
}

/// The number of pictures that were saved.
fn saved_count(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder.join("downloads")).unwrap();
    entries
        .filter(|entry| !entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with('.'))
        .count()
}

#[tokio::test]
async fn a_picture_is_fetched_only_from_a_host_with_a_valid_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let reply_with_picture = |_: &_, _| Reply::new(200, &[], ROCKET);
    let valid =
        FakeServer::start_tls(authority.server_config("localhost", 2100), reply_with_picture).await;
    // Each server with a description of its certificate. The valid one is the first.
    let mut picture_servers = vec![("valid", valid)];
    for (description, config) in invalid_configs(&authority) {
        picture_servers
            .push((description, FakeServer::start_tls(config, reply_with_picture).await));
    }
    let host_and_port =
        |picture_server: &FakeServer| format!("localhost:{}", picture_server.address.port());
    let allowed: Vec<_> =
        picture_servers.iter().map(|(_, picture_server)| host_and_port(picture_server)).collect();
    let allowed = allowed.join(",");
    let (trust, authority_file) = authority.trust_variable(folder.path());
    let settings = [
        ("IMAGESVC_SANDBOX", "true"),
        ("IMAGESVC_FETCH_ALLOW", &allowed),
        (trust, &authority_file),
    ];
    let service = ServiceProcess::start(folder.path(), &settings);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (description, picture_server) in &picture_servers {
        let url = format!("https://{}/", host_and_port(picture_server));
        let answer = service.url_request(&client, &url).send().await.unwrap();
        let answer = Answer::read(answer).await.unwrap();
        if *description == "valid" {
            answer.assert_success();
            assert_eq!(picture_server.count(), 1);
        } else {
            assert_problem(&answer, 502, "download_failed");
            assert_eq!(
                picture_server.count(),
                0,
                "no request should be sent to a host whose certificate is {description}"
            );
        }
        // The valid host is the first.
        assert_eq!(saved_count(folder.path()), 1, "only the valid host's picture should be saved");
    }
}

#[tokio::test]
async fn the_api_key_and_the_picture_are_sent_only_if_the_certificate_of_nvidia_is_valid() {
    let authority = Authority::new();
    let valid_config = authority.server_config("localhost", 2100);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (description, config) in
        [("valid", valid_config)].into_iter().chain(invalid_configs(&authority))
    {
        let folder = tempfile::tempdir().unwrap();
        let nvidia = FakeServer::start_tls(config, |_, _| embedding()).await;
        let (trust, authority_file) = authority.trust_variable(folder.path());
        let url = |path| format!("https://localhost:{}{path}", nvidia.address.port());
        let (infer, status, assets) = (url(INFER_PATH), url(STATUS_PATH), url(ASSETS_PATH));
        let settings = [
            ("NVIDIA_API_KEY", KEY),
            ("NVIDIA_INFER_URL", &infer),
            ("NVIDIA_STATUS_URL", &status),
            ("NVIDIA_ASSETS_URL", &assets),
            (trust, &authority_file),
        ];
        let service = ServiceProcess::start(folder.path(), &settings);
        let answer = service.upload_request(&client, ROCKET).send().await.unwrap();
        let answer = Answer::read(answer).await.unwrap();
        if description == "valid" {
            answer.assert_success();
            let received = nvidia.received();
            assert_eq!(received.len(), 1, "the service should make one call");
            assert_eq!(received[0].header("authorization"), Some(&*format!("Bearer {KEY}")));
        } else {
            assert_problem(&answer, 502, "embedding_unavailable");
            assert_eq!(
                nvidia.count(),
                0,
                "no request should be sent if NVIDIA's certificate is {description}"
            );
        }
        let saved = saved_count(folder.path());
        assert_eq!(saved, 1, "the picture should be saved whatever NVIDIA's certificate is");
    }
}

#[tokio::test]
async fn a_valkey_is_used_only_if_its_certificate_is_valid() {
    let authority = Authority::new();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (description, (certificate, key)) in [
        ("valid", authority.sign("localhost", 2100)),
        ("for another name", authority.sign("other.example", 2100)),
        ("expired", authority.sign("localhost", 2021)),
        ("by an authority that nobody trusts", Authority::new().sign("localhost", 2100)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [pem_file, key_file] =
            [("valkey.pem", certificate.pem()), ("valkey.key", key.serialize_pem())].map(
                |(name, text)| {
                    let file = folder.path().join(name);
                    std::fs::write(&file, text).unwrap();
                    file.to_str().unwrap().to_owned()
                },
            );
        let port = free_address().await.port();
        let arguments = [
            ["--tls-port", &port.to_string()],
            ["--tls-cert-file", &pem_file],
            ["--tls-key-file", &key_file],
            // Would verify the certificates of clients, but the service sends none.
            ["--tls-ca-cert-file", &pem_file],
            ["--tls-auth-clients", "no"],
        ];
        let Some(_server) = RedisServer::start(arguments.as_flattened()) else { return };
        let (trust, authority_file) = authority.trust_variable(folder.path());
        let url = format!("rediss://localhost:{port}");
        let settings = [
            ("IMAGESVC_SANDBOX", "true"),
            ("IMAGESVC_VALKEY_URL", &url),
            // A handshake takes long on a busy machine.
            ("IMAGESVC_VALKEY_TIMEOUT", "10s"),
            (trust, &authority_file),
        ];
        let service = ServiceProcess::start(folder.path(), &settings);
        let ready = client.get(service.url("/ready")).send().await.unwrap();
        let ready: serde_json::Value = serde_json::from_str(&ready.text().await.unwrap()).unwrap();
        let is_usable = ready["valkey"]["usable"].as_bool().unwrap();
        assert_eq!(is_usable, description == "valid", "the certificate is {description}");
    }
}
