//! Uploads ordinary pictures of every format, kind and depth.

use crate::support::{FakeNvidia, TestApp, kinds};

#[tokio::test]
async fn ordinary_pictures_are_embedded_and_only_those_of_unsupported_kinds_may_be_refused() {
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
    for (name, picture) in kinds::all(203, 150) {
        let answer = app.upload(&picture, &name).await;
        // A picture of an unsupported kind succeeds if it is small enough to be sent unchanged.
        let is_unsupported = kinds::is_unsupported(&name);
        if answer.status != 200 && !(is_unsupported && answer.status == 415) {
            failures.push(format!("{name}: {} {:.200}", answer.status, answer.text()));
        }
    }
    assert!(failures.is_empty(), "these pictures should be embedded: {failures:#?}");
}
