//! Damages pictures at random.

use fastrand::Rng;

use super::craft::png_chunk;

/// Numbers that often reveal bugs in decoders.
const EDGES: [u32; 12] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];

/// This many bytes at the start of a file contain most of its header fields.
const HEADER_LEN: usize = 256;

/// Damages a picture in one to five places. Some damage replaces bytes with bytes of `other`, a
/// picture that should have the same format.
pub fn damaged(picture: &[u8], other: &[u8], random: &mut Rng) -> Vec<u8> {
    let mut bytes = picture.to_vec();
    for _ in 0..random.usize(1..=5) {
        damage(&mut bytes, other, random);
    }
    // Decoders stop at a wrong checksum, so three of four PNGs get correct checksums.
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") && random.u8(..4) != 0 {
        bytes = with_checksums(&bytes);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, other: &[u8], random: &mut Rng) {
    let max_at = if random.bool() { HEADER_LEN } else { usize::MAX };
    let at = random.usize(..=bytes.len().min(max_at));
    let max_len = if random.bool() { 8 } else { 512 };
    let len = random.usize(1..=max_len);
    let end = (at + len).min(bytes.len());
    match random.u8(..10) {
        // Flip a bit.
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.u8(..8);
            }
        }
        // Overwrite up to three bytes.
        2 | 3 => bytes[at..end].iter_mut().take(3).for_each(|byte| *byte = random.u8(..)),
        // Write one of the edge numbers, or only its two least significant bytes.
        4 | 5 => {
            let edge = EDGES[random.usize(..EDGES.len())];
            let is_big_endian = random.bool();
            let edge = if is_big_endian { edge.to_be_bytes() } else { edge.to_le_bytes() };
            let least_significant = if is_big_endian { 2..4 } else { 0..2 };
            let edge = if random.bool() { &edge[..] } else { &edge[least_significant] };
            let len = edge.len().min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&edge[..len]);
        }
        // Remove some bytes.
        6 => {
            bytes.drain(at..end);
        }
        // Repeat some bytes.
        7 => {
            let repeated = bytes[at..end].to_vec();
            bytes.splice(at..at, repeated);
        }
        // Replace some bytes with a part of the other picture.
        8 => {
            let other_at = random.usize(..=other.len());
            let part = &other[other_at..(other_at + len).min(other.len())];
            bytes.splice(at..end, part.iter().copied());
        }
        // Remove the end, but not the first 16 bytes, from which decoders detect the format.
        _ if random.bool() => bytes.truncate(at.max(16)),
        // Replace the end with the end of the other picture.
        _ => {
            bytes.truncate(at);
            bytes.extend(&other[at.min(other.len())..]);
        }
    }
}

/// Gives each chunk of a PNG a correct checksum, unless the chunk's data are incomplete.
fn with_checksums(png: &[u8]) -> Vec<u8> {
    let (signature, mut rest) = png.split_at(8);
    let mut corrected = signature.to_vec();
    while let Some((head, after_head)) = rest.split_at_checked(8) {
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some((data, after_data)) = after_head.split_at_checked(len) else { break };
        let name = [head[4], head[5], head[6], head[7]];
        corrected.extend(png_chunk(&name, data));
        rest = after_data.get(4..).unwrap_or_default();
    }
    corrected.extend(rest);
    corrected
}
