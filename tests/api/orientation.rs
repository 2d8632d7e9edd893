//! How pictures are prepared for NVIDIA. JPEG, PNG, WebP and TIFF with an EXIF orientation are turned
//! upright. If the JPEG made of a picture has too many bytes, its quality is lowered, or the picture is
//! shrunk. A picture with too many pixels on a side for a JPEG is shrunk as well, if it must become one.

use image_rs::{ImageFormat, Rgb, RgbImage, codecs::jpeg::JpegEncoder};

use crate::support::{
    FakeNvidia, HUBBLE, TestApp, assert_problem, converted,
    craft::{png_chunk, riff_chunk, segment, vp8x, webp},
};

/// A JPEG of 160 × 120 pixels.
const PLAIN: &[u8] = include_bytes!("../fixtures/formats/plain.jpg");
/// A JPEG with the orientation 6: a quarter turn clockwise makes it upright. Its pixels are stored as in
/// [`PLAIN`].
const EXIF6: &[u8] = include_bytes!("../fixtures/formats/exif6.jpg");

/// The colours of the corners, clockwise from the upper left: red, green, blue and white.
const CORNERS: [[u8; 3]; 4] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]];

/// A picture of four rectangles with the colours of [`CORNERS`].
fn corners(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb(CORNERS[match (x < width / 2, y < height / 2) {
            (true, true) => 0,
            (false, true) => 1,
            (false, false) => 2,
            (true, false) => 3,
        }])
    })
}

/// Returns the indices in [`CORNERS`] of the colours at the upper left, the upper right, the lower
/// right and the lower left. Reads the pixels that are three pixels from the edges. They need not have
/// exactly these colours, because a JPEG changes them.
fn corner_indices(picture: &RgbImage) -> [usize; 4] {
    let (right, bottom) = (picture.width() - 4, picture.height() - 4);
    [(3, 3), (right, 3), (right, bottom), (3, bottom)].map(|(x, y)| {
        let pixel = picture.get_pixel(x, y);
        let distance = |corner: &[u8; 3]| {
            pixel.0.iter().zip(corner).map(|(a, b)| u32::from(a.abs_diff(*b))).sum::<u32>()
        };
        (0..4).min_by_key(|corner| distance(&CORNERS[*corner])).unwrap()
    })
}

/// The expected [`corner_indices`] of a picture that was stored as [`corners`] and was turned
/// upright (CIPA DC-008, Orientation).
fn expected_corner_indices(orientation: u8) -> [usize; 4] {
    match orientation {
        1 => [0, 1, 2, 3],
        2 => [1, 0, 3, 2],
        3 => [2, 3, 0, 1],
        4 => [3, 2, 1, 0],
        5 => [0, 3, 2, 1],
        6 => [3, 0, 1, 2],
        7 => [2, 1, 0, 3],
        8 => [1, 2, 3, 0],
        other => panic!("{other} is no orientation"),
    }
}

/// EXIF data with nothing but this orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let head = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0";
    [&head[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat()
}

/// Adds EXIF data to a JPEG, after the two bytes that begin it.
fn add_orientation_to_jpeg(jpeg: &mut Vec<u8>, orientation: u8) {
    const APP1: u8 = 0xe1;
    let content = [&b"Exif\0\0"[..], &exif(orientation)].concat();
    jpeg.splice(2..2, segment(APP1, &content));
}

/// Adds EXIF data to a PNG, after the signature and the first chunk, which are 33 bytes.
fn add_orientation_to_png(png: &mut Vec<u8>, orientation: u8) {
    png.splice(33..33, png_chunk(b"eXIf", &exif(orientation)));
}

fn jpeg_with_orientation(picture: &RgbImage, orientation: u8) -> Vec<u8> {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 95).encode_image(picture).unwrap();
    add_orientation_to_jpeg(&mut jpeg, orientation);
    jpeg
}

/// The picture with this orientation, in every format whose EXIF orientation the service reads.
fn in_every_format(picture: &RgbImage, orientation: u8) -> [(&'static str, Vec<u8>); 4] {
    const HAS_EXIF: u8 = 0b1000;
    let jpeg = jpeg_with_orientation(picture, orientation);
    let mut png = Vec::new();
    picture.write_to(&mut std::io::Cursor::new(&mut png), ImageFormat::Png).unwrap();
    // The chunk with the pixels, without the 12 bytes of the file's header.
    let lossless = converted(&png, ImageFormat::WebP).split_off(12);
    let tiff = tiff_with_orientation(&converted(&png, ImageFormat::Tiff), orientation);
    add_orientation_to_png(&mut png, orientation);
    let (width, height) = picture.dimensions();
    let exif_chunk = riff_chunk(b"EXIF", &exif(orientation));
    let extended_webp = webp(&[vp8x(HAS_EXIF, width, height), lossless, exif_chunk]);
    [("JPEG", jpeg), ("PNG", png), ("WebP", extended_webp), ("TIFF", tiff)]
}

/// Adds the orientation to a TIFF. Writes a new directory to the end of the file, sorted by tag.
fn tiff_with_orientation(tiff: &[u8], orientation: u8) -> Vec<u8> {
    const ORIENTATION: u16 = 274;
    assert!(tiff.starts_with(b"II"));
    let start = u32::from_le_bytes(tiff[4..8].try_into().unwrap()) as usize; // of the directory
    let count = u16::from_le_bytes([tiff[start], tiff[start + 1]]);
    let mut entries: Vec<_> =
        tiff[start + 2..].chunks(12).take(count.into()).map(<[u8]>::to_vec).collect();
    let tag = |entry: &Vec<u8>| u16::from_le_bytes([entry[0], entry[1]]);
    entries.retain(|entry| tag(entry) != ORIENTATION);
    let (type_and_count, value) = ([3, 0, 1, 0, 0, 0], [orientation, 0, 0, 0]); // one SHORT
    entries.push([&ORIENTATION.to_le_bytes()[..], &type_and_count, &value].concat());
    entries.sort_by_key(tag);
    let mut extended = tiff.to_vec();
    extended.resize(tiff.len().next_multiple_of(2), 0);
    let new_start = (extended.len() as u32).to_le_bytes();
    extended[4..8].copy_from_slice(&new_start);
    extended.extend((entries.len() as u16).to_le_bytes());
    extended.extend(entries.concat());
    extended.extend([0; 4]); // no further directory
    extended
}

#[tokio::test]
async fn every_picture_is_sent_upright_and_saved_unchanged() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let picture = corners(48, 32);
    for orientation in 1..=8 {
        for (format, bytes) in in_every_format(&picture, orientation) {
            let answer = app.upload(&bytes, "picture").await;
            let is_sent_unchanged = orientation == 1 && matches!(format, "JPEG" | "PNG");
            let prepared = if is_sent_unchanged { "original" } else { "jpeg" };
            assert_eq!(answer.prepared(), prepared, "{format} {orientation}");
            let body = answer.json();
            // The answer contains the size before the picture is turned.
            assert_eq!((&body["width"], &body["height"]), (&48.into(), &32.into()));
            assert_eq!(app.saved_bytes(&answer.saved_as()), bytes, "{format} {orientation}");

            let sent = nvidia.last_inline_picture();
            assert_eq!(sent.bytes == bytes, is_sent_unchanged, "{format} {orientation}");
            let pixels = sent.pixels();
            // The orientations from 5 on swap the width and the height.
            let size = if orientation < 5 { (48, 32) } else { (32, 48) };
            assert_eq!(pixels.dimensions(), size, "{format} {orientation}");
            assert_eq!(
                corner_indices(&pixels),
                expected_corner_indices(orientation),
                "{format} {orientation}"
            );
        }
    }
}

#[tokio::test]
async fn a_picture_over_the_inline_limit_is_sent_upright_whether_or_not_it_is_shrunk() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("NVIDIA_LARGE_IMAGES", "shrink").start().await;
    let picture = corners(1600, 800);
    // The orientation 1 is left out: an upright JPEG over the limit is always shrunk.
    for orientation in 2..=8 {
        // The default inline limit allows fewer than 200,000 characters of Base64: at most 149,997 bytes.
        // The zeros after the end make this JPEG longer. The JPEG of the turned picture is short enough.
        let bytes = [jpeg_with_orientation(&picture, orientation), vec![0; 200_000]].concat();
        let answer = app.upload(&bytes, "picture.jpg").await;
        assert_eq!(answer.prepared(), "jpeg", "the picture must be turned, but not shrunk");
        let sent = nvidia.last_inline_picture().pixels();
        assert_eq!(corner_indices(&sent), expected_corner_indices(orientation), "{orientation}");
    }
    // With noise, the JPEG of the turned picture is too long as well.
    let noisy = RgbImage::from_fn(1600, 800, |x, y| {
        let Rgb(corner) = *picture.get_pixel(x, y);
        Rgb(corner.map(|channel| channel.saturating_add(fastrand::u8(..100))))
    });
    for orientation in 1..=8 {
        let answer = app.upload(&jpeg_with_orientation(&noisy, orientation), "picture.jpg").await;
        assert_eq!(answer.prepared(), "shrunk");
        let sent = nvidia.last_inline_picture().pixels();
        assert_eq!(corner_indices(&sent), expected_corner_indices(orientation), "{orientation}");
        let is_portrait = sent.width() < sent.height();
        assert_eq!(is_portrait, orientation >= 5, "{orientation}");
    }
}

#[tokio::test]
async fn a_large_picture_that_must_be_turned_is_sent_as_a_jpeg_asset() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let mut sideways = HUBBLE.to_vec();
    add_orientation_to_jpeg(&mut sideways, 6);
    assert_eq!(app.upload(&sideways, "hubble.jpg").await.prepared(), "jpeg");
    let uploaded = nvidia.received().into_iter().find(|request| request.line().starts_with("PUT"));
    let uploaded = image_rs::load_from_memory(&uploaded.unwrap().body).unwrap();
    // The width and the height of HUBBLE, swapped.
    assert_eq!((uploaded.width(), uploaded.height()), (872, 1000));
}

#[tokio::test]
async fn a_picture_with_an_orientation_has_nearly_the_vector_of_the_upright_picture() {
    let app = TestApp::sandbox().start().await;
    let mut upright = std::io::Cursor::new(Vec::new());
    image_rs::load_from_memory(PLAIN)
        .unwrap()
        .rotate90()
        .write_to(&mut upright, ImageFormat::Png)
        .unwrap();
    let upright_vector = app.upload(&upright.into_inner(), "upright.png").await.vector();
    let sideways_vector = app.upload(EXIF6, "sideways.jpg").await.vector();
    // The sandbox's vectors have length 1, so the sum of the products is the cosine.
    let cosine: f64 = upright_vector.iter().zip(&sideways_vector).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.99, "{cosine} should be more than 0.99");
}

#[tokio::test]
async fn the_quality_is_lowered_if_the_jpeg_of_a_png_webp_or_gif_is_over_max_image_bytes() {
    let mut random = fastrand::Rng::with_seed(3);
    // Noise of two colours is short as a PNG, but long as a JPEG.
    let noise = RgbImage::from_fn(400, 300, |_, _| Rgb([255, 0, 0].map(|c| c * random.u8(..2))));
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
        let mut bytes = std::io::Cursor::new(Vec::new());
        noise.write_to(&mut bytes, format).unwrap();
        let mut bytes = bytes.into_inner();
        if format == ImageFormat::Png {
            // A PNG that is not turned would be sent unchanged.
            add_orientation_to_png(&mut bytes, 6);
        }
        // The first limit is large enough for the JPEG at the usual quality. The second limit is
        // 60 % of that JPEG's length.
        let (mut limit, mut lengths) = (1 << 20, Vec::new());
        for _ in 0..2 {
            let nvidia = FakeNvidia::healthy().await;
            let app = TestApp::builder(&nvidia)
                .setting("IMAGESVC_MAX_IMAGE_BYTES", limit)
                // The JPEG is then sent as an asset, with a PUT request.
                .setting("NVIDIA_INLINE_LIMIT", 20_000)
                .start()
                .await;
            assert_eq!(app.upload(&bytes, "noise").await.prepared(), "jpeg", "{format:?} {limit}");
            let requests = nvidia.received();
            let put = requests.iter().find(|request| request.line().starts_with("PUT")).unwrap();
            let sent = image_rs::load_from_memory(&put.body).unwrap();
            // The PNG is turned, so its width and height are swapped.
            assert_eq!(sent.width() * sent.height(), 400 * 300, "the picture must not be scaled");
            let len = put.body.len();
            assert!(len <= limit, "{format:?}: at most {limit} bytes should be sent, not {len}");
            lengths.push(len);
            limit = len * 6 / 10;
        }
        assert!(
            lengths[1] < lengths[0],
            "{format:?}: the second JPEG should be shorter: {lengths:?}"
        );
    }
}

#[tokio::test]
async fn a_picture_too_wide_for_a_jpeg_or_whose_jpeg_has_too_many_bytes_at_any_quality_is_shrunk() {
    // A JPEG has at most 65,535 pixels on each side.
    let wide =
        RgbImage::from_fn(
            70_000,
            3,
            |x, _| if x < 35_000 { Rgb([255, 0, 0]) } else { Rgb([0; 3]) },
        );
    let mut noise = Vec::new();
    let mut random = fastrand::Rng::with_seed(3);
    RgbImage::from_fn(900, 900, |_, _| Rgb([random.u8(..2) * 255; 3]))
        .write_to(&mut std::io::Cursor::new(&mut noise), ImageFormat::Gif)
        .unwrap();
    let mut png = Vec::new();
    wide.write_to(&mut std::io::Cursor::new(&mut png), ImageFormat::Png).unwrap();
    let sideways = {
        let mut sideways = png.clone();
        add_orientation_to_png(&mut sideways, 6);
        sideways
    };
    for (name, limit, picture) in [
        // An upright PNG would be sent unchanged. So the wide picture is a TIFF, or a PNG to be turned.
        ("too wide", 1 << 20, converted(&png, ImageFormat::Tiff)),
        ("sideways", 1 << 20, sideways),
        // At any quality, the JPEG of this noise is longer than the GIF, whose length is the limit.
        ("noise", noise.len(), noise),
    ] {
        let nvidia = FakeNvidia::healthy().await;
        let app =
            TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IMAGE_BYTES", limit).start().await;
        assert_eq!(app.upload(&picture, name).await.prepared(), "shrunk", "{name}");
        let sent = nvidia.last_inline_picture().pixels();
        // The service shrinks pictures to at most 1024 pixels on each side.
        assert!(sent.width().max(sent.height()) <= 1024, "{name}");
        let again = app.upload(&picture, name).await;
        assert_eq!(again.header("x-cache"), "hit", "{name}: the vector must be cached");
    }
}

#[tokio::test]
async fn an_unusual_jpeg_is_sent_unchanged_and_decoded_correctly() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let sandbox = TestApp::sandbox().start().await;
    let plain_vector = sandbox.upload(PLAIN, "plain.jpg").await.vector();
    for (name, bytes) in [
        ("fill bytes", &include_bytes!("../fixtures/formats/jpeg-fill-bytes-before-sof.jpg")[..]),
        ("a stray byte", include_bytes!("../fixtures/formats/jpeg-one-zero-after-app0.jpg")),
        (
            "three scans, colours not subsampled",
            include_bytes!("../fixtures/formats/jpeg-three-scans-444.jpg"),
        ),
    ] {
        let answer = app.upload(bytes, "picture.jpg").await;
        assert_eq!(answer.prepared(), "original", "{name}");
        assert_eq!((&answer.json()["width"], &answer.json()["height"]), (&160.into(), &120.into()));
        assert_eq!(nvidia.last_inline_picture().bytes, bytes, "{name}");
        // The sandbox decodes the picture to compute its vector.
        let vector = sandbox.upload(bytes, "picture.jpg").await.vector();
        // These vectors have length 1, so the sum of the products is the cosine.
        let cosine: f64 = plain_vector.iter().zip(&vector).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.99, "{name}: {cosine} should be more than 0.99");
    }
}

#[tokio::test]
async fn a_jpeg_that_would_be_decoded_wrongly_is_sent_unchanged_or_refused() {
    /// A JPEG with subsampled colours and a scan for each colour component.
    const SUBSAMPLED_SCANS: &[u8] = include_bytes!("../fixtures/formats/jpeg-three-scans-420.jpg");
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        // SUBSAMPLED_SCANS has 30,580 characters as Base64.
        .setting("NVIDIA_INLINE_LIMIT", 40_000)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .start()
        .await;
    assert_eq!(app.upload(SUBSAMPLED_SCANS, "scans.jpg").await.prepared(), "original");
    let saved = app.saved();
    let mut sideways = SUBSAMPLED_SCANS.to_vec();
    add_orientation_to_jpeg(&mut sideways, 6);
    let over_the_inline_limit = [SUBSAMPLED_SCANS, &[0; 20_000]].concat();
    // Both pictures must be decoded: one to turn it, and the other to shrink it.
    for picture in [sideways, over_the_inline_limit] {
        let answer = app.upload(&picture, "scans.jpg").await;
        let problem = assert_problem(&answer, 415, "unsupported_image");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("its colour components in several scans"), "{detail}");
        // The detail must not call this intact file damaged, or advise to send it as a JPEG.
        assert!(!detail.contains("damaged") && !detail.contains("as a JPEG"), "{detail}");
        assert!(problem.get("saved_as").is_none());
    }
    assert_eq!(app.saved(), saved, "refused pictures must not be saved");
    assert_eq!(nvidia.count(), 1, "only the first picture should be sent to NVIDIA");
}
