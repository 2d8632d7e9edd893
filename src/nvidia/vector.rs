//! An embedding: 1536 numbers, kept as the text that they came in.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// How many numbers an NV-DINOv2 embedding has.
pub const DIMENSIONS: usize = 1536;

/// An embedding: a JSON array of [`DIMENSIONS`] finite numbers, kept as printed, so that a client
/// parses the same values as if it had asked NVIDIA itself. Cheap to clone.
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
        // The text is JSON: whatever else than numbers a list holds, a piece between two commas of
        // it is none.
        let (mut count, mut start, mut is_plain) = (0, 0, true);
        for (at, byte) in numbers.bytes().chain([b',']).enumerate() {
            if byte != b',' {
                is_plain &= matches!(byte, b'0'..=b'9' | b'-' | b'.');
                continue;
            }
            // Only an exponent, or hundreds of digits, make a number too large. Nearly all numbers
            // have neither, and are not parsed: that would take several times as long.
            let is_simple = is_plain && (1..300).contains(&(at - start));
            if !is_simple && !is_finite_number(&numbers[start..at]) {
                return Err("the embedding holds what is no finite number".into());
            }
            (count, start, is_plain) = (count + 1, at + 1, true);
        }
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
