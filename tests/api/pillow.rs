//! For every supported format and kind of picture, NVIDIA receives the pixels that Pillow decodes,
//! upright and with transparency on white.
//!
//! `tests/pillow/README.md` describes how to run these tests. Pillow decodes the pictures that
//! `tests/pillow/reference.py` makes, the pictures of [`kinds`], and the files in
//! `tests/fixtures/formats`.

use std::{
    env, fs,
    path::Path,
    process::Command,
    sync::{Arc, LazyLock, Mutex},
};

use image_rs::RgbImage;
use serde::Deserialize;

use crate::support::{
    Answer, Difference, FakeNvidia, InlinePicture, TestApp, assert_problem, kinds, python_lacks,
};

/// The beginnings of the names of pictures that the service does not support, each with a word of the
/// error's detail. The names are without `kind-` and `file-`.
const UNSUPPORTED: [(&str, &str); 3] = [
    ("tiff-grey-float-32-", "floating-point"),
    ("tiff-float-", "floating-point"),
    ("tiff-uncompressed-ycbcr", "YCbCr"),
];

/// The beginnings of the names of JPEGs that the service cannot decode, each with a word of the error's
/// detail. Those that are upright can still be sent unchanged.
const UNDECODABLE: [(&str, &str); 5] = [
    // The beginnings that end in 42 cover the names with 420 and 422.
    ("jpeg-scan-per-component-42", "scan"),
    ("jpeg-three-scans-42", "scan"),
    ("jpeg-three-scans-411", "scan"),
    ("jpeg-two-scans-420", "scan"),
    ("turned-jpeg-three-scans-42", "scan"),
];

/// Parts of the names of kinds that Pillow cannot decode correctly, each with a replacement. With the
/// replacement, the name is that of a kind with the same pixels.
const EQUAL_KINDS: [(&str, &str); 4] = [
    ("-16-planar", "-8-planar"),
    ("tiff-rgb-float-32-", "tiff-rgb-8-"),
    ("tiff-rgba-float-32-", "tiff-rgba-8-"),
    ("tiff-grey-alpha-16-", "tiff-grey-alpha-8-"),
];

/// The full names of kinds without a reference: Pillow can decode neither them nor a kind with the same
/// pixels. The tests only check that the service can decode them.
const WITHOUT_REFERENCE: [&str; 4] =
    ["bmp-2", "bmp-masks", "tiff-grey-alpha-8-planar", "tiff-grey-alpha-16-planar"];

/// The largest allowed difference after encoding as JPEG with quality 95, in levels from 0 to 255.
/// Pictures with noise differ most.
const MAX_DIFFERENCE_IF_CONVERTED: Difference = Difference { mean: 3.5, worst_square: 4.0 };
/// The largest allowed difference after encoding as JPEG with quality 90, in levels from 0 to 255.
const MAX_DIFFERENCE_IF_SHRUNK: Difference = Difference { mean: 4.0, worst_square: 6.0 };

/// The inline limit for pictures that are not large, in characters of Base64.
const INLINE_LIMIT_FOR_SMALL: usize = 20_000;
/// The inline limit for large pictures, in characters of Base64. Each must be scaled down to stay below it.
const INLINE_LIMIT_FOR_LARGE: usize = 60_000;

/// A picture, and what the tests expect of it.
#[derive(Deserialize)]
struct TestPicture {
    name: String,
    /// `None` if Pillow can decode neither this picture nor a kind with the same pixels.
    reference: Option<Reference>,
    #[serde(skip)]
    bytes: Vec<u8>,
    /// The expected pixels, at the picture's size and scaled down.
    #[serde(skip)]
    expected: Vec<RgbImage>,
}

/// What `reference.py` reports of a picture.
#[derive(Clone, Deserialize)]
struct Reference {
    /// The size that the service should report.
    width: u32,
    height: u32,
    orientation: u8,
    /// The widths to which Pillow has scaled the picture down.
    scaled: Vec<u32>,
}

/// All pictures, which are made and decoded once. `None` if Pillow is not installed.
fn test_pictures() -> Option<&'static [TestPicture]> {
    static PICTURES: LazyLock<Option<Vec<TestPicture>>> = LazyLock::new(|| {
        let python = env::var("PILLOW_PYTHON").unwrap_or_else(|_| "python3".into());
        (!python_lacks(&python, "numpy, PIL, pillow_heif")).then(|| run_pillow(&python))
    });
    PICTURES.as_deref()
}

/// Writes the pictures of [`kinds`] as `kind-…` and the files in `tests/fixtures/formats` as `file-…` to
/// a folder. Then lets Pillow add its own pictures to the folder, and decode them all.
fn run_pillow(python: &str) -> Vec<TestPicture> {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |name: &str| folder.path().join(name);
    // This size is not a multiple of a block's size, so the last blocks reach beyond the picture.
    for (name, bytes) in kinds::all(97, 65) {
        fs::write(in_folder(&format!("kind-{name}")), bytes).unwrap();
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for entry in fs::read_dir(tests.join("fixtures/formats")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension != "md") {
            let name = path.file_name().unwrap().to_str().unwrap();
            fs::copy(&path, in_folder(&format!("file-{name}"))).unwrap();
        }
    }
    let output = Command::new(python)
        .arg(tests.join("pillow/reference.py"))
        .arg(folder.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let mut pictures: Vec<TestPicture> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    pictures.retain(|picture| cfg!(feature = "heic") || !picture.name.contains("heic"));
    let open = |name: String| image_rs::open(in_folder(&name)).unwrap().into_rgb8();
    for picture in &mut pictures {
        let name = &picture.name;
        picture.bytes = fs::read(in_folder(name)).unwrap();
        if let Some(reference) = &picture.reference {
            picture.expected.push(open(format!("{name}.expected.png")));
            for width in &reference.scaled {
                picture.expected.push(open(format!("{name}.expected.{width}.png")));
            }
        }
    }
    for index in 0..pictures.len() {
        if let Some(equal_name) = equal_kind(&pictures[index].name) {
            let equal = pictures.iter().find(|picture| picture.name == equal_name).unwrap();
            let (reference, expected) = (equal.reference.clone(), equal.expected.clone());
            (pictures[index].reference, pictures[index].expected) = (reference, expected);
        }
    }
    pictures
}

/// The name of the kind with the same pixels, by [`EQUAL_KINDS`].
fn equal_kind(name: &str) -> Option<String> {
    let (part, replacement) = EQUAL_KINDS.iter().find(|(part, _)| name.contains(part))?;
    name.starts_with("kind-").then(|| name.replace(part, replacement))
}

/// Returns the word that the error's detail must contain, if the table lists the picture.
fn expected_word(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let name =
        ["kind-", "file-"].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    table.iter().find(|(beginning, _)| name.starts_with(beginning)).map(|(_, word)| *word)
}

impl TestPicture {
    /// Whether the picture is stored upright. `false` without a reference, but every JPEG and PNG has one.
    fn is_upright(&self) -> bool {
        self.reference.as_ref().is_some_and(|reference| reference.orientation == 1)
    }

    /// Whether NVIDIA accepts the picture's format.
    fn is_jpeg_or_png(&self) -> bool {
        self.bytes.starts_with(b"\xff\xd8") || self.bytes.starts_with(b"\x89PNG")
    }

    fn is_large(&self) -> bool {
        self.name.starts_with("large-")
    }

    /// Compares the pixels that NVIDIA received with the expected pixels. Returns what is wrong, or
    /// `None`.
    fn compare(&self, received: &RgbImage, max_difference: Difference) -> Option<String> {
        let difference =
            self.expected.iter().find_map(|expected| Difference::between(expected, received));
        match difference {
            None => Some(format!("no expected size is {:?}", received.dimensions())),
            Some(difference)
                if difference.mean > max_difference.mean
                    || difference.worst_square > max_difference.worst_square =>
            {
                Some(format!("the pixels differ by {difference}"))
            }
            Some(_) => None,
        }
    }
}

/// Checks that the answer is a 415 whose detail contains `word`, and does not call the picture
/// damaged. Returns what is wrong, or `None`.
fn check_refusal(answer: &Answer, word: &str) -> Option<String> {
    if answer.status != 415 {
        return Some(format!("status {} instead of 415 for {word}", answer.status));
    }
    let problem = assert_problem(answer, 415, "unsupported_image");
    let detail = problem["detail"].as_str().unwrap();
    (!detail.contains(word) || detail.contains("damaged")).then(|| detail.to_owned())
}

/// Collects what is wrong with all pictures, so that a failed test reports all of it.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    /// Adds a failure, unless it is `None`.
    fn add(&mut self, picture: &TestPicture, failure: Option<String>) {
        self.0.extend(failure.map(|failure| format!("{}: {failure}", picture.name)));
    }

    /// Adds an answer that is not a success.
    fn add_answer(&mut self, picture: &TestPicture, answer: &Answer) {
        let text = answer.text();
        self.add(picture, Some(format!("{} {text:.200}", answer.status)));
    }

    fn assert_none(self) {
        assert!(self.0.is_empty(), "no picture should fail: {:#?}", self.0);
    }
}

/// A fake NVIDIA that stores the last picture that it received.
struct RecordingNvidia {
    server: FakeNvidia,
    last_picture: Arc<Mutex<Vec<u8>>>,
}

impl RecordingNvidia {
    async fn start() -> Self {
        let last_picture = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&last_picture);
        let server = FakeNvidia::healthy_except(move |request| {
            let body = String::from_utf8_lossy(&request.body);
            // A picture over the inline limit is uploaded with PUT; any other is part of an inference.
            if request.method == "PUT" {
                recorded.lock().unwrap().clone_from(&request.body);
            } else if body.contains(";base64,") {
                *recorded.lock().unwrap() = InlinePicture::of(request).bytes;
            }
            None
        })
        .await;
        Self { server, last_picture }
    }

    fn last_bytes(&self) -> Vec<u8> {
        self.last_picture.lock().unwrap().clone()
    }

    fn last_pixels(&self) -> RgbImage {
        image_rs::load_from_memory(&self.last_bytes()).unwrap().into_rgb8()
    }

    /// Starts a service that calls this fake NVIDIA and shrinks pictures over the inline limit.
    async fn start_shrinking_app(&self, inline_limit: usize) -> TestApp {
        let app = TestApp::builder(&self.server).setting("NVIDIA_LARGE_IMAGES", "shrink");
        app.setting("NVIDIA_INLINE_LIMIT", inline_limit).start().await
    }
}

#[tokio::test]
async fn nvidia_receives_every_picture_with_the_pixels_that_pillow_decodes() {
    let Some(pictures) = test_pictures() else { return };
    let nvidia = RecordingNvidia::start().await;
    let app = TestApp::start(&nvidia.server).await;
    let mut failures = Failures::default();
    for picture in pictures {
        let answer = app.upload(&picture.bytes, "picture").await;
        let is_sent_unchanged = picture.is_jpeg_or_png() && picture.is_upright();
        let undecodable = expected_word(&UNDECODABLE, &picture.name).filter(|_| !is_sent_unchanged);
        if let Some(word) = expected_word(&UNSUPPORTED, &picture.name).or(undecodable) {
            failures.add(picture, check_refusal(&answer, word));
            continue;
        }
        if answer.status != 200 {
            failures.add_answer(picture, &answer);
            continue;
        }
        let Some(Reference { width, height, .. }) = picture.reference else { continue };
        let body = answer.json();
        let reported = (&body["width"], &body["height"], &body["prepared"]);
        let prepared = if is_sent_unchanged { "original" } else { "jpeg" };
        if reported != (&width.into(), &height.into(), &prepared.into()) {
            failures.add(picture, Some(format!("the answer contains {reported:?}")));
        }
        let failure = if is_sent_unchanged {
            (nvidia.last_bytes() != picture.bytes).then(|| "the picture was changed".to_owned())
        } else {
            picture.compare(&nvidia.last_pixels(), MAX_DIFFERENCE_IF_CONVERTED)
        };
        failures.add(picture, failure);
    }
    failures.assert_none();
}

#[tokio::test]
async fn a_jpeg_or_png_over_the_inline_limit_is_reencoded_with_the_pixels_that_pillow_decodes() {
    let Some(pictures) = test_pictures() else { return };
    let nvidia = RecordingNvidia::start().await;
    let app = nvidia.start_shrinking_app(INLINE_LIMIT_FOR_SMALL).await;
    let mut failures = Failures::default();
    for picture in pictures {
        if !picture.is_jpeg_or_png() || picture.is_large() {
            continue;
        }
        // With zeros after its end, the file is over the inline limit. The picture is the same.
        let bytes = [&picture.bytes[..], &[0; INLINE_LIMIT_FOR_SMALL]].concat();
        let answer = app.upload(&bytes, "picture").await;
        if let Some(word) = expected_word(&UNDECODABLE, &picture.name) {
            failures.add(picture, check_refusal(&answer, word));
        } else if answer.status != 200 || answer.prepared() == "original" {
            failures.add_answer(picture, &answer);
        } else {
            let failure = picture.compare(&nvidia.last_pixels(), MAX_DIFFERENCE_IF_SHRUNK);
            failures.add(picture, failure);
        }
    }
    failures.assert_none();
}

#[tokio::test]
async fn a_large_picture_is_scaled_down_and_has_the_upright_pixels_that_pillow_decodes() {
    let Some(pictures) = test_pictures() else { return };
    let nvidia = RecordingNvidia::start().await;
    let app = nvidia.start_shrinking_app(INLINE_LIMIT_FOR_LARGE).await;
    let mut failures = Failures::default();
    for picture in pictures.iter().filter(|picture| picture.is_large()) {
        let answer = app.upload(&picture.bytes, "picture").await;
        let prepared = answer.prepared();
        let received = nvidia.last_pixels();
        let is_scaled = received.dimensions() != picture.expected[0].dimensions();
        let failure = if prepared == "shrunk" && is_scaled {
            picture.compare(&received, MAX_DIFFERENCE_IF_SHRUNK)
        } else {
            Some(format!(
                "should be shrunk by scaling it down: {prepared}, {:?} pixels",
                received.dimensions()
            ))
        };
        failures.add(picture, failure);
    }
    failures.assert_none();
}

#[tokio::test]
async fn a_picture_gets_nearly_the_same_vector_in_every_orientation_and_when_shrunk() {
    let Some(pictures) = test_pictures() else { return };
    let default_app = TestApp::sandbox().start().await;
    let shrinking_app = TestApp::sandbox()
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", INLINE_LIMIT_FOR_LARGE)
        .start()
        .await;
    let mut failures = Failures::default();
    for group in ["turned-", "large-"] {
        let in_group = || pictures.iter().filter(|picture| picture.name.starts_with(group));
        // All pictures of a group show the same scene. The end of a JPEG's name is its orientation.
        let upright = in_group().find(|picture| picture.name.ends_with("-jpeg-1")).unwrap();
        let upright_vector = default_app.upload(&upright.bytes, "picture").await.vector();
        for picture in
            in_group().filter(|picture| expected_word(&UNDECODABLE, &picture.name).is_none())
        {
            let apps = if picture.is_large() {
                &[&default_app, &shrinking_app][..]
            } else {
                &[&default_app]
            };
            for app in apps {
                let answer = app.upload(&picture.bytes, "picture").await;
                let vector = answer.vector();
                // The sandbox's vectors have length 1, so the sum of the products is the cosine.
                let cosine: f64 = upright_vector.iter().zip(&vector).map(|(a, b)| a * b).sum();
                if cosine < 0.99 {
                    let prepared = answer.prepared();
                    let failure = format!("the cosine is {cosine:.4}, prepared: {prepared}");
                    failures.add(picture, Some(failure));
                }
            }
        }
    }
    failures.assert_none();
}

#[test]
fn every_picture_has_a_reference_except_the_kinds_listed_without_one() {
    let Some(pictures) = test_pictures() else { return };
    for picture in pictures.iter().filter(|picture| picture.reference.is_none()) {
        let name = picture.name.strip_prefix("kind-").unwrap_or(&picture.name);
        assert!(WITHOUT_REFERENCE.contains(&name), "Pillow should decode {name}");
    }
}
