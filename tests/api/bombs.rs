//! Pictures that are made to hurt, against the service as a process: each is answered, and takes
//! neither the service nor what was granted for decoding with it.

use std::{
    io::Cursor,
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
    Child, FakeNvidia, ROCKET, bombs, bombs::Bomb, children_of, memory_of, metric,
    nvidia_api::INFER, variant,
};

const MIB: u64 = 1 << 20;
/// What all decodes together may take.
const DECODING: u64 = 512 * MIB;
/// What a service that decodes nothing itself may grow by.
const GROWTH: u64 = 60 * MIB;
/// When an upload must have been answered: the processor time of a decode, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// JPEG and PNG are decoded only if they must be shrunk: these are too large to go as they are.
const SHRINK: [(&str, &str); 2] =
    [("NVIDIA_LARGE_IMAGES", "shrink"), ("NVIDIA_INLINE_LIMIT", "20000")];
/// What a busy machine needs longer for is not refused for that.
const PATIENT: (&str, &str) = ("IMAGESVC_REQUEST_TIMEOUT", "120s");
const OVER_THE_LIMIT: usize = 20_000;

/// The service under attack, and what is watched of it.
struct Target {
    child: Child,
    client: reqwest::Client,
    folder: TempDir,
    idle: u64,
    watch: Watch,
}

/// Looks at the children's memory again and again, in a thread of its own.
struct Watch {
    ended: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
}

impl Watch {
    fn start(parent: u32) -> Self {
        let (ended, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let watch = Self { ended: Arc::clone(&ended), peak: Arc::clone(&peak) };
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let now = children_of(parent).into_iter().map(memory_of).sum();
                peak.fetch_max(now, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        watch
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Target {
    /// In sandbox mode.
    async fn sandbox() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Child::start(folder.path(), &[PATIENT, ("IMAGESVC_SANDBOX", "true")]);
        Self::watched(child, folder).await
    }

    /// In front of a fake NVIDIA.
    async fn against(nvidia: &FakeNvidia, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = [&[PATIENT], settings].concat();
        let child = Child::start_with(nvidia, folder.path(), &settings);
        Self::watched(child, folder).await
    }

    async fn watched(child: Child, folder: TempDir) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(2 * DEADLINE).build().unwrap();
        assert_eq!(client.get(child.url("/health")).send().await.unwrap().status(), 200);
        let (idle, watch) = (child.peak_memory(), Watch::start(child.id()));
        Self { child, client, folder, idle, watch }
    }

    /// An upload: its status, its answer, and how long it took.
    fn upload(&self, picture: &[u8]) -> impl Future<Output = (u16, String, Duration)> + use<> {
        let request = self.child.upload_request(&self.client, picture);
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

    /// Uploads pictures, so many at a time, and gives what did not end as it should. Each is
    /// refused, unless the decoder makes a picture of it after all.
    async fn attack(&self, bombs: Vec<Bomb>, at_once: usize, refusals: &[u16]) -> Attack {
        let mut attack = Attack::default();
        let mut running = JoinSet::new();
        let mut bombs = bombs.into_iter();
        loop {
            while running.len() < at_once
                && let Some((name, picture)) = bombs.next()
            {
                let upload = self.upload(&picture);
                running.spawn(async move { (name, upload.await) });
            }
            let Some(ended) = running.join_next().await else { break };
            let (name, (status, text, took)) = ended.unwrap();
            println!("{name}: {status} after {} ms", took.as_millis());
            match status {
                200 => attack.embedded += 1,
                _ if refusals.contains(&status) => attack.refused += 1,
                _ => attack.wrong.push(format!("{name}: {status} {text:.300}")),
            }
            if took > DEADLINE {
                attack.wrong.push(format!("{name}: {took:?}"));
            }
        }
        attack
    }

    /// The pictures that were kept.
    fn saved(&self) -> usize {
        let names = std::fs::read_dir(self.folder.path().join("downloads")).unwrap();
        names
            .filter(|name| !name.as_ref().unwrap().file_name().as_encoded_bytes().starts_with(b"."))
            .count()
    }

    /// Waits until nothing is at work, and asserts that memory stayed within its bounds.
    async fn assert_unharmed(self) {
        let started = Instant::now();
        loop {
            let metrics = self.client.get(self.child.url("/metrics")).send().await.unwrap();
            let at_work = metric(&metrics.text().await.unwrap(), "imagesvc_pictures_at_work");
            let children = children_of(self.child.id());
            if at_work == 0.0 && children.is_empty() {
                break;
            }
            let is_late = started.elapsed() > Duration::from_secs(10);
            assert!(!is_late, "{at_work} pictures are at work, by {children:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let growth = self.child.peak_memory() - self.idle;
        let decoding = self.watch.peak.load(Ordering::Relaxed);
        println!("{} MiB over idle, {} MiB in children", growth / MIB, decoding / MIB);
        assert!(growth < GROWTH, "the service grew by {} MiB", growth / MIB);
        assert!(decoding < DECODING, "the children took {} MiB", decoding / MIB);
    }
}

/// How an attack went.
#[derive(Default)]
struct Attack {
    embedded: usize,
    refused: usize,
    wrong: Vec<String>,
}

/// Is this sent to NVIDIA as it is, when it fits?
fn goes_as_it_is(bomb: &Bomb) -> bool {
    bomb.0.starts_with("jpeg") || bomb.0.starts_with("png")
}

/// The same picture, too large to go as it is: what follows the end is not looked at.
fn padded((name, mut picture): Bomb) -> Bomb {
    picture.resize(picture.len().max(OVER_THE_LIMIT), 0);
    (name, picture)
}

fn inferences(nvidia: &FakeNvidia) -> usize {
    nvidia.lines().iter().filter(|line| **line == INFER).count()
}

/// Attacks a service in front of NVIDIA: what is refused leaves no file and is not asked for.
async fn refused_or_embedded(
    bombs: Vec<Bomb>,
    at_once: usize,
    settings: &[(&str, &str)],
) -> Attack {
    let nvidia = FakeNvidia::healthy().await;
    let target = Target::against(&nvidia, settings).await;
    let attack = target.attack(bombs, at_once, &[413, 415]).await;
    assert!(attack.wrong.is_empty(), "{:#?}", attack.wrong);
    assert_eq!(target.saved(), attack.embedded, "of those that were embedded");
    assert_eq!(inferences(&nvidia), attack.embedded, "for those that were embedded");
    target.assert_unharmed().await;
    attack
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_are_converted_harm_nothing() {
    let (_, bombs): (Vec<_>, Vec<_>) = bombs::all().into_iter().partition(goes_as_it_is);
    let attack = refused_or_embedded(bombs, 4, &[]).await;
    assert!(attack.refused > 40, "{}", attack.refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_are_shrunk_harm_nothing() {
    let bombs = bombs::all().into_iter().filter(goes_as_it_is).map(padded).collect();
    let attack = refused_or_embedded(bombs, 4, &SHRINK).await;
    assert!(attack.refused > 10, "{}", attack.refused);
}

/// The stand-in decodes every picture: what it cannot decode it rejects, as NVIDIA would, and the
/// file stays.
#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_the_stand_in_decodes_harm_nothing() {
    let target = Target::sandbox().await;
    let bombs = bombs::all().into_iter().filter(goes_as_it_is).collect();
    let attack = target.attack(bombs, 4, &[422]).await;
    assert!(attack.wrong.is_empty(), "{:#?}", attack.wrong);
    assert!(attack.refused > 10, "{}", attack.refused);
    assert_eq!(target.saved(), attack.embedded + attack.refused, "all of them");
    target.assert_unharmed().await;
}

/// Two of them, as each takes all the processor time that a decode may have.
#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_never_end_are_refused_in_time() {
    let wanted = ["tiff-shared-lzw", "jpeg-extended-xmp"];
    let bombs = bombs::endless().into_iter().filter(|(name, _)| wanted.contains(name));
    let attack = refused_or_embedded(bombs.collect(), 2, &SHRINK).await;
    assert_eq!((attack.refused, attack.embedded), (2, 0));
}

/// Noise and edges, as large as a camera's picture.
fn heavy(format: ImageFormat, n: usize) -> Vec<u8> {
    let picture = RgbImage::from_fn(4000, 3000, |x, y| {
        Rgb([(x / 16) as u8, (y / 12) as u8, (x ^ y) as u8 ^ n as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// JPEGs that go as they are, one after the other, each within a second.
async fn assert_small_ones_are_served(target: &Target, from: usize, times: usize) {
    for n in from..from + times {
        let (status, text, took) = target.upload(&variant(ROCKET, n)).await;
        assert_eq!(status, 200, "{text}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_pictures_are_served_beside_heavy_and_endless_ones() {
    let nvidia = FakeNvidia::healthy().await;
    // A TIFF of 12 megapixels is larger than what is taken by default.
    let settings = [("IMAGESVC_REQUEST_TIMEOUT", "20s"), ("IMAGESVC_MAX_IMAGE_BYTES", "40000000")];
    let target = Target::against(&nvidia, &settings).await;
    let pictures = [heavy(ImageFormat::WebP, 0), heavy(ImageFormat::Tiff, 1)];

    let mut running = JoinSet::new();
    for n in 0..8 {
        running.spawn(target.upload(&variant(&pictures[n % 2], n)));
    }
    assert_small_ones_are_served(&target, 0, 5).await;
    for (status, text, _) in running.join_all().await {
        // Eight at once may take longer than the deadline; they are not what this is about.
        assert!([200, 503, 504].contains(&status), "{status} {text}");
    }

    let endless = bombs::shared_lzw();
    let mut running = JoinSet::new();
    for n in 0..6 {
        running.spawn(target.upload(&variant(&endless, n)));
    }
    assert_small_ones_are_served(&target, 5, 5).await;
    for (status, text, _) in running.join_all().await {
        assert!([413, 415, 503, 504].contains(&status), "{status} {text}");
    }
    assert_small_ones_are_served(&target, 10, 5).await;
    // A heavy one finds its turn again, too.
    assert_eq!(target.upload(&variant(&pictures[0], 9)).await.0, 200);
    target.assert_unharmed().await;
}
