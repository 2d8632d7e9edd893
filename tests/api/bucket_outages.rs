//! Outages of a bucket. A real process of the service calls a real S3 server through a proxy. The tests
//! check what clients get, that no call to NVIDIA is in vain, that no object is half written, and how soon
//! the service recovers.

use std::time::{Duration, Instant};

use crate::support::{
    FakeNvidia, HUBBLE, ROCKET, Replica, assert_problem, bucket_warnings, count_lines,
    s3::{Fault, FaultProxy, MotoServer},
    tiny, wait_for,
};

/// The service recovers within this time after the bucket works again.
const RECOVERY: Duration = Duration::from_secs(6);

/// The setting `IMAGESVC_BUCKET_TIMEOUT` of these tests.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long a busy machine may take for what needs almost no time.
const SLACK: Duration = Duration::from_secs(2);

/// What is wrong with the bucket.
#[derive(Debug, Clone, Copy)]
enum Outage {
    /// The server's process is paused: it accepts connections, and answers nothing.
    Paused,
    /// The policy denies everything.
    Denied,
    /// The bucket is deleted, and created again later.
    Deleted,
    /// All requests have this fault.
    Faulty(Fault),
}

impl Outage {
    async fn begin(self, moto: &MotoServer, proxy: &mut FaultProxy) {
        match self {
            Self::Paused => moto.pause(),
            Self::Denied => moto.deny(&["s3:*"]).await,
            Self::Deleted => moto.delete_bucket().await,
            Self::Faulty(fault) => proxy.set(fault).await,
        }
    }

    async fn end(self, moto: &MotoServer, proxy: &mut FaultProxy) {
        match self {
            Self::Paused => moto.resume(),
            Self::Denied => moto.deny(&[]).await, // denies nothing
            Self::Deleted => moto.create_bucket().await,
            Self::Faulty(_) => proxy.clear().await,
        }
    }
}

/// A service whose bucket is on moto, behind a proxy.
struct Setup {
    moto: MotoServer,
    proxy: FaultProxy,
    nvidia: FakeNvidia,
    replica: Replica,
}

impl Setup {
    /// Returns `None` if moto is not installed.
    async fn start() -> Option<Self> {
        let moto = MotoServer::start().await?;
        let proxy = FaultProxy::start(moto.address).await;
        let nvidia = FakeNvidia::healthy().await;
        let timeout = ("IMAGESVC_BUCKET_TIMEOUT", format!("{}s", TIMEOUT.as_secs()));
        let settings = [moto.settings_through(proxy.address), vec![timeout]].concat();
        let replica = Replica::start(&nvidia, &settings).await;
        Some(Self { moto, proxy, nvidia, replica })
    }

    /// Waits until this folder of the bucket contains this many objects.
    async fn wait_for_count(&self, folder: &str, count: usize) {
        let name = format!("the number of objects in {folder}/");
        let condition = async || self.moto.keys_in(folder).await.len() == count;
        wait_for(&name, Duration::from_secs(20), condition).await;
    }

    /// Asserts that this picture is in the bucket byte for byte.
    async fn assert_saved(&self, name: &str, picture: &[u8]) {
        let found = self.moto.read(&format!("{}/downloads/{name}", self.moto.prefix)).await;
        assert!(found.as_deref() == Some(picture), "{name} should be in the bucket");
    }
}

/// Lets the bucket work, fail and work again. Asserts that the service does what it should in each phase.
async fn assert_outage_is_survived(outage: Outage) {
    let Some(mut setup) = Setup::start().await else { return };
    let saved_before = setup.replica.upload(ROCKET).await;
    saved_before.assert_success();
    setup.wait_for_count("vectors", 1).await;
    outage.begin(&setup.moto, &mut setup.proxy).await;

    // With the first picture, the service finds out that the bucket fails. The second one is too large to
    // stay in memory. The vector of the third one is in the local cache.
    for (n, picture) in [&tiny(1), HUBBLE, ROCKET].into_iter().enumerate() {
        let started = Instant::now();
        let answer = setup.replica.upload(picture).await;
        assert_problem(&answer, 503, "storage_unavailable");
        assert_eq!(answer.header("retry-after"), "5");
        let max_time = if n == 0 { TIMEOUT + SLACK } else { SLACK };
        assert!(started.elapsed() < max_time, "picture {n} took {:?}", started.elapsed());
    }
    // With a bucket, the call to NVIDIA waits until the picture is saved.
    assert_eq!(setup.nvidia.count(), 1, "pictures that cannot be saved should cause no call");
    // Pictures that need not be saved are embedded nevertheless. ROCKET caused the first call to NVIDIA, so
    // these pictures cause the calls 2 to 5.
    for n in 2..6 {
        let started = Instant::now();
        let answer = setup.replica.upload_unsaved(&tiny(n)).await;
        answer.assert_success();
        assert_eq!((answer.header("x-cache"), setup.nvidia.count()), ("miss", n));
        // A look-up in the bucket is given up after a second.
        assert!(started.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", started.elapsed());
    }

    outage.end(&setup.moto, &mut setup.proxy).await;
    let recovery = setup.replica.wait_until_bucket_works(RECOVERY).await;
    println!("{outage:?}: the service recovered after {recovery:?}");
    let saved_after = setup.replica.upload(&tiny(1)).await;
    saved_after.assert_success();
    assert_eq!((saved_after.header("x-cache"), setup.nvidia.count()), ("miss", 6));
    // The last picture and its vector are in the bucket, and so are ROCKET and its vector unless the bucket
    // was deleted. The vectors that were computed during the outage are missing, because the service does
    // not try to write any while the bucket fails.
    let is_lost = matches!(outage, Outage::Deleted);
    let expected = if is_lost { 1 } else { 2 };
    // A picture that was answered with 503 may have arrived in the bucket. The service then removes it.
    setup.wait_for_count("downloads", expected).await;
    setup.wait_for_count("vectors", expected).await;
    if !is_lost {
        setup.assert_saved(&saved_before.saved_as(), ROCKET).await;
    }
    setup.assert_saved(&saved_after.saved_as(), &tiny(1)).await;

    let (status, log) = setup.replica.stop().await;
    assert_eq!(status.code(), Some(0));
    for line in [
        "the bucket cannot be written to",
        "the bucket cannot be read",
        "the bucket can be written to again",
        "the bucket can be read again",
    ] {
        assert_eq!(count_lines(&log, line), 1, "{line}: {log:#?}");
    }
    // Neither a late write nor a late removal has changed the number since.
    assert_eq!(setup.moto.keys_in("downloads").await.len(), expected, "{outage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_is_survived() {
    assert_outage_is_survived(Outage::Paused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_denies_everything_is_survived() {
    assert_outage_is_survived(Outage::Denied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_bucket_is_survived() {
    assert_outage_is_survived(Outage::Deleted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_demands_to_slow_down_is_survived() {
    assert_outage_is_survived(Outage::Faulty(Fault::Error(503, "SlowDown"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_arrive_too_late_are_survived() {
    assert_outage_is_survived(Outage::Faulty(Fault::Delay(TIMEOUT + SLACK))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_cut_are_survived() {
    assert_outage_is_survived(Outage::Faulty(Fault::CutRequest)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_are_cut_are_survived() {
    assert_outage_is_survived(Outage::Faulty(Fault::CutResponse)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_are_survived() {
    assert_outage_is_survived(Outage::Faulty(Fault::Refuse)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_without_an_answer_delay_a_request_by_at_most_a_second() {
    let Some(mut setup) = Setup::start().await else { return };
    setup.proxy.set_for(Fault::Hold, |request| request.method == "GET").await;
    let mut slowest = Duration::ZERO;
    for n in 0..5 {
        let started = Instant::now();
        // Pictures 0, 2 and 4 are saved.
        let answer = match n % 2 {
            0 => setup.replica.upload(&tiny(n)).await,
            _ => setup.replica.upload_unsaved(&tiny(n)).await,
        };
        answer.assert_success();
        slowest = slowest.max(started.elapsed());
    }
    println!("the slowest request took {slowest:?}");
    assert!(slowest < Duration::from_secs(1) + SLACK, "{slowest:?}");
    assert_eq!(setup.nvidia.count(), 5);
    // The three pictures to be saved and all five vectors are written nevertheless.
    setup.wait_for_count("downloads", 3).await;
    setup.wait_for_count("vectors", 5).await;
    let ready = setup.replica.get("/ready").await.json();
    assert_eq!(ready["bucket"], serde_json::json!({ "writable": true, "readable": false }));
    setup.proxy.clear().await;
    setup.replica.wait_until_bucket_works(RECOVERY).await;
    let (_, log) = setup.replica.stop().await;
    assert_eq!(count_lines(&log, "the bucket cannot be read"), 1, "{log:#?}");
    assert_eq!(count_lines(&log, "the bucket cannot be written to"), 0, "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_bucket_cannot_be_reached_starts_with_warnings_and_recovers() {
    let Some(moto) = MotoServer::start().await else { return };
    let mut proxy = FaultProxy::start(moto.address).await;
    let nvidia = FakeNvidia::healthy().await;
    proxy.set(Fault::Refuse).await;
    let replica = Replica::start(&nvidia, &moto.settings_through(proxy.address)).await;
    replica.wait_until_bucket_fails(SLACK).await;
    assert_problem(&replica.upload(ROCKET).await, 503, "storage_unavailable");
    assert_eq!(nvidia.count(), 0);
    proxy.clear().await;
    replica.wait_until_bucket_works(RECOVERY).await;
    replica.upload(ROCKET).await.assert_success();
    let (_, log) = replica.stop().await;
    let warnings = bucket_warnings(&log);
    // One warning is about writes, the other about reads.
    assert_eq!(warnings.len(), 2, "{log:#?}");
    assert!(warnings.iter().all(|line| line.contains("IMAGESVC_BUCKET_ENDPOINT")), "{log:#?}");
}
