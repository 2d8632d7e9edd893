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
    /// The number of inference calls for this request. Zero if it needed no call of its own.
    pub attempts: u32,
    /// When the embedding expires in the cache. `None` if it never does. The only embeddings that expire
    /// are those of pictures that were shrunk because uploads did not work.
    pub valid_until: Option<Instant>,
}

impl Embedding {
    /// Returns this embedding for an equal picture that needed no call of its own.
    /// [`Provenance::Nvidia`] becomes [`Provenance::Shared`], and every other provenance stays.
    pub fn without_own_call(self) -> Self {
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
    /// The picture as an upright JPEG with all its pixels.
    Jpeg,
    /// The picture as an upright JPEG that is small enough to be sent inline.
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
    /// NVIDIA computed it for an equal picture that arrived at the same time.
    Shared,
    /// The cache in memory contained it.
    Memory,
    /// The cache on disk contained it.
    Disk,
    /// The cache in the bucket contained it. This or another replica had written it.
    Bucket,
}

impl Provenance {
    /// The value for clients, such as in the header `x-cache`. It is `miss` if this request's own call
    /// computed the embedding. A request that joined another request's call has a `hit`.
    pub fn hit_or_miss(self) -> &'static str {
        if self == Self::Nvidia { "miss" } else { "hit" }
    }

    /// The name in the log and in metrics. There, an embedding by NVIDIA for this request is a `miss`.
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
