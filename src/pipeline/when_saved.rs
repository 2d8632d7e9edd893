//! With a bucket, lets the call to NVIDIA wait until the picture is saved. A call for a picture that
//! cannot be saved would be paid for nothing.

use std::future::pending;

use tokio::sync::oneshot;

/// Lets the embedding of a picture wait until the picture is saved.
#[derive(Debug)]
pub(super) struct WhenSaved(oneshot::Receiver<()>);

impl WhenSaved {
    /// `saved` receives a message when the picture is saved, or when it is clear that it need not be
    /// saved. If saving fails, the sender is dropped.
    pub(super) fn new(saved: oneshot::Receiver<()>) -> Self {
        Self(saved)
    }

    /// Returns when the picture is saved, or when it is clear that it need not be saved. If the
    /// picture cannot be saved, this never returns, because the whole request fails.
    pub(super) async fn wait(self) {
        if self.0.await.is_err() {
            pending::<()>().await;
        }
    }
}
