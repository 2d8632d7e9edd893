//! Encodes the vectors in the answer to a batch.

use std::num::ParseFloatError;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    nvidia::{DIMENSIONS, Vector},
    web::{
        error::{Error, Invalid},
        extract::json,
    },
};

/// How vectors must be encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Encoding {
    /// As Base64 of little-endian 32-bit floats instead of a list of numbers.
    pub is_base64: bool,
    /// Scaled to a Euclidean length of 1.
    pub is_normalized: bool,
}

/// An encoded vector.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum EncodedVector {
    /// The numbers with the digits that NVIDIA sent.
    Unchanged(Vector),
    /// A list of the numbers, scaled to a Euclidean length of 1. A vector of zeros stays as it is.
    Normalized(Vec<f64>),
    /// Base64 of the numbers, scaled or not, as little-endian 32-bit floats.
    Base64(String),
}

impl Encoding {
    /// Reads the fields `encoding_format` and `normalized`.
    pub(super) fn parse(
        format: Option<&RawValue>,
        normalized: Option<&RawValue>,
    ) -> Result<Self, Error> {
        let is_base64 = match format {
            None => false,
            Some(format) => match &*json::text(format, "encoding_format")? {
                "float" => false,
                // If `base64` were ignored, openai-node would return wrong vectors: it requests Base64
                // by default, and decodes a list into wrong numbers without an error.
                "base64" => true,
                _ => {
                    return Err(Error::UnsupportedParameter {
                        param: "encoding_format",
                        detail: "The field encoding_format must be float or base64.",
                    });
                }
            },
        };
        let is_normalized = match normalized.map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => {
                return Err(Invalid::at(
                    &["body", "normalized"],
                    "bool_type",
                    "Input should be a valid boolean", // the text of FastAPI
                    "The field normalized must be true or false.",
                ));
            }
        };
        Ok(Self { is_base64, is_normalized })
    }

    /// Encodes a vector.
    ///
    /// # Errors
    /// [`Error::Internal`] if the vector contains anything but numbers, which would be a bug.
    pub(super) fn encode(self, vector: Vector) -> Result<EncodedVector, Error> {
        Ok(match self {
            Self { is_base64: false, is_normalized: false } => EncodedVector::Unchanged(vector),
            Self { is_base64: false, is_normalized: true } => {
                EncodedVector::Normalized(normalize(&vector)?)
            }
            Self { is_base64: true, is_normalized: false } => {
                EncodedVector::Base64(to_base64(vector.numbers().map(str::parse))?)
            }
            Self { is_base64: true, is_normalized: true } => EncodedVector::Base64(to_base64(
                normalize(&vector)?.into_iter().map(|x| Ok(x as f32)),
            )?),
        })
    }
}

fn to_base64(numbers: impl Iterator<Item = Result<f32, ParseFloatError>>) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(DIMENSIONS * size_of::<f32>());
    for number in numbers {
        bytes.extend(number.map_err(not_a_number)?.to_le_bytes());
    }
    Ok(BASE64_STANDARD.encode(bytes))
}

/// Scales a vector to a Euclidean length of 1. A vector of zeros stays as it is.
fn normalize(vector: &Vector) -> Result<Vec<f64>, Error> {
    let mut numbers = Vec::with_capacity(DIMENSIONS);
    for number in vector.numbers() {
        numbers.push(number.parse::<f64>().map_err(not_a_number)?);
    }
    // The numbers are first divided by the largest absolute value, so that no square is infinite.
    let largest = numbers.iter().fold(0.0, |largest: f64, number| largest.max(number.abs()));
    if largest > 0.0 {
        numbers.iter_mut().for_each(|number| *number /= largest);
        let length = numbers.iter().map(|number| number * number).sum::<f64>().sqrt();
        numbers.iter_mut().for_each(|number| *number /= length);
    }
    Ok(numbers)
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that `map_err` expects")]
fn not_a_number(error: ParseFloatError) -> Error {
    Error::Internal(format!("a vector contains something that is not a number: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A vector that begins with these numbers. The others are 0.5.
    fn vector(numbers: &[String]) -> Vector {
        let mut list = numbers.to_vec();
        list.resize(DIMENSIONS, "0.5".into());
        let json = format!("[{}]", list.join(", "));
        Vector::from_json(&RawValue::from_string(json).unwrap()).unwrap()
    }

    fn encode(encoding: Encoding, numbers: &[String]) -> EncodedVector {
        encoding.encode(vector(numbers)).unwrap()
    }

    proptest! {
        #[test]
        fn base64_contains_each_number_rounded_to_the_nearest_float(
            numbers in proptest::collection::vec(r"-?(0|[1-9][0-9]{0,12})(\.[0-9]{1,25})?([eE]-?[0-9]{1,2})?", 1..50)
        ) {
            let encoding = Encoding { is_base64: true, is_normalized: false };
            let EncodedVector::Base64(text) = encode(encoding, &numbers) else {
                panic!("the vector should be Base64")
            };
            // The Base64 of 1536 numbers of 4 bytes.
            prop_assert_eq!(text.len(), 8192);
            let bytes = BASE64_STANDARD.decode(text).unwrap();
            for (number, bytes) in numbers.iter().zip(bytes.chunks(4)) {
                let expected: f32 = number.parse().unwrap();
                let decoded = f32::from_le_bytes(bytes.try_into().unwrap());
                prop_assert_eq!(decoded.to_bits(), expected.to_bits());
            }
        }

        #[test]
        fn a_normalized_vector_has_length_1_and_the_same_direction(
            numbers in proptest::collection::vec(-1e3f64..1e3, 2..50), exponent in -300i32..300
        ) {
            let texts: Vec<_> = numbers.iter().map(|number| format!("{number}e{exponent}")).collect();
            let encoding = Encoding { is_base64: false, is_normalized: true };
            let EncodedVector::Normalized(scaled) = encode(encoding, &texts) else {
                panic!("the vector should be a list of numbers")
            };
            let length = scaled.iter().map(|number| number * number).sum::<f64>().sqrt();
            prop_assert!((length - 1.0).abs() < 1e-12, "{}", length);
            // The cosine of the angle between both vectors must be 1. The original numbers are
            // divided by the largest absolute value, so that no square is infinite.
            let original: Vec<f64> = vector(&texts).numbers().map(|n| n.parse().unwrap()).collect();
            let largest = original.iter().fold(0.0f64, |a, b| a.max(b.abs()));
            let dot: f64 = original.iter().zip(&scaled).map(|(a, b)| a / largest * b).sum();
            let original_length = original.iter().map(|n| (n / largest).powi(2)).sum::<f64>().sqrt();
            prop_assert!((dot / original_length - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_vector_of_zeros_stays_as_it_is() {
        let encoding = Encoding { is_base64: false, is_normalized: true };
        let zeros = vec!["0".to_owned(); DIMENSIONS];
        let EncodedVector::Normalized(numbers) = encode(encoding, &zeros) else {
            panic!("the vector should be a list of numbers")
        };
        assert_eq!(numbers, [0.0; DIMENSIONS]);
    }
}
