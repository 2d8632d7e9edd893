//! Uploads ordinary pictures of every format, kind and depth.

use crate::support::{FakeNvidia, TestApp, kinds};

#[tokio::test]
async fn ordinary_pictures_of_every_supported_kind_are_embedded() {
    let nvidia = FakeNvidia::healthy().await;
    // With these settings, all but very small pictures are decoded.
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", "20000")
        .start()
        .await;
    let mut failures = Vec::new();
    for (name, picture) in kinds::all(203, 150) {
        let answer = app.upload(&picture, &name).await;
        let is_unsupported = kinds::is_unsupported(&name);
        if answer.status != 200 && !(is_unsupported && answer.status == 415) {
            failures.push(format!("{name}: {} {:.200}", answer.status, answer.text()));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
