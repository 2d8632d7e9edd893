//! Behind Caddy, configured by `deploy/Caddyfile`, clients receive the service's early error
//! responses unchanged.

use std::{
    future::pending,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    FORM_CONTENT_TYPE, ROCKET, ServiceProcess, base64_body, form, free_address, is_missing,
};

/// The size of a picture that exceeds the sockets' buffers. The client is still sending the picture
/// when the service refuses the request.
const LARGE_PICTURE_BYTES: usize = 8 << 20;

/// A running Caddy. Its process is killed when this value is dropped.
struct Caddy {
    address: SocketAddr,
    process: std::process::Child,
}

impl Caddy {
    /// Starts Caddy with `deploy/Caddyfile`, in which only the two addresses are replaced, and
    /// waits until it is listening.
    async fn start(folder: &Path, service: SocketAddr) -> Self {
        let address = free_address().await;
        let shipped = include_str!("../../deploy/Caddyfile");
        let mut adapted = shipped.to_owned();
        for (from, to) in [
            ("\nimages.example.com {", format!("\nhttp://{address} {{")),
            ("reverse_proxy 127.0.0.1:8000 {", format!("reverse_proxy {service} {{")),
        ] {
            assert_eq!(adapted.matches(from).count(), 1, "{from}");
            adapted = adapted.replace(from, &to);
        }
        std::fs::write(folder.join("Caddyfile"), adapted).unwrap();
        let mut process = Command::new("caddy")
            .args(["run", "--adapter", "caddyfile", "--config", "Caddyfile"])
            .current_dir(folder)
            .env("HOME", folder)
            // Without this, every Caddy on a machine would use the same TCP port for its admin API.
            .env("CADDY_ADMIN", "unix/admin.sock")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
        let (sender, lines) = mpsc::channel();
        // The thread reads the whole log, since Caddy would block on a full pipe.
        std::thread::spawn(move || log.for_each(|line| drop(sender.send(line))));
        let caddy = Self { address, process };
        let mut printed = Vec::new();
        while !printed.last().is_some_and(|line: &String| line.contains("serving initial config")) {
            let line = lines.recv_timeout(Duration::from_secs(20));
            printed.push(
                line.unwrap_or_else(|error| panic!("Caddy did not start ({error}): {printed:?}")),
            );
        }
        caddy
    }
}

impl Drop for Caddy {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether the bytes contain a whole response, with or without a `100 Continue` before it.
fn is_whole(answer: &[u8]) -> bool {
    let answer = String::from_utf8_lossy(answer);
    let last_response = answer.rsplit("HTTP/1.1 ").next().unwrap();
    let Some((head, body)) = last_response.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_some_and(|length| body.len() >= length.parse().unwrap())
}

/// Sends a request and returns as soon as the response is complete. This function does not wait
/// until the connection closes. If the response arrives before the whole body is sent, Caddy may
/// leave the connection open although its response contains `Connection: close`.
async fn exchange(to: SocketAddr, head: &str, body: &[u8]) -> String {
    let (mut reader, mut writer) = TcpStream::connect(to).await.unwrap().into_split();
    let send = async {
        writer.write_all(head.as_bytes()).await.unwrap();
        // Caddy does not read the whole body of a refused request, so this write may fail.
        let _ = writer.write_all(body).await;
        pending::<()>().await; // only the end of `read` ends the exchange
    };
    let mut answer = Vec::new();
    let read = async {
        // The connection may be reset after the response.
        while reader.read_buf(&mut answer).await.is_ok_and(|len| len > 0) {
            if is_whole(&answer) {
                break;
            }
        }
    };
    let exchange_or_timeout = timeout(Duration::from_secs(60), async {
        tokio::select! {
            () = send => {}
            () = read => {}
        }
    });
    let in_time = exchange_or_timeout.await.is_ok();
    let answer = String::from_utf8(answer).unwrap();
    assert!(in_time, "a whole answer should arrive within 60 s: {head}{answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_refused_behind_caddy_always_receives_the_response_of_the_service() {
    const CLIENT_KEY: &str = "k-1";
    if is_missing("caddy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("IMAGESVC_SANDBOX", "true"),
        ("IMAGESVC_API_KEYS", CLIENT_KEY),
        ("IMAGESVC_MAX_IMAGE_BYTES", "1MiB"),
        ("IMAGESVC_TRUSTED_PROXIES", "127.0.0.1/32,::1/128"), // as the Caddyfile's comment says
    ];
    let service = ServiceProcess::start(folder.path(), &settings);
    let caddy = Caddy::start(folder.path(), service.address).await;
    let large = vec![b'A'; LARGE_PICTURE_BYTES];
    let bodies = [
        ("/vectorize-image-upload", FORM_CONTENT_TYPE, form(&large)),
        ("/vectorize-image-base64", "application/json", base64_body(&large).into_bytes()),
    ];
    let with_key = format!("Bearer {CLIENT_KEY}");
    let cases = [("", 401, "unauthorized"), (with_key.as_str(), 413, "image_too_large")];
    for (authorization, status, code) in cases {
        for (route, content_type, body) in &bodies {
            for expect in ["", "expect: 100-continue\r\n"] {
                let head = format!(
                    "POST {route} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
                     authorization: {authorization}\r\ncontent-type: {content_type}\r\n\
                     content-length: {}\r\n{expect}\r\n",
                    caddy.address,
                    body.len()
                );
                // A fault that loses only some of the responses shows in 30 exchanges.
                for answer in join_all((0..30).map(|_| exchange(caddy.address, &head, body))).await
                {
                    // A `100 Continue` may precede the response.
                    let response = answer.rsplit("HTTP/1.1 ").next().unwrap();
                    let case = format!("{route} {expect:?}: {answer}");
                    assert!(response.starts_with(&format!("{status} ")), "{case}");
                    assert!(response.contains("application/problem+json"), "{case}");
                    assert!(response.contains(&format!("\"code\":\"{code}\"")), "{case}");
                }
            }
        }
    }
    // A request that is not refused is answered, too.
    let body = form(ROCKET);
    let head = format!(
        "POST /vectorize-image-upload HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
         authorization: {with_key}\r\ncontent-type: {FORM_CONTENT_TYPE}\r\n\
         content-length: {}\r\n\r\n",
        caddy.address,
        body.len()
    );
    let answer = exchange(caddy.address, &head, &body).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:.300}");
}
