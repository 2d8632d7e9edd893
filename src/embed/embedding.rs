//! A picture's embedding, and where it comes from.

use tokio::time::Instant;

use crate::nvidia::Vector;

/// A picture's embedding. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// The numbers.
    pub vector: Vector,
    /// What NVIDIA was given.
    pub prepared: Prepared,
    /// Where it comes from.
    pub provenance: Provenance,
    /// Inference calls that it took.
    pub tries: u32,
    /// Until when it stands for the picture, where it does not for good: the picture was shrunk only
    /// because uploads do not work.
    pub valid_until: Option<Instant>,
}

/// What NVIDIA was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// The picture's own bytes.
    Original,
    /// The picture as a JPEG of the same size.
    Jpeg,
    /// The picture as a smaller JPEG.
    Shrunk,
}

impl Prepared {
    /// All there are.
    pub(super) const ALL: [Self; 3] = [Self::Original, Self::Jpeg, Self::Shrunk];

    /// The name in answers.
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
    /// It was asked for now.
    Asked,
    /// Another request asked for it at the same time.
    Shared,
    /// The cache's memory.
    Memory,
    /// The cache's disk.
    Disk,
}

impl Provenance {
    /// The name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asked => "miss",
            Self::Shared => "shared",
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}
