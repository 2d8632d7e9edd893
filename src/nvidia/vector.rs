//! An embedding: 1536 numbers, kept as the text that they came in.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// How many numbers an NV-DINOv2 embedding has.
pub const DIMENSIONS: usize = 1536;

/// An embedding: a JSON array of [`DIMENSIONS`] finite numbers, kept as printed, so that a client
/// parses the same values as if it had asked NVIDIA itself. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vector(Arc<RawValue>);

impl Vector {
    /// Checks the text of an embedding.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(raw: &RawValue) -> Result<Self, String> {
        // Numbers too large for an f64 are errors here: JSON has no infinity.
        let numbers: Vec<f64> = serde_json::from_str(raw.get())
            .map_err(|error| format!("the embedding is no list of numbers: {error}"))?;
        match numbers.len() {
            DIMENSIONS => Ok(Self(raw.to_owned().into())),
            len => Err(format!("the embedding has {len} numbers")),
        }
    }

    /// The JSON text.
    pub fn json(&self) -> &RawValue {
        &self.0
    }
}

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}
