//! Tests of requests that share a call.

use std::{future::poll_fn, task::Poll};

use bytes::Bytes;
use reqwest::Url;
use serde_json::value::RawValue;

use super::{single_flight::LeadGuard, *};
use crate::{
    disk_space::DiskSpace,
    http_client::Trust,
    image::{Content, Format, Orientation},
    nvidia::{ApiKey, RetryPolicy, Vector},
    shares::{Clients, Shares},
};

/// An embedder without a cache. Every call fails with [`Error::Nvidia`], because nothing listens on
/// port 1, where it looks for NVIDIA.
fn new_embedder() -> Embedder {
    let nowhere = Url::parse("http://127.0.0.1:1/").unwrap();
    let (metrics, background) = (Metrics::new(), TaskTracker::new());
    let nvidia_settings = nvidia::Settings {
        infer_url: nowhere.clone(),
        status_url: nowhere.clone(),
        assets_url: nowhere,
        proxy: None,
        attempt_timeout: Duration::from_secs(5),
        call_limit: None,
        pace_window: Duration::ZERO,
        clients: Clients::Many,
        retry: RetryPolicy { max_attempts: 1, ..RetryPolicy::default() },
        poll_interval: nvidia::POLL_INTERVAL,
    };
    let key = ApiKey::parse("nvapi-1").unwrap();
    let nvidia_client = nvidia::Client::new(
        nvidia_settings,
        key,
        Arc::clone(&metrics),
        background.clone(),
        &Trust::probe(),
        None,
    );
    let space = DiskSpace::new("unused".into(), 0);
    let settings = Settings {
        call: CallSettings {
            large_images: LargeImages::Shrink,
            inline_limit: 200_000,
            max_image_bytes: 20 << 20,
            max_concurrency: 4,
            refused_upload_pause: REFUSED_UPLOAD_PAUSE,
            failed_upload_pause: FAILED_UPLOAD_PAUSE,
        },
        cache_memory: 0,
        cache_disk: 0,
        cache_folder: "unused".into(),
        cache_space: space.clone(),
    };
    let source = Source { model: "a model", endpoint: "an endpoint".into() };
    let decoder = Decoder::new(crate::decoder::Settings::new(1 << 28), Arc::clone(&metrics));
    let staging = Staging::new("unused".into(), space);
    let nvidia = nvidia_client.unwrap();
    let parts = Parts { nvidia, decoder, staging, bucket: None, valkey: None, background, metrics };
    Embedder::new(parts, &settings, &source)
}

fn new_job() -> Job {
    let content = Content::Memory(Bytes::from_static(b"sent as it is"));
    // The permits are empty, so these limits do not matter.
    let (at_work, memory) = (Shares::new(1, 1, 1), Shares::new(1, 1, 1));
    let client = ClientNetwork::UNKNOWN;
    let orientation = Orientation::NoTransforms;
    Job {
        picture: Picture { content, format: Format::Jpeg, width: 1, height: 1, orientation },
        sha256: Sha256::from_bytes([7; 32]),
        client,
        cache_mode: CacheMode::Use,
        looked_in_bucket_at: None,
        deadline: Instant::now() + Duration::from_secs(30),
        permits: Arc::new(PicturePermits {
            at_work: at_work.empty_permit(client),
            memory: memory.empty_permit(client),
        }),
    }
}

fn sample_embedding() -> Embedding {
    let text = format!("[{}]", ["0.5"; 1536].join(","));
    let vector = Vector::from_json(&RawValue::from_string(text).unwrap()).unwrap();
    let (prepared, provenance) = (Prepared::Original, Provenance::Nvidia);
    Embedding { vector, prepared, provenance, attempts: 1, valid_until: None }
}

/// Makes the test the leader of the call for the picture of [`new_job`]: requests for the picture join
/// this call.
fn lead(embedder: &Embedder) -> LeadGuard<CacheKey, Outcome> {
    match embedder.0.calls.join_or_lead(embedder.0.cache.key(new_job().sha256)) {
        Role::Lead(_, guard) => guard,
        Role::Join(_) => panic!("no call should be running"),
    }
}

#[tokio::test]
async fn a_request_gets_the_outcome_of_a_completed_call_that_can_still_be_joined() {
    let embedder = new_embedder();
    // Other requests can join the completed call until this guard is dropped.
    let _entry_guard = lead(&embedder).complete(Ok(sample_embedding()));
    let embedding = embedder.embed(new_job(), None).await.unwrap();
    assert_eq!(embedding.provenance, Provenance::Shared);
    assert_eq!(embedding.attempts, 0, "the request itself must not call NVIDIA");
}

#[tokio::test]
async fn a_request_makes_its_own_call_if_the_task_of_the_call_it_joined_panics() {
    let embedder = new_embedder();
    let guard = lead(&embedder);
    let mut request = Box::pin(embedder.embed(new_job(), None));
    // One poll is enough to join the call.
    poll_fn(|context| {
        assert!(request.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    let task = tokio::spawn(async move {
        let _guard = guard;
        std::panic::resume_unwind(Box::new("a panic of the test"));
    });
    assert!(task.await.unwrap_err().is_panic());
    let error = request.await.unwrap_err();
    assert!(matches!(*error, Error::Nvidia(_)), "the request should call NVIDIA: {error:?}");
}
