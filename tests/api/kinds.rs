//! Ordinary pictures of every kind and depth.

use crate::support::{Nvidia, TestApp, kinds};

#[tokio::test]
async fn ordinary_pictures_of_every_kind_are_embedded() {
    let nvidia = Nvidia::well().await;
    // Whatever is not very small has to be decoded.
    let settings = [("NVIDIA_LARGE_IMAGES", "shrink"), ("NVIDIA_INLINE_LIMIT", "20000")];
    let app = TestApp::with_settings(&nvidia, &settings).await;
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
