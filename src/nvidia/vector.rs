//! An embedding's 1536 numbers, stored as the JSON text that NVIDIA sent.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// How many numbers an NV-DINOv2 embedding has.
pub const DIMENSIONS: usize = 1536;

/// A JSON array of [`DIMENSIONS`] finite numbers.
///
/// The array is stored as text, because the service does not compute with the numbers. Clients
/// receive exactly the digits that NVIDIA sent.
///
/// Clones are cheap. The `Arc` contains a box, because converting a box to an `Arc<RawValue>` would
/// copy the text.
#[derive(Debug, Clone)]
pub struct Vector(Arc<Box<RawValue>>);

impl Vector {
    /// Checks the JSON text of an embedding, and copies it.
    ///
    /// # Errors
    /// A message that says what is wrong with the text.
    pub fn from_json(raw: &RawValue) -> Result<Self, String> {
        let text = raw.get();
        let items = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let items = items.ok_or("the embedding is not a list")?;
        let count = match count_ordinary_numbers(text.as_bytes()) {
            // Without a comma, the count is one even if there is no number.
            Some(_) if items.trim_ascii().is_empty() => 0,
            Some(count) => count,
            // `split` also splits strings, lists and objects at their commas. This does no harm: their
            // first piece begins with `"`, `[` or `{`, so it is no number, and the next arm refuses the
            // array.
            None if items.split(',').all(is_finite_number) => items.split(',').count(),
            None => return Err("the embedding contains an item that is not a finite number".into()),
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

/// Counts the numbers of a JSON array that has at least one item. Returns `None` if the array may
/// contain a number too large for an `f64`, or something other than numbers.
///
/// A number is too large only if it has a positive exponent or hundreds of digits. All other numbers
/// are ordinary, and an embedding usually contains only these. This scan is many times faster than parsing
/// the numbers.
fn count_ordinary_numbers(array: &[u8]) -> Option<usize> {
    const BLOCK_LEN: usize = 128; // at most 255, so that `commas` cannot overflow
    // The byte after `bytes[i]` is `next_bytes[i]`.
    let (bytes, next_bytes) = (array.get(1..array.len().checked_sub(1)?)?, array.get(2..)?);
    let mut count = 1;
    for (block, next_block) in bytes.chunks(BLOCK_LEN).zip(next_bytes.chunks(BLOCK_LEN)) {
        let (mut is_ordinary, mut commas) = (true, 0u8);
        // The loop has no branches, so that the compiler can vectorize it.
        for (byte, next_byte) in block.iter().zip(next_block) {
            // Accepts the bytes below `:` except `"`. In JSON, these are digits, signs, dots,
            // commas and white space. Also accepts an `e` or `E` before a `-`: a negative exponent.
            is_ordinary &=
                (*byte < b':' && *byte != b'"') | (((*byte | 0x20) == b'e') & (*next_byte == b'-'));
            commas += u8::from(*byte == b',');
        }
        // A full block without a comma may be part of a number with hundreds of digits.
        if !is_ordinary || (commas == 0 && block.len() == BLOCK_LEN) {
            return None;
        }
        count += usize::from(commas);
    }
    Some(count)
}

/// Whether the text is a number that is finite as an `f64`.
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

    #[test]
    fn the_error_of_a_vector_of_another_length_contains_its_length() {
        for (json, count) in [("[]", 0), ("[ ]", 0), ("[1]", 1), ("[0.5, -1e3]", 2), ("[1e3]", 1)] {
            let error =
                Vector::from_json(&RawValue::from_string(json.into()).unwrap()).unwrap_err();
            assert_eq!(error, format!("the embedding has {count} numbers"), "{json}");
        }
    }

    proptest! {
        #[test]
        fn a_vector_accepts_the_same_numbers_as_serde_json(
            json in r#"-?(0|[1-9][0-9]{0,400})(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,3})?|null|true|"1"|\[1\]|\{\}"#
        ) {
            let parsed = serde_json::from_str::<f64>(&json);
            let list = format!("[{json}{}]", ", 0.5".repeat(DIMENSIONS - 1));
            let vector = Vector::from_json(&RawValue::from_string(list).unwrap());
            prop_assert_eq!(vector.is_ok(), parsed.is_ok(), "{}", json);
        }
    }
}
