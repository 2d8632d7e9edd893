//! When a service with a bucket is stopped under load, no picture that a client knows of is lost.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;

use crate::support::{
    FakeNvidia, POLL_INTERVAL, Replica, count_lines,
    s3::{Fault, FaultProxy, MotoServer},
    tiny,
};

/// Clients that upload at the same time.
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn after_sigterm_under_load_every_answered_picture_and_its_vector_are_in_the_bucket() {
    let Some(moto) = MotoServer::start().await else { return };
    let mut proxy = FaultProxy::start(moto.address).await;
    let nvidia = FakeNvidia::healthy().await;
    let settings = moto.settings_through(proxy.address);
    let replica = Replica::start(&nvidia, &settings).await;
    // The service answers first, and then writes the vector to the bucket. The stop must wait for this
    // write, which takes a second here.
    let delay = Fault::Delay(Duration::from_secs(1));
    let is_vector = |line: &str| line.starts_with("PUT") && line.contains("/vectors/");
    proxy.set_for(delay, move |request| is_vector(&request.line())).await;

    // Each client uploads one picture after the other, until it cannot connect.
    let (next, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let client = async || {
        let mut saved = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Ok(answer) = replica.try_upload(&tiny(n)).await else { return saved };
            answer.assert_success();
            saved.push((n, answer.saved_as()));
            answered.fetch_add(1, Ordering::Relaxed);
        }
    };
    let clients = join_all((0..CLIENTS).map(|_| client()));
    let stopping = async {
        // Until the clients have got three answers each on average.
        while answered.load(Ordering::Relaxed) < 3 * CLIENTS {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        replica.process.terminate();
    };
    let (saved, ()) = tokio::join!(clients, stopping);
    let saved = saved.concat();
    let (status, log) = replica.wait().await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(count_lines(&log, "stopped: every request was answered"), 1, "{log:#?}");
    println!("{} pictures were answered", saved.len());

    proxy.clear().await;
    assert_eq!(
        moto.keys_in("downloads").await.len(),
        saved.len(),
        "the bucket should contain only answered pictures"
    );
    let calls = nvidia.count();
    let second_replica = Replica::start(&nvidia, &settings).await;
    for (n, name) in saved {
        let found = moto.read(&format!("{}/downloads/{name}", moto.prefix)).await;
        assert!(found == Some(tiny(n)), "{name} should be in the bucket");
        let answer = second_replica.upload_unsaved(&tiny(n)).await;
        answer.assert_success();
        assert_eq!(answer.header("x-cache"), "hit", "the vector of {name} should be in the bucket");
    }
    assert_eq!(nvidia.count(), calls, "every vector should come from the bucket");
}
