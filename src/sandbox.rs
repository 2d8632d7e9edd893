//! Sandbox mode: a built-in stand-in for NVIDIA that needs no NVIDIA key and no network.
//!
//! The stand-in listens on a loopback port, and the real NVIDIA client calls it over HTTP. A mock
//! inside the client would be shorter, but it would skip the code for inline pictures, uploads and
//! polling.
//!
//! The stand-in refuses the requests that NVIDIA would refuse. Its vectors are not NV-DINOv2
//! vectors: [`perceptual`] computes them from the pixels.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle};
use url::Url;
use uuid::Uuid;

use crate::{decoder::Decoder, nvidia, nvidia::ApiKey, spool::Staging};

pub mod perceptual;
mod samples;
mod stand_in;

pub(crate) use samples::PHOTO;
pub use samples::router as samples_router;
pub use stand_in::router as stand_in_router;

/// The model's name in the service's answers. It shows that these vectors are not NVIDIA's.
pub const MODEL: &str = "sandbox/perceptual";

/// The shortest time between two polls. It is shorter than for NVIDIA, because frequent polls of a
/// local server are cheap, and people who try the service should not have to wait.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running stand-in. Dropping this value stops the stand-in.
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    key: ApiKey,
    task: JoinHandle<io::Result<()>>,
}

impl Sandbox {
    /// Starts a stand-in with a random key. The stand-in accepts pictures of up to `max_pixels`
    /// pixels.
    ///
    /// # Errors
    /// If the stand-in cannot listen on a loopback port.
    pub async fn start(max_pixels: u64, decoder: Decoder, staging: Staging) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let key_text = format!("nvapi-sandbox-{}", Uuid::new_v4().simple());
        let key = ApiKey::parse(&key_text).map_err(io::Error::other)?;
        let stand_in = stand_in_router(address, &key_text, max_pixels, decoder, staging);
        let task = tokio::spawn(axum::serve(listener, stand_in).into_future());
        tracing::warn!("sandbox mode: vectors come from a stand-in ({MODEL}), not from NV-DINOv2");
        Ok(Self { address, key, task })
    }

    /// The key that the stand-in expects.
    pub fn key(&self) -> ApiKey {
        self.key.clone()
    }

    /// Changes the settings of the NVIDIA client so that it calls the stand-in.
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

    fn url(&self, path: &str, fallback: Url) -> Url {
        // A socket address and a path always form a URL, so the fallback is never used.
        Url::parse(&format!("http://{}{path}", self.address)).unwrap_or(fallback)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The URL of a sample picture on a service that listens on this port.
pub fn sample_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}{}", samples::PHOTO_PATH)
}
