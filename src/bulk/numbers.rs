//! Reads the numbers of a vector.

use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The most numbers that a vector may have.
pub(super) const MAX_LENGTH: usize = 1 << 20;

/// How many characters of an invalid item an error quotes.
const MAX_QUOTED: usize = 40;

/// Appends the numbers of a JSON array to `numbers`. Each is the `f32` that is nearest to its text.
///
/// # Errors
/// The text is not an array of numbers, the array is empty or has more than [`MAX_LENGTH`] numbers, or a
/// number is too large for an `f32`. Even then, some numbers may have been appended.
pub(super) fn append(text: &str, numbers: &mut Vec<f32>) -> Result<(), String> {
    let start = numbers.len();
    let mut json = serde_json::Deserializer::from_str(text);
    let mut wrong = None;
    let read = json.deserialize_seq(NumbersVisitor { numbers, wrong: &mut wrong });
    let read = read.and_then(|()| json.end());
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    read.map_err(|error| format!("the vector is not a list of numbers: {error}"))?;
    // All numbers are finite, but there may be none.
    check(&numbers[start..])
}

/// Checks that there are numbers, and that all are finite. `nearest` needs this to compute a cosine.
///
/// # Errors
/// There are no numbers, or one is infinite or NaN.
pub(super) fn check(vector: &[f32]) -> Result<(), String> {
    if vector.is_empty() {
        return Err("the vector is empty".into());
    }
    // Zero times an infinite number or NaN is NaN, and so is a sum that contains it. One sum is quicker to
    // check than each number.
    if vector.iter().map(|number| number * 0.0).sum::<f32>() == 0.0 {
        return Ok(());
    }
    // The caller may have converted 64-bit numbers to `f32`. Those that are too large are now infinite.
    Err("the vector contains a number that is infinite or NaN, or too large for 32 bits".into())
}

/// Takes the items of an array, and parses each as a number.
struct NumbersVisitor<'n> {
    numbers: &'n mut Vec<f32>,
    /// What is wrong with an item. The message is not an error of serde, because serde would add a
    /// position to it.
    wrong: &'n mut Option<String>,
}

impl<'de> Visitor<'de> for NumbersVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let start = self.numbers.len();
        while let Some(item) = sequence.next_element::<&RawValue>()? {
            let is_one_too_many = self.numbers.len() - start == MAX_LENGTH;
            // Parsing a text as `f32` rounds it once. serde parses it as `f64` first, which would round
            // it twice.
            let reason = match item.get().parse() {
                _ if is_one_too_many => format!("the vector has more than {MAX_LENGTH} numbers"),
                Ok(number) if f32::is_finite(number) => {
                    self.numbers.push(number);
                    continue;
                }
                Ok(_) => {
                    format!(
                        "the vector contains {}, which is infinite as a 32-bit number",
                        quote(item)
                    )
                }
                Err(_) => {
                    format!("the vector contains {}: it is not a list of numbers", quote(item))
                }
            };
            *self.wrong = Some(reason);
            return Err(A::Error::custom("an item of the vector is wrong"));
        }
        Ok(())
    }
}

/// The beginning of an item, in quotes.
fn quote(item: &RawValue) -> String {
    format!("{:?}", item.get().chars().take(MAX_QUOTED).collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Appends the numbers of `text` to a list that already contains the number 7. Returns only the appended
    /// numbers.
    fn read(text: &str) -> Result<Vec<f32>, String> {
        let mut numbers = vec![7.0];
        append(text, &mut numbers).map(|()| numbers.split_off(1))
    }

    #[test]
    fn a_number_just_above_the_middle_of_two_f32_is_rounded_up() {
        // 1 + 2^-24 is the middle of 1 and the next `f32`. The nearest `f64` of this text is that middle,
        // which would then be rounded down to 1.
        let text = "1.0000000596046447753906250000000001";
        assert_eq!(text.parse::<f64>().unwrap() as f32, 1.0);
        assert_eq!(read(&format!("[{text}]")).unwrap(), [1.0 + f32::EPSILON]);
    }

    #[test]
    fn every_form_of_a_json_number_is_read() {
        // The long number is `f32::MIN`. 1e-60 is too small for an `f32` and becomes 0.
        let numbers = [1.0, -0.5, 100.0, 0.0, f32::MIN, 0.0];
        assert_eq!(read("[1, -0.5 ,\t1E+2, 0, -340282346638528859e21, 1e-60 ]").unwrap(), numbers);
    }

    #[test]
    fn a_text_that_is_no_list_of_finite_numbers_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "the vector is not a list of numbers: "),
            ("12", "the vector is not a list of numbers: "),
            ("[1,2", "the vector is not a list of numbers: "),
            ("[1,2],\"x\":[3]", "the vector is not a list of numbers: "),
            ("[1,NaN]", "the vector is not a list of numbers: "),
            ("[1,inf]", "the vector is not a list of numbers: "),
            // Rust would parse these, but they are not JSON.
            ("[+1]", "the vector is not a list of numbers: "),
            ("[.5]", "the vector is not a list of numbers: "),
            ("[1.]", "the vector is not a list of numbers: "),
            ("[01]", "the vector is not a list of numbers: "),
            ("[]", "the vector is empty"),
            ("[[1,2]]", r#"the vector contains "[1,2]": it is not a list of numbers"#),
            ("[1,null]", r#"the vector contains "null": it is not a list of numbers"#),
            ("[1,\"2\"]", r#"the vector contains "\"2\"": it is not a list of numbers"#),
            ("[1,1e39]", r#"the vector contains "1e39", which is infinite as a 32-bit number"#),
            ("[1,-1e999]", r#"the vector contains "-1e999", which is infinite as a 32-bit number"#),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(reason), "{text}: {error}");
        }
        // The error repeats only the beginning of a long number.
        let long = format!("[{}]", "9".repeat(1000));
        assert!(read(&long).unwrap_err().contains(&format!("\"{}\"", "9".repeat(MAX_QUOTED))));
    }

    #[test]
    fn a_vector_of_the_greatest_length_is_read_and_a_longer_one_is_refused() {
        let zeros = |count: usize| format!("[{}]", vec!["0"; count].join(","));
        assert_eq!(read(&zeros(MAX_LENGTH)).unwrap().len(), MAX_LENGTH);
        let error = read(&zeros(MAX_LENGTH + 1)).unwrap_err();
        assert_eq!(error, "the vector has more than 1048576 numbers");
    }

    proptest! {
        #[test]
        fn every_finite_f32_is_read_as_it_was_written(
            number in any::<f32>().prop_filter("finite", |n| n.is_finite()),
        ) {
            let text = number.to_string();
            prop_assert_eq!(read(&format!("[{text}]")).unwrap()[0].to_bits(), number.to_bits());
        }
    }
}
