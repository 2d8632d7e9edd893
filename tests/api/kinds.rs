//! Ordinary pictures of every kind and depth.

use crate::support::{FakeNvidia, TestApp, kinds};

#[tokio::test]
async fn ordinary_pictures_of_every_kind_are_embedded() {
    let nvidia = FakeNvidia::healthy().await;
    // Whatever is not very small has to be decoded.
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_LARGE_IMAGES", "shrink")
        .setting("NVIDIA_INLINE_LIMIT", "20000")
        .start()
        .await;
    let mut wrong = Vec::new();
    for (name, picture) in kinds::all(203, 150) {
        let answer = app.upload(&picture, &name).await;
        let is_unread = kinds::UNREAD.iter().any(|prefix| name.starts_with(prefix));
        if answer.status != 200 && !(is_unread && answer.status == 415) {
            wrong.push(format!("{name}: {} {:.200}", answer.status, answer.text()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
