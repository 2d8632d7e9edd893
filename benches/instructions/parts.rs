//! Runs the parts of the service whose instructions `.ci/instructions` counts: what the service
//! computes for a picture, without a thread, a clock or a file.
//!
//! To measure the time of a part, the machine would have to be quiet. The number of its instructions
//! is the same in each run on a machine.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, unreachable_pub)]

use std::{
    future::Future,
    hint::black_box,
    io::Cursor,
    path::PathBuf,
    pin::pin,
    task::{Context, Poll, Waker},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use image_rs::{ImageFormat, imageops::FilterType};
use imagesvc::{
    base64_text,
    disk_space::DiskSpace,
    image::{Content, Target, probe},
    nvidia::{InlineImage, Vector},
    spool::Staging,
};
use samples::{JPEG, jpeg};
use serde_json::value::RawValue;

#[path = "../service/samples.rs"]
mod samples;

/// The size of a picture as messenger apps send it, in bytes.
const PICTURE_LEN: usize = 34 * 1024;

/// The size of the chunks in which hyper delivers a body, in bytes.
const CHUNK_LEN: usize = 16 * 1024;

/// The service's default limit on the pixels of a picture.
const MAX_PIXELS: u64 = 64_000_000;

/// NVIDIA's limit on the length of the Base64 text of an inline picture.
const BASE64_LIMIT: usize = 200_000;

/// What the parts read.
struct Inputs {
    picture: Bytes,
    /// The picture in the chunks in which it arrives.
    chunks: Vec<Bytes>,
    staging: Staging,
    base64: Vec<u8>,
    /// The JSON text of an embedding, as NVIDIA sends it.
    embedding: String,
    /// A small picture that must be turned into a JPEG.
    bmp: Bytes,
}

/// A part: its name, and what runs.
type Part = (&'static str, fn(&Inputs));

const PARTS: [Part; 6] = [
    ("receive", receive),
    // The allocator may take some hundred instructions more or less: little compared with 100 runs.
    ("probe-header-100-times", |inputs| (0..100).for_each(|_| probe_header(inputs))),
    ("encode-inline", encode_inline),
    ("decode-base64", decode_base64),
    ("read-vector", read_vector),
    ("convert-bmp", convert_bmp),
];

/// Runs each part, and prints its name. Callgrind writes a count for each part in the same order, without
/// names.
fn main() {
    let inputs = Inputs::new();
    for (name, part) in PARTS {
        run_twice(part, &inputs);
        println!("{name}");
    }
}

/// `.ci/instructions` lets Callgrind write a file of counts whenever this function ends. So this function
/// must not be inlined.
#[inline(never)]
fn run_twice(part: fn(&Inputs), inputs: &Inputs) {
    // The first run has costs that later ones have not: it fills tables, and looks at the processor's
    // features.
    part(inputs);
    run_counted(part, inputs);
}

/// `.ci/instructions` lets Callgrind count only in this function. So this function must not be inlined.
#[inline(never)]
fn run_counted(part: fn(&Inputs), inputs: &Inputs) {
    part(black_box(inputs));
}

impl Inputs {
    fn new() -> Self {
        let picture = jpeg(PICTURE_LEN);
        let small =
            image_rs::load_from_memory(JPEG).unwrap().resize_exact(64, 48, FilterType::Triangle);
        let mut bmp = Cursor::new(Vec::new());
        small.write_to(&mut bmp, ImageFormat::Bmp).unwrap();
        // The folder is not used, because the picture stays in memory.
        let folder = PathBuf::new();
        let min_free_bytes = 0;
        Self {
            chunks: picture.chunks(CHUNK_LEN).map(Bytes::copy_from_slice).collect(),
            staging: Staging::new(folder.clone(), DiskSpace::new(folder, min_free_bytes)),
            base64: BASE64_STANDARD.encode(&picture).into_bytes(),
            picture: picture.into(),
            embedding: samples::embedding(),
            bmp: bmp.into_inner().into(),
        }
    }
}

/// Hashes a picture as it arrives, and copies it to memory.
fn receive(inputs: &Inputs) {
    let mut spool = inputs.staging.spool(InlineImage::largest_picture(BASE64_LIMIT));
    for chunk in &inputs.chunks {
        ready(spool.write(chunk)).unwrap();
    }
    black_box(ready(spool.finish()).unwrap());
}

/// Reads the format and the size from a picture's header.
fn probe_header(inputs: &Inputs) {
    black_box(probe(Content::Memory(inputs.picture.clone()), MAX_PIXELS).unwrap());
}

/// Encodes a picture as the body of a request to NVIDIA.
fn encode_inline(inputs: &Inputs) {
    black_box(InlineImage::new("image/jpeg", &inputs.picture));
}

/// Decodes a picture's Base64 text in pieces, as the Base64 route does.
fn decode_base64(inputs: &Inputs) {
    let mut text = inputs.base64.clone();
    let range = base64_text::normalize(&mut text).unwrap();
    for piece in text[range].chunks(base64_text::CHUNK_LEN) {
        black_box(base64_text::decode(piece).unwrap());
    }
}

/// Reads the text of NVIDIA's embedding as JSON, and then checks its numbers.
fn read_vector(inputs: &Inputs) {
    let embedding: &RawValue = serde_json::from_str(&inputs.embedding).unwrap();
    black_box(Vector::from_json(embedding).unwrap());
}

/// Decodes a picture, and encodes it as a JPEG, as a decoder process does.
fn convert_bmp(inputs: &Inputs) {
    let picture = probe(Content::Memory(inputs.bmp.clone()), MAX_PIXELS).unwrap();
    let max_len = 200_000; // far more than the JPEG of this small picture has
    let target = Target::Converted { max_len };
    let memory = target.memory_estimate(&picture).unwrap();
    let jpeg = target.render(&picture, memory).unwrap();
    assert!(!jpeg.is_empty(), "an empty result means that the JPEG would be too long");
}

/// The result of a future that never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a picture in memory waits for nothing"),
    }
}
