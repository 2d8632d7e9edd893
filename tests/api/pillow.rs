//! Pillow as the judge of pixels: NVIDIA is given what Pillow shows, upright and on white, of every
//! format and kind.
//!
//! `tests/pillow` says what it takes to run these tests. [`kinds`] and the files of [`super::unusual_files`]
//! are judged beside the pictures that the script makes.

use std::{
    env, fs,
    path::Path,
    process::Command,
    sync::{Arc, LazyLock, Mutex},
};

use image_rs::RgbImage;
use serde::Deserialize;

use crate::support::{
    Answer, Difference, FakeNvidia, Inline, TestApp, assert_problem, kinds, python_lacks,
};

/// Kinds that are not read, by how their names begin, and a word of what clients are told.
const UNREAD: [(&str, &str); 3] = [
    ("tiff-grey-32-", "floating-point"),
    ("tiff-float-", "floating-point"),
    ("tiff-uncompressed-ycbcr", "YCbCr"),
];

/// The same of JPEGs that have to be decoded; as they are, they can be sent.
const UNDECODED: [(&str, &str); 5] = [
    ("jpeg-scan-for-each-42", "scan"),
    ("jpeg-three-scans-42", "scan"),
    ("jpeg-three-scans-411", "scan"),
    ("jpeg-two-scans-420", "scan"),
    ("turned-jpeg-three-scans-42", "scan"),
];

/// Kinds that Pillow does not show, or shows as noise, and what in their names makes the names of kinds
/// that show the same.
const TWINS: [(&str, &str); 4] = [
    ("-16-planar", "-8-planar"),
    ("tiff-rgb-32-", "tiff-rgb-8-"),
    ("tiff-rgba-32-", "tiff-rgba-8-"),
    ("tiff-grey-alpha-16-", "tiff-grey-alpha-8-"),
];

/// Kinds that Pillow does not show, and that have no such twin: they are read, and that is all.
const UNJUDGED: [&str; 4] =
    ["bmp-2", "bmp-masks", "tiff-grey-alpha-8-planar", "tiff-grey-alpha-16-planar"];

/// What encoding anew costs, with a quality of 95 and of 90. The means are those of noise.
const CONVERTED: Difference = Difference { mean: 3.5, worst: 4.0 };
const SHRUNK: Difference = Difference { mean: 4.0, worst: 6.0 };

/// A limit below which most pictures of these tests are too large.
const INLINE_LIMIT: usize = 20_000;
/// A limit at which a large picture has to be scaled down once.
const LARGE_INLINE_LIMIT: usize = 60_000;

/// A picture that was judged.
#[derive(Deserialize)]
struct Judged {
    name: String,
    shown: Option<Shown>,
    #[serde(skip)]
    bytes: Vec<u8>,
    /// How it looks, at its own size and at smaller ones.
    #[serde(skip)]
    right: Vec<RgbImage>,
}

/// What the judge says of a picture that it can show.
#[derive(Clone, Deserialize)]
struct Shown {
    /// As stored.
    width: u32,
    height: u32,
    orientation: u8,
    /// Widths that it was scaled down to.
    scaled: Vec<u32>,
}

/// Every picture, judged once; `None` where there is no judge.
fn judged() -> Option<&'static [Judged]> {
    static JUDGED: LazyLock<Option<Vec<Judged>>> = LazyLock::new(|| {
        let python = env::var("PILLOW_PYTHON").unwrap_or_else(|_| "python3".into());
        (!python_lacks(&python, "numpy, PIL, pillow_heif")).then(|| judge(&python))
    });
    JUDGED.as_deref()
}

fn judge(python: &str) -> Vec<Judged> {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |name: &str| folder.path().join(name);
    for (name, bytes) in kinds::all(97, 65) {
        fs::write(in_folder(&format!("kind-{name}")), bytes).unwrap();
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for entry in fs::read_dir(tests.join("fixtures/formats")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension != "md") {
            let name = path.file_name().unwrap().to_str().unwrap();
            fs::copy(&path, in_folder(&format!("form-{name}"))).unwrap();
        }
    }
    let told = Command::new(python)
        .arg(tests.join("pillow/judge.py"))
        .arg(folder.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let told = String::from_utf8(told.stdout).unwrap();
    let lines = told.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines = lines.filter(|told: &Judged| cfg!(feature = "heic") || !told.name.contains("heic"));
    let mut judged: Vec<Judged> = lines.collect();
    let open = |name: String| image_rs::open(in_folder(&name)).unwrap().into_rgb8();
    for picture in &mut judged {
        let name = &picture.name;
        picture.bytes = fs::read(in_folder(name)).unwrap();
        if let Some(shown) = &picture.shown {
            let smaller = shown.scaled.iter().map(|width| format!("{name}.right.{width}.png"));
            picture.right =
                [format!("{name}.right.png")].into_iter().chain(smaller).map(open).collect();
        }
    }
    for nth in 0..judged.len() {
        if let Some(twin) = twin(&judged[nth].name) {
            let twin = judged.iter().find(|picture| picture.name == twin).unwrap();
            let (shown, right) = (twin.shown.clone(), twin.right.clone());
            (judged[nth].shown, judged[nth].right) = (shown, right);
        }
    }
    judged
}

fn twin(name: &str) -> Option<String> {
    let (of, twin) = TWINS.iter().find(|(of, _)| name.contains(of))?;
    (name.starts_with("kind-")).then(|| name.replace(of, twin))
}

/// The word for a picture in a table.
fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let name = ["kind-", "form-"].iter().find_map(|given| name.strip_prefix(given)).unwrap_or(name);
    table.iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, word)| *word)
}

impl Judged {
    fn is_upright(&self) -> bool {
        self.shown.as_ref().is_some_and(|shown| shown.orientation == 1)
    }

    /// Whether it is of a format that NVIDIA takes as it is.
    fn is_jpeg_or_png(&self) -> bool {
        self.bytes.starts_with(b"\xff\xd8") || self.bytes.starts_with(b"\x89PNG")
    }

    fn is_large(&self) -> bool {
        self.name.starts_with("large-")
    }

    /// What is wrong with what NVIDIA was shown.
    fn fault(&self, seen: &RgbImage, limit: Difference) -> Option<String> {
        match self.right.iter().find_map(|right| Difference::between(right, seen)) {
            None => Some(format!("{:?} pixels were shown", seen.dimensions())),
            Some(found) if found.mean > limit.mean || found.worst > limit.worst => {
                Some(format!("it differs by {found}"))
            }
            Some(_) => None,
        }
    }
}

/// What is wrong with an answer that should be a refusal with this word.
fn fault_of_refusal(answer: &Answer, word: &str) -> Option<String> {
    if answer.status != 415 {
        return Some(format!("{}, and no word of {word}", answer.status));
    }
    let problem = assert_problem(answer, 415, "unsupported_image");
    let detail = problem["detail"].as_str().unwrap();
    (!detail.contains(word) || detail.contains("damaged")).then(|| detail.to_owned())
}

/// Gathers what is wrong with pictures, so that all of it is told.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn note(&mut self, picture: &Judged, fault: Option<String>) {
        self.0.extend(fault.map(|fault| format!("{}: {fault}", picture.name)));
    }

    fn note_answer(&mut self, picture: &Judged, answer: &Answer) {
        let text = answer.text();
        self.note(picture, Some(format!("{} {text:.200}", answer.status)));
    }

    fn tell(self) {
        assert!(self.0.is_empty(), "{:#?}", self.0);
    }
}

/// A fake NVIDIA that keeps the picture that it was given last.
struct Onlooker {
    nvidia: FakeNvidia,
    last: Arc<Mutex<Vec<u8>>>,
}

impl Onlooker {
    async fn start() -> Self {
        let last = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&last);
        let nvidia = FakeNvidia::with_uploads(move |request| {
            let body = String::from_utf8_lossy(&request.body);
            if request.method == "PUT" {
                kept.lock().unwrap().clone_from(&request.body);
            } else if body.contains(";base64,") {
                *kept.lock().unwrap() = Inline::of(request).bytes;
            }
            None
        })
        .await;
        Self { nvidia, last }
    }

    fn bytes(&self) -> Vec<u8> {
        self.last.lock().unwrap().clone()
    }

    fn pixels(&self) -> RgbImage {
        image_rs::load_from_memory(&self.bytes()).unwrap().into_rgb8()
    }

    /// A service in front of it, which shrinks what does not fit.
    async fn shrinking(&self, inline_limit: usize) -> TestApp {
        let app = TestApp::builder(&self.nvidia).setting("NVIDIA_LARGE_IMAGES", "shrink");
        app.setting("NVIDIA_INLINE_LIMIT", inline_limit).start().await
    }
}

#[tokio::test]
async fn nvidia_is_shown_every_picture_as_pillow_shows_it() {
    let Some(judged) = judged() else { return };
    let onlooker = Onlooker::start().await;
    let app = TestApp::start(&onlooker.nvidia).await;
    let mut faults = Faults::default();
    for picture in judged {
        let answer = app.upload(&picture.bytes, "picture").await;
        let goes_as_it_is = picture.is_jpeg_or_png() && picture.is_upright();
        let undecoded = find(&UNDECODED, &picture.name).filter(|_| !goes_as_it_is);
        if let Some(word) = find(&UNREAD, &picture.name).or(undecoded) {
            faults.note(picture, fault_of_refusal(&answer, word));
            continue;
        }
        if answer.status != 200 {
            faults.note_answer(picture, &answer);
            continue;
        }
        let Some(Shown { width, height, .. }) = picture.shown else { continue };
        let body = answer.json();
        let told = (&body["width"], &body["height"], &body["prepared"]);
        let prepared = if goes_as_it_is { "original" } else { "jpeg" };
        if told != (&width.into(), &height.into(), &prepared.into()) {
            faults.note(picture, Some(format!("{told:?} is told")));
        }
        let fault = if goes_as_it_is {
            (onlooker.bytes() != picture.bytes).then(|| "it was changed".to_owned())
        } else {
            picture.fault(&onlooker.pixels(), CONVERTED)
        };
        faults.note(picture, fault);
    }
    faults.tell();
}

#[tokio::test]
async fn a_jpeg_or_png_that_has_to_be_decoded_is_shown_as_pillow_shows_it() {
    let Some(judged) = judged() else { return };
    let onlooker = Onlooker::start().await;
    let app = onlooker.shrinking(INLINE_LIMIT).await;
    let mut faults = Faults::default();
    let is_decoded = |picture: &&Judged| picture.is_jpeg_or_png() && !picture.is_large();
    for picture in judged.iter().filter(is_decoded) {
        // What stands behind the end makes the file too large, and leaves the picture its size.
        let bytes = [&picture.bytes[..], &[0; INLINE_LIMIT]].concat();
        let answer = app.upload(&bytes, "picture").await;
        if let Some(word) = find(&UNDECODED, &picture.name) {
            faults.note(picture, fault_of_refusal(&answer, word));
        } else if answer.status != 200 {
            faults.note_answer(picture, &answer);
        } else {
            faults.note(picture, picture.fault(&onlooker.pixels(), SHRUNK));
        }
    }
    faults.tell();
}

#[tokio::test]
async fn a_large_picture_is_turned_before_it_is_shrunk() {
    let Some(judged) = judged() else { return };
    let onlooker = Onlooker::start().await;
    let app = onlooker.shrinking(LARGE_INLINE_LIMIT).await;
    let mut faults = Faults::default();
    for picture in judged.iter().filter(|picture| picture.is_large()) {
        let answer = app.upload(&picture.bytes, "picture").await;
        let prepared = answer.prepared();
        let seen = onlooker.pixels();
        let is_smaller = seen.dimensions() != picture.right[0].dimensions();
        let fault = (prepared != "shrunk" || !is_smaller)
            .then(|| format!("{prepared}, {:?} pixels", seen.dimensions()));
        faults.note(picture, fault.or_else(|| picture.fault(&seen, SHRUNK)));
    }
    faults.tell();
}

#[tokio::test]
async fn a_picture_has_one_vector_however_it_lies_and_whatever_its_size() {
    let Some(judged) = judged() else { return };
    let small = TestApp::sandbox().start().await;
    let large = TestApp::sandbox()
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", LARGE_INLINE_LIMIT)
        .start()
        .await;
    let mut faults = Faults::default();
    for group in ["turned-", "large-"] {
        let of_group = || judged.iter().filter(|picture| picture.name.starts_with(group));
        let upright = of_group().find(|picture| picture.name.ends_with("-jpeg-1")).unwrap();
        let upright = small.upload(&upright.bytes, "picture").await.vector();
        for picture in of_group().filter(|picture| find(&UNDECODED, &picture.name).is_none()) {
            let apps = if picture.is_large() { &[&small, &large][..] } else { &[&small] };
            for app in apps {
                let answer = app.upload(&picture.bytes, "picture").await;
                let vector = answer.vector();
                let cosine: f64 = upright.iter().zip(&vector).map(|(a, b)| a * b).sum();
                let prepared = answer.prepared();
                faults.note(picture, (cosine < 0.99).then(|| format!("{cosine:.4} as {prepared}")));
            }
        }
    }
    faults.tell();
}

#[test]
fn pillow_judges_all_but_some_kinds() {
    let Some(judged) = judged() else { return };
    for picture in judged.iter().filter(|picture| picture.shown.is_none()) {
        let name = picture.name.strip_prefix("kind-").unwrap_or(&picture.name);
        assert!(UNJUDGED.contains(&name), "{name}");
    }
}
