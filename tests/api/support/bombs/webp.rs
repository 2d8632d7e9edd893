//! Hostile WebPs (<https://developers.google.com/speed/webp/docs/riff_container>, the specification
//! of the lossless bitstream, and RFC 6386).

use super::Bomb;
use crate::support::craft::{LowBits, anmf, riff_chunk, vp8, vp8_grey, vp8x, webp};

// Flags of an extended WebP.
const ALPHA: u8 = 0b1_0000;
const EXIF: u8 = 0b1000;
const ANIMATED: u8 = 0b10;

pub(super) fn all() -> Vec<Bomb> {
    vec![
        ("webp-deep-codes", lossless(&codes(16_384, 11))),
        ("webp-65536-groups", lossless(&codes(65_536, 10))),
        ("webp-deep-codes-in-alpha", deep_codes_in_alpha()),
        ("webp-inner-frame-larger", inner_frame_larger()),
        ("webp-animated-inner-frame-larger", animated_inner_frame_larger()),
        ("webp-animated-alpha-smaller", animated_alpha_smaller()),
        ("webp-100000-frames", many_frames()),
        ("webp-frame-outside", frame_outside()),
        // The first byte of an alpha chunk contains the compression (two bits) and the filter (two bits).
        // 4096 bytes must follow for 64 × 64 pixels without compression.
        ("webp-alpha-short", alpha(&[0; 17], &vp8_grey(64, 64))),
        ("webp-alpha-no-such-compression", alpha(&[3; 5000], &vp8_grey(64, 64))),
        // The first byte selects the gradient filter, which adds up the other bytes to more than 255.
        ("webp-alpha-gradient", alpha(&[0b1100; 4097], &vp8_grey(64, 64))),
        ("webp-exif-4gib", exif_4_gib()),
        ("webp-chunks-4gib", chunks_4_gib()),
        ("webp-no-data", webp(&[riff_chunk(b"VP8 ", &vp8(8000, 7900, 0, 0))])),
        ("webp-lossless-of-ones", lossless(&[0xff; 3000])),
    ]
}

/// A lossless picture of 8 × 8 pixels with these bytes after its header.
fn lossless(stream: &[u8]) -> Vec<u8> {
    webp(&[riff_chunk(b"VP8L", &[b"\x2f\x07\xc0\x01\x00", stream].concat())])
}

/// A bitstream with this number of groups of prefix codes for 8 × 8 pixels (lossless specification,
/// 5.2.2: meta prefix codes). The codes for green have `length` bits. In the bitstream, a group takes
/// about ten bytes. With codes of 11 bits, a decoder that expands every group needs 52 KiB for each
/// (CVE-2026-46603).
fn codes(groups: u64, length: usize) -> Vec<u8> {
    /// The code for green is described by a second code, the length code. For each of these symbols of the
    /// length code, the stream contains the number of bits of the symbol's code, in this order.
    const LENGTH_CODE_ORDER: [usize; 15] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11];
    let mut bits = LowBits::default();
    bits.put(0, 1); // no transform
    bits.put(1 | 11 << 1, 5); // a colour cache of 11 bits
    // Meta prefix codes (a bit of 1): a second picture with a pixel for each block of 4 × 4 (three bits
    // of 0). Each of its pixels is the number of a group.
    bits.put(1, 1 + 3);
    bits.put(0, 1); // it has no colour cache
    // All its pixels have the highest number, whose bytes are in the green and the red channel. A
    // code with a single symbol needs no bits for each pixel.
    let single_symbol = |bits: &mut LowBits, symbol: u64| bits.put(0b101 | symbol << 3, 11);
    single_symbol(&mut bits, (groups - 1) & 0xff);
    single_symbol(&mut bits, (groups - 1) >> 8);
    for _ in 0..3 {
        bits.put(1, 4); // blue, alpha and distance: one symbol, zero
    }
    for _ in 0..groups {
        // The code for green: its first 2^length symbols have codes of `length` bits. A second code, the
        // length code, encodes these lengths. It has only the symbol `length`, so each encoded length
        // takes no bits.
        bits.put(11 << 1, 5); // not a simple code; the lengths of 4 + 11 symbols follow
        LENGTH_CODE_ORDER.iter().for_each(|symbol| bits.put(u64::from(*symbol == length), 3));
        // The number of encoded lengths, minus 2, in 2 + 2 * 5 bits.
        bits.put(1 | 5 << 1, 4);
        bits.put((1 << length) - 2, 12);
        for _ in 0..4 {
            bits.put(1, 4); // red, blue, alpha and distance: one symbol, zero
        }
    }
    // More than enough zeros for the 64 pixels.
    [bits.finish(), vec![0; 128]].concat()
}

/// The bitstream of [`codes`] in an alpha chunk, whose first byte says that it is lossless. In such a
/// chunk, the bitstream has no header.
fn deep_codes_in_alpha() -> Vec<u8> {
    alpha(&[&[1][..], &codes(16_384, 11)].concat(), &vp8_grey(8, 8))
}

/// A picture with an alpha chunk. The canvas is as large as the frame, whose width and height, up
/// to 255 pixels, are at bytes 6 and 8.
fn alpha(chunk: &[u8], frame: &[u8]) -> Vec<u8> {
    let (width, height) = (frame[6].into(), frame[8].into());
    webp(&[vp8x(ALPHA, width, height), riff_chunk(b"ALPH", chunk), riff_chunk(b"VP8 ", frame)])
}

/// A picture of 16383 × 16383 pixels. Its first partition is almost 2^19 bytes long, the maximum.
fn large_picture() -> Vec<u8> {
    riff_chunk(b"VP8 ", &vp8(16_383, 16_383, 520_000, 1 << 20))
}

/// A canvas of 16 × 16 pixels with a picture of 16383 × 16383. The decoder compares the two sizes
/// only after it has decoded the picture, which takes 0.4 GB of memory.
fn inner_frame_larger() -> Vec<u8> {
    webp(&[vp8x(0, 16, 16), large_picture()])
}

/// An animation of 16 × 16 pixels with a picture of 16383 × 16383 in its frame.
fn animated_inner_frame_larger() -> Vec<u8> {
    animated(&[anmf(16, 16, &[large_picture()])])
}

/// A frame of 16 × 16 pixels with alpha of the same size, but a picture of 64 × 64. The decoder
/// assumes that alpha and picture have the same size, and panics.
fn animated_alpha_smaller() -> Vec<u8> {
    let alpha = riff_chunk(b"ALPH", &[0; 1 + 16 * 16]);
    animated(&[anmf(16, 16, &[alpha, riff_chunk(b"VP8 ", &vp8_grey(64, 64))])])
}

fn animated(frames: &[Vec<u8>]) -> Vec<u8> {
    let head = [vp8x(ANIMATED | ALPHA, 16, 16), riff_chunk(b"ANIM", &[0; 6])];
    webp(&[&head[..], frames].concat())
}

/// 100,000 frames. Only the first frame is needed, but the decoder reads the headers of all frames.
fn many_frames() -> Vec<u8> {
    let frame = |_| anmf(1, 1, &[riff_chunk(b"VP8L", b"\x2f\0\0\0\0\0\0\0")]);
    animated(&(0..100_000).map(frame).collect::<Vec<_>>())
}

/// An animation of 16 × 16 pixels with a frame of 16384 × 16384. The frame's picture has 16 × 16.
fn frame_outside() -> Vec<u8> {
    animated(&[anmf(16_384, 16_384, &[riff_chunk(b"VP8 ", &vp8_grey(16, 16))])])
}

/// An EXIF chunk whose header announces 4 GiB. A decoder may allocate as much.
fn exif_4_gib() -> Vec<u8> {
    let mut file =
        webp(&[vp8x(EXIF, 16, 16), riff_chunk(b"VP8 ", &vp8_grey(16, 16)), b"EXIF".to_vec()]);
    file.extend(0xffff_fffe_u32.to_le_bytes());
    file[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    file
}

/// Three chunks whose headers announce 4 GiB each.
fn chunks_4_gib() -> Vec<u8> {
    let mut file = webp(&[vp8x(0, 16, 16)]);
    for name in [b"ICCP", b"ALPH", b"VP8 "] {
        file.extend(name);
        file.extend(u32::MAX.to_le_bytes());
    }
    file
}
