//! Caches embeddings in memory, on disk and in the bucket.
//!
//! If the cache fails, requests still succeed, but each makes a call to NVIDIA.
//!
//! An embedding is temporary if it comes from a picture that was shrunk only because uploads did not
//! work. Such an embedding is cached until it expires, and in memory only: after a restart, uploads may
//! work again.

use std::{fmt, sync::Arc};

use quick_cache::{Weighter, sync::Cache as MemoryCache};
use sha2::{Digest, Sha256 as Hasher};
use tokio::{task::spawn_blocking, time::Instant};

use super::{Embedding, Prepared, Provenance, Settings, Source};
use crate::{bucket::Bucket, nvidia::Vector, sha256::Sha256};
use bucket::BucketLevel;
use disk::Disk;
use writer::Writer;

mod bucket;
mod disk;
mod format;
mod writer;

/// The version of the code that prepares pictures. Raise this number with every change that gives
/// any picture another embedding.
const PREPARATION: u8 = 2;

/// Identifies a cached embedding: a SHA-256 of the [`Source`] that computed it, of [`PREPARATION`], of
/// every setting that changes how pictures are prepared, and of the picture's own SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CacheKey(Sha256);

impl CacheKey {
    /// The first eight bytes, by which the disk level remembers its files. If two keys have the same
    /// prefix, a look-up of one key may try to open a file that does not exist; nothing worse happens.
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

/// The memory that a cache entry takes in addition to the vector's text, in bytes. This estimate is
/// more likely too high than too low.
const ENTRY_OVERHEAD: usize = 256;

/// The typical length of a vector's text, in bytes.
const TYPICAL_VECTOR_LEN: u64 = 20_000;

/// An embedding in the cache.
#[derive(Debug, Clone)]
struct CachedEmbedding {
    vector: Vector,
    prepared: Prepared,
    /// When a temporary embedding expires. `None` if the embedding is permanent.
    valid_until: Option<Instant>,
}

impl CachedEmbedding {
    fn into_embedding(self, provenance: Provenance) -> Embedding {
        let Self { vector, prepared, valid_until } = self;
        Embedding { vector, prepared, provenance, attempts: 0, valid_until }
    }
}

impl From<&Embedding> for CachedEmbedding {
    fn from(embedding: &Embedding) -> Self {
        let Embedding { vector, prepared, valid_until, .. } = embedding;
        Self { vector: vector.clone(), prepared: *prepared, valid_until: *valid_until }
    }
}

/// Weighs a cache entry by its bytes, so that the memory level has a limit in bytes.
#[derive(Clone)]
struct ByteWeight;

impl Weighter<CacheKey, CachedEmbedding> for ByteWeight {
    fn weight(&self, _: &CacheKey, cached: &CachedEmbedding) -> u64 {
        (cached.vector.json().get().len() + ENTRY_OVERHEAD) as u64
    }
}

/// The cache. It has three levels: memory, disk and bucket. Each can be turned off.
pub(super) struct Cache {
    /// Has already hashed all parts of a key except the last: the picture's SHA-256.
    key_hasher: Hasher,
    memory: Option<MemoryCache<CacheKey, CachedEmbedding, ByteWeight>>,
    disk: Option<DiskLevel>,
    bucket: Option<BucketLevel>,
}

struct DiskLevel {
    disk: Arc<Disk>,
    writer: Writer,
}

impl Cache {
    /// Creates the levels that the settings turn on, and the level in `bucket` if there is one. Call this
    /// inside the Tokio runtime.
    pub(super) fn new(settings: &Settings, source: &Source, bucket: Option<Bucket>) -> Self {
        let memory = (settings.cache_memory > 0).then(|| {
            let entries = settings.cache_memory.div_ceil(TYPICAL_VECTOR_LEN);
            let entries = usize::try_from(entries).unwrap_or(usize::MAX);
            MemoryCache::with_weighter(entries, settings.cache_memory, ByteWeight)
        });
        let disk = (settings.cache_disk > 0).then(|| {
            let (folder, space) = (settings.cache_folder.clone(), settings.cache_space.clone());
            let disk = Arc::new(Disk::new(folder, settings.cache_disk, space));
            DiskLevel { writer: Writer::start(Arc::clone(&disk)), disk }
        });
        // Zero bytes separate the parts. No model's name and no URL contains a zero byte, so the
        // hashed bytes of two sources always differ.
        let key_hasher = Hasher::new()
            .chain_update(source.model)
            .chain_update([0])
            .chain_update(&source.endpoint)
            .chain_update([0, PREPARATION, settings.call.large_images as u8])
            .chain_update((settings.call.inline_limit as u64).to_le_bytes())
            .chain_update(settings.call.max_image_bytes.to_le_bytes());
        Self { key_hasher, memory, disk, bucket: bucket.map(BucketLevel::new) }
    }

    /// The key of a picture's embedding.
    pub(super) fn key(&self, sha256: Sha256) -> CacheKey {
        CacheKey(Sha256::of(self.key_hasher.clone().chain_update(sha256.bytes())))
    }

    /// Looks in memory. A temporary embedding that has expired is not returned.
    pub(super) fn get_from_memory(&self, key: &CacheKey) -> Option<Embedding> {
        let cached = self.memory.as_ref()?.get(key)?;
        let is_valid = cached.valid_until.is_none_or(|end| Instant::now() < end);
        is_valid.then(|| cached.into_embedding(Provenance::Memory))
    }

    /// Looks in the bucket. An embedding that is found there is also cached in memory and on disk.
    pub(super) async fn look_up_in_bucket(&self, key: &CacheKey) -> Option<Embedding> {
        let cached = self.bucket.as_ref()?.read(key).await?;
        if let Some(memory) = &self.memory {
            memory.insert(*key, cached.clone());
        }
        if let Some(DiskLevel { writer, .. }) = &self.disk {
            let when_done = writer.enqueue(*key, cached.clone());
            drop(when_done); // The write continues, but the request does not wait for it.
        }
        Some(cached.into_embedding(Provenance::Bucket))
    }

    /// Looks in memory, then on disk. An embedding that is found on disk is also cached in memory.
    pub(super) async fn look_up_locally(&self, key: &CacheKey) -> Option<Embedding> {
        if let Some(found) = self.get_from_memory(key) {
            return Some(found);
        }
        let DiskLevel { disk, .. } = self.disk.as_ref()?;
        if !disk.may_contain(key) {
            return None;
        }
        let (disk, key) = (Arc::clone(disk), *key);
        let cached = spawn_blocking(move || disk.read(&key)).await.ok().flatten()?;
        if let Some(memory) = &self.memory {
            memory.insert(key, cached.clone());
        }
        Some(cached.into_embedding(Provenance::Disk))
    }

    /// Caches an embedding in memory, unless it is temporary and a permanent one is cached already.
    pub(super) fn insert_in_memory(&self, key: CacheKey, embedding: &Embedding) {
        let Some(memory) = &self.memory else { return };
        let is_permanent = |cached: CachedEmbedding| cached.valid_until.is_none();
        if embedding.valid_until.is_none() || !memory.get(&key).is_some_and(is_permanent) {
            memory.insert(key, embedding.into());
        }
    }

    /// Writes a permanent embedding to the disk and to the bucket, and waits until both writes have
    /// succeeded or failed. Does not write a temporary embedding. Returns whether the embedding was
    /// written to the bucket.
    pub(super) async fn write(&self, key: CacheKey, embedding: &Embedding) -> bool {
        if embedding.valid_until.is_some() {
            return false;
        }
        let cached = CachedEmbedding::from(embedding);
        let to_disk = async {
            if let Some(DiskLevel { writer, .. }) = &self.disk {
                writer.write(key, cached.clone()).await;
            }
        };
        let to_bucket = async {
            match &self.bucket {
                Some(bucket) => bucket.write(&key, &cached).await,
                None => false,
            }
        };
        let ((), is_in_bucket) = tokio::join!(to_disk, to_bucket);
        is_in_bucket
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::{Path, PathBuf},
        time::Duration,
    };

    use super::*;
    use crate::{
        disk_space::DiskSpace,
        embed::{CallSettings, FAILED_UPLOAD_PAUSE, LargeImages, REFUSED_UPLOAD_PAUSE},
        nvidia::DIMENSIONS,
    };

    fn settings(memory_bytes: u64, disk_bytes: u64, folder: &Path) -> Settings {
        let call = CallSettings {
            large_images: LargeImages::Shrink,
            inline_limit: 200_000,
            max_image_bytes: 20 << 20,
            max_concurrency: 1,
            refused_upload_pause: REFUSED_UPLOAD_PAUSE,
            failed_upload_pause: FAILED_UPLOAD_PAUSE,
        };
        let cache_folder = PathBuf::from(folder);
        let cache_space = DiskSpace::new(cache_folder.clone(), 0);
        Settings {
            call,
            cache_memory: memory_bytes,
            cache_disk: disk_bytes,
            cache_folder,
            cache_space,
        }
    }

    /// `source` is a model and an endpoint.
    fn new_cache(
        memory_bytes: u64,
        disk_bytes: u64,
        folder: &Path,
        source: (&'static str, &str),
    ) -> Cache {
        let source = Source { model: source.0, endpoint: source.1.into() };
        Cache::new(&settings(memory_bytes, disk_bytes, folder), &source, None)
    }

    /// A key whose bytes are all `byte`.
    pub(super) fn key_of(byte: u8) -> CacheKey {
        CacheKey(Sha256::from_bytes([byte; 32]))
    }

    /// An embedding whose numbers are all `number`.
    pub(super) fn embedding_of(number: &str) -> Embedding {
        let text = format!("[{}]", [number; DIMENSIONS].join(","));
        let raw = serde_json::value::RawValue::from_string(text).unwrap();
        let vector = Vector::from_json(&raw).unwrap();
        let (prepared, provenance) = (Prepared::Jpeg, Provenance::Nvidia);
        Embedding { vector, prepared, provenance, attempts: 2, valid_until: None }
    }

    /// The first four characters of a vector's text.
    fn start_of_text(found: &Embedding) -> String {
        found.vector.json().get().chars().take(4).collect()
    }

    #[tokio::test]
    async fn a_look_up_finds_an_embedding_only_in_a_level_that_is_on() {
        let folder = tempfile::tempdir().unwrap();
        for (memory_bytes, disk_bytes, provenance) in [
            (1 << 20, 0, Some(Provenance::Memory)),
            (0, 1 << 20, Some(Provenance::Disk)),
            (0, 0, None),
        ] {
            let cache = new_cache(memory_bytes, disk_bytes, folder.path(), ("model", "endpoint"));
            let key = cache.key(Sha256::from_bytes([7; 32]));
            cache.insert_in_memory(key, &embedding_of("0.5"));
            cache.write(key, &embedding_of("0.5")).await;
            let found = cache.look_up_locally(&key).await;
            assert_eq!(found.as_ref().map(|found| found.provenance), provenance);
            if let Some(found) = found {
                assert_eq!((start_of_text(&found).as_str(), found.attempts), ("[0.5", 0));
                assert_eq!(found.prepared, Prepared::Jpeg);
            }
        }
    }

    #[tokio::test]
    async fn a_look_up_that_reads_the_disk_inserts_the_embedding_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let cache = new_cache(1 << 20, 1 << 20, folder.path(), ("model", "endpoint"));
        let key = cache.key(Sha256::from_bytes([7; 32]));
        cache.write(key, &embedding_of("1")).await;
        assert!(cache.get_from_memory(&key).is_none());
        assert_eq!(cache.look_up_locally(&key).await.unwrap().provenance, Provenance::Disk);
        assert_eq!(cache.get_from_memory(&key).unwrap().provenance, Provenance::Memory);
    }

    #[test]
    fn different_sources_or_pictures_have_different_keys() {
        let folder = PathBuf::from("unused");
        let keys: std::collections::HashSet<_> =
            [("a", "b"), ("ab", ""), ("", "ab"), ("a", "c"), ("b", "b")]
                .into_iter()
                .flat_map(|source| {
                    let cache = new_cache(0, 0, &folder, source);
                    [1, 2].map(|n| cache.key(Sha256::from_bytes([n; 32])))
                })
                .collect();
        assert_eq!(keys.len(), 10, "each of 2 pictures should have a key for each of 5 sources");
    }

    #[test]
    fn a_changed_setting_of_the_preparation_changes_the_key() {
        let key_with = |large_images, inline_limit, max_image_bytes| {
            let base = settings(0, 0, Path::new("unused"));
            let call = CallSettings { large_images, inline_limit, max_image_bytes, ..base.call };
            let source = Source { model: "model", endpoint: "endpoint".into() };
            Cache::new(&Settings { call, ..base }, &source, None).key(Sha256::from_bytes([7; 32]))
        };
        let key = key_with(LargeImages::Shrink, 200_000, 1000);
        assert_eq!(key, key_with(LargeImages::Shrink, 200_000, 1000));
        assert_ne!(key, key_with(LargeImages::Asset, 200_000, 1000));
        assert_ne!(key, key_with(LargeImages::Shrink, 199_999, 1000));
        assert_ne!(key, key_with(LargeImages::Shrink, 200_000, 999));
    }

    #[tokio::test(start_paused = true)]
    async fn a_temporary_embedding_is_cached_in_memory_until_it_expires_and_never_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let cache = new_cache(1 << 20, 1 << 20, folder.path(), ("model", "endpoint"));
        let end = Instant::now() + Duration::from_secs(60);
        let temporary = Embedding { valid_until: Some(end), ..embedding_of("1") };
        cache.insert_in_memory(key_of(1), &temporary);
        cache.write(key_of(1), &temporary).await;
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(cache.get_from_memory(&key_of(1)).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.get_from_memory(&key_of(1)).is_none());
        assert!(cache.look_up_locally(&key_of(1)).await.is_none());
    }

    #[test]
    fn the_memory_level_does_not_exceed_its_limit() {
        let cache = new_cache(100_000, 0, Path::new("unused"), ("model", "endpoint"));
        let embedding = embedding_of("0.125");
        for n in 0..200u8 {
            cache.insert_in_memory(key_of(n), &embedding);
        }
        let memory = cache.memory.as_ref().unwrap();
        assert!(memory.weight() <= 100_000);
        // One entry needs less than 10 KB, so ten fit. `quick_cache` decides how many stay. The test requires
        // half of them.
        assert!(memory.len() >= 5, "the cache contains only {} entries", memory.len());
    }
}
