//! An embedding's 1536 numbers, kept as the JSON text that NVIDIA sent.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// How many numbers an NV-DINOv2 embedding has.
pub const DIMENSIONS: usize = 1536;

/// A JSON array of [`DIMENSIONS`] finite numbers. It is kept as text and not as floats, because
/// nothing here computes with the numbers: a client then parses exactly the values that NVIDIA
/// printed, and neither parsing nor formatting costs time. Cheap to clone.
///
/// The `Arc` holds a box because turning a box into an `Arc` would copy the text.
#[derive(Debug, Clone)]
pub struct Vector(Arc<Box<RawValue>>);

impl Vector {
    /// Checks the JSON text of an embedding.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(raw: &RawValue) -> Result<Self, String> {
        let text = raw.get();
        let numbers = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let numbers = numbers.ok_or("the embedding is not a list")?;
        let count = match count_ordinary_numbers(text.as_bytes()) {
            Some(count) => count,
            // The text is valid JSON, so anything in the array other than numbers contains a part
            // between commas that does not parse as a number.
            None if numbers.split(',').all(is_finite_number) => numbers.split(',').count(),
            None => return Err("the embedding holds something other than finite numbers".into()),
        };
        match count {
            DIMENSIONS => Ok(Self(Arc::new(raw.to_owned()))),
            count => Err(format!("the embedding has {count} numbers")),
        }
    }

    /// The text of each number, in order.
    pub fn numbers(&self) -> impl Iterator<Item = &str> {
        self.json().get().trim_matches(['[', ']']).split(',').map(str::trim)
    }

    /// The JSON text.
    pub fn json(&self) -> &RawValue {
        &self.0
    }
}

/// Counts the numbers of a JSON array, if all of them are obviously finite. Only a positive
/// exponent or hundreds of digits can make a number infinite; the numbers of embeddings have
/// neither. This is many times faster than parsing them.
fn count_ordinary_numbers(list: &[u8]) -> Option<usize> {
    const BLOCK: usize = 128;
    let (inside, following) = (list.get(1..list.len().checked_sub(1)?)?, list.get(2..)?);
    let mut count = 1;
    for (block, following) in inside.chunks(BLOCK).zip(following.chunks(BLOCK)) {
        let (mut is_ordinary, mut commas) = (true, 0u8);
        // No branch for each byte, so that the compiler can vectorize the loop.
        for (byte, next) in block.iter().zip(following) {
            // Of the bytes in JSON, only those of numbers, commas, spaces and `"` are below `:`.
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

/// Whether a piece of JSON is a number that fits into an `f64`. JSON has no infinity, but a number
/// can be too large.
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
        fn a_number_is_accepted_when_a_parser_accepts_it(
            json in r#"-?(0|[1-9][0-9]{0,400})(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,3})?|null|true|"1"|\[1\]|\{\}"#
        ) {
            let parsed = serde_json::from_str::<f64>(&json);
            let list = format!("[{json}{}]", ", 0.5".repeat(DIMENSIONS - 1));
            let vector = Vector::check(&RawValue::from_string(list).unwrap());
            prop_assert_eq!(vector.is_ok(), parsed.is_ok(), "{}", json);
        }
    }
}
