//! Single flight: concurrent requests with the same picture share one call to NVIDIA. The leader is
//! the request that started the call. The call continues even if all clients that wait for it
//! disconnect. The answer to a request that started no call has `x-cache: hit`.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;

use crate::{
    cache::{assert_x_cache, embedding_filled_with, is_filled_with},
    support::{
        FakeNvidia, HUBBLE, ROCKET, Reply, TestApp, created_asset, embedding,
        nvidia_api::CREATE_ASSET,
    },
};

/// Allows 200 connections from one address; the default is 64. The hundred clients of a test all connect
/// from 127.0.0.1, and so does the client that reads the metrics.
const ALLOW_200_CONNECTIONS: (&str, &str) = ("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "200");

#[tokio::test]
async fn a_hundred_identical_pictures_at_once_make_one_call() {
    let (release, _) = watch::channel(false);
    let reply = embedding().held_until(&release);
    let nvidia = FakeNvidia::replying(vec![reply]).await;
    let app = TestApp::builder(&nvidia).settings(&[ALLOW_200_CONNECTIONS]).start().await;
    let uploads = join_all((0..100).map(|_| app.upload(ROCKET, "a.jpg")));
    let release_reply = async {
        // The reply is released only when all hundred requests wait for the call.
        app.wait_for(|value| value("imagesvc_pictures_at_work") >= 100.0).await;
        release.send(true).unwrap();
    };
    let (answers, ()) = tokio::join!(uploads, release_reply);
    assert_eq!(nvidia.count(), 1);
    let misses = answers.iter().filter(|answer| answer.header("x-cache") == "miss").count();
    assert_eq!(misses, 1, "only the leader should have a cache miss");
    assert!(answers.iter().all(|answer| answer.vector().len() == 1536));
    assert_eq!(app.saved().len(), 100);
}

#[tokio::test]
async fn a_call_serves_later_clients_after_the_client_that_started_it_disconnects() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let app = TestApp::start(&nvidia).await;
    tokio::select! {
        _ = app.upload(ROCKET, "leader.jpg") => panic!("no answer may precede NVIDIA's reply"),
        _ = nvidia.wait_for(1) => {} // drops the upload, which disconnects its client
    }
    let other_uploads = join_all((0..10).map(|_| app.upload(ROCKET, "a.jpg")));
    let release_reply = async {
        // Ten, and the picture of the disconnected client, which counts until its call ends.
        app.wait_for(|value| value("imagesvc_pictures_at_work") >= 11.0).await;
        release.send(true).unwrap();
    };
    for answer in tokio::join!(other_uploads, release_reply).0 {
        answer.assert_success();
        assert_eq!(answer.header("x-cache"), "hit");
    }
    assert_eq!(nvidia.count(), 1);
}

#[tokio::test]
async fn when_every_client_disconnects_the_call_finishes_and_the_next_request_is_a_hit() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![embedding().held_until(&release)]).await;
    let app = TestApp::start(&nvidia).await;
    {
        let uploads = (0..5).map(|_| app.upload(ROCKET, "a.jpg"));
        tokio::select! {
            _ = join_all(uploads) => panic!("no answer may precede NVIDIA's reply"),
            _ = nvidia.wait_for(1) => {} // drops all uploads, which disconnects their clients
        }
    }
    release.send(true).unwrap();
    assert_x_cache(&app, ROCKET, "hit").await;
    assert_eq!(nvidia.count(), 1);
}

#[tokio::test]
async fn the_call_for_a_large_picture_finishes_after_the_client_disconnects() {
    let (release, _) = watch::channel(false);
    let released = release.clone();
    let nvidia = FakeNvidia::healthy_except(move |request| {
        (request.line() == CREATE_ASSET).then(|| created_asset(request).held_until(&released))
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    tokio::select! {
        _ = app.upload(HUBBLE, "a.jpg") => panic!("no answer may precede NVIDIA's reply"),
        _ = nvidia.wait_for(1) => {} // drops the upload, which disconnects its client
    }
    release.send(true).unwrap();
    // The service creates the asset, uploads the picture, requests the embedding, and deletes the
    // asset.
    let received = nvidia.wait_for(4).await;
    assert!(received[1].body == HUBBLE, "the whole picture should be uploaded to NVIDIA");
    assert_x_cache(&app, HUBBLE, "hit").await;
}

#[tokio::test]
async fn a_request_that_joined_late_succeeds_although_the_call_misses_the_leaders_deadline() {
    // The first call hangs until the leader's deadline. The late request then has 0.3 s of its
    // 1 s left. It makes a call of its own, because the last quarter of its time has not begun.
    let nvidia = FakeNvidia::replying(vec![Reply::Hang, embedding()]).await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_REQUEST_TIMEOUT", "1s").start().await;
    let upload_late = async {
        nvidia.wait_for(1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        app.upload(ROCKET, "late.jpg").await
    };
    let (leader, late) = tokio::join!(app.upload(ROCKET, "leader.jpg"), upload_late);
    assert_eq!(leader.status, 504);
    late.assert_success();
    assert_eq!(nvidia.count(), 2);
}

#[tokio::test]
async fn a_request_that_joined_a_call_late_succeeds_if_the_call_has_no_time_for_a_retry() {
    // The first attempt fails after 0.6 s, and NVIDIA asks to wait until 1.6 s. The leader's
    // deadline is at 1.5 s, so its call ends at once, at 0.6 s. The late request starts a call of its
    // own. This call waits until 1.6 s, which is before the late request's deadline at 1.9 s.
    let unavailable =
        Reply::new(503, &[("retry-after", "1")], "").after(Duration::from_millis(600));
    let nvidia = FakeNvidia::replying(vec![unavailable, embedding()]).await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_REQUEST_TIMEOUT", "1500ms").start().await;
    let upload_late = async {
        nvidia.wait_for(1).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        app.upload(ROCKET, "late.jpg").await
    };
    let (leader, late) = tokio::join!(app.upload(ROCKET, "leader.jpg"), upload_late);
    assert_eq!((leader.status, leader.header("retry-after")), (502, "1"));
    late.assert_success();
    assert_eq!(nvidia.count(), 2);
}

#[tokio::test]
async fn a_hundred_requests_that_share_a_hanging_call_make_no_further_call() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    let app = TestApp::builder(&nvidia)
        .settings(&[("IMAGESVC_REQUEST_TIMEOUT", "1s"), ALLOW_200_CONNECTIONS])
        .start()
        .await;
    // All requests arrive at about the same time. When the call misses the leader's deadline, the
    // other requests have no time for another call.
    for answer in join_all((0..100).map(|_| app.upload(ROCKET, "a.jpg"))).await {
        assert_eq!(answer.status, 504);
    }
    assert_eq!(nvidia.count(), 1);
}

#[tokio::test]
async fn an_error_is_shared_but_not_cached() {
    let (release, _) = watch::channel(false);
    // The service does not retry a 422.
    let rejection = Reply::status(422).held_until(&release);
    let nvidia = FakeNvidia::replying(vec![rejection, embedding()]).await;
    let app = TestApp::start(&nvidia).await;
    let uploads = join_all((0..5).map(|_| app.upload(ROCKET, "a.jpg")));
    let release_reply = async {
        app.wait_for(|value| value("imagesvc_pictures_at_work") >= 5.0).await;
        release.send(true).unwrap();
    };
    let (answers, ()) = tokio::join!(uploads, release_reply);
    for answer in answers {
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (422, Some("embedding_rejected"))
        );
        assert!(app.saved().contains(&answer.saved_as()));
    }
    assert_eq!(nvidia.count(), 1);
    assert_x_cache(&app, ROCKET, "miss").await;
}

#[tokio::test]
async fn a_no_cache_request_makes_a_new_call_and_joins_no_other_call() {
    let (release, _) = watch::channel(false);
    let nvidia = FakeNvidia::replying(vec![
        embedding_filled_with(1).held_until(&release),
        embedding_filled_with(2),
        embedding_filled_with(3),
    ])
    .await;
    let app = TestApp::start(&nvidia).await;
    let upload_with_no_cache =
        || app.send(app.upload_request(ROCKET, "a.jpg").header("cache-control", "no-cache"));
    let first_upload = app.upload(ROCKET, "a.jpg");
    let second_upload = async {
        nvidia.wait_for(1).await;
        let answer = upload_with_no_cache().await;
        release.send(true).unwrap();
        answer
    };
    let (first, second) = tokio::join!(first_upload, second_upload);
    assert!(is_filled_with(&first, 1) && is_filled_with(&second, 2));
    assert_eq!(second.header("x-cache"), "miss");
    // The picture is cached now, but a `no-cache` request makes a call nevertheless.
    let third = upload_with_no_cache().await;
    assert!(is_filled_with(&third, 3));
    // The cache contains the newest vector.
    let hit = assert_x_cache(&app, ROCKET, "hit").await;
    assert!(is_filled_with(&hit, 3));
    assert_eq!(nvidia.count(), 3);
}
