//! With a bucket, the call to NVIDIA waits until the picture is saved. A call for a picture that cannot
//! be saved would cost money for nothing.

use std::future::pending;

use tokio::sync::oneshot;

/// Lets the call to NVIDIA wait until the picture is saved.
#[derive(Debug)]
pub(super) struct WhenSaved(oneshot::Receiver<()>);

impl WhenSaved {
    /// `saved` receives a message when the picture is saved, or discarded because of `SaveMode::Discard`.
    /// If saving or discarding fails, the sender is dropped.
    pub(super) fn new(saved: oneshot::Receiver<()>) -> Self {
        Self(saved)
    }

    /// Returns when the picture is saved, or discarded because of `SaveMode::Discard`. If saving or
    /// discarding fails, this never returns: the request fails at once, which drops this future.
    pub(super) async fn wait(self) {
        if self.0.await.is_err() {
            pending::<()>().await;
        }
    }
}
