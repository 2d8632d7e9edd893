//! What both benchmarks send and get: pictures and embeddings.

pub const JPEG: &[u8] = include_bytes!("../../tests/fixtures/hubble_deep_field.jpg");

/// A JPEG of exactly this length. Nothing behind its header is looked at, here or on its way.
pub fn jpeg(len: usize) -> Vec<u8> {
    let mut bytes = JPEG[..len.min(JPEG.len())].to_vec();
    bytes.resize(len, 0);
    bytes
}

/// An embedding as NVIDIA prints it: 1536 numbers, with as many digits as an `f32` has.
pub fn embedding() -> String {
    let number = |n: u32| (f64::from(n) * 12.9898).sin() as f32 / 20.0;
    let numbers: Vec<_> = (0..1536).map(|n| number(n).to_string()).collect();
    format!("[{}]", numbers.join(","))
}
