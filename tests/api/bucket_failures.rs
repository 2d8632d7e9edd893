//! A bucket that fails, refuses or hangs: which pictures the service refuses, what still works, and that
//! nothing is paid for a picture that cannot be saved.

use std::time::Duration;

use futures_util::future::join_all;
use image_rs::ImageFormat;
use serde_json::json;

use crate::{
    cache::assert_x_cache,
    query::with_query,
    support::{
        BuildError, FakeBucket, FakeNvidia, HUBBLE, ROCKET, Received, Reply, TestApp,
        assert_problem, converted, data_url, tiny,
    },
};

/// Returns the reply of a failing bucket to a request.
type FailingReply = fn(&Received) -> Reply;

/// The ways in which a bucket fails.
const FAULTS: [(&str, FailingReply); 6] = [
    ("denied", |_| FakeBucket::error(403, "AccessDenied")),
    ("no such bucket", |_| FakeBucket::error(404, "NoSuchBucket")),
    ("slow down", |_| FakeBucket::error(503, "SlowDown")),
    ("an error page", |_| Reply::new(502, &[], "<html>Bad gateway</html>")),
    ("no answer", |_| Reply::Hang),
    ("cut off", |_| Reply::CloseAfter(b"HTTP/1.1 200 OK\r\ncontent-length: 9".to_vec())),
];

/// A service with a bucket that works.
async fn start() -> (FakeNvidia, FakeBucket, TestApp) {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let app = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    (nvidia, bucket, app)
}

/// The number of pictures and vectors in the bucket.
fn written_count(bucket: &FakeBucket) -> usize {
    bucket.objects_in("downloads").len() + bucket.objects_in("vectors").len()
}

/// Waits until the service reports that the bucket can be written to and read.
async fn wait_until_the_bucket_works(app: &TestApp) {
    app.wait_for(|series| {
        series("imagesvc_bucket_writable") == 1.0 && series("imagesvc_bucket_readable") == 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_cannot_be_saved_is_refused_before_nvidia_is_paid() {
    // All faults are tested at the same time: each takes seconds until its bucket works again.
    join_all(FAULTS.map(|(name, fault)| assert_refused_pictures_cost_nothing(name, fault))).await;
}

/// Lets the bucket work, fail with this fault, and work again. While it fails, NVIDIA must not be
/// called for a picture that is to be saved.
async fn assert_refused_pictures_cost_nothing(name: &str, fault: FailingReply) {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let app = TestApp::builder(&nvidia)
        .bucket(&bucket)
        .setting("IMAGESVC_BUCKET_TIMEOUT", "1s")
        .start()
        .await;
    // The bucket still works: it gets a picture and a vector.
    assert_x_cache(&app, ROCKET, "miss").await;
    app.wait_for(|_| written_count(&bucket) == 2).await;
    bucket.fail(move |request| Some(fault(request)));
    // HUBBLE is too large to be sent inline, so NVIDIA would first get an upload.
    for picture in [tiny(1), HUBBLE.to_vec()] {
        let answer = app.upload(&picture, "a.png").await;
        assert_problem(&answer, 503, "storage_unavailable");
        assert_eq!(answer.header("retry-after"), "5", "{name}");
    }
    let batch = app.batch(&json!({ "input": [data_url(&tiny(2))] })).await;
    assert_problem(&batch, 503, "storage_unavailable");
    assert_eq!(nvidia.count(), 1, "only the call before the fault should be paid: {name}");

    // Pictures that are not to be saved are embedded as before.
    let request = with_query(app.upload_request(&tiny(3), "a.png"), "save=false");
    let unsaved = app.send(request).await;
    unsaved.assert_success();
    assert_eq!((unsaved.header("x-cache"), nvidia.count()), ("miss", 2), "{name}");
    assert_eq!(written_count(&bucket), 2, "{name}");

    bucket.recover();
    wait_until_the_bucket_works(&app).await;
    assert_x_cache(&app, &tiny(1), "miss").await;
    app.wait_for(|_| bucket.objects_in("downloads").len() == 2).await;
}

#[tokio::test]
async fn a_bucket_that_cannot_be_read_loses_only_the_shared_cache() {
    let (_nvidia, bucket, app) = start().await;
    bucket.fail(|request| (request.method == "GET").then_some(Reply::Hang));
    for n in 0..4 {
        assert_x_cache(&app, &tiny(n), "miss").await;
    }
    // The fourth picture's vector was not looked up, because three look-ups had failed.
    let lines = bucket.server.lines();
    let look_ups =
        lines.iter().filter(|line| line.starts_with("GET") && line.contains("/vectors/"));
    assert_eq!(look_ups.count(), 3);
    assert_eq!(bucket.objects_in("downloads").len(), 4);
    app.wait_for(|series| {
        series("imagesvc_bucket_writable") == 1.0 && series("imagesvc_bucket_readable") == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_picture_whose_write_failed_without_an_answer_is_removed() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    let app = TestApp::builder(&nvidia)
        .bucket(&bucket)
        .setting("IMAGESVC_BUCKET_TIMEOUT", "500ms")
        .start()
        .await;
    bucket.lose_answers_to("PUT");
    assert_problem(&app.upload(ROCKET, "a.jpg").await, 503, "storage_unavailable");
    assert_eq!(bucket.objects_in("downloads").len(), 1, "the object should have arrived");
    bucket.recover();
    app.wait_for(|_| bucket.objects_in("downloads").is_empty()).await;
    assert_eq!(nvidia.count(), 0);
}

#[tokio::test]
async fn a_picture_is_removed_if_the_answer_to_its_first_put_was_lost_and_its_second_refused() {
    let (_nvidia, bucket, app) = start().await;
    bucket.lose_first_answer_to("PUT", || FakeBucket::error(403, "AccessDenied"));
    assert_problem(&app.upload(ROCKET, "a.jpg").await, 503, "storage_unavailable");
    assert_eq!(bucket.objects_in("downloads").len(), 1, "the first attempt should have arrived");
    bucket.recover();
    app.wait_for(|_| bucket.objects_in("downloads").is_empty()).await;
}

#[tokio::test]
async fn a_removal_is_repeated_until_it_succeeds() {
    let (_nvidia, bucket, app) = start().await;
    bucket.fail(|request| (request.method == "DELETE").then(|| FakeBucket::error(503, "SlowDown")));
    // A picture is saved before it is decoded. If it cannot be decoded, it is removed again.
    let mut damaged = converted(ROCKET, ImageFormat::WebP);
    damaged.truncate(damaged.len() / 2);
    assert_problem(&app.upload(&damaged, "a.webp").await, 415, "unsupported_image");
    let delete_requests = || {
        let lines = bucket.server.lines();
        lines
            .iter()
            .filter(|line| line.starts_with("DELETE") && line.contains("/downloads/"))
            .count()
    };
    // A request that gets a 503 is sent once more. So the third and fourth requests repeat the removal.
    app.wait_for(|_| delete_requests() >= 4).await;
    bucket.recover();
    app.wait_for(|_| bucket.objects_in("downloads").is_empty()).await;
}

#[tokio::test]
async fn a_picture_that_the_bucket_refuses_as_too_large_does_not_affect_others() {
    let (nvidia, bucket, app) = start().await;
    bucket.fail(|request| {
        let is_large = request.body.len() == HUBBLE.len();
        is_large.then(|| Reply::new(413, &[], "<html>Too large</html>"))
    });
    assert_problem(&app.upload(HUBBLE, "a.jpg").await, 500, "storage_failed");
    assert_eq!(nvidia.count(), 0);
    assert_x_cache(&app, ROCKET, "miss").await;
}

#[tokio::test]
async fn if_no_vector_can_be_written_only_the_shared_cache_is_lost() {
    let (_nvidia, bucket, app) = start().await;
    bucket.fail(|request| {
        let is_vector = request.method == "PUT" && request.target.contains("/vectors/");
        is_vector.then(|| FakeBucket::error(403, "AccessDenied"))
    });
    for n in 0..5 {
        assert_x_cache(&app, &tiny(n), "miss").await;
    }
    // The writes of all five vectors are refused; those of the pictures succeed.
    assert_eq!(bucket.objects_in("downloads").len(), 5);
    app.wait_for(|series| {
        series("imagesvc_bucket_requests_total{operation=\"write\",outcome=\"403\"}") == 5.0
            && series("imagesvc_bucket_writable") == 1.0
    })
    .await;
}

#[tokio::test]
async fn when_the_bucket_fails_nvidia_is_not_paid_and_the_bucket_gets_no_further_pictures() {
    let (nvidia, bucket, app) = start().await;
    bucket
        .fail(|request| (request.method == "PUT").then(|| FakeBucket::error(403, "AccessDenied")));
    let batch = app.batch(&json!({ "input": [data_url(&tiny(0)), data_url(&tiny(1))] })).await;
    assert_problem(&batch, 503, "storage_unavailable");
    assert_eq!(nvidia.count(), 0);
    // Now the bucket is known to fail, so further requests send no picture to it.
    let picture_requests =
        || bucket.server.lines().iter().filter(|line| line.contains("/downloads/")).count();
    let picture_requests_before = picture_requests();
    for path in ["/v1/embeddings", "/vectorize-image-base64", "/vectorize-image"] {
        // Each route reads only its own field.
        let body = json!({
            "input": [data_url(&tiny(2))],
            "image_base64": data_url(&tiny(2)),
            "image_url": "http://192.0.2.1/a.jpg",
        });
        let answer = app.send(app.json_request(path, &body)).await;
        assert_problem(&answer, 503, "storage_unavailable");
    }
    assert_eq!(picture_requests(), picture_requests_before);
}

#[tokio::test]
async fn a_picture_whose_client_disconnects_during_its_write_is_removed() {
    let (_nvidia, bucket, app) = start().await;
    let (release, held) = tokio::sync::watch::channel(false);
    bucket.fail(move |request| {
        let is_picture = request.method == "PUT" && request.target.contains("/downloads/");
        is_picture.then(|| {
            Reply::Held(held.clone(), b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec())
        })
    });
    let upload = tokio::spawn(app.upload_request(ROCKET, "a.jpg").send());
    let is_put = |line: &String| line.starts_with("PUT") && line.contains("/downloads/");
    app.wait_for(|_| bucket.server.lines().iter().any(is_put)).await;
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    // The only request in flight is the one with which `wait_for` reads the metrics.
    app.wait_for(|series| series("imagesvc_requests_in_flight") == 1.0).await;
    release.send(true).unwrap();
    let is_removal = |line: &String| line.starts_with("DELETE") && line.contains("/downloads/");
    app.wait_for(|_| bucket.server.lines().iter().any(is_removal)).await;
}

#[tokio::test]
async fn ready_reports_whether_the_bucket_works_but_stays_200_if_it_does_not() {
    let (nvidia, bucket, app) = start().await;
    let ready = app.get("/ready").await.json();
    assert_eq!(ready["bucket"], json!({ "writable": true, "readable": true }));
    bucket.fail(|_| Some(FakeBucket::error(503, "SlowDown")));
    assert_problem(&app.upload(ROCKET, "a.jpg").await, 503, "storage_unavailable");
    let ready = app.get("/ready").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)));
    assert_eq!(ready.json()["bucket"]["writable"], false);
    let without_bucket = TestApp::start(&nvidia).await;
    assert_eq!(without_bucket.get("/ready").await.json().get("bucket"), None);
}

#[tokio::test]
async fn a_bucket_that_refuses_stops_the_start_and_names_the_setting_or_the_permission() {
    for (status, code, name) in [
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (400, "AuthorizationQueryParametersError", "IMAGESVC_BUCKET_REGION"),
        (301, "PermanentRedirect", "IMAGESVC_BUCKET_REGION"),
        (404, "NoSuchBucket", "IMAGESVC_BUCKET"),
        (403, "AccessDenied", "s3:PutObject"),
    ] {
        let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
        bucket.fail(move |_| Some(FakeBucket::error(status, code)));
        let error = TestApp::builder(&nvidia).bucket(&bucket).build().await.unwrap_err();
        assert!(matches!(error, BuildError::Bucket { .. }), "{error}");
        assert!(error.to_string().contains(name), "{code}: {error}");
    }
}

#[tokio::test]
async fn a_bucket_that_denies_reading_or_listing_stops_the_start_and_names_the_permission() {
    for (is_denied, permission) in [
        // At the start, the service looks up a missing object, whose name ends with `-missing`. S3
        // answers 404 only with the permission to list the bucket, else 403.
        ((|line| line.contains("-missing")) as fn(&str) -> bool, "s3:ListBucket"),
        // Before that look-up, the service reads an object that exists.
        (|line| line.starts_with("GET"), "s3:GetObject"),
    ] {
        let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
        bucket.fail(move |request| {
            is_denied(&request.line()).then(|| FakeBucket::error(403, "AccessDenied"))
        });
        let error = TestApp::builder(&nvidia).bucket(&bucket).build().await.unwrap_err();
        assert!(error.to_string().contains(permission), "{error}");
    }
}

#[tokio::test]
async fn a_service_whose_bucket_cannot_be_reached_starts_and_uses_it_when_it_returns() {
    let (nvidia, bucket) = (FakeNvidia::healthy().await, FakeBucket::start().await);
    bucket.fail(|_| Some(Reply::CloseAfter(Vec::new())));
    let app = TestApp::builder(&nvidia).bucket(&bucket).start().await;
    assert_problem(&app.upload(ROCKET, "a.jpg").await, 503, "storage_unavailable");
    assert_eq!(nvidia.count(), 0);
    bucket.recover();
    wait_until_the_bucket_works(&app).await;
    assert_x_cache(&app, ROCKET, "miss").await;
}

#[tokio::test]
async fn one_failed_attempt_of_a_write_is_repeated_and_the_picture_is_saved() {
    let (_nvidia, bucket, app) = start().await;
    let has_failed = std::sync::atomic::AtomicBool::new(false);
    bucket.fail(move |request| {
        let is_first = request.target.contains("/downloads/")
            && !has_failed.swap(true, std::sync::atomic::Ordering::SeqCst);
        is_first.then(|| FakeBucket::error(503, "SlowDown"))
    });
    let answer = app.upload(HUBBLE, "a.jpg").await;
    answer.assert_success();
    assert_eq!(bucket.objects_in("downloads")[&answer.saved_as()], HUBBLE);
}

#[tokio::test]
async fn a_slow_bucket_delays_a_picture_but_loses_nothing() {
    let (nvidia, bucket, app) = start().await;
    // A look-up fails after one second. A write may take longer.
    bucket.delay(Duration::from_millis(1500));
    assert_x_cache(&app, ROCKET, "miss").await;
    app.wait_for(|_| written_count(&bucket) == 2).await;
    assert_eq!(nvidia.count(), 1);
}
