//! The state that all handlers share.

use std::{ops::Deref, sync::Arc};

use crate::{fetch::Fetcher, pipeline::Pipeline, server::Shutdown, telemetry::Metrics};

/// The state that all handlers share. Cheap to clone: every request clones it several times.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

/// The content of an [`AppState`].
#[derive(Debug)]
pub struct Shared {
    /// Receives, saves and embeds every picture.
    pub pipeline: Pipeline,
    /// Fetches pictures by their URLs.
    pub fetcher: Fetcher,
    /// The metrics of the service.
    pub metrics: Arc<Metrics>,
    /// The model's name in answers.
    pub model: &'static str,
    /// The URL of a sample picture that the service itself serves; `None` outside of the sandbox.
    pub sample_url: Option<String>,
    /// Tells whether the service is stopping.
    pub shutdown: Shutdown,
}

impl AppState {
    /// Puts the state behind an `Arc`.
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
