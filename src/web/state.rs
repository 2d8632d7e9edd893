//! What handlers share.

use std::{ops::Deref, sync::Arc};

use crate::{fetch::Fetcher, pipeline::Pipeline, server::Shutdown, telemetry::Metrics};

/// What handlers share. Cheap to clone: every request does, several times.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

/// What [`AppState`] refers to.
#[derive(Debug)]
pub struct Shared {
    /// The path of every picture.
    pub pipeline: Pipeline,
    /// Who fetches pictures by their address.
    pub fetcher: Fetcher,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who computes the vectors, as answers say it.
    pub model: &'static str,
    /// The address of a sample picture that the service itself can fetch, where there is one.
    pub sample: Option<String>,
    /// Whether the service is about to stop.
    pub shutdown: Shutdown,
}

impl AppState {
    /// The state of all handlers.
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
