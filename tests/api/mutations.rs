//! Sends damaged pictures of every format. Each picture must be answered in time, with an embedding
//! or with an error about the picture. The number of open files and the memory of the service must
//! hardly grow after the first quarter of the run.
//!
//! CI runs this for half a minute. To run it for ten minutes:
//!
//! `MUTATION_SECONDS=600 cargo test --release --test api -- --ignored --nocapture mutations`
//!
//! Set `MUTATION_SEED` to the seed of an earlier run to send the same pictures again.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures_util::{StreamExt, stream};
use image_rs::ImageFormat;

use crate::support::{
    CHELSEA, FORM_CONTENT_TYPE, ResourceUsage, ServiceProcess, converted,
    craft::{png_chunk, riff_chunk, segment, vp8x, webp},
    form, kinds,
    mutate::damaged,
};

/// The longest fixture to damage, in bytes. Longer fixtures are slower to decode, and most of the
/// damage would be in their pixels.
const MAX_FIXTURE_LEN: u64 = 30_000;
/// The width and height of the pictures from `kinds`.
const KINDS_SIZE: (u32, u32) = (45, 31);

/// Every picture must be answered within this time. A decoder uses at most 20 s of processor time,
/// but the machine may be busy.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(60);

/// The service's memory may grow by at most this many bytes after the first quarter of the run. The
/// allocator's memory varies by less than that.
const MAX_GROWTH: u64 = 24 << 20;

/// The run stops after this many failures: a broken service would have thousands.
const MAX_FAILURES: usize = 20;

/// Undamaged pictures of one format.
type Corpus = Vec<Vec<u8>>;

/// The undamaged pictures of every format. Most are valid; a few are of an unsupported kind.
fn load_corpora() -> Vec<Corpus> {
    let mut corpora = BTreeMap::<String, Corpus>::new();
    let mut add = |format: &str, picture| corpora.entry(format.into()).or_default().push(picture);
    for (name, picture) in kinds::all(KINDS_SIZE.0, KINDS_SIZE.1) {
        add(name.split('-').next().unwrap(), picture);
    }
    for (format, image_format) in [
        ("jpeg", ImageFormat::Jpeg),
        ("webp", ImageFormat::WebP),
        ("gif", ImageFormat::Gif),
        ("tiff", ImageFormat::Tiff),
        ("png", ImageFormat::Png),
    ] {
        let photograph = image_rs::load_from_memory(CHELSEA).unwrap().thumbnail(60, 40);
        let mut png = std::io::Cursor::new(Vec::new());
        photograph.write_to(&mut png, ImageFormat::Png).unwrap();
        let picture = converted(png.get_ref(), image_format);
        add(format, turned(format, &picture, photograph.width(), photograph.height()));
        add(format, picture);
    }
    for folder in ["formats", "heic"] {
        for entry in std::fs::read_dir(fixtures().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let format = match path.extension().and_then(|extension| extension.to_str()) {
                Some("jpg") => "jpeg",
                Some(format @ ("png" | "webp" | "gif" | "bmp" | "tiff")) => format,
                Some("heic") if cfg!(feature = "heic") => "heic",
                _ => continue,
            };
            if path.metadata().unwrap().len() <= MAX_FIXTURE_LEN {
                add(format, std::fs::read(&path).unwrap());
            }
        }
    }
    corpora.into_values().collect()
}

fn fixtures() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"))
}

/// Adds EXIF data with an orientation to a JPEG, PNG or WebP. Returns pictures of other formats
/// unchanged.
fn turned(format: &str, picture: &[u8], width: u32, height: u32) -> Vec<u8> {
    // A TIFF header, and a directory with one entry: the orientation 6.
    const EXIF: &[u8; 26] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    const HAS_EXIF: u8 = 0b1000;
    let mut turned = picture.to_vec();
    // The data is inserted after the start of the JPEG, and after the header chunk of the PNG. It is
    // appended to the WebP, whose chunks begin at byte 12. `splice` inserts when its result is dropped.
    match format {
        "jpeg" => drop(turned.splice(2..2, segment(0xe1, &[b"Exif\0\0", &EXIF[..]].concat()))),
        "png" => drop(turned.splice(33..33, png_chunk(b"eXIf", EXIF))),
        "webp" => {
            let chunks = [vp8x(HAS_EXIF, width, height), turned.split_off(12)];
            turned = webp(&[&chunks[..], &[riff_chunk(b"EXIF", EXIF)]].concat());
        }
        _ => {}
    }
    turned
}

/// Returns the nth damaged picture of a run. The picture depends only on `seed` and `n`.
fn nth_damaged_picture(corpora: &[Corpus], seed: u64, n: usize) -> Vec<u8> {
    let mut random = Rng::with_seed(seed.wrapping_add(n as u64));
    let corpus = &corpora[random.usize(..corpora.len())];
    let [picture, other] = [(); 2].map(|()| &corpus[random.usize(..corpus.len())]);
    damaged(picture, other, &mut random)
}

/// Sends a picture. Returns the status with the error code or the media type, if this outcome is
/// expected. Otherwise returns a description of the failure.
async fn send(
    service: &ServiceProcess,
    client: &reqwest::Client,
    n: usize,
    picture: &[u8],
) -> Result<String, String> {
    let started = Instant::now();
    // Only pictures with an odd number are saved.
    let query = if n.is_multiple_of(2) { "?save=false" } else { "" };
    let route = service.url(&format!("/vectorize-image-upload{query}"));
    let request = client.post(route).header("content-type", FORM_CONTENT_TYPE).body(form(picture));
    let answer = request.send().await.map_err(|error| format!("no answer: {error:?}"))?;
    let status = answer.status().as_u16();
    let body = answer.bytes().await.map_err(|error| format!("{status}, truncated: {error:?}"))?;
    let body: serde_json::Value =
        serde_json::from_slice(&body).map_err(|error| format!("{status}: {error}"))?;
    let outcome = match status {
        200 => format!("200 {}", body["content_type"].as_str().unwrap_or_default()),
        _ => format!("{status} {}", body["code"].as_str().unwrap_or_default()),
    };
    if started.elapsed() > MAX_ANSWER_TIME {
        return Err(format!("{outcome} after {:?}", started.elapsed()));
    }
    let refusals = ["413 image_too_large", "415 unsupported_image", "422 embedding_rejected"];
    let is_empty_and_refused = (status, picture.len()) == (400, 0);
    if status == 200 || refusals.contains(&outcome.as_str()) || is_empty_and_refused {
        Ok(outcome)
    } else {
        Err(format!("{status}: {body}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes MUTATION_SECONDS, by default 30"]
async fn damaged_pictures_of_every_format_are_answered_and_leak_no_files_and_hardly_any_memory() {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let duration = Duration::from_secs(variable("MUTATION_SECONDS").unwrap_or(30));
    let seed = variable("MUTATION_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("MUTATION_SEED={seed}");
    let corpora = load_corpora();
    let folder = tempfile::tempdir().unwrap();
    // The sandbox decodes every picture. The pictures that the service converts or shrinks are
    // decoded twice. The request timeout is longer than `MAX_ANSWER_TIME`, so a slow answer is
    // reported as slow.
    let service = ServiceProcess::start(
        folder.path(),
        &[
            ("IMAGESVC_SANDBOX", "true"),
            ("NVIDIA_LARGE_IMAGES", "shrink"),
            ("NVIDIA_INLINE_LIMIT", "20000"),
            // These limits keep the cached vectors and the saved pictures from growing without end.
            ("IMAGESVC_CACHE_MEMORY", "4MiB"),
            ("IMAGESVC_CACHE_DISK", "8MiB"),
            ("IMAGESVC_DOWNLOADS_MAX_BYTES", "20MiB"),
            ("IMAGESVC_REQUEST_TIMEOUT", "120s"),
        ],
    );
    // This timeout, too, is longer than `MAX_ANSWER_TIME`.
    let client = reqwest::Client::builder().timeout(2 * MAX_ANSWER_TIME).build().unwrap();
    let next_number = AtomicUsize::new(0);
    let outcomes = Mutex::new(BTreeMap::<String, usize>::new());
    let failures = Mutex::new(Vec::new());
    let failed_pictures = tempfile::Builder::new().prefix("mutations-").tempdir().unwrap();
    let send_pictures = |duration: Duration| {
        let (client, service, corpora) = (&client, &service, &corpora);
        let next_number = &next_number;
        let (outcomes, failures, failed_pictures) = (&outcomes, &failures, &failed_pictures);
        async move {
            let end = Instant::now() + duration;
            let numbers = stream::repeat_with(|| next_number.fetch_add(1, Ordering::Relaxed));
            let numbers = numbers.take_while(|_| {
                let has_time = Instant::now() < end;
                let may_continue = has_time && failures.lock().unwrap().len() < MAX_FAILURES;
                std::future::ready(may_continue)
            });
            let requests = numbers.map(|n| async move {
                let picture = nth_damaged_picture(corpora, seed, n);
                let outcome = send(service, client, n, &picture).await.unwrap_or_else(|failure| {
                    let path = failed_pictures.path().join(n.to_string());
                    std::fs::write(&path, &picture).unwrap();
                    failures.lock().unwrap().push(format!("{}: {failure:.500}", path.display()));
                    "failed".into()
                });
                *outcomes.lock().unwrap().entry(outcome).or_default() += 1;
            });
            // One request for each core. The service and its sandbox share a pool with one decoder for
            // each core, so no request waits for a decoder.
            let max_concurrent = available_parallelism().map_or(1, usize::from);
            requests.buffer_unordered(max_concurrent).collect::<()>().await;
        }
    };
    // `when_idle` measures after each pause, until two measurements are equal: after 12 s at the earliest.
    // By then, the connections of the test are closed: the service closes idle ones after 10 s.
    let pause = Duration::from_secs(6);
    send_pictures(duration / 4).await;
    let before = ResourceUsage::when_idle(&service, pause).await;
    send_pictures(duration * 3 / 4).await;
    let after = ResourceUsage::when_idle(&service, pause).await;
    println!("{before:?}\n{after:?}\n{:#?}", outcomes.lock().unwrap());
    let failures = failures.into_inner().unwrap();
    if !failures.is_empty() {
        // Without this call, the pictures that failed would be deleted.
        let _ = failed_pictures.keep();
        panic!("with MUTATION_SEED={seed}: {failures:#?}");
    }
    let outcomes = outcomes.into_inner().unwrap();
    // Without HEIC, the service supports six formats.
    let embedded_formats = outcomes.keys().filter(|outcome| outcome.starts_with("200")).count();
    assert!(
        embedded_formats >= 6,
        "pictures of at least 6 formats should be embedded, not of {embedded_formats}"
    );
    after.assert_no_more_than(&before, MAX_GROWTH);
    let incoming = std::fs::read_dir(folder.path().join("downloads/.incoming")).unwrap().count();
    assert_eq!(incoming, 0, "no partly received file should be left");
    let (status, log) = service.stop();
    assert_eq!(status.code(), Some(0));
    let lines_with = |text: &str| log.iter().filter(|line| line.contains(text)).collect::<Vec<_>>();
    // The service itself must not panic.
    let panics = lines_with("a thread panicked");
    assert!(panics.is_empty(), "with MUTATION_SEED={seed}: {panics:#?}");
    // A panic in a decoder does not harm the service. Most are bugs of libraries, which cannot be
    // corrected here, so the test does not fail.
    let panics = lines_with("the decoder panicked");
    println!(
        "{} decoders panicked, among them: {:#?}",
        panics.len(),
        &panics[..panics.len().min(5)]
    );
}
