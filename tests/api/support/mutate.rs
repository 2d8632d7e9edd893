//! Damages pictures, as disks, networks and attackers do.

use fastrand::Rng;

use super::craft::png_chunk;

/// Numbers at which decoders go wrong.
const EDGES: [u32; 12] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];

/// Most of what decoders believe stands here.
const HEADERS: usize = 256;

/// The picture, damaged in one to five places; another one of its format lends parts.
pub fn damaged(picture: &[u8], other: &[u8], random: &mut Rng) -> Vec<u8> {
    let mut bytes = picture.to_vec();
    for _ in 0..random.usize(1..=5) {
        damage(&mut bytes, other, random);
    }
    // A decoder that finds a wrong checksum looks no further.
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") && random.u8(..4) != 0 {
        bytes = with_checksums(&bytes);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, other: &[u8], random: &mut Rng) {
    let within = if random.bool() { HEADERS } else { usize::MAX };
    let at = random.usize(..=bytes.len().min(within));
    let most = if random.bool() { 8 } else { 512 };
    let some = random.usize(1..=most);
    let end = (at + some).min(bytes.len());
    match random.u8(..10) {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.u8(..8);
            }
        }
        2 | 3 => bytes[at..end].iter_mut().take(3).for_each(|byte| *byte = random.u8(..)),
        4 | 5 => {
            let edge = EDGES[random.usize(..EDGES.len())];
            let edge = if random.bool() { edge.to_be_bytes() } else { edge.to_le_bytes() };
            let edge = if random.bool() { &edge[..] } else { &edge[edge.len() - 2..] };
            let len = edge.len().min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&edge[..len]);
        }
        6 => {
            bytes.drain(at..end);
        }
        7 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        8 => {
            let lent = random.usize(..=other.len());
            let lent = &other[lent..(lent + some).min(other.len())];
            bytes.splice(at..end, lent.iter().copied());
        }
        // The beginning of one and the end of the other, or of none.
        _ if random.bool() => bytes.truncate(at.max(16)),
        _ => {
            bytes.truncate(at);
            bytes.extend(&other[at.min(other.len())..]);
        }
    }
}

/// A PNG whose chunks have the checksums that belong to them, as far as there are chunks.
fn with_checksums(png: &[u8]) -> Vec<u8> {
    let (signature, mut rest) = png.split_at(8);
    let mut mended = signature.to_vec();
    while let Some((head, behind)) = rest.split_at_checked(8) {
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some((data, behind)) = behind.split_at_checked(len) else { break };
        let name = [head[4], head[5], head[6], head[7]];
        mended.extend(png_chunk(&name, data));
        rest = behind.get(4..).unwrap_or_default();
    }
    mended.extend(rest);
    mended
}
