//! Sends hostile pictures (bombs) to the service, which runs as a process. The service must answer each
//! picture in time. Its own memory must hardly grow, and all decoders together must stay within the
//! limit on decode memory.

use std::{
    io::Cursor,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use image_rs::{ImageFormat, Rgb, RgbImage};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::{
    FakeNvidia, ROCKET, ServiceProcess, bombs, bombs::Bomb, children_of, memory_of, metric, variant,
};

const MIB: u64 = 1 << 20;
/// The memory that all decoders together may use, in bytes. It is the default of
/// `IMAGESVC_MAX_DECODE_BYTES`.
const MAX_DECODE_MEMORY: u64 = 512 * MIB;
/// The service's own memory must grow by less than this many bytes. The service itself decodes
/// nothing.
const MAX_GROWTH: u64 = 60 * MIB;
/// Every upload must be answered within this time. A decoder may use 20 s of processor time, and
/// the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(120);
/// The service's timeout for a request. It is as long as [`DEADLINE`], so that the service does not give
/// up earlier.
const LONG_TIMEOUT: (&str, &str) = ("IMAGESVC_REQUEST_TIMEOUT", "120s");

/// With these settings, a JPEG or PNG over the inline limit is decoded and shrunk.
const SHRINK: [(&str, &str); 2] =
    [("NVIDIA_LARGE_IMAGES", "shrink"), ("NVIDIA_INLINE_LIMIT", "20000")];
/// A length in bytes that is over the inline limit of [`SHRINK`]. The limit applies to the Base64
/// text, which is longer than the picture.
const OVER_THE_INLINE_LIMIT: usize = 20_000;

/// The number of hostile pictures that are uploaded at the same time.
const CONCURRENT_UPLOADS: usize = 4;

/// The service under attack.
struct Target {
    process: ServiceProcess,
    client: reqwest::Client,
    folder: TempDir,
    /// The peak of the service's own memory before the attack, in bytes.
    idle_memory: u64,
    decoder_monitor: MemoryMonitor,
}

/// A thread that records the peak memory of all child processes together.
struct MemoryMonitor {
    stopped: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
}

impl MemoryMonitor {
    fn start(parent: u32) -> Self {
        let (stopped, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let monitor = Self { stopped: Arc::clone(&stopped), peak: Arc::clone(&peak) };
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let now = children_of(parent).into_iter().map(memory_of).sum();
                peak.fetch_max(now, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        monitor
    }
}

impl Drop for MemoryMonitor {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

impl Target {
    /// Starts the service in sandbox mode.
    async fn sandbox() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process =
            ServiceProcess::start(folder.path(), &[LONG_TIMEOUT, ("IMAGESVC_SANDBOX", "true")]);
        Self::new(process, folder).await
    }

    /// Starts the service with a fake NVIDIA behind it. `settings` may replace [`LONG_TIMEOUT`].
    async fn with_nvidia(nvidia: &FakeNvidia, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = [&[LONG_TIMEOUT], settings].concat();
        let process = ServiceProcess::start_with(nvidia, folder.path(), &settings);
        Self::new(process, folder).await
    }

    async fn new(process: ServiceProcess, folder: TempDir) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(2 * DEADLINE).build().unwrap();
        assert_eq!(client.get(process.url("/health")).send().await.unwrap().status(), 200);
        let idle_memory = process.peak_memory();
        let decoder_monitor = MemoryMonitor::start(process.id());
        Self { process, client, folder, idle_memory, decoder_monitor }
    }

    /// Uploads a picture. Returns the status, the body, and the time until the answer. If there is
    /// no answer, the status is 0, and the body is the error.
    fn upload(&self, picture: &[u8]) -> impl Future<Output = (u16, String, Duration)> + use<> {
        let request = self.process.upload_request(&self.client, picture);
        async move {
            let started = Instant::now();
            match request.send().await {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    (status, answer.text().await.unwrap_or_default(), started.elapsed())
                }
                Err(error) => (0, error.to_string(), started.elapsed()),
            }
        }
    }

    /// Uploads hostile pictures, at most `max_concurrent` at the same time. Expects answers with the
    /// statuses in `refusals`, or with 200, because decoders accept some of these pictures.
    async fn attack(&self, bombs: Vec<Bomb>, max_concurrent: usize, refusals: &[u16]) -> Outcomes {
        let mut outcomes = Outcomes::default();
        let mut running = JoinSet::new();
        let mut bombs = bombs.into_iter();
        loop {
            while running.len() < max_concurrent
                && let Some((name, picture)) = bombs.next()
            {
                let upload = self.upload(&picture);
                running.spawn(async move { (name, upload.await) });
            }
            let Some(finished) = running.join_next().await else { break };
            let (name, (status, text, duration)) = finished.unwrap();
            println!("{name}: {status} after {} ms", duration.as_millis());
            match status {
                200 => outcomes.embedded += 1,
                _ if refusals.contains(&status) => outcomes.refused += 1,
                _ => outcomes.unexpected.push(format!("{name}: {status} {text:.300}")),
            }
            if duration > DEADLINE {
                outcomes.unexpected.push(format!("{name}: answered after {duration:?}"));
            }
        }
        outcomes
    }

    /// The number of saved pictures.
    fn saved_count(&self) -> usize {
        let names = std::fs::read_dir(self.folder.path().join("downloads")).unwrap();
        names
            .filter(|name| !name.as_ref().unwrap().file_name().as_encoded_bytes().starts_with(b"."))
            .count()
    }

    /// Waits up to 10 s until the service is idle. Asserts that neither the service itself nor its
    /// decoders used too much memory.
    async fn assert_unharmed(self) {
        let started = Instant::now();
        loop {
            let metrics = self.client.get(self.process.url("/metrics")).send().await.unwrap();
            let at_work = metric(&metrics.text().await.unwrap(), "imagesvc_pictures_at_work");
            let children = children_of(self.process.id());
            if at_work == 0.0 && children.is_empty() {
                break;
            }
            let is_late = started.elapsed() > Duration::from_secs(10);
            assert!(
                !is_late,
                "the service must be idle within 10 s, but has {at_work} pictures at work and the \
                 children {children:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let growth = self.process.peak_memory() - self.idle_memory;
        let decode_memory = self.decoder_monitor.peak.load(Ordering::Relaxed);
        let (growth_mib, decode_mib) = (growth / MIB, decode_memory / MIB);
        println!("{growth_mib} MiB more than when idle, {decode_mib} MiB in all decoders");
        assert!(growth < MAX_GROWTH, "the service must not grow by {growth_mib} MiB");
        assert!(decode_memory < MAX_DECODE_MEMORY, "the decoders must not use {decode_mib} MiB");
    }
}

/// The outcomes of an attack: the numbers of embedded and of refused pictures, and a description of
/// each unexpected outcome.
#[derive(Default)]
struct Outcomes {
    embedded: usize,
    refused: usize,
    unexpected: Vec<String>,
}

/// Whether the service sends a picture of this format to NVIDIA without decoding it, if the picture
/// is within the inline limit. The name of a hostile picture begins with its format.
fn can_be_sent_unchanged((name, _): &Bomb) -> bool {
    name.starts_with("jpeg") || name.starts_with("png")
}

/// Appends zeros, until the picture is too long for the inline limit. Decoders ignore bytes after a
/// picture's end.
fn padded((name, mut picture): Bomb) -> Bomb {
    picture.resize(picture.len().max(OVER_THE_INLINE_LIMIT), 0);
    (name, picture)
}

/// Attacks a service with a fake NVIDIA. Asserts that only embedded pictures are saved and sent to
/// NVIDIA.
async fn attack_with_nvidia(
    bombs: Vec<Bomb>,
    max_concurrent: usize,
    settings: &[(&str, &str)],
) -> Outcomes {
    let nvidia = FakeNvidia::healthy().await;
    let target = Target::with_nvidia(&nvidia, settings).await;
    let outcomes = target.attack(bombs, max_concurrent, &[413, 415]).await;
    assert!(outcomes.unexpected.is_empty(), "{:#?}", outcomes.unexpected);
    assert_eq!(target.saved_count(), outcomes.embedded, "only embedded pictures must be saved");
    assert_eq!(nvidia.inference_calls(), outcomes.embedded, "only embedded pictures must be sent");
    target.assert_unharmed().await;
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_pictures_do_no_harm_when_they_are_converted() {
    let mut bombs = bombs::quick();
    bombs.retain(|bomb| !can_be_sent_unchanged(bomb));
    let outcomes = attack_with_nvidia(bombs, CONCURRENT_UPLOADS, &[]).await;
    // If few were refused, the pictures would not be hostile.
    assert!(outcomes.refused > 40, "more than 40 should be refused, not {}", outcomes.refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_pictures_do_no_harm_when_they_are_shrunk() {
    let bombs = bombs::quick().into_iter().filter(can_be_sent_unchanged).map(padded).collect();
    let outcomes = attack_with_nvidia(bombs, CONCURRENT_UPLOADS, &SHRINK).await;
    // If few were refused, the pictures would not be hostile.
    assert!(outcomes.refused > 10, "more than 10 should be refused, not {}", outcomes.refused);
}

/// The service sends these pictures unchanged, and the sandbox decodes them. Pictures that the sandbox
/// refuses stay saved, like those that NVIDIA refuses.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_pictures_do_no_harm_when_the_sandbox_decodes_them() {
    let target = Target::sandbox().await;
    let bombs = bombs::quick().into_iter().filter(can_be_sent_unchanged).collect();
    let outcomes = target.attack(bombs, CONCURRENT_UPLOADS, &[422]).await;
    assert!(outcomes.unexpected.is_empty(), "{:#?}", outcomes.unexpected);
    // If few were refused, the pictures would not be hostile.
    assert!(outcomes.refused > 10, "more than 10 should be refused, not {}", outcomes.refused);
    assert_eq!(
        target.saved_count(),
        outcomes.embedded + outcomes.refused,
        "all pictures must be saved"
    );
    target.assert_unharmed().await;
}

/// The TIFFs take all the processor time that a decoder may use. The JPEG is over the inline limit of
/// [`SHRINK`], so it must be decoded, too. It keeps some decoders busy, but this service leaves its XMP out.
#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_never_finish_decoding_are_refused_in_time() {
    let bombs = bombs::endless();
    let count = bombs.len();
    let outcomes = attack_with_nvidia(bombs, count, &SHRINK).await;
    assert_eq!((outcomes.refused, outcomes.embedded), (count, 0));
}

/// A picture of 12 megapixels, with noise and edges. Each `n` gives a different picture.
fn large_picture(format: ImageFormat, n: usize) -> Vec<u8> {
    let picture = RgbImage::from_fn(4000, 3000, |x, y| {
        Rgb([(x / 16) as u8, (y / 12) as u8, (x ^ y) as u8 ^ n as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Uploads small JPEGs, one after the other and a different one for each number. Each must be
/// answered within a second.
async fn assert_small_pictures_are_served(target: &Target, numbers: Range<usize>) {
    for n in numbers {
        let (status, text, duration) = target.upload(&variant(ROCKET, n)).await;
        assert_eq!(status, 200, "{text}");
        assert!(
            duration < Duration::from_secs(1),
            "small picture {n} should be answered within 1 s, not after {duration:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_pictures_are_served_while_large_and_endless_pictures_are_decoded() {
    let nvidia = FakeNvidia::healthy().await;
    // Requests with endless pictures end after 10 s. A TIFF of 12 megapixels has 36 MB, which is
    // more than the default limit of 20 MiB.
    let settings = [("IMAGESVC_REQUEST_TIMEOUT", "10s"), ("IMAGESVC_MAX_IMAGE_BYTES", "40000000")];
    let target = Target::with_nvidia(&nvidia, &settings).await;
    let large_pictures = [large_picture(ImageFormat::WebP, 0), large_picture(ImageFormat::Tiff, 1)];

    // Eight uploads of the two large pictures in turn. Each upload has other bytes, because equal
    // pictures would be decoded only once.
    let mut running = JoinSet::new();
    for n in 0..8 {
        running.spawn(target.upload(&variant(&large_pictures[n % 2], n)));
    }
    assert_small_pictures_are_served(&target, 0..5).await;
    for (status, text, _) in running.join_all().await {
        // Some of the eight large pictures may miss their deadline. This test allows that.
        assert!([200, 503, 504].contains(&status), "{status} {text}");
    }

    let endless = bombs::shared_lzw();
    let mut running = JoinSet::new();
    for n in 0..6 {
        running.spawn(target.upload(&variant(&endless, n)));
    }
    assert_small_pictures_are_served(&target, 5..10).await;
    for (status, text, _) in running.join_all().await {
        assert!([413, 415, 503, 504].contains(&status), "{status} {text}");
    }
    assert_small_pictures_are_served(&target, 10..15).await;
    // After the endless pictures, a large picture is decoded again. It has a number of its own,
    // because otherwise its embedding could come from the cache.
    let (status, text, _) = target.upload(&variant(&large_pictures[0], 8)).await;
    assert_eq!(status, 200, "{text}");
    target.assert_unharmed().await;
}
