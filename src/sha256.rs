//! A type for SHA-256 hashes, so that they are not confused with other 32 bytes and print in the
//! usual form.

use std::fmt;

use sha2::Digest;

/// A SHA-256 hash. Prints as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// A hash that was computed elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash of everything that the hasher was given.
    pub fn of(hasher: sha2::Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// Reads a printed hash, also in upper case.
    pub fn from_hex(digits: &[u8]) -> Option<Self> {
        let (pairs, []) = digits.as_chunks::<2>() else { return None };
        let pairs: &[[u8; 2]; 32] = pairs.try_into().ok()?;
        if !pairs.as_flattened().iter().all(u8::is_ascii_hexdigit) {
            return None; // `from_str_radix` would accept a sign
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The bytes.
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
    fn it_is_printed_and_read_in_hexadecimal_digits() {
        let text = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
        let hash = Sha256::of(sha2::Sha256::new().chain_update("hello world"));
        assert_eq!(hash.to_string(), text);
        assert_eq!(Sha256::from_hex(text.as_bytes()), Some(hash));
        for other in ["", &text[1..], &text[2..], &"+1".repeat(32), &"g0".repeat(32)] {
            assert_eq!(Sha256::from_hex(other.as_bytes()), None, "{other}");
        }
    }
}
