//! Reads the numbers of a vector.

use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::MAX_LENGTH;

/// Reads a JSON array of numbers into `vector`, and replaces its content.
///
/// # Errors
/// The text is not such an array, or a number is too large.
pub(in crate::bulk) fn read(text: &str, vector: &mut Vec<f32>) -> Result<(), String> {
    vector.clear();
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json.deserialize_seq(Numbers(vector)).and_then(|()| json.end());
    read.map_err(|error| format!("its vector is not a list of numbers: {error}"))?;
    check(vector)
}

/// Checks that a cosine can be computed with these numbers.
///
/// # Errors
/// There are no numbers, or one is infinite or not a number.
pub(super) fn check(vector: &[f32]) -> Result<(), String> {
    if vector.is_empty() {
        return Err("its vector is empty".into());
    }
    // The product of zero and an infinite number or NaN is NaN, which makes the sum NaN. Checking one sum
    // is faster than checking each number.
    if vector.iter().map(|number| number * 0.0).sum::<f32>() == 0.0 {
        return Ok(());
    }
    Err("its vector contains a number that is infinite, too large or not a number".into())
}

struct Numbers<'v>(&'v mut Vec<f32>);

impl<'de> Visitor<'de> for Numbers<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while let Some(number) = sequence.next_element()? {
            if self.0.len() == MAX_LENGTH {
                return Err(A::Error::custom(format_args!("it has more than {MAX_LENGTH}")));
            }
            self.0.push(number);
        }
        Ok(())
    }
}
