//! Several replicas, which are real processes, share a bucket: what lies in the bucket, and that a picture
//! is paid for once. Each test runs with each of two S3 servers, which check signatures.

use serde_json::json;

use crate::support::{
    Answer, FakeNvidia, HUBBLE, PATIENCE, ROCKET, Replica, Setting,
    s3::{MotoServer, RcloneServer},
    tiny, wait_for,
};

/// A bucket on one of the servers.
#[allow(clippy::large_enum_variant, reason = "a test has only one or two of these")]
enum Bucket {
    Moto(MotoServer),
    /// A bucket of rclone, and a moto. The boto3 in the moto's process replaces objects in rclone's bucket,
    /// because rclone would not notice a file that is replaced directly on the disk. The moto's own bucket is
    /// not used.
    Rclone(RcloneServer, MotoServer),
}

impl Bucket {
    /// An empty bucket on each server. Nothing if a server is not installed: the tests are then skipped.
    async fn all() -> Vec<Self> {
        let (Some(moto), Some(rclone), Some(client)) =
            (MotoServer::start().await, RcloneServer::start().await, MotoServer::start().await)
        else {
            return Vec::new();
        };
        vec![Self::Moto(moto), Self::Rclone(rclone, client)]
    }

    fn settings(&self) -> Vec<Setting> {
        match self {
            Self::Moto(moto) => moto.settings(),
            Self::Rclone(rclone, _) => rclone.settings(),
        }
    }

    /// The keys of the objects in a folder, without `imagesvc/` and the folder.
    async fn keys_in(&self, folder: &str) -> Vec<String> {
        match self {
            Self::Moto(moto) => moto.keys_in(folder).await,
            Self::Rclone(rclone, _) => rclone.keys_in(folder),
        }
    }

    /// The bytes of an object. `path` is its key without `imagesvc/`, for example `vectors/<key>`.
    async fn read(&self, path: &str) -> Vec<u8> {
        self.try_read(path).await.unwrap()
    }

    /// Like [`Self::read`], but returns `None` if there is no such object. On rclone, an object is
    /// missing for a moment while it is replaced.
    async fn try_read(&self, path: &str) -> Option<Vec<u8>> {
        match self {
            Self::Moto(moto) => moto.read(&format!("imagesvc/{path}")).await,
            Self::Rclone(rclone, _) => std::fs::read(rclone.path_of(path)).ok(),
        }
    }

    async fn write(&self, path: &str, text: &str) {
        let put = json!({ "Key": format!("imagesvc/{path}"), "Body": text });
        let (client, user, address) = match self {
            Self::Moto(moto) => (moto, &moto.user, moto.address),
            Self::Rclone(rclone, client) => (client, &rclone.user, rclone.address),
        };
        assert_eq!(client.attempt_as(user, address, "put_object", &put).await, "ok");
    }

    /// Waits until this many vectors are in the bucket, and returns their keys as [`Self::keys_in`] does.
    async fn wait_for_vectors(&self, count: usize) -> Vec<String> {
        let condition = async || self.keys_in("vectors").await.len() == count;
        wait_for("the number of vectors", PATIENCE, condition).await;
        self.keys_in("vectors").await
    }
}

/// Asserts that the answer has a vector and this `x-cache`. Returns the vector.
fn assert_vector(answer: &Answer, x_cache: &str) -> Vec<f64> {
    let vector = answer.vector();
    assert_eq!(answer.header("x-cache"), x_cache);
    vector
}

/// Asserts that the object has the form of `src/embed/cache/format.rs`, and contains `vector`. The form is a
/// line with the version, how the picture was prepared, the length and the checksum; then the vector. The
/// checksum also covers the bytes of the key, which is hexadecimal.
fn assert_is_whole_vector(key: &str, bytes: &[u8], vector: &[f64]) {
    let text = std::str::from_utf8(bytes).unwrap();
    let (first_line, rest) = text.split_once('\n').unwrap();
    let numbers = rest.strip_suffix('\n').unwrap();
    let fields: Vec<_> = first_line.split(' ').collect();
    let ["imagesvc-vector", "2", prepared, length, checksum] = fields[..] else {
        panic!("{first_line}")
    };
    assert_eq!(length, numbers.len().to_string());
    // Two hexadecimal digits are one byte.
    let key: Vec<u8> = (0..key.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&key[at..at + 2], 16).unwrap())
        .collect();
    let sum = crc32fast::hash(&[&key[..], prepared.as_bytes(), numbers.as_bytes()].concat());
    assert_eq!(checksum, format!("{sum:08x}"));
    // serde_json may return a neighbour of the nearest `f64`, so the numbers are compared with a tolerance.
    let numbers: Vec<f64> = serde_json::from_str(numbers).unwrap();
    let differs = numbers.iter().zip(vector).any(|(a, b)| (a - b).abs() > 1e-6);
    assert!(numbers.len() == vector.len() && !differs, "the vector should be the answer's");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_paid_for_is_free_for_all_others_and_for_later_ones() {
    for bucket in Bucket::all().await {
        let nvidia = FakeNvidia::healthy().await;
        let first = Replica::start(&nvidia, &bucket.settings()).await;
        let second = Replica::start(&nvidia, &bucket.settings()).await;
        let mut saved = Vec::new();
        let mut vectors = Vec::new();
        // The first picture stays in memory, and the second one is streamed from a file.
        for (n, picture) in [ROCKET, HUBBLE].into_iter().enumerate() {
            let answer = first.upload(picture).await;
            vectors.push(assert_vector(&answer, "miss"));
            saved.push((answer.saved_as(), picture));
            bucket.wait_for_vectors(n + 1).await;
            let shared = second.upload(picture).await;
            assert_eq!(assert_vector(&shared, "hit"), vectors[n]);
            saved.push((shared.saved_as(), picture));
        }
        assert_eq!(first.stop().await.0.code(), Some(0));
        assert_eq!(second.stop().await.0.code(), Some(0));
        let third = Replica::start(&nvidia, &bucket.settings()).await;
        for (n, picture) in [ROCKET, HUBBLE].into_iter().enumerate() {
            assert_eq!(assert_vector(&third.upload_unsaved(picture).await, "hit"), vectors[n]);
        }
        assert_eq!(nvidia.inference_calls(), 2);
        let mut names: Vec<_> = saved.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        assert_eq!(bucket.keys_in("downloads").await, names);
        for (name, picture) in saved {
            let found = bucket.read(&format!("downloads/{name}")).await;
            assert!(found == picture, "{name} should be saved byte for byte");
        }
        for key in bucket.wait_for_vectors(2).await {
            // The fake answers with the same numbers for all pictures.
            assert_is_whole_vector(
                &key,
                &bucket.read(&format!("vectors/{key}")).await,
                &vectors[0],
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_that_is_damaged_or_has_another_version_or_key_is_paid_for_again_and_replaced() {
    for bucket in Bucket::all().await {
        let nvidia = FakeNvidia::healthy().await;
        let payer = Replica::start(&nvidia, &bucket.settings()).await;
        // The first four vectors will be overwritten with invalid ones. The last one stays.
        let mut keys = Vec::new();
        for n in 0..5 {
            assert_vector(&payer.upload_unsaved(&tiny(n)).await, "miss");
            let all = bucket.wait_for_vectors(n + 1).await;
            keys.extend(all.into_iter().filter(|key| !keys.contains(key)).collect::<Vec<_>>());
        }
        let mut originals = Vec::new();
        for key in &keys {
            let bytes = bucket.read(&format!("vectors/{key}")).await;
            originals.push(String::from_utf8(bytes).unwrap());
        }
        let invalid = [
            originals[0].replacen("0.4", "0.5", 1), // a wrong number
            originals[1][..1000].to_owned(),        // truncated
            originals[2].replacen("imagesvc-vector 2", "imagesvc-vector 3", 1), // another version
            originals[0].clone(),                   // the vector of another key
        ];
        for (n, text) in invalid.iter().enumerate() {
            assert_ne!(*text, originals[n]);
            bucket.write(&format!("vectors/{}", keys[n]), text).await;
        }
        let reader = Replica::start(&nvidia, &bucket.settings()).await;
        for n in 0..invalid.len() {
            assert_vector(&reader.upload_unsaved(&tiny(n)).await, "miss");
            let path = format!("vectors/{}", keys[n]);
            let is_replaced =
                async || bucket.try_read(&path).await.as_deref() == Some(originals[n].as_bytes());
            wait_for("the vector", PATIENCE, is_replaced).await;
        }
        assert_vector(&reader.upload_unsaved(&tiny(4)).await, "hit");
        let another = Replica::start(&nvidia, &bucket.settings()).await;
        for n in 0..5 {
            assert_vector(&another.upload_unsaved(&tiny(n)).await, "hit");
        }
        assert_eq!(nvidia.inference_calls(), 5 + invalid.len());
    }
}
