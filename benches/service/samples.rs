//! The bytes of pictures, and an embedding, for all programs in `benches/`.

/// A photograph of 528 KB.
pub const JPEG: &[u8] = include_bytes!("../../tests/fixtures/hubble_deep_field.jpg");

/// A JPEG of exactly `len` bytes. Only its header is certain to be valid. That is enough, because
/// the service does not decode the pixels of an upright JPEG.
pub fn jpeg(len: usize) -> Vec<u8> {
    let mut bytes = JPEG[..len.min(JPEG.len())].to_vec();
    bytes.resize(len, 0);
    bytes
}

/// An embedding in NVIDIA's form: 1536 numbers with the digits of an `f32`.
pub fn embedding() -> String {
    let number = |n: u32| (f64::from(n) * 12.9898).sin() as f32 / 20.0;
    let numbers: Vec<_> = (0..1536).map(|n| number(n).to_string()).collect();
    format!("[{}]", numbers.join(","))
}
