//! An embedding: 1536 numbers, kept as the text that they came in.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// How many numbers an NV-DINOv2 embedding has.
pub const DIMENSIONS: usize = 1536;

/// An embedding: a JSON array of [`DIMENSIONS`] finite numbers, kept as printed, so that a client
/// parses the same values as if it had asked NVIDIA itself. Cheap to clone.
///
/// In a box, since a box cannot become an `Arc` without its text being copied.
#[derive(Debug, Clone)]
pub struct Vector(Arc<Box<RawValue>>);

impl Vector {
    /// Checks the text of an embedding.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(raw: &RawValue) -> Result<Self, String> {
        let text = raw.get();
        let numbers = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let numbers = numbers.ok_or("the embedding is no list")?;
        let count = match count_ordinary_numbers(text.as_bytes()) {
            Some(count) => count,
            // The text is JSON: whatever else than numbers a list holds, a piece between two commas
            // of it is none.
            None if numbers.split(',').all(is_finite_number) => numbers.split(',').count(),
            None => return Err("the embedding holds what is no finite number".into()),
        };
        match count {
            DIMENSIONS => Ok(Self(Arc::new(raw.to_owned()))),
            count => Err(format!("the embedding has {count} numbers")),
        }
    }

    /// The JSON text.
    pub fn json(&self) -> &RawValue {
        &self.0
    }
}

/// How many numbers a JSON list holds, if it surely holds numbers alone and all of them are finite:
/// only a positive exponent, or hundreds of digits, make a number too large. Numbers of embeddings
/// have neither, and are not parsed: that would take many times as long.
fn count_ordinary_numbers(list: &[u8]) -> Option<usize> {
    const BLOCK: usize = 128;
    let (inside, following) = (list.get(1..list.len().checked_sub(1)?)?, list.get(2..)?);
    let mut count = 1;
    for (block, following) in inside.chunks(BLOCK).zip(following.chunks(BLOCK)) {
        let (mut is_ordinary, mut commas) = (true, 0u8);
        // Without a branch for each byte, so that the compiler looks at many at once.
        for (byte, next) in block.iter().zip(following) {
            // Of what JSON is made of, only numbers, commas, spaces and `"` are below `:`.
            is_ordinary &=
                (*byte < b':' && *byte != b'"') | ((*byte | 0x20 == b'e') & (*next == b'-'));
            commas += u8::from(*byte == b',');
        }
        if !is_ordinary || (commas == 0 && block.len() == BLOCK) {
            return None;
        }
        count += usize::from(commas);
    }
    Some(count)
}

/// Whether a piece of JSON is a number that an `f64` can hold: JSON has no infinity, but numbers
/// that are too large.
fn is_finite_number(json: &str) -> bool {
    json.trim_ascii().parse().is_ok_and(f64::is_finite)
}

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_is_taken_when_a_parser_takes_it(
            json in r#"-?(0|[1-9][0-9]{0,400})(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,3})?|null|true|"1"|\[1\]|\{\}"#
        ) {
            let parsed = serde_json::from_str::<f64>(&json);
            let list = format!("[{json}{}]", ", 0.5".repeat(DIMENSIONS - 1));
            let vector = Vector::check(&RawValue::from_string(list).unwrap());
            prop_assert_eq!(vector.is_ok(), parsed.is_ok(), "{}", json);
        }
    }
}
