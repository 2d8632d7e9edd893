//! Shutdown: the service answers every accepted request, and stops within a bounded time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use crate::support::{FakeNvidia, Reply, ServiceProcess, embedding, tiny};

async fn upload(child: &ServiceProcess, n: usize) -> reqwest::Result<(u16, String)> {
    let request = child.base64_request(&reqwest::Client::new(), &tiny(n));
    let response = request.send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// Connects a client that sends the start of its body and then stalls.
async fn connect_stalled_client(child: &ServiceProcess) -> TcpStream {
    let mut stream = TcpStream::connect(child.address).await.unwrap();
    let head =
        b"POST /vectorize-image-base64 HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"image";
    stream.write_all(head).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_and_with_a_stalled_client_every_accepted_request_is_answered() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let folder = tempfile::tempdir().unwrap();
    let settings = [("IMAGESVC_DRAIN_DELAY", "1s"), ("IMAGESVC_BODY_TIMEOUT", "2s")];
    let child = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let _stalled = connect_stalled_client(&child).await;
    let mut idle = TcpStream::connect(child.address).await.unwrap();

    let early = join_all((0..20).map(|n| upload(&child, n)));
    let stopping = async {
        nvidia.wait_for(20).await;
        child.terminate();
        // During the drain delay /ready reports the shutdown and connections are still accepted.
        let ready = || async { reqwest::get(child.url("/ready")).await.unwrap() };
        let mut answer = ready().await;
        while answer.status() == 200 {
            answer = ready().await;
        }
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["connection"]),
            (503, &"close".parse().unwrap())
        );
        assert!(answer.text().await.unwrap().contains("draining"));
        let late = upload(&child, 100);
        let release_reply = async {
            nvidia.wait_for(21).await;
            release.send(true).unwrap();
        };
        tokio::join!(late, release_reply).0
    };
    let (early, late) = tokio::join!(early, stopping);
    for answer in early.into_iter().chain([late]) {
        let (status, body) = answer.expect("every upload should be answered");
        assert_eq!(status, 200, "{body:.300}");
    }
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "an idle connection should be closed without a response");
    let started = Instant::now();
    let (status, log) = child.wait();
    assert_eq!(status.code(), Some(0));
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "the shutdown should not wait for the drain timeout (70 s)"
    );
    assert!(log.last().unwrap().contains("every request was answered"), "{:?}", log.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_answered_until_the_listener_closes_and_then_cannot_connect() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let folder = tempfile::tempdir().unwrap();
    let child =
        ServiceProcess::start_with(&nvidia, folder.path(), &[("IMAGESVC_DRAIN_DELAY", "300ms")]);
    // Each client sends one request after the other, on a new connection each, until it cannot
    // connect.
    let request_health = async |mut stream: TcpStream| {
        let request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.starts_with("HTTP/1.1 200 OK"))
    };
    let client = async || {
        let (mut answered, mut lost) = (0, 0);
        while let Ok(stream) = TcpStream::connect(child.address).await {
            match request_health(stream).await {
                Ok(true) => answered += 1,
                Ok(false) | Err(_) => lost += 1,
            }
        }
        (answered, lost)
    };
    let clients = join_all((0..20).map(|_| client()));
    let running_upload = upload(&child, 1);
    let stop = async {
        nvidia.wait_for(1).await;
        child.terminate();
    };
    let all_clients = async {
        let (counts, ()) = tokio::join!(clients, stop);
        // The listener is closed now, although `running_upload` still runs.
        let total_answered: usize = counts.iter().map(|(answered, _)| answered).sum();
        let lost: usize = counts.iter().map(|(_, lost)| lost).sum();
        assert!(total_answered > 20);
        // First the service accepts all connections of the backlog, then it closes the listener.
        // Connections whose TCP handshake ends in between are lost. Without the first step, most
        // clients would lose a connection.
        assert!(lost <= 3, "at most 3 connections should be lost, not {lost}");
        release.send(true).unwrap();
    };
    let (uploaded, ()) = tokio::join!(running_upload, all_clients);
    assert_eq!(uploaded.unwrap().0, 200);
    assert_eq!(child.wait().0.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_still_running_at_the_drain_timeout_are_answered_with_503_and_logged() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let folder = tempfile::tempdir().unwrap();
    let child =
        ServiceProcess::start_with(&nvidia, folder.path(), &[("IMAGESVC_DRAIN_TIMEOUT", "200ms")]);
    let stopping = async {
        nvidia.wait_for(1).await;
        child.terminate();
    };
    let (answer, ()) = tokio::join!(upload(&child, 1), stopping);
    let (status, body) = answer.unwrap();
    let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, problem["code"].as_str()), (503, Some("shutting_down")));
    let (status, log) = child.wait();
    assert_eq!(status.code(), Some(0));
    assert!(log.iter().any(|line| line.contains("\"code\":\"shutting_down\"")), "{log:?}");
    assert!(log.last().unwrap().contains("ended running requests"), "{:?}", log.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_calls_whose_clients_have_disconnected() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let folder = tempfile::tempdir().unwrap();
    let child = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
    tokio::select! {
        _ = upload(&child, 1) => panic!("the upload was answered before NVIDIA's reply was released"),
        _ = nvidia.wait_for(1) => {}
    }
    child.terminate();
    release.send(true).unwrap();
    let (status, log) = child.wait();
    assert_eq!(status.code(), Some(0));
    assert!(log.last().unwrap().contains("every request was answered"), "{:?}", log.last());
    let child = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
    assert_eq!(upload(&child, 1).await.unwrap().0, 200);
    assert_eq!(nvidia.lines().len(), 1, "the second upload should be answered from the cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_or_sigint_ends_the_service_at_once() {
    for signal in ["TERM", "INT"] {
        let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
        let folder = tempfile::tempdir().unwrap();
        let child =
            ServiceProcess::start_with(&nvidia, folder.path(), &[("IMAGESVC_DRAIN_DELAY", "60s")]);
        let stopping = async {
            nvidia.wait_for(1).await;
            child.signal(signal);
            while reqwest::get(child.url("/ready")).await.unwrap().status() == 200 {}
            child.signal(signal);
        };
        // After the second signal, running requests get no answer.
        let (answer, ()) = tokio::join!(upload(&child, 1), stopping);
        assert!(answer.is_err());
        let (status, log) = child.wait();
        assert_eq!(status.code(), Some(0));
        assert!(log.last().unwrap().contains("a second signal"), "{:?}", log.last());
    }
}

#[tokio::test]
async fn sighup_does_not_stop_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let child = ServiceProcess::start(folder.path(), &[("IMAGESVC_SANDBOX", "true")]);
    child.signal("HUP");
    let health = reqwest::get(child.url("/health")).await.unwrap();
    assert_eq!(health.status(), 200);
    let (status, log) = child.stop();
    assert_eq!(status.code(), Some(0));
    assert!(log.iter().any(|line| line.contains("SIGHUP changes nothing")), "{log:?}");
}
