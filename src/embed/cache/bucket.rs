//! Caches embeddings in the bucket. Every replica finds them there, even one that starts later.

use bytes::Bytes;
use sha2::{Digest, Sha256 as Hasher};
use tokio::sync::Semaphore;

use super::{
    CacheKey, CachedEmbedding,
    format::{decode, encode},
};
use crate::{
    bucket::{Bucket, Object},
    image::Content,
    sha256::Sha256,
};

/// At most this many embeddings are written at once. Each takes about 50 KB of memory.
const MAX_CONCURRENT_WRITES: usize = 256;

/// The cache level in the bucket.
pub(super) struct BucketLevel {
    bucket: Bucket,
    write_permits: Semaphore,
}

impl BucketLevel {
    pub(super) fn new(bucket: Bucket) -> Self {
        Self { bucket, write_permits: Semaphore::new(MAX_CONCURRENT_WRITES) }
    }

    /// Returns the cached embedding of the key. `None` if there is none, if it is damaged or has
    /// another version, or if the bucket cannot be read. The next write replaces an embedding that
    /// could not be used.
    pub(super) async fn read(&self, key: &CacheKey) -> Option<CachedEmbedding> {
        // The error is not logged here: `Bucket` logs when the bucket begins to fail.
        let bytes = self.bucket.read(&path(key)).await.ok()??;
        let cached = decode(key, &bytes);
        if cached.is_none() {
            tracing::warn!(
                %key,
                "a cached embedding in the bucket is damaged or has another version: NVIDIA is called again"
            );
        }
        cached
    }

    /// Writes an embedding, and returns whether it was written. It is not written if too many others
    /// are being written, or if the bucket fails. A replica that needs it then makes its own call.
    pub(super) async fn write(&self, key: &CacheKey, cached: &CachedEmbedding) -> bool {
        let Ok(_permit) = self.write_permits.try_acquire() else {
            tracing::debug!("an embedding is not cached in the bucket: too many are being written");
            return false;
        };
        let bytes = Bytes::from(encode(key, cached));
        let object = Object {
            sha256: Sha256::of(Hasher::new_with_prefix(&bytes)),
            content: Content::Memory(bytes),
            media_type: "text/plain; charset=utf-8",
        };
        match self.bucket.write_optional(&path(key), &object).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, %key, "an embedding is not cached in the bucket");
                false
            }
        }
    }
}

/// The path of an embedding's object, after the bucket's prefix.
fn path(key: &CacheKey) -> String {
    format!("vectors/{key}")
}
