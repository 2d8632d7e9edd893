//! Look-ups of picture hosts: how many run at once and for which client; and that each fetch has
//! its own connection.

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, mpsc},
};

use futures_util::future::join_all;
use tokio::sync::watch;

use crate::support::{FakeNvidia, FakeServer, ROCKET, Reply, TestApp, assert_problem, variant};

/// More names than the service looks up at once for all clients together.
const UNANSWERED_NAMES: usize = 130;

/// The most look-ups at once for one client.
const MAX_PER_CLIENT: usize = 32;

#[tokio::test(flavor = "multi_thread")]
async fn one_clients_unanswered_lookups_do_not_delay_another_clients_fetch() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(ROCKET).await;
    let (count, mut blocked) = watch::channel(0);
    // Blocks look-ups until the test drops `end`.
    let (end, ended) = mpsc::channel::<()>();
    let ended = Mutex::new(ended);
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_TRUSTED_PROXIES", "127.0.0.0/8")
        .setting("IMAGESVC_FETCH_PORTS", picture_server.address.port())
        .setting("IMAGESVC_FETCH_ALLOW", "127.0.0.0/8")
        .lookup(move |name| {
            if name.ends_with(".unanswered.example") {
                count.send_modify(|blocked| *blocked += 1);
                let _ = ended.lock().unwrap().recv();
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(vec![IpAddr::from([127, 0, 0, 1])])
        })
        .start()
        .await;
    let port = picture_server.address.port();
    let fetch = |name: &str, client: &'static str| {
        let url = format!("http://{name}:{port}/");
        app.send(app.url_request(&url).header("x-forwarded-for", client))
    };
    let unanswered = join_all(
        (0..UNANSWERED_NAMES).map(|n| fetch(&format!("{n}.unanswered.example"), "192.0.2.1")),
    );
    let others = async {
        blocked.wait_for(|blocked| *blocked >= MAX_PER_CLIENT).await.unwrap();
        let answers = join_all((1..=3).map(|n| fetch(&format!("{n}.example"), "192.0.2.2"))).await;
        answers.iter().for_each(|answer| drop(answer.vector()));
    };
    let (answers, ()) = tokio::join!(unanswered, others);
    for answer in answers {
        let problem = assert_problem(&answer, 502, "download_failed");
        assert!(problem["detail"].as_str().unwrap().contains("could not be looked up just now"));
    }
    assert_eq!(*blocked.borrow(), MAX_PER_CLIENT, "the first client got its share and no more");
    drop(end);
}

#[tokio::test]
async fn each_picture_is_fetched_over_its_own_connection() {
    let nvidia = FakeNvidia::healthy().await;
    let sent = Arc::new(Mutex::new(0));
    let picture_server = FakeServer::start(move |_, n| {
        *sent.lock().unwrap() += 1;
        Reply::new(200, &[], variant(ROCKET, n))
    })
    .await;
    let port = picture_server.address.port();
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", port)
        .setting("IMAGESVC_FETCH_ALLOW", "127.0.0.0/8")
        .lookup(|_| Ok(vec![IpAddr::from([127, 0, 0, 1])]))
        .start()
        .await;
    for name in ["one.example", "other.example", "one.example"] {
        app.by_url(&format!("http://{name}:{port}/")).await.vector();
    }
    let received = picture_server.received();
    let hosts: Vec<_> = received.iter().map(|request| request.header("host").unwrap()).collect();
    assert_eq!(
        hosts,
        ["one.example", "other.example", "one.example"].map(|name| format!("{name}:{port}"))
    );
    let connections: HashSet<_> = received.iter().map(|request| request.peer).collect();
    assert_eq!(connections.len(), 3);
}
