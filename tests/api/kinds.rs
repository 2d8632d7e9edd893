//! Uploads the pictures that [`kinds`] generates. The service cannot decode some of them.

use crate::support::{FakeNvidia, TestApp, kinds};

#[tokio::test]
async fn supported_kinds_are_embedded_and_the_error_for_an_unsupported_kind_describes_it() {
    let nvidia = FakeNvidia::healthy().await;
    // With these settings, the service decodes every picture, except upright JPEGs and PNGs with a
    // Base64 text of fewer than 20,000 characters.
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", "20000")
        .start()
        .await;
    let mut failures = Vec::new();
    // Neither side is a multiple of 8, so that some blocks of a JPEG are only partly used.
    for (name, mut picture) in kinds::all(203, 150) {
        let unsupported = kinds::unsupported(&name);
        if unsupported.is_some() {
            // A short unsupported JPEG would be sent unchanged. The padding makes it too long for that:
            // 16,000 bytes are 21,336 characters of Base64. Unsupported TIFFs do not need the padding.
            picture.resize(picture.len().max(16_000), 0);
        }
        let answer = app.upload(&picture, &name).await;
        let is_expected = match unsupported {
            None => answer.status == 200,
            Some(description) => {
                let detail = format!("This is {description}, which is not supported");
                answer.status == 415
                    && answer.json()["detail"].as_str().unwrap().starts_with(&detail)
            }
        };
        if !is_expected {
            failures.push(format!("{name}: {} {:.300}", answer.status, answer.text()));
        }
    }
    assert!(failures.is_empty(), "these answers are not the expected ones: {failures:#?}");
}
