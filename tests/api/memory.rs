//! The peak memory of the service's process and of its decoder processes under load, as the kernel
//! reports it.

use std::{
    io::Cursor,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use image_rs::{ImageFormat, Rgb, RgbImage};
use tokio::task::JoinSet;

use crate::support::{
    FORM_CONTENT_TYPE, FakeNvidia, ROCKET, ServiceProcess, base64_body, children_of, form,
    peak_memory_of, s3::DiscardingBucket, variant,
};

const MIB: u64 = 1 << 20;

/// Under load, the service's memory must grow by less than this, in bytes. In addition, it may
/// grow by what a setting allows, such as `IMAGESVC_MAX_BUFFERED_BYTES`.
const MAX_BASE_GROWTH: u64 = 48 * MIB;

/// What [`send_concurrently`] measures.
struct LoadResult {
    statuses: Vec<u16>,
    /// How much the peak of the service's resident memory grew, in bytes.
    growth: u64,
    /// The memory of all decoder processes together, in bytes, as [`measure_decoders`] returns it.
    decoder_memory: u64,
}

/// Samples the decoder processes of a service until the load is over, and returns the largest sum of
/// their memory. Each sum contains each running decoder's own peak so far, because a decoder may have
/// had a short peak since the last sample.
fn measure_decoders(service_id: u32, load_is_over: &AtomicBool) -> u64 {
    let mut highest = 0;
    while !load_is_over.load(Ordering::Relaxed) {
        let decoders = children_of(service_id);
        highest = highest.max(decoders.into_iter().map(peak_memory_of).sum());
        thread::sleep(Duration::from_millis(5)); // leaves the processor to the service
    }
    highest
}

/// Starts a service, sends it these bodies in concurrent requests, and measures its memory meanwhile.
async fn send_concurrently(
    settings: &[(&str, &str)],
    route: &str,
    content_type: &str,
    bodies: Vec<Bytes>,
) -> LoadResult {
    let nvidia = FakeNvidia::healthy().await;
    // All requests come from one peer. They need up to 64 connections, and the health check needs
    // another, so the limit per peer must be more than 64, its default.
    let settings = [&[("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "128")], settings].concat();
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(client.get(service.url("/health")).send().await.unwrap().status(), 200);
    let idle_memory = service.peak_memory();
    let load_is_over = Arc::new(AtomicBool::new(false));
    let (service_id, load_is_over_for_thread) = (service.id(), Arc::clone(&load_is_over));
    let measuring = thread::spawn(move || measure_decoders(service_id, &load_is_over_for_thread));
    let mut requests = JoinSet::new();
    for body in bodies {
        let request =
            client.post(service.url(route)).header("content-type", content_type).body(body);
        requests.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    let mut statuses = requests.join_all().await;
    statuses.sort_unstable();
    load_is_over.store(true, Ordering::Relaxed);
    let decoder_memory = measuring.join().unwrap();
    let growth = service.peak_memory() - idle_memory;
    println!(
        "{route}: {} MiB more than when idle, decoders {} MiB, statuses {statuses:?}",
        growth / MIB,
        decoder_memory / MIB
    );
    LoadResult { statuses, growth, decoder_memory }
}

/// This body `count` times. All copies share the same bytes, so the test itself needs little memory.
fn copies_of(body: Vec<u8>, count: usize) -> Vec<Bytes> {
    vec![body.into(); count]
}

fn assert_memory_below(max_bytes: u64, bytes: u64) {
    let (max_mib, mib) = (max_bytes / MIB, bytes / MIB);
    assert!(
        bytes < max_bytes,
        "the load should take less than {max_mib} MiB of memory, not {mib} MiB"
    );
}

/// A JPEG of exactly 20 MiB, the default limit on a picture's length. Most of it is padding after
/// the picture's end.
fn jpeg_of_maximum_length() -> Vec<u8> {
    let mut picture = ROCKET.to_vec();
    picture.resize(20 * MIB as usize, 0);
    picture
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_large_uploads_are_not_buffered_in_memory() {
    let body = form(&jpeg_of_maximum_length());
    // If the service buffered all 64 bodies, it would need 1280 MiB.
    let LoadResult { statuses, growth, .. } =
        send_concurrently(&[], "/vectorize-image-upload", FORM_CONTENT_TYPE, copies_of(body, 64))
            .await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_memory_below(MAX_BASE_GROWTH, growth);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_uploads_are_streamed_to_the_bucket() {
    let bucket = DiscardingBucket::start();
    let settings = bucket.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let body = form(&jpeg_of_maximum_length());
    let (route, bodies) = ("/vectorize-image-upload", copies_of(body, 64));
    let LoadResult { statuses, growth, .. } =
        send_concurrently(&settings, route, FORM_CONTENT_TYPE, bodies).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(bucket.intact_large_objects(), 64, "every picture should arrive whole");
    // Half a MiB for each of the 64 pictures. If they were buffered, they would need 20 MiB each.
    assert_memory_below(32 * MIB, growth);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_base64_bodies_stay_within_their_memory_limit() {
    let body = base64_body(&jpeg_of_maximum_length());
    let route = "/vectorize-image-base64";
    let LoadResult { statuses, growth, .. } =
        send_concurrently(&[], route, "application/json", copies_of(body.into(), 64)).await;
    // The service refuses a body with 503 if there is no memory for it in time.
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&200), "at least one picture should be embedded: {statuses:?}");
    // the default of `IMAGESVC_MAX_BUFFERED_BYTES`
    let max_buffered = 128 * MIB;
    assert_memory_below(max_buffered + MAX_BASE_GROWTH, growth);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_decoders_of_concurrent_pictures_stay_within_their_memory_limit() {
    let gradient =
        RgbImage::from_fn(4000, 3000, |x, y| Rgb([(x / 16) as u8, (y / 12) as u8, (x ^ y) as u8]));
    let mut webp = Cursor::new(Vec::new());
    gradient.write_to(&mut webp, ImageFormat::WebP).unwrap();
    // Equal pictures would be decoded only once.
    let bodies = (0..8).map(|n| form(&variant(webp.get_ref(), n)).into()).collect();
    // The memory estimate for one picture is some 140 MiB, so this limit allows only one decoder at a
    // time.
    let max_decode = 160 * MIB;
    let settings = [("IMAGESVC_MAX_DECODE_BYTES", "160MiB")];
    let LoadResult { statuses, growth, decoder_memory } =
        send_concurrently(&settings, "/vectorize-image-upload", FORM_CONTENT_TYPE, bodies).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_memory_below(max_decode, decoder_memory);
    assert!(
        decoder_memory > max_decode / 2,
        "one decoder should need more than half of the limit, so that this test would notice two: \
         {} MiB",
        decoder_memory / MIB
    );
    assert_memory_below(MAX_BASE_GROWTH, growth);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_claims_an_enormous_picture_takes_hardly_any_memory() {
    const SIDE: u16 = 60_000;
    let picture_of = |format| {
        let mut picture = Cursor::new(Vec::new());
        RgbImage::new(8, 8).write_to(&mut picture, format).unwrap();
        picture.into_inner()
    };
    let (mut png, mut gif) = (picture_of(ImageFormat::Png), picture_of(ImageFormat::Gif));
    // the positions of the width and the height
    png[16..20].copy_from_slice(&u32::from(SIDE).to_be_bytes());
    png[20..24].copy_from_slice(&u32::from(SIDE).to_be_bytes());
    gif[6..8].copy_from_slice(&SIDE.to_le_bytes());
    gif[8..10].copy_from_slice(&SIDE.to_le_bytes());
    // The headers claim 3.6 billion pixels: fewer than this limit, but more than the default limit.
    let high_pixel_limit = [("IMAGESVC_MAX_IMAGE_PIXELS", "4000000000")];
    for (picture, settings, expected) in [
        (&png, &[][..], 413),
        (&gif, &[], 413),
        // A PNG is sent to NVIDIA without being decoded.
        (&png, &high_pixel_limit, 200),
        // A GIF must be decoded, which would exceed `IMAGESVC_MAX_DECODE_BYTES`.
        (&gif, &high_pixel_limit, 413),
    ] {
        let route = "/vectorize-image-upload";
        let LoadResult { statuses, growth, decoder_memory } =
            send_concurrently(settings, route, FORM_CONTENT_TYPE, copies_of(form(picture), 32))
                .await;
        assert_eq!(statuses, [expected; 32]);
        // The pixels of a single picture would need some 10 GiB.
        assert_memory_below(16 * MIB, growth);
        assert_memory_below(16 * MIB, decoder_memory);
    }
}
