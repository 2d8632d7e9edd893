//! Limits that three replicas keep together: the calls to NVIDIA per minute, and the requests of a
//! client.
//!
//! A turn is the Valkey's permission for one call to NVIDIA.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::join;

use crate::support::{
    FakeNvidia, PATIENCE, Replica, Reply, Setting, ValkeyServer, nvidia_api::INFER, picture_number,
    tiny,
};

/// The limit on calls must hold in any period of this length. As a margin, the service applies it to
/// periods that are half a second longer.
const MINUTE: Duration = Duration::from_secs(60);

/// How many calls to NVIDIA per minute all replicas together may make.
const CALLS_PER_MINUTE: usize = 30;

/// The number of the picture whose call never ends.
const BLOCKER: usize = 1000;

/// Uploads pictures at the same time, and returns how many got a vector. Each is from a different client:
/// the service makes a client's first calls at once, but spreads its further calls over the minute.
async fn upload(replica: &Replica, pictures: impl Iterator<Item = usize>) -> usize {
    let upload = async |n: usize| {
        replica.upload_unsaved_from(&format!("192.0.2.{}", n % 256), &tiny(n)).await
    };
    let answers = join_all(pictures.map(upload)).await;
    answers.iter().filter(|answer| answer.status == 200).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_use_the_limit_on_calls_and_never_exceed_it_although_turns_are_given_back() {
    let Some(valkey) = ValkeyServer::start().await else { return };
    let times = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&times);
    let nvidia = FakeNvidia::healthy_except(move |request| {
        assert_eq!(request.line(), INFER);
        recorded.lock().unwrap().push(Instant::now());
        (picture_number(request) == BLOCKER).then_some(Reply::Hang)
    })
    .await;
    let limit: Setting = ("NVIDIA_REQUESTS_PER_MINUTE", CALLS_PER_MINUTE.to_string());
    let proxies: Setting = ("IMAGESVC_TRUSTED_PROXIES", "127.0.0.0/8".to_owned());
    let shared = [valkey.settings(), vec![limit, proxies]].concat();
    // The first replica makes one call at a time, and its requests have five seconds.
    let of_first = [
        &shared[..],
        &[
            ("NVIDIA_MAX_CONCURRENCY", "1".to_owned()),
            ("IMAGESVC_REQUEST_TIMEOUT", "5s".to_owned()),
        ],
    ]
    .concat();
    let of_others = [&shared[..], &[("IMAGESVC_REQUEST_TIMEOUT", "2m".to_owned())]].concat();
    let [first, second, third] =
        Replica::start_three(&nvidia, [&of_first, &of_others, &of_others]).await;
    // For some seconds after its start, a replica makes only its part of the calls.
    for replica in [&first, &second, &third] {
        replica.wait_for_metric("imagesvc_call_limit", CALLS_PER_MINUTE as f64).await;
    }

    // The first replica takes ten turns: for the blocker and for nine pictures. The blocker's call never
    // ends, and this replica makes one call at a time. So after five seconds, the nine pictures fail, and
    // their turns are given back. The other replicas have 28 pictures for the 20 turns that are left, so
    // eight pictures wait for the nine turns.
    let blocker = first.start_unsaved_upload(&tiny(BLOCKER));
    nvidia.wait_for(1).await;
    let embedded = join!(upload(&first, 0..9), upload(&second, 100..114), upload(&third, 200..214));
    assert_eq!(
        embedded,
        (0, 14, 14),
        "the other replicas should also use the turns that were given back"
    );
    assert_eq!(blocker.await.unwrap().unwrap().status, 504);
    let calls = times.lock().unwrap().clone();
    assert_eq!(calls.len(), 1 + 28);
    let elapsed = calls[28] - calls[0];
    assert!(elapsed < MINUTE / 2, "the last of 29 calls was made only after {elapsed:?}");

    // One turn is left in this minute. So one of these three pictures is embedded at once. The other two
    // wait until the first calls are a minute old.
    assert_eq!(join!(upload(&second, 300..302), upload(&third, 302..303)), (2, 1));
    let calls = times.lock().unwrap().clone();
    assert_eq!(calls.len(), CALLS_PER_MINUTE + 2);
    for (earlier, later) in calls.iter().zip(&calls[CALLS_PER_MINUTE..]) {
        let window = *later - *earlier;
        assert!(window >= MINUTE, "{} calls in {window:?}", CALLS_PER_MINUTE + 1);
        assert!(window < MINUTE + PATIENCE, "a call waited too long: {window:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_client_holds_for_all_replicas_together() {
    const REQUESTS_PER_MINUTE: usize = 60;
    let Some(valkey) = ValkeyServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    let limit: Setting = ("IMAGESVC_RATE_LIMIT_PER_MINUTE", REQUESTS_PER_MINUTE.to_string());
    let settings = [valkey.settings(), vec![limit]].concat();
    let replicas = Replica::start_three(&nvidia, [&settings; 3]).await;
    let started = Instant::now();
    // A replica alone would admit all of its 50 requests.
    let answers = join_all((0..150).map(async |n: usize| {
        let answer = replicas[n % 3].upload_unsaved(&tiny(0)).await;
        if answer.status != 200 {
            assert_eq!(answer.status, 429, "{}", answer.text());
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        }
        answer.status == 200
    }))
    .await;
    let admitted = answers.into_iter().filter(|is_admitted| *is_admitted).count();
    // The limit allows a burst of a minute's requests, and then one request each second. The test tolerates
    // a tenth of the limit in addition: `as_secs` rounds down, and a replica counts alone if the Valkey's
    // reply is late.
    let most =
        REQUESTS_PER_MINUTE + REQUESTS_PER_MINUTE / 10 + started.elapsed().as_secs() as usize;
    assert!((REQUESTS_PER_MINUTE..=most).contains(&admitted), "{admitted} requests were admitted");
}
