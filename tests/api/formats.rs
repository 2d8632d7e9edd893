//! The supported formats, and how other bytes are refused. `heic.rs` and `tiff.rs` have more tests.

use image_rs::ImageFormat;

#[cfg(not(feature = "heic"))]
use crate::support::PHONE;
use crate::support::{
    CHELSEA, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, TestApp, assert_problem, avif,
    converted,
};

#[tokio::test]
async fn webp_gif_bmp_and_tiff_are_sent_as_a_jpeg_of_the_same_size() {
    let small_photo = {
        let mut png = std::io::Cursor::new(Vec::new());
        let photo = image_rs::load_from_memory(CHELSEA).unwrap().thumbnail(200, 200);
        photo.write_to(&mut png, ImageFormat::Png).unwrap();
        png.into_inner()
    };
    for (format, media_type, extension) in [
        (ImageFormat::WebP, "image/webp", ".webp"),
        (ImageFormat::Gif, "image/gif", ".gif"),
        (ImageFormat::Bmp, "image/bmp", ".bmp"),
        (ImageFormat::Tiff, "image/tiff", ".tiff"),
    ] {
        let picture = converted(&small_photo, format);
        let nvidia = FakeNvidia::healthy().await;
        let app = TestApp::start(&nvidia).await;
        let answer = app.upload(&picture, "picture").await;
        answer.assert_success();
        let body = answer.json();
        assert_eq!(body["content_type"], media_type);
        assert_eq!(body["prepared"], "jpeg");
        let saved_as = body["saved_as"].as_str().unwrap();
        assert!(saved_as.ends_with(extension));
        assert_eq!(
            app.saved_bytes(saved_as),
            picture,
            "the saved file must have the original bytes"
        );

        let inline = nvidia.last_inline_picture();
        assert_eq!(inline.media_type, "image/jpeg");
        let (sent, original) = (inline.pixels(), image_rs::load_from_memory(&picture).unwrap());
        assert_eq!((sent.width(), sent.height()), (original.width(), original.height()));
        let total_difference: u64 = sent
            .iter()
            .zip(original.to_rgb8().iter())
            .map(|(a, b)| u64::from(a.abs_diff(*b)))
            .sum();
        let sample_count = u64::from(sent.width() * sent.height() * 3);
        assert!(
            total_difference / sample_count < 4,
            "on average, a sample of the sent picture should differ by less than 4 of 255"
        );
    }
}

#[tokio::test]
async fn bytes_that_are_no_supported_picture_are_refused_and_not_saved() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // Each with words of the error's detail. `JPEG, PNG` begins its list of supported formats.
    for (bytes, words) in [
        (&b"just text"[..], "JPEG, PNG"),
        (b"<html><body>no</body></html>", "web page"),
        (b"\xff\x0a\xfa\x1f\x41", "JPEG XL"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7 and so on", "PDF"),
        (&avif(), "AVIF"),
        (b"PK\x03\x04 a zip called photo.jpg", "JPEG, PNG"),
        (b"x", "JPEG, PNG"),
        (&ROCKET[..20], "header"),
        (&CHELSEA[..18], "header"),
    ] {
        for answer in [app.upload(bytes, "photo.jpg").await, app.base64(bytes).await] {
            let problem = assert_problem(&answer, 415, "unsupported_image");
            assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
            assert!(problem.get("saved_as").is_none());
        }
    }
    assert!(app.saved().is_empty());
    assert!(nvidia.received().is_empty());
}

#[cfg(not(feature = "heic"))]
#[tokio::test]
async fn a_build_without_heic_refuses_heic_and_explains_how_to_send_a_jpeg() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // HEIC is recognized by its first bytes, so a truncated file gets the same answer.
    for picture in [PHONE, &PHONE[..300]] {
        let answer = app.upload(picture, "IMG_1.HEIC").await;
        let problem = assert_problem(&answer, 415, "unsupported_image");
        // the iPhone setting with which the camera takes JPEGs
        assert!(problem["detail"].as_str().unwrap().contains("Most Compatible"));
    }
    let problem = assert_problem(&app.upload(b"no picture", "x").await, 415, "unsupported_image");
    // The list of supported formats does not end with HEIC.
    assert!(problem["detail"].as_str().unwrap().ends_with("GIF, BMP or TIFF picture."));
}

#[tokio::test]
async fn an_empty_picture_is_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    assert_problem(&app.upload(b"", "photo.jpg").await, 400, "empty_image");
}

#[tokio::test]
async fn a_picture_that_cannot_be_decoded_is_unsupported_and_not_saved() {
    // The header is complete, but two thirds of the bytes are missing.
    let mut webp = converted(ROCKET, ImageFormat::WebP);
    let len = webp.len();
    webp.truncate(len / 3);
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let problem =
        assert_problem(&app.upload(&webp, "damaged.webp").await, 415, "unsupported_image");
    assert!(problem.get("saved_as").is_none());
    assert!(app.saved().is_empty());
}

#[tokio::test]
async fn a_picture_one_byte_over_the_limit_is_refused_by_upload_base64_and_url() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::serving(HUBBLE).await;
    let limit = (HUBBLE.len() - 1).to_string();
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_MAX_IMAGE_BYTES", &limit)
        .may_fetch_from(&picture_server)
        .start()
        .await;
    for answer in [
        app.upload(HUBBLE, "hubble.jpg").await,
        app.base64(HUBBLE).await,
        app.by_url(&picture_server.url("/")).await,
    ] {
        let problem = assert_problem(&answer, 413, "image_too_large");
        assert!(problem["detail"].as_str().unwrap().contains(&limit), "{problem}");
    }
    assert!(app.saved().is_empty());

    // Exactly as many bytes as the limit are accepted.
    let exact_limit = HUBBLE.len();
    let app =
        TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IMAGE_BYTES", exact_limit).start().await;
    app.upload(HUBBLE, "hubble.jpg").await.assert_success();
    app.base64(HUBBLE).await.assert_success();
}

#[tokio::test]
async fn too_many_pixels_are_refused_with_their_number_and_the_limit() {
    let nvidia = FakeNvidia::healthy().await;
    // The picture has 640 × 427 = 273,280 pixels.
    let app =
        TestApp::builder(&nvidia).setting("IMAGESVC_MAX_IMAGE_PIXELS", "273279").start().await;
    let problem = assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 413, "image_too_large");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("273280") && detail.contains("273279"), "{detail}");
    assert!(app.saved().is_empty());
}

#[tokio::test]
async fn a_picture_that_needs_too_much_decode_memory_is_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_MAX_DECODE_BYTES", "64MiB").start().await;
    // To decode a WebP of six million pixels, the service needs more than 64 MiB.
    let mut webp = std::io::Cursor::new(Vec::new());
    image_rs::RgbImage::new(3000, 2000).write_to(&mut webp, ImageFormat::WebP).unwrap();
    let answer = app.upload(webp.get_ref(), "black.webp").await;
    assert_problem(&answer, 413, "image_too_large");
}

#[tokio::test]
async fn the_bytes_decide_the_format_whatever_the_file_name_and_media_type() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let photo = image_rs::load_from_memory(ROCKET).unwrap().thumbnail(60, 40);
    let formats = [
        (ImageFormat::Jpeg, "image/jpeg", "jpg"),
        (ImageFormat::Png, "image/png", "png"),
        (ImageFormat::WebP, "image/webp", "webp"),
        (ImageFormat::Gif, "image/gif", "gif"),
        (ImageFormat::Bmp, "image/bmp", "bmp"),
        (ImageFormat::Tiff, "image/tiff", "tiff"),
    ];
    let labels = formats.iter().map(|(_, media_type, extension)| (*media_type, *extension));
    let labels = labels.chain([
        ("text/html", "html"),
        ("application/octet-stream", "heic"),
        ("nonsense", ""),
    ]);
    for (media_type, extension) in labels {
        for (format, expected_type, expected_extension) in formats {
            let mut picture = std::io::Cursor::new(Vec::new());
            photo.to_rgb8().write_to(&mut picture, format).unwrap();
            let head = format!(
                "name=\"file\"; filename=\"picture.{extension}\"\r\nContent-Type: {media_type}"
            );
            let answer = app.upload_parts(&[(&head, picture.get_ref())]).await;
            answer.assert_success();
            assert_eq!(answer.json()["content_type"], expected_type);
            assert!(answer.saved_as().ends_with(&format!(".{expected_extension}")));
        }
        let head = format!(
            "name=\"file\"; filename=\"picture.{extension}\"\r\nContent-Type: {media_type}"
        );
        let answer = app.upload_parts(&[(&head, b"<html>no picture</html>")]).await;
        assert_problem(&answer, 415, "unsupported_image");
    }
}

#[tokio::test]
async fn hostile_pictures_are_refused_and_not_saved() {
    let nvidia = FakeNvidia::healthy().await;
    // With `shrink`, a JPEG over the inline limit is decoded, not uploaded as it is.
    let app = TestApp::builder(&nvidia).setting("NVIDIA_LARGE_IMAGES", "shrink").start().await;
    // A JPEG with more than the 100 scans that the service decodes.
    let jpeg_with_200_scans = {
        let start = ROCKET.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
        let scan = &ROCKET[start..start + 2000];
        // With 400 KB, the file is over the inline limit.
        [&ROCKET[..start], &scan.repeat(200)].concat()
    };
    let gif_of_size = |width: u16, height: u16| {
        let mut gif = converted(CHELSEA, ImageFormat::Gif);
        gif[6..8].copy_from_slice(&width.to_le_bytes());
        gif[8..10].copy_from_slice(&height.to_le_bytes());
        gif
    };
    // The entry of the strips' offsets (tag 273) says that there are four billion offsets.
    let tiff_with_too_many_offsets = {
        let mut tiff = converted(ROCKET, ImageFormat::Tiff);
        let directory = u32::from_le_bytes(tiff[4..8].try_into().unwrap()) as usize;
        let entries =
            usize::from(u16::from_le_bytes(tiff[directory..directory + 2].try_into().unwrap()));
        for entry in 0..entries {
            let at = directory + 2 + entry * 12;
            if tiff[at..at + 2] == 273u16.to_le_bytes() {
                tiff[at + 4..at + 8].copy_from_slice(&u32::MAX.to_le_bytes());
            }
        }
        tiff
    };
    for (picture, status, code) in [
        (jpeg_with_200_scans, 415, "unsupported_image"),
        (gif_of_size(65_535, 65_535), 413, "image_too_large"),
        // Within the limit on pixels, which is 64 million, but not within that on decode memory.
        (gif_of_size(8000, 7900), 413, "image_too_large"),
        (tiff_with_too_many_offsets, 415, "unsupported_image"),
    ] {
        let answer = app.upload(&picture, "picture").await;
        assert_problem(&answer, status, code);
        assert!(app.saved().is_empty());
    }
    assert!(nvidia.received().is_empty());
}

#[tokio::test]
async fn every_format_except_heic_is_accepted_by_upload_base64_and_url() {
    let photo = image_rs::load_from_memory(ROCKET).unwrap().thumbnail(60, 40).to_rgb8();
    for format in [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Gif,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
    ] {
        let mut picture = std::io::Cursor::new(Vec::new());
        photo.write_to(&mut picture, format).unwrap();
        let picture = picture.into_inner();
        let served_picture = picture.clone();
        let picture_server =
            FakeServer::start(move |_, _| Reply::new(200, &[], &served_picture)).await;
        let nvidia = FakeNvidia::healthy().await;
        let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
        for answer in [
            app.upload(&picture, "picture").await,
            app.base64(&picture).await,
            app.by_url(&picture_server.url("/picture")).await,
        ] {
            answer.assert_success();
            assert_eq!(answer.json()["content_type"], format.to_mime_type());
        }
    }
}
