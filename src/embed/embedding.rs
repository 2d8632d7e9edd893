//! A picture's embedding, and where it comes from.

use tokio::time::Instant;

use crate::nvidia::Vector;

/// A picture's embedding. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// The embedding's numbers.
    pub vector: Vector,
    /// The form of the picture that NVIDIA received.
    pub prepared: Prepared,
    /// Where the embedding comes from.
    pub provenance: Provenance,
    /// The number of inference calls that were made for this request.
    pub attempts: u32,
    /// When the embedding expires; `None` if it is permanent. An embedding is temporary if the
    /// picture was shrunk only because uploads did not work.
    pub valid_until: Option<Instant>,
}

impl Embedding {
    /// Returns this embedding for a request that joined another request's call, and therefore made
    /// no call itself. An embedding from the cache is returned unchanged.
    pub fn shared(self) -> Self {
        match self.provenance {
            Provenance::Nvidia => Self { provenance: Provenance::Shared, attempts: 0, ..self },
            _ => self,
        }
    }
}

/// The form of the picture that NVIDIA received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// The picture's own bytes.
    Original,
    /// The picture as a JPEG of the same width and height.
    Jpeg,
    /// The picture as a JPEG that is small enough to be sent inline.
    Shrunk,
}

impl Prepared {
    /// All values.
    pub(super) const ALL: [Self; 3] = [Self::Original, Self::Jpeg, Self::Shrunk];

    /// The name in answers and in cached files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Jpeg => "jpeg",
            Self::Shrunk => "shrunk",
        }
    }
}

/// Where an embedding comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// NVIDIA computed it for this request.
    Nvidia,
    /// NVIDIA computed it for another request that arrived at the same time.
    Shared,
    /// The cache in memory contained it.
    Memory,
    /// The cache on disk contained it.
    Disk,
    /// The cache in the bucket contained it: perhaps another replica had paid for it.
    Bucket,
}

impl Provenance {
    /// The name for clients: a request whose own call computed the embedding is a miss. A request
    /// that joined another request's call is a hit.
    pub fn hit_or_miss(self) -> &'static str {
        if self == Self::Nvidia { "miss" } else { "hit" }
    }

    /// The name in the log and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvidia => "miss",
            Self::Shared => "shared",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Bucket => "bucket",
        }
    }
}
