//! Shutdown: the service answers every accepted request, and stops within a bounded time. A second
//! signal ends the service at once.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use crate::support::{FakeNvidia, Reply, ServiceProcess, embedding, tiny};

/// Sends the picture [`tiny`]`(n)`. Returns the response's status and body.
async fn send_picture(service: &ServiceProcess, n: usize) -> reqwest::Result<(u16, String)> {
    let request = service.base64_request(&reqwest::Client::new(), &tiny(n));
    let response = request.send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// Connects a client that sends only the beginning of its body. The connection stays open.
async fn connect_stalled_client(service: &ServiceProcess) -> TcpStream {
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    let head =
        b"POST /vectorize-image-base64 HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"image";
    stream.write_all(head).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_and_with_a_stalled_client_every_complete_request_is_answered() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let folder = tempfile::tempdir().unwrap();
    // The drain delay leaves time for a request after SIGTERM. At the body timeout, the stalled client
    // is answered with an error. Otherwise the shutdown would wait for its request.
    let settings = [("IMAGESVC_DRAIN_DELAY", "1s"), ("IMAGESVC_BODY_TIMEOUT", "2s")];
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let _stalled = connect_stalled_client(&service).await;
    let mut idle = TcpStream::connect(service.address).await.unwrap();

    let requests_before_stop = join_all((0..20).map(|n| send_picture(&service, n)));
    let stopping = async {
        nvidia.wait_for(20).await;
        service.terminate();
        // During the drain delay, /ready reports the shutdown, and connections are still accepted.
        let ready = || async { reqwest::get(service.url("/ready")).await.unwrap() };
        let mut answer = ready().await;
        while answer.status() == 200 {
            answer = ready().await;
        }
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["connection"]),
            (503, &"close".parse().unwrap())
        );
        assert!(answer.text().await.unwrap().contains("draining"));
        let request_after_stop = send_picture(&service, 20);
        let release_reply = async {
            nvidia.wait_for(21).await;
            release.send(true).unwrap();
        };
        tokio::join!(request_after_stop, release_reply).0
    };
    let (answers_before_stop, answer_after_stop) = tokio::join!(requests_before_stop, stopping);
    for answer in answers_before_stop.into_iter().chain([answer_after_stop]) {
        let (status, body) = answer.expect("every complete request should be answered");
        assert_eq!(status, 200, "{body:.300}");
    }
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "an idle connection should be closed without a response");
    let started = Instant::now();
    let (status, log) = service.wait();
    assert_eq!(status.code(), Some(0));
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "the shutdown should not wait for the default drain timeout (70 s)"
    );
    assert!(log.last().unwrap().contains("every request was answered"), "{:?}", log.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_answered_until_the_listener_closes_and_then_cannot_connect() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let folder = tempfile::tempdir().unwrap();
    let service =
        ServiceProcess::start_with(&nvidia, folder.path(), &[("IMAGESVC_DRAIN_DELAY", "300ms")]);
    // Requests /health. Returns whether the answer begins with status 200. If the connection is lost,
    // returns `false` or an error.
    let request_health = async |mut stream: TcpStream| {
        let request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.starts_with("HTTP/1.1 200 OK"))
    };
    // A client sends one request after the other, each on a new connection, until it cannot connect.
    // Returns how many of its requests were answered, and how many were lost.
    let client = async || {
        let (mut answered, mut lost) = (0, 0);
        while let Ok(stream) = TcpStream::connect(service.address).await {
            match request_health(stream).await {
                Ok(true) => answered += 1,
                Ok(false) | Err(_) => lost += 1,
            }
        }
        (answered, lost)
    };
    let clients = join_all((0..20).map(|_| client()));
    let running_request = send_picture(&service, 1);
    let stopping = async {
        nvidia.wait_for(1).await;
        service.terminate();
    };
    let all_clients = async {
        let (counts, ()) = tokio::join!(clients, stopping);
        // The listener is closed now, although `running_request` still runs.
        let total_answered: usize = counts.iter().map(|(answered, _)| answered).sum();
        let lost: usize = counts.iter().map(|(_, lost)| lost).sum();
        assert!(total_answered > 20, "some of the 20 clients should get several answers");
        // First the service accepts all connections of the backlog, then it closes the listener. Only
        // the few connections whose TCP handshake ends between these two steps are lost. Without the
        // first step, most of the 20 clients would lose a connection.
        assert!(lost <= 3, "at most 3 connections should be lost, not {lost}");
        release.send(true).unwrap();
    };
    let (answer, ()) = tokio::join!(running_request, all_clients);
    assert_eq!(answer.unwrap().0, 200);
    assert_eq!(service.wait().0.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_still_running_at_the_drain_timeout_are_answered_with_503_and_logged() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let folder = tempfile::tempdir().unwrap();
    let service =
        ServiceProcess::start_with(&nvidia, folder.path(), &[("IMAGESVC_DRAIN_TIMEOUT", "200ms")]);
    let stopping = async {
        nvidia.wait_for(1).await;
        service.terminate();
    };
    let (answer, ()) = tokio::join!(send_picture(&service, 1), stopping);
    let (status, body) = answer.unwrap();
    let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, problem["code"].as_str()), (503, Some("shutting_down")));
    let (status, log) = service.wait();
    assert_eq!(status.code(), Some(0));
    assert!(log.iter().any(|line| line.contains("\"code\":\"shutting_down\"")), "{log:?}");
    assert!(log.last().unwrap().contains("ended running requests"), "{:?}", log.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_drain_timeout_the_log_says_that_only_background_tasks_are_left() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let folder = tempfile::tempdir().unwrap();
    let service =
        ServiceProcess::start_with(&nvidia, folder.path(), &[("IMAGESVC_DRAIN_TIMEOUT", "200ms")]);
    tokio::select! {
        _ = send_picture(&service, 1) => panic!("no answer may precede NVIDIA's reply"),
        _ = nvidia.wait_for(1) => {} // drops the request, which disconnects its client
    }
    service.terminate();
    let (status, log) = service.wait();
    assert_eq!(status.code(), Some(0));
    let last = log.last().unwrap();
    assert!(last.contains("ended background tasks") && last.contains("\"tasks\":1"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_calls_whose_clients_have_disconnected() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
    tokio::select! {
        _ = send_picture(&service, 1) => panic!("no answer may precede NVIDIA's reply"),
        _ = nvidia.wait_for(1) => {} // drops the request, which disconnects its client
    }
    service.terminate();
    release.send(true).unwrap();
    let (status, log) = service.wait();
    assert_eq!(status.code(), Some(0));
    // The service logs this line only if no call is left.
    assert!(log.last().unwrap().contains("every request was answered"), "{:?}", log.last());
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
    assert_eq!(send_picture(&service, 1).await.unwrap().0, 200);
    assert_eq!(nvidia.count(), 1, "the second request should be answered from the cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_or_sigint_ends_the_service_at_once() {
    for signal in ["TERM", "INT"] {
        let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
        let folder = tempfile::tempdir().unwrap();
        // With this drain delay, the service would not stop within a minute after only one signal.
        let service =
            ServiceProcess::start_with(&nvidia, folder.path(), &[("IMAGESVC_DRAIN_DELAY", "60s")]);
        let stopping = async {
            nvidia.wait_for(1).await;
            service.signal(signal);
            while reqwest::get(service.url("/ready")).await.unwrap().status() == 200 {}
            service.signal(signal);
        };
        let (answer, ()) = tokio::join!(send_picture(&service, 1), stopping);
        assert!(answer.is_err(), "the second signal should end the running request");
        let (status, log) = service.wait();
        assert_eq!(status.code(), Some(0));
        assert!(log.last().unwrap().contains("a second signal"), "{:?}", log.last());
    }
}

#[tokio::test]
async fn sighup_does_not_stop_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start(folder.path(), &[("IMAGESVC_SANDBOX", "true")]);
    service.signal("HUP");
    let health = reqwest::get(service.url("/health")).await.unwrap();
    assert_eq!(health.status(), 200);
    let (status, log) = service.stop();
    assert_eq!(status.code(), Some(0));
    assert!(log.iter().any(|line| line.contains("SIGHUP changes nothing")), "{log:?}");
}
