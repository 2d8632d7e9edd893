//! The bytes of a cached embedding, in a file on disk and in an object of the bucket.

use serde_json::value::RawValue;

use super::{CacheKey, CachedEmbedding};
use crate::{embed::Prepared, nvidia::Vector};

/// The bytes begin with this text. The number is the version of the format.
const MAGIC: &str = "imagesvc-vector 2";

/// The most bytes of a cached embedding. A vector is shorter than 1 MiB, because longer responses of
/// NVIDIA are refused. The first line is shorter than 256 bytes.
pub(super) const MAX_LEN: usize = (1 << 20) + 256;

/// Returns the bytes of a cached embedding: one line that describes the vector, then the vector as
/// JSON. People can read these bytes with `head` and `jq`.
pub(super) fn encode(key: &CacheKey, cached: &CachedEmbedding) -> Vec<u8> {
    let (text, prepared) = (cached.vector.json().get(), cached.prepared.name());
    let checksum = checksum(key, prepared, text.as_bytes());
    let len = text.len();
    format!("{MAGIC} {prepared} {len} {checksum}\n{text}\n").into()
}

/// Returns the embedding, or `None` if the bytes are damaged, have another version, or belong to
/// another key.
pub(super) fn decode(key: &CacheKey, bytes: &[u8]) -> Option<CachedEmbedding> {
    let (first_line, rest) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
    let text = rest.strip_suffix('\n')?;
    let mut fields = first_line.strip_prefix(MAGIC)?.strip_prefix(' ')?.split(' ');
    let (prepared, len, sum) = (fields.next()?, fields.next()?, fields.next()?);
    if len != text.len().to_string() || sum != checksum(key, prepared, text.as_bytes()) {
        return None;
    }
    let prepared = Prepared::ALL.into_iter().find(|known| known.name() == prepared)?;
    let vector = Vector::from_json(serde_json::from_str::<&RawValue>(text).ok()?).ok()?;
    // Only permanent embeddings are written.
    Some(CachedEmbedding { vector, prepared, valid_until: None })
}

/// A CRC-32, which detects damage. The checksum need not resist forgery: a person who can write to
/// the folder or the bucket can write any vector. The checksum covers the key, so that a vector
/// under another key's name counts as damaged.
fn checksum(key: &CacheKey, prepared: &str, text: &[u8]) -> String {
    let mut sum = crc32fast::Hasher::new();
    for part in [key.0.bytes(), prepared.as_bytes(), text] {
        sum.update(part);
    }
    format!("{:08x}", sum.finalize())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{embedding_of, key_of},
        *,
    };

    proptest! {
        #[test]
        fn bytes_with_one_changed_byte_or_without_their_end_are_not_decoded(
            at in any::<proptest::sample::Index>(), change in 1u8..=255,
            is_truncated in any::<bool>(),
        ) {
            let valid = encode(&key_of(3), &(&embedding_of("0.125")).into());
            let mut bytes = valid.clone();
            let at = at.index(bytes.len());
            if is_truncated { bytes.truncate(at) } else { bytes[at] ^= change }
            prop_assert!(decode(&key_of(3), &bytes).is_none());
            prop_assert!(decode(&key_of(3), &valid).is_some());
        }

        #[test]
        fn random_bytes_are_not_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(decode(&key_of(3), &bytes).is_none());
            let after_magic = [MAGIC.as_bytes(), b" ", &bytes].concat();
            prop_assert!(decode(&key_of(3), &after_magic).is_none());
        }
    }

    #[test]
    fn bytes_of_another_key_or_version_are_not_decoded() {
        let bytes = encode(&key_of(3), &(&embedding_of("0.125")).into());
        assert!(decode(&key_of(4), &bytes).is_none());
        let text = String::from_utf8(bytes).unwrap();
        let newer = text.replacen("imagesvc-vector 2", "imagesvc-vector 3", 1);
        assert!(decode(&key_of(3), newer.as_bytes()).is_none());
    }
}
