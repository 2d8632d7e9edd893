//! Supported kinds of TIFF are decoded. Unsupported kinds are refused, and the error describes the
//! kind.

use std::{fs, path::Path};

use image_rs::RgbImage;

use crate::support::{
    FakeNvidia, TestApp, assert_problem,
    craft::{Entry, tiff},
    metric,
    tiff_tags::{self as tag, DATA_AT, LONG, SHORT},
};

/// The tag for the order of the bits in a byte, which must be 1 or 2.
const FILL_ORDER: u16 = 266;

/// A file of `tests/fixtures/formats`.
fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats");
    fs::read(folder.join(name)).unwrap()
}

/// The mean difference of the samples of two pictures, from 0 to 255, after both are scaled down by
/// this factor. Scaling down turns the black and white dots of a fax into greys.
fn mean_difference(a: &RgbImage, b: &RgbImage, scale: u32) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let size = (a.width() / scale, a.height() / scale);
    let [a, b] = [a, b].map(|image| image_rs::imageops::thumbnail(image, size.0, size.1));
    let sum: f64 = a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / a.len() as f64
}

/// Converts colours to grey like Pillow (ITU-R BT.601). The grey fixtures were made with the same
/// weights.
fn grey(image: &RgbImage) -> RgbImage {
    let mut picture = image.clone();
    for pixel in picture.pixels_mut() {
        let [red, green, blue] = pixel.0.map(u32::from);
        pixel.0 = [((red * 299 + green * 587 + blue * 114 + 500) / 1000) as u8; 3];
    }
    picture
}

/// An RGB picture of 16 × 16 pixels. `changes` replaces tags, or adds them.
fn crafted(changes: &[Entry]) -> Vec<u8> {
    let mut entries: Vec<Entry> = vec![
        (tag::WIDTH, LONG, vec![16]),
        (tag::HEIGHT, LONG, vec![16]),
        (tag::BITS_PER_SAMPLE, SHORT, vec![8; 3]),
        (tag::COMPRESSION, SHORT, vec![1]), // none
        (tag::PHOTOMETRIC, SHORT, vec![2]), // RGB
        (tag::STRIP_OFFSETS, LONG, vec![DATA_AT]),
        (tag::SAMPLES_PER_PIXEL, SHORT, vec![3]),
        (tag::ROWS_PER_STRIP, LONG, vec![16]),
        (tag::STRIP_BYTE_COUNTS, LONG, vec![768]), // 16 × 16 × 3
    ];
    entries.retain(|(number, ..)| changes.iter().all(|(changed, ..)| changed != number));
    entries.extend_from_slice(changes);
    entries.sort_by_key(|(number, ..)| *number);
    tiff(&[100; 768], &entries)
}

#[tokio::test]
async fn an_unsupported_or_damaged_tiff_is_refused_with_the_reason_and_no_decoder_is_started() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    app.upload(&crafted(&[]), "plain.tiff").await.assert_success();
    let decode_counts = || async {
        let metrics = app.get("/metrics").await.text();
        // The outcomes of a decoder that was started.
        ["done", "refused", "failed", "timeout"]
            .map(|name| metric(&metrics, &format!("imagesvc_decodes_total{{outcome=\"{name}\"}}")))
    };
    let decode_counts_before = decode_counts().await;
    let short = |number, value: u64| (number, SHORT, vec![value]);
    for (changes, kind) in [
        // Of the kinds of fax compression, only 3 and 4 are supported.
        (vec![short(tag::COMPRESSION, 2)], "a TIFF with fax compression"),
        (vec![short(tag::COMPRESSION, 6)], "a TIFF with JPEG compression of the old kind"),
        (vec![short(tag::COMPRESSION, 34_712)], "a TIFF with JPEG 2000 compression"),
        (vec![short(tag::COMPRESSION, 34_887)], "a TIFF with LERC compression"),
        (vec![short(tag::COMPRESSION, 50_000)], "a TIFF with Zstandard compression"),
        (vec![short(tag::PHOTOMETRIC, 8)], "a TIFF in L*a*b* colours"),
        (vec![short(tag::PHOTOMETRIC, 6)], "a TIFF in YCbCr colours without JPEG compression"),
        (
            vec![(tag::BITS_PER_SAMPLE, SHORT, vec![12; 3])],
            "a TIFF with a rare number of bits a sample",
        ),
        (
            vec![(tag::BITS_PER_SAMPLE, SHORT, vec![5, 6, 5])],
            "a TIFF whose samples differ in kind or depth",
        ),
        (vec![(tag::SAMPLE_FORMAT, SHORT, vec![2; 3])], "a TIFF of numbers with a sign"),
    ] {
        let problem = assert_problem(
            &app.upload(&crafted(&changes), "a.tiff").await,
            415,
            "unsupported_image",
        );
        let expected = format!("This is {kind}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with(&expected) && detail.contains("not supported"), "{detail}");
        assert!(problem.get("saved_as").is_none(), "an unsupported picture must not be saved");
    }
    // A damaged TIFF gets the same code, but another detail.
    for changes in [
        vec![short(tag::SAMPLES_PER_PIXEL, 1)], // RGB has 3
        vec![short(FILL_ORDER, 9)],
        vec![(tag::STRIP_OFFSETS, LONG, vec![])],
    ] {
        let answer = app.upload(&crafted(&changes), "a.tiff").await;
        let problem = assert_problem(&answer, 415, "unsupported_image");
        assert!(problem["detail"].as_str().unwrap().contains("header cannot be read"), "{problem}");
    }
    let counts = (app.saved().len(), nvidia.count());
    assert_eq!(counts, (1, 1), "only the first picture must be saved and sent");
    assert_eq!(decode_counts().await, decode_counts_before, "no decoder should be started");
}

#[tokio::test]
async fn the_kinds_that_scanners_and_drawing_programs_write_are_decoded_correctly() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // All files show this picture. NVIDIA gets JPEGs, so even files with the same pixels differ a little
    // from it. Files with a palette or 16 shades of grey, and faxes, differ more.
    let plain = image_rs::load_from_memory(&fixture("plain.png")).unwrap().into_rgb8();
    for (name, expected, scale, max_difference) in [
        ("tiff-tiled-planar-exact-zip", &plain, 1, 3.0),
        ("tiff-tiled-planar-ragged-zip", &plain, 1, 3.0),
        ("tiff-palette8", &plain, 1, 12.0),
        ("tiff-la", &grey(&plain), 1, 3.0),
        ("tiff-grey4", &grey(&plain), 1, 7.0),
        ("tiff-g3", &grey(&plain), 8, 10.0),
    ] {
        let picture = fixture(&format!("{name}.tiff"));
        let answer = app.upload(&picture, "scan.tiff").await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        answer.assert_success();
        assert_eq!(app.saved_bytes(&answer.saved_as()), picture, "{name}");
        let difference = mean_difference(&nvidia.last_inline_picture().pixels(), expected, scale);
        assert!(
            difference < max_difference,
            "{name}: the difference {difference} should be less than {max_difference}"
        );
    }
}
