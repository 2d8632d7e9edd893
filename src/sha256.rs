//! A type for SHA-256 hashes. It prevents confusion with other arrays of 32 bytes, and prints a hash
//! in hexadecimal digits.

use std::fmt;

use sha2::Digest;

/// A SHA-256 hash. Prints as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// A hash from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash of everything that was written to the hasher.
    pub fn of(hasher: sha2::Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// Parses 64 hexadecimal digits, in lower or upper case. Any other text is `None`.
    pub fn from_hex(digits: &[u8]) -> Option<Self> {
        let (pairs, []) = digits.as_chunks::<2>() else { return None };
        let pairs: &[[u8; 2]; 32] = pairs.try_into().ok()?;
        // `from_str_radix` alone would also accept a sign.
        if !pairs.as_flattened().iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The hash's bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_printed_and_parsed_in_hexadecimal_digits() {
        let text = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
        let hash = Sha256::of(sha2::Sha256::new().chain_update("hello world"));
        assert_eq!(hash.to_string(), text);
        assert_eq!(Sha256::from_hex(text.as_bytes()), Some(hash));
        for invalid in ["", &text[1..], &text[2..], &"+1".repeat(32), &"g0".repeat(32)] {
            assert_eq!(Sha256::from_hex(invalid.as_bytes()), None, "{invalid}");
        }
    }
}
