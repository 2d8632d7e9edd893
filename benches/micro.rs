//! Measures functions whose time matters because they run for each byte or for each request. To run:
//! `cargo bench --bench micro`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use bytes::Bytes;
use divan::{Bencher, black_box, counter::BytesCount};
use imagesvc::{
    base64_text,
    disk_space::DiskSpace,
    image::{Content, probe},
    nvidia::{InlineImage, Vector},
    store::{Retention, Settings, Store},
};
use samples::jpeg;
use serde_json::value::RawValue;

#[path = "service/samples.rs"]
mod samples;

/// The sizes of the pictures in bytes. The first two can be sent to NVIDIA inline; the second is
/// almost as large as an inline picture can be. The third must be uploaded to NVIDIA as an asset.
const SIZES: [usize; 3] = [34 * 1024, 149_000, 2 << 20];

/// The size of the chunks in which hyper delivers a body, in bytes.
const CHUNK_LEN: usize = 16 * 1024;

fn main() {
    divan::main();
}

fn embedding() -> Box<RawValue> {
    RawValue::from_string(samples::embedding()).unwrap()
}

/// Receives a picture: hashes its bytes, and copies them to memory or to a staging file.
#[divan::bench(args = SIZES)]
fn spool(bencher: Bencher<'_, '_>, len: usize) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let retention = Retention::default();
    let path = folder.path().to_owned();
    let space = DiskSpace::new(path.clone(), 0); // without a reserve of free space
    let settings = Settings { folder: path, space, retention };
    let store = Store::open(&settings).unwrap();
    let chunks: Vec<_> = jpeg(len).chunks(CHUNK_LEN).map(Bytes::copy_from_slice).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        runtime.block_on(async {
            // A picture that can be sent inline stays in memory. 200,000 is NVIDIA's limit on the
            // length of its Base64 text.
            let mut picture = store.spool(InlineImage::largest_picture(200_000));
            for chunk in &chunks {
                picture.write(chunk).await.unwrap();
            }
            picture.finish().await.unwrap()
        })
    });
}

/// Reads the format and the size from a picture's header.
#[divan::bench(args = SIZES)]
fn probe_header(bencher: Bencher<'_, '_>, len: usize) {
    let content = Content::Memory(jpeg(len).into());
    let max_pixels = 64_000_000; // the service's default
    bencher.bench(|| probe(content.clone(), max_pixels).unwrap());
}

/// Encodes a picture as the body of a request to NVIDIA.
#[divan::bench(args = &SIZES[..2])]
fn inline_body(bencher: Bencher<'_, '_>, len: usize) {
    let picture = jpeg(len);
    bencher
        .counter(BytesCount::new(len))
        .bench(|| InlineImage::new("image/jpeg", black_box(&picture)));
}

/// Checks the numbers of NVIDIA's embedding.
#[divan::bench]
fn check_vector(bencher: Bencher<'_, '_>) {
    let raw = embedding();
    bencher
        .counter(BytesCount::of_str(raw.get()))
        .bench(|| Vector::from_json(black_box(&raw)).unwrap());
}

/// Serializes a vector, the largest part of an answer.
#[divan::bench]
fn serialize_vector(bencher: Bencher<'_, '_>) {
    let vector = Vector::from_json(&embedding()).unwrap();
    bencher
        .counter(BytesCount::of_str(vector.json().get()))
        .bench(|| serde_json::to_vec(black_box(&vector)).unwrap());
}

/// Decodes a picture's Base64 text in pieces, as the Base64 route does.
#[divan::bench(args = SIZES)]
fn decode_base64(bencher: Bencher<'_, '_>, len: usize) {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let text = BASE64_STANDARD.encode(jpeg(len)).into_bytes();
    bencher.counter(BytesCount::new(len)).with_inputs(|| text.clone()).bench_values(|mut text| {
        let range = base64_text::normalize(&mut text).unwrap();
        for piece in text[range].chunks(base64_text::CHUNK_LEN) {
            black_box(base64_text::decode(piece).unwrap());
        }
        text
    });
}
