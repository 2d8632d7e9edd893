//! Pillow as the judge of pixels: NVIDIA is given what Pillow shows, upright and on white, of every
//! format and kind.
//!
//! `tests/pillow` says what it takes to run these tests. [`kinds`] and the files of [`super::odd_forms`]
//! are judged beside the pictures that the script makes.

use std::{env, fs, path::Path, process::Command, sync::LazyLock};

use image_rs::RgbImage;
use serde::Deserialize;

use crate::support::{
    Answer, Difference, FakeNvidia, TestApp, assert_problem, kinds, python_lacks,
};

/// A picture that was judged.
struct Judged {
    name: String,
    bytes: Vec<u8>,
    verdict: Verdict,
    /// How it looks, at its own size and at smaller ones.
    right: Vec<RgbImage>,
}

/// What the judge says of a picture.
#[derive(Deserialize)]
#[serde(untagged)]
enum Verdict {
    Shown {
        /// As stored.
        width: u32,
        height: u32,
        orientation: u8,
        /// Widths that it was scaled down to.
        scaled: Vec<u32>,
    },
    Unknown {
        unknown: String,
    },
}

/// A line of the judge's report.
#[derive(Deserialize)]
struct Line {
    name: String,
    #[serde(flatten)]
    verdict: Verdict,
}

/// Kinds that are not read, by how their names begin, and a word of what clients are told.
const UNREAD: &[(&str, &str)] = &[("tiff-group", "fax")];

/// The same of JPEGs that have to be decoded; as they are, they can be sent.
const UNDECODED: &[(&str, &str)] = &[
    ("jpeg-three-scans-42", "scan"),
    ("jpeg-three-scans-411", "scan"),
    ("jpeg-two-scans-420", "scan"),
    ("turned-jpeg-three-scans-42", "scan"),
];

/// Kinds that Pillow does not show, by how their names begin.
const UNKNOWN_TO_PILLOW: &[&str] = &[];

/// How far a picture may be from what is right, by how its name begins; else [`ENCODED`].
const COARSE: &[(&str, Difference)] = &[];

/// What encoding as a JPEG of quality 90 costs.
const ENCODED: Difference = Difference { mean: 2.0, worst: 3.0 };

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
            let name = path.file_stem().unwrap().to_str().unwrap();
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
    let lines = lines.filter(|line: &Line| cfg!(feature = "heic") || !line.name.contains("heic"));
    let open = |name: String| image_rs::open(in_folder(&name)).unwrap().into_rgb8();
    lines
        .map(|Line { name, verdict }| {
            let right = match &verdict {
                Verdict::Shown { scaled, .. } => {
                    let smaller = scaled.iter().map(|width| format!("{name}.right.{width}.png"));
                    [format!("{name}.right.png")].into_iter().chain(smaller).map(open).collect()
                }
                Verdict::Unknown { .. } => Vec::new(),
            };
            Judged { bytes: fs::read(in_folder(&name)).unwrap(), name, verdict, right }
        })
        .collect()
}

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    let name = ["kind-", "form-"].iter().find_map(|given| name.strip_prefix(given)).unwrap_or(name);
    table.iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, found)| *found)
}

impl Judged {
    fn is_upright(&self) -> bool {
        matches!(self.verdict, Verdict::Shown { orientation: 1, .. })
    }

    /// Whether it is of a format that NVIDIA takes as it is.
    fn is_jpeg_or_png(&self) -> bool {
        self.bytes.starts_with(b"\xff\xd8") || self.bytes.starts_with(b"\x89PNG")
    }

    /// What is wrong with a picture that NVIDIA was shown.
    fn fault(&self, shown: &RgbImage) -> Option<String> {
        let limit = find(COARSE, &self.name).unwrap_or(ENCODED);
        let of_that_size = self.right.iter().find_map(|right| Difference::between(right, shown));
        match of_that_size {
            None => Some(format!("{:?} pixels were shown", shown.dimensions())),
            Some(found) if found.mean > limit.mean || found.worst > limit.worst => {
                Some(format!("it differs by {found}"))
            }
            Some(_) => None,
        }
    }

    /// What is wrong with a refusal, of which this word is expected.
    fn fault_of_refusal(answer: &Answer, word: &str) -> Option<String> {
        if answer.status != 415 {
            return Some(format!("{}, and no word of {word}", answer.status));
        }
        let problem = assert_problem(answer, 415, "unsupported_image");
        let detail = problem["detail"].as_str().unwrap();
        (!detail.contains(word) || detail.contains("damaged")).then(|| detail.to_owned())
    }
}

/// Gathers what is wrong with pictures, so that all of it is told.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn note(&mut self, picture: &Judged, fault: Option<impl Into<String>>) {
        self.0.extend(fault.map(|fault| format!("{}: {}", picture.name, fault.into())));
    }

    fn tell(self) {
        assert!(self.0.is_empty(), "{:#?}", self.0);
    }
}

#[tokio::test]
async fn nvidia_is_shown_every_picture_as_pillow_shows_it() {
    let Some(judged) = judged() else { return };
    let nvidia = FakeNvidia::well().await;
    let app = TestApp::start(&nvidia).await;
    let mut faults = Faults::default();
    for picture in judged {
        let answer = app.upload(&picture.bytes, "picture").await;
        let goes_as_it_is = picture.is_jpeg_or_png() && picture.is_upright();
        let undecoded = find(UNDECODED, &picture.name).filter(|_| !goes_as_it_is);
        if let Some(word) = find(UNREAD, &picture.name).or(undecoded) {
            faults.note(picture, Judged::fault_of_refusal(&answer, word));
            continue;
        }
        if answer.status != 200 {
            let text = answer.text();
            faults.note(picture, Some(format!("{} {text:.200}", answer.status)));
            continue;
        }
        let Verdict::Shown { width, height, .. } = picture.verdict else { continue };
        let body = answer.json();
        let prepared = if goes_as_it_is { "original" } else { "jpeg" };
        let is_told = body["width"] == width && body["height"] == height;
        if !is_told || body["prepared"] != prepared {
            let told = (&body["width"], &body["height"], &body["prepared"]);
            faults.note(picture, Some(format!("{told:?} is told")));
        }
        if goes_as_it_is {
            faults.note(
                picture,
                (nvidia.last_inline().bytes != picture.bytes).then_some("it was changed"),
            );
        } else {
            faults.note(picture, picture.fault(&nvidia.last_inline().pixels()));
        }
    }
    faults.tell();
}

#[tokio::test]
async fn a_jpeg_or_png_that_has_to_be_decoded_is_shown_as_pillow_shows_it() {
    const INLINE: usize = 20_000;
    let Some(judged) = judged() else { return };
    let nvidia = FakeNvidia::well().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", INLINE)
        .start()
        .await;
    let mut faults = Faults::default();
    for picture in judged {
        if !picture.is_jpeg_or_png() || !picture.is_upright() || picture.name.starts_with("large") {
            continue;
        }
        // Bytes behind the end: the file is too large, the picture has its size.
        let mut bytes = picture.bytes.clone();
        bytes.resize(bytes.len() + INLINE, 0);
        let answer = app.upload(&bytes, "picture").await;
        if let Some(word) = find(UNDECODED, &picture.name) {
            faults.note(picture, Judged::fault_of_refusal(&answer, word));
        } else if answer.status != 200 || answer.prepared() != "shrunk" {
            let text = answer.text();
            faults.note(picture, Some(format!("{} {text:.200}", answer.status)));
        } else {
            faults.note(picture, picture.fault(&nvidia.last_inline().pixels()));
        }
    }
    faults.tell();
}

#[tokio::test]
async fn a_large_picture_is_turned_before_it_is_shrunk() {
    let Some(judged) = judged() else { return };
    let nvidia = FakeNvidia::well().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", 60_000)
        .start()
        .await;
    let mut faults = Faults::default();
    for picture in judged.iter().filter(|picture| picture.name.starts_with("large")) {
        let answer = app.upload(&picture.bytes, "picture").await;
        let shown = (answer.prepared() == "shrunk").then(|| nvidia.last_inline().pixels());
        let fault = match shown {
            None => Some(answer.prepared()),
            Some(shown) if shown.dimensions() == picture.right[0].dimensions() => {
                Some("it was not scaled down".into())
            }
            Some(shown) => picture.fault(&shown),
        };
        faults.note(picture, fault);
    }
    faults.tell();
}

#[tokio::test]
async fn a_picture_has_one_vector_however_it_lies_and_whatever_its_size() {
    let Some(judged) = judged() else { return };
    let small = TestApp::sandbox().start().await;
    let large = TestApp::sandbox()
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", 60_000)
        .start()
        .await;
    let mut faults = Faults::default();
    for group in ["turned-", "large-"] {
        let of_group = || judged.iter().filter(|picture| picture.name.starts_with(group));
        let upright = of_group().find(|picture| picture.name.ends_with("-jpeg-1")).unwrap();
        let upright = small.upload(&upright.bytes, "picture").await.vector();
        for picture in of_group().filter(|picture| find(UNDECODED, &picture.name).is_none()) {
            for app in [&small, &large] {
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
fn pillow_shows_all_but_some_kinds() {
    let Some(judged) = judged() else { return };
    for picture in judged {
        if let Verdict::Unknown { unknown } = &picture.verdict {
            let is_known = UNKNOWN_TO_PILLOW.iter().any(|begin| picture.name.starts_with(begin));
            assert!(is_known, "{}: {unknown}", picture.name);
        }
    }
}
