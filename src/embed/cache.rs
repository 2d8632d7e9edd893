//! Remembers embeddings: in memory first, then on disk.
//!
//! A cache that does not work costs calls, never answers.

use std::{fmt, sync::Arc};

use quick_cache::{Weighter, sync::Cache as MemoryCache};
use sha2::{Digest, Sha256 as Hasher};
use tokio::task::spawn_blocking;

use super::{Embedding, Prepared, Provenance, Settings, Source};
use crate::{nvidia::Vector, sha256::Sha256};
use disk::Disk;
use writer::Writer;

mod disk;
mod writer;

/// What an embedding is remembered by: SHA-256 of the source and of the picture's own SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CacheKey(Sha256);

impl CacheKey {
    /// The first eight bytes: two keys with the same are a look in vain on the disk, no more.
    fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = *self.0.bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an entry takes in memory beside the vector's text, in bytes: a guess on the large side.
const ENTRY_OVERHEAD: usize = 256;

/// How long a vector's text typically is, in bytes.
const TYPICAL_VECTOR: u64 = 20_000;

/// An embedding as it is remembered.
#[derive(Debug, Clone)]
struct Stored {
    vector: Vector,
    prepared: Prepared,
}

impl Stored {
    fn found(self, provenance: Provenance) -> Embedding {
        Embedding { vector: self.vector, prepared: self.prepared, provenance, tries: 0 }
    }
}

#[derive(Clone)]
struct Bytes;

impl Weighter<CacheKey, Stored> for Bytes {
    fn weight(&self, _: &CacheKey, stored: &Stored) -> u64 {
        (stored.vector.json().get().len() + ENTRY_OVERHEAD) as u64
    }
}

/// Both levels of the cache; each may be off.
pub(super) struct Cache {
    source: Hasher,
    memory: Option<MemoryCache<CacheKey, Stored, Bytes>>,
    disk: Option<OnDisk>,
}

struct OnDisk {
    disk: Arc<Disk>,
    writer: Writer,
}

impl Cache {
    /// Both levels, as set; must be made within the runtime.
    pub(super) fn new(settings: &Settings, source: &Source) -> Self {
        let memory = (settings.cache_memory > 0).then(|| {
            let items = settings.cache_memory.div_ceil(TYPICAL_VECTOR);
            let items = usize::try_from(items).unwrap_or(usize::MAX);
            MemoryCache::with_weighter(items, settings.cache_memory, Bytes)
        });
        let disk = (settings.cache_disk > 0).then(|| {
            let disk = Arc::new(Disk::new(settings.cache_folder.clone(), settings.cache_disk));
            OnDisk { writer: Writer::start(Arc::clone(&disk)), disk }
        });
        // No model and no address holds a zero byte: two sources never read the same.
        let source = Hasher::new()
            .chain_update(source.model)
            .chain_update([0])
            .chain_update(&source.address)
            .chain_update([0]);
        Self { source, memory, disk }
    }

    /// What a picture's embedding is remembered by.
    pub(super) fn key(&self, sha256: Sha256) -> CacheKey {
        CacheKey(Sha256::of(self.source.clone().chain_update(sha256.bytes())))
    }

    pub(super) fn in_memory(&self, key: &CacheKey) -> Option<Embedding> {
        Some(self.memory.as_ref()?.get(key)?.found(Provenance::Memory))
    }

    /// Looks in memory and on disk.
    pub(super) async fn look_up(&self, key: &CacheKey) -> Option<Embedding> {
        if let Some(found) = self.in_memory(key) {
            return Some(found);
        }
        let OnDisk { disk, .. } = self.disk.as_ref()?;
        if !disk.may_hold(key) {
            return None;
        }
        let (disk, key) = (Arc::clone(disk), *key);
        let stored = spawn_blocking(move || disk.read(&key)).await.ok().flatten()?;
        if let Some(memory) = &self.memory {
            memory.insert(key, stored.clone());
        }
        Some(stored.found(Provenance::Disk))
    }

    pub(super) fn keep_in_memory(&self, key: CacheKey, embedding: &Embedding) {
        if let Some(memory) = &self.memory {
            memory.insert(key, stored(embedding));
        }
    }

    /// Ends when the embedding is on the disk, or is not going to be.
    pub(super) async fn keep_on_disk(&self, key: CacheKey, embedding: &Embedding) {
        if let Some(OnDisk { writer, .. }) = &self.disk {
            writer.write(key, stored(embedding)).await;
        }
    }
}

fn stored(embedding: &Embedding) -> Stored {
    Stored { vector: embedding.vector.clone(), prepared: embedding.prepared }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::nvidia::DIMENSIONS;

    fn cache(memory: u64, disk: u64, folder: &Path, source: (&'static str, &str)) -> Cache {
        let ask = super::super::AskSettings {
            large_images: super::super::LargeImages::Shrink,
            inline_limit: 200_000,
            max_concurrency: 1,
            asset_memory: super::super::ASSET_MEMORY,
            outage_memory: super::super::OUTAGE_MEMORY,
        };
        let settings = Settings {
            ask,
            cache_memory: memory,
            cache_disk: disk,
            cache_folder: PathBuf::from(folder),
        };
        Cache::new(&settings, &Source { model: source.0, address: source.1.into() })
    }

    pub(super) fn key(byte: u8) -> CacheKey {
        CacheKey(Sha256::from_bytes([byte; 32]))
    }

    pub(super) fn embedding(number: &str) -> Embedding {
        let text = format!("[{}]", [number; DIMENSIONS].join(","));
        let raw = serde_json::value::RawValue::from_string(text).unwrap();
        let vector = Vector::check(&raw).unwrap();
        Embedding { vector, prepared: Prepared::Jpeg, provenance: Provenance::Asked, tries: 2 }
    }

    fn first(found: &Embedding) -> String {
        found.vector.json().get().chars().take(4).collect()
    }

    #[tokio::test]
    async fn what_is_kept_is_found_where_it_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        for (memory, disk, provenance) in [
            (1 << 20, 0, Some(Provenance::Memory)),
            (0, 1 << 20, Some(Provenance::Disk)),
            (0, 0, None),
        ] {
            let cache = cache(memory, disk, folder.path(), ("model", "address"));
            let key = cache.key(Sha256::from_bytes([7; 32]));
            cache.keep_in_memory(key, &embedding("0.25"));
            cache.keep_on_disk(key, &embedding("0.25")).await;
            let found = cache.look_up(&key).await;
            assert_eq!(found.as_ref().map(|found| found.provenance), provenance);
            if let Some(found) = found {
                assert_eq!((first(&found).as_str(), found.tries), ("[0.2", 0));
                assert_eq!(found.prepared, Prepared::Jpeg);
            }
        }
    }

    #[tokio::test]
    async fn what_was_found_on_disk_is_in_memory_then() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(1 << 20, 1 << 20, folder.path(), ("model", "address"));
        let key = cache.key(Sha256::from_bytes([7; 32]));
        cache.keep_on_disk(key, &embedding("1")).await;
        assert!(cache.in_memory(&key).is_none());
        assert_eq!(cache.look_up(&key).await.unwrap().provenance, Provenance::Disk);
        assert_eq!(cache.in_memory(&key).unwrap().provenance, Provenance::Memory);
    }

    #[test]
    fn each_source_and_each_picture_has_a_key_of_its_own() {
        let folder = PathBuf::from("unused");
        let keys: std::collections::HashSet<_> =
            [("a", "b"), ("ab", ""), ("", "ab"), ("a", "c"), ("b", "b")]
                .into_iter()
                .flat_map(|source| {
                    let cache = cache(0, 0, &folder, source);
                    [1, 2].map(|n| cache.key(Sha256::from_bytes([n; 32])))
                })
                .collect();
        assert_eq!(keys.len(), 10);
    }

    #[test]
    fn memory_stays_within_its_bytes() {
        let cache = cache(100_000, 0, Path::new("unused"), ("model", "address"));
        let one = embedding("0.125");
        for n in 0..200u8 {
            cache.keep_in_memory(key(n), &one);
        }
        let memory = cache.memory.as_ref().unwrap();
        assert!(memory.weight() <= 100_000);
        assert!(memory.len() >= 5, "{}", memory.len());
    }
}
