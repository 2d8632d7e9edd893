//! The built-in stand-in for NVIDIA: no key, no network, the same path.
//!
//! It listens on a loopback port, and the real client talks to it over HTTP: inline pictures,
//! uploads, polling. It is as strict as NVIDIA is. Its vectors are made from the pixels
//! ([`perceptual`]) and are no NV-DINOv2 vectors.

use std::{io, net::SocketAddr, time::Duration};

use axum::{Router, http::header, routing::get};
use tokio::{net::TcpListener, task::JoinHandle};
use url::Url;
use uuid::Uuid;

use crate::{decoder::Decoder, nvidia, nvidia::ApiKey, spool::Staging};

pub mod perceptual;
mod stand_in;

pub use stand_in::router;

/// The model's name in answers: nobody shall take these vectors for NVIDIA's.
pub const MODEL: &str = "sandbox/perceptual";

/// Everything is on this machine: who tries the service should not wait for a poll.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Where the sample picture is.
const PHOTO_PATH: &str = "/sandbox/photo.jpg";

/// A sample picture.
pub(crate) const PHOTO: &[u8] = include_bytes!("../tests/fixtures/rocket.jpg");

/// A running stand-in; it ends when dropped.
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    key: ApiKey,
    task: JoinHandle<io::Result<()>>,
}

impl Sandbox {
    /// Starts a stand-in with a key of its own, which takes pictures of so many pixels.
    ///
    /// # Errors
    /// When no loopback port can be had.
    pub async fn start(max_pixels: u64, decoder: Decoder, staging: Staging) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let text = format!("nvapi-sandbox-{}", Uuid::new_v4().simple());
        let key = ApiKey::parse(&text).map_err(io::Error::other)?;
        let stand_in = router(address, &text, max_pixels, decoder, staging);
        let task = tokio::spawn(axum::serve(listener, stand_in).into_future());
        tracing::warn!("sandbox mode: vectors come from a stand-in ({MODEL}), not from NV-DINOv2");
        Ok(Self { address, key, task })
    }

    /// The key that it wants.
    pub fn key(&self) -> ApiKey {
        self.key.clone()
    }

    /// The settings of a client that calls it instead of NVIDIA.
    pub fn settings(&self, nvidia: nvidia::Settings) -> nvidia::Settings {
        nvidia::Settings {
            infer_url: self.url("/v1/cv/nvidia/nv-dinov2", nvidia.infer_url),
            status_url: self.url("/v1/status", nvidia.status_url),
            assets_url: self.url("/v2/nvcf/assets", nvidia.assets_url),
            proxy: None,
            poll_interval: POLL_INTERVAL,
            ..nvidia
        }
    }

    fn url(&self, path: &str, otherwise: Url) -> Url {
        // An address and a path make an address: the fallback is never taken.
        Url::parse(&format!("http://{}{path}", self.address)).unwrap_or(otherwise)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where the service that listens on this port has the sample picture.
pub fn sample_address(port: u16) -> String {
    format!("http://127.0.0.1:{port}{PHOTO_PATH}")
}

/// `GET /sandbox/photo.jpg`: a picture that the URL route can fetch without a network.
pub fn photo_router() -> Router {
    Router::new().route(PHOTO_PATH, get(async || ([(header::CONTENT_TYPE, "image/jpeg")], PHOTO)))
}
