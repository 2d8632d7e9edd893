//! The peak memory of the service's process under load, as the kernel reports it.

use std::io::Cursor;

use image_rs::{ImageFormat, Rgb, RgbImage};
use tokio::task::JoinSet;

use crate::support::{FORM_CONTENT_TYPE, FakeNvidia, ROCKET, ServiceProcess, base64_body, form};

const MIB: u64 = 1 << 20;

/// How many bytes the service may need for many concurrent requests, in addition to the memory that
/// its limits count.
const UNCOUNTED_BYTES: u64 = 48 * MIB;

/// What [`send_concurrently`] measures.
struct LoadResult {
    statuses: Vec<u16>,
    /// How much the peak of the service's resident memory grew, in bytes.
    growth: u64,
}

/// Starts a service, and sends it the same body in `count` concurrent requests.
async fn send_concurrently(
    settings: &[(&str, &str)],
    route: &str,
    content_type: &str,
    body: Vec<u8>,
    count: usize,
) -> LoadResult {
    let nvidia = FakeNvidia::healthy().await;
    // All requests come from one peer. They need up to 64 connections, and the health check needs
    // another, so the limit per peer must be more than 64, its default.
    let settings = [&[("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "128")], settings].concat();
    let folder = tempfile::tempdir().unwrap();
    let child = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(client.get(child.url("/health")).send().await.unwrap().status(), 200);
    let idle_memory = child.peak_memory();
    let body = bytes::Bytes::from(body);
    let mut requests = JoinSet::new();
    for _ in 0..count {
        let request =
            client.post(child.url(route)).header("content-type", content_type).body(body.clone());
        requests.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    let mut statuses = requests.join_all().await;
    statuses.sort_unstable();
    let growth = child.peak_memory() - idle_memory;
    println!("{route}: {} MiB more than when idle, statuses {statuses:?}", growth / MIB);
    LoadResult { statuses, growth }
}

fn assert_growth_below(max_bytes: u64, growth: u64) {
    let (max_mib, growth_mib) = (max_bytes / MIB, growth / MIB);
    assert!(
        growth < max_bytes,
        "the memory should grow by less than {max_mib} MiB, not by {growth_mib} MiB"
    );
}

/// A JPEG of exactly 20 MiB, the default limit on a picture's length. Most of it is padding after the
/// picture's end.
fn jpeg_of_maximum_length() -> Vec<u8> {
    let mut picture = ROCKET.to_vec();
    picture.resize(20 * MIB as usize, 0);
    picture
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_large_uploads_are_not_buffered_in_memory() {
    let body = form(&jpeg_of_maximum_length());
    // All 64 bodies together have 1280 MiB.
    let LoadResult { statuses, growth } =
        send_concurrently(&[], "/vectorize-image-upload", FORM_CONTENT_TYPE, body, 64).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_growth_below(UNCOUNTED_BYTES, growth);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_base64_bodies_stay_within_their_memory_limit() {
    let body = base64_body(&jpeg_of_maximum_length());
    let route = "/vectorize-image-base64";
    let LoadResult { statuses, growth } =
        send_concurrently(&[], route, "application/json", body.into(), 64).await;
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&200), "at least one picture should be embedded: {statuses:?}");
    // the default of `IMAGESVC_MAX_BUFFERED_BYTES`
    let max_buffered = 128 * MIB;
    assert_growth_below(max_buffered + UNCOUNTED_BYTES, growth);
}

#[tokio::test(flavor = "multi_thread")]
async fn decoding_takes_no_memory_of_the_service_itself() {
    let gradient =
        RgbImage::from_fn(4000, 3000, |x, y| Rgb([(x / 16) as u8, (y / 12) as u8, (x ^ y) as u8]));
    let mut webp = Cursor::new(Vec::new());
    gradient.write_to(&mut webp, ImageFormat::WebP).unwrap();
    let body = form(webp.get_ref());
    let LoadResult { statuses, growth } =
        send_concurrently(&[], "/vectorize-image-upload", FORM_CONTENT_TYPE, body, 32).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    // Each of the 32 pictures has 36 MB of pixels. They are decoded in child processes, and the JPEGs
    // that these return are written to files.
    assert_growth_below(UNCOUNTED_BYTES, growth);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_claims_an_enormous_picture_takes_hardly_any_memory() {
    let mut png = Cursor::new(Vec::new());
    RgbImage::new(8, 8).write_to(&mut png, ImageFormat::Png).unwrap();
    let mut png = png.into_inner();
    // the positions of the width and the height in a PNG
    let (width, height) = (16..20, 20..24);
    png[width].copy_from_slice(&60_000u32.to_be_bytes());
    png[height].copy_from_slice(&60_000u32.to_be_bytes());
    // The header claims 3.6 billion pixels. With this setting, that is within the limit on pixels.
    let high_pixel_limit = [("IMAGESVC_MAX_IMAGE_PIXELS", "4000000000")];
    for settings in [&high_pixel_limit[..], &[]] {
        let route = "/vectorize-image-upload";
        let LoadResult { growth, .. } =
            send_concurrently(settings, route, FORM_CONTENT_TYPE, form(&png), 32).await;
        assert_growth_below(16 * MIB, growth);
    }
}
