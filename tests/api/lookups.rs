//! Look-ups of picture hosts are limited for each client, and each fetch has its own connection.

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    sync::{Mutex, mpsc},
};

use futures_util::future::join_all;
use tokio::sync::watch;

use crate::support::{FakeNvidia, FakeServer, ROCKET, Reply, TestApp, assert_problem, variant};

/// The number of host names whose look-up gets no answer. It is more than the 128 look-ups that the
/// service makes at once for all clients together.
const UNANSWERED_NAMES: usize = 130;

/// The number of look-ups that the service makes at once for one client.
const MAX_PER_CLIENT: usize = 32;

#[tokio::test(flavor = "multi_thread")]
async fn unanswered_lookups_of_one_client_do_not_delay_fetches_of_another_client() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(ROCKET).await;
    let (count_sender, mut blocked_count) = watch::channel(0);
    // Each look-up of a name below `unanswered.example` is blocked until the test drops
    // `unblock_on_drop`. Only the first client fetches from such names.
    let (unblock_on_drop, unblocked) = mpsc::channel::<()>();
    let unblocked = Mutex::new(unblocked);
    let app = TestApp::builder(&nvidia)
        // The service gets the address of each client from `X-Forwarded-For`.
        .setting("IMAGESVC_TRUSTED_PROXIES", "127.0.0.0/8")
        .setting("IMAGESVC_FETCH_PORTS", picture_server.address.port())
        .setting("IMAGESVC_FETCH_ALLOW", "127.0.0.0/8")
        .lookup(move |name| {
            if name.ends_with(".unanswered.example") {
                count_sender.send_modify(|count| *count += 1);
                // An error means that the test has dropped the sender.
                let _ = unblocked.lock().unwrap().recv();
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(vec![IpAddr::from([127, 0, 0, 1])])
        })
        .start()
        .await;
    let port = picture_server.address.port();
    let fetch = |name: &str, client_address: &'static str| {
        let url = format!("http://{name}:{port}/");
        app.send(app.url_request(&url).header("x-forwarded-for", client_address))
    };
    let first_client = join_all(
        (0..UNANSWERED_NAMES).map(|n| fetch(&format!("{n}.unanswered.example"), "192.0.2.1")),
    );
    let other_client = async {
        blocked_count.wait_for(|count| *count >= MAX_PER_CLIENT).await.unwrap();
        let answers = join_all((1..=3).map(|n| fetch(&format!("{n}.example"), "192.0.2.2"))).await;
        for answer in answers {
            answer.assert_success();
        }
    };
    // The first client's fetches time out. Its look-ups are still blocked then, or have never started.
    let (answers, ()) = tokio::join!(first_client, other_client);
    for answer in answers {
        let problem = assert_problem(&answer, 502, "download_failed");
        assert!(problem["detail"].as_str().unwrap().contains("could not be looked up just now"));
    }
    assert_eq!(
        *blocked_count.borrow(),
        MAX_PER_CLIENT,
        "the first client should get exactly its maximum of look-ups"
    );
    drop(unblock_on_drop);
}

#[tokio::test]
async fn each_picture_is_fetched_over_its_own_connection() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|_, n| Reply::new(200, &[], variant(ROCKET, n))).await;
    let port = picture_server.address.port();
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_FETCH_PORTS", port)
        .setting("IMAGESVC_FETCH_ALLOW", "127.0.0.0/8")
        .lookup(|_| Ok(vec![IpAddr::from([127, 0, 0, 1])]))
        .start()
        .await;
    let names = ["one.example", "other.example", "one.example"];
    for name in names {
        app.by_url(&format!("http://{name}:{port}/")).await.assert_success();
    }
    let received = picture_server.received();
    let hosts: Vec<_> = received.iter().map(|request| request.header("host").unwrap()).collect();
    assert_eq!(hosts, names.map(|name| format!("{name}:{port}")));
    let connections: HashSet<_> = received.iter().map(|request| request.peer).collect();
    assert_eq!(connections.len(), names.len(), "each fetch should have its own connection");
}
