//! Reads the headers of a WebP (RFC 9649, section 2; for the lossy kind, RFC 6386, section 9.1).
//!
//! A simple WebP has only one chunk, with lossy or lossless pixels. An extended WebP begins with a
//! chunk `VP8X`, which contains the size and flags. The flags announce the other chunks.

use std::io::{self, Read, Seek, SeekFrom};

use image_rs::metadata::Orientation;

use super::{Header, HeaderError, Reader, exif};

/// The headers of a WebP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct WebP {
    width: u32,
    height: u32,
    orientation: Orientation,
    /// The flags of an extended WebP after `Chunks::correct_flags`. `None` for a simple WebP.
    pub(in crate::image) corrected_flags: Option<u8>,
}

/// The offset of the first chunk.
const FIRST_CHUNK_AT: usize = 12;
/// The offset of the second chunk of an extended WebP.
const SECOND_CHUNK_AT: u64 = 30;

/// The offset of the flags of an extended WebP.
pub(in crate::image) const FLAGS_AT: usize = 20;
// The flags of an extended WebP.
const ANIMATED: u8 = 0b10;
const HAS_EXIF: u8 = 0b1000;
const HAS_ALPHA: u8 = 0b1_0000;
/// A flag in the fifth byte of lossless pixels: the pixels use alpha.
const ALPHA_IS_USED: u8 = 0b1_0000;

/// Reads the headers.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<WebP, HeaderError> {
    read_headers(reader).ok_or(HeaderError::Damaged)
}

fn read_headers(reader: &mut Reader) -> Option<WebP> {
    let mut head = [0; SECOND_CHUNK_AT as usize];
    // A lossless WebP may have only 25 bytes. The headers of the other kinds are longer.
    reader.read_exact(&mut head[..25]).ok()?;
    if !head[FIRST_CHUNK_AT..].starts_with(b"VP8L") {
        reader.read_exact(&mut head[25..]).ok()?;
    }
    let u24_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], 0]);
    let simple_webp = |width, height| {
        Some(WebP { width, height, orientation: Orientation::NoTransforms, corrected_flags: None })
    };
    match &head[FIRST_CHUNK_AT..][..4] {
        b"VP8L" => {
            // From the lowest bit on: the width minus one, and the height minus one, with 14 bits each.
            let sides = u24_at(21) | u32::from(head[24]) << 24;
            simple_webp((sides & 0x3fff) + 1, (sides >> 14 & 0x3fff) + 1)
        }
        b"VP8 " => {
            // A side has 14 bits. The two bits above it are a scale for displaying the picture.
            let side = |at: usize| u32::from(u16::from_le_bytes([head[at], head[at + 1]])) & 0x3fff;
            simple_webp(side(26), side(28))
        }
        b"VP8X" => {
            let mut chunks = Chunks::default();
            // The result is always an error. The end of the file is normal: if pixels are missing, the
            // decoder reports that. After any other error, `header::read_bounded` fails.
            let _ = chunks.read(reader);
            let flags = head[FLAGS_AT];
            let orientation = chunks.orientation.filter(|_| flags & HAS_EXIF != 0);
            Some(WebP {
                width: u24_at(24) + 1,
                height: u24_at(27) + 1,
                orientation: orientation.unwrap_or(Orientation::NoTransforms),
                corrected_flags: Some(chunks.correct_flags(flags)),
            })
        }
        _ => None,
    }
}

/// What the chunks of an extended WebP contain.
#[derive(Debug, Default)]
struct Chunks {
    /// The orientation in the first EXIF chunk.
    orientation: Option<Orientation>,
    /// Whether there is an EXIF chunk, with or without an orientation.
    has_exif: bool,
    /// Whether there is a separate chunk of alpha. Only lossy pixels need such a chunk.
    has_alpha_chunk: bool,
    /// Whether the lossless pixels use alpha. `None` if there are none, or only in an animation's frames.
    lossless_alpha: Option<bool>,
}

impl Chunks {
    /// Reads all chunks after `VP8X`. Never returns `Ok`: only an error ends the loop, such as the end of
    /// the file.
    fn read(&mut self, reader: &mut Reader) -> io::Result<()> {
        reader.seek(SeekFrom::Start(SECOND_CHUNK_AT))?;
        loop {
            let mut head = [0; 8];
            reader.read_exact(&mut head)?;
            let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
            let padding = length % 2;
            let next_at = reader.stream_position()? + u64::from(length) + u64::from(padding);
            match &head[..4] {
                b"ALPH" => self.has_alpha_chunk = true,
                b"VP8L" if self.lossless_alpha.is_none() => {
                    let mut pixels = [0; 5];
                    reader.read_exact(&mut pixels)?;
                    self.lossless_alpha = Some(pixels[4] & ALPHA_IS_USED != 0);
                }
                b"EXIF" if !self.has_exif => {
                    self.has_exif = true;
                    self.orientation = exif::read(reader, length)?;
                }
                _ => {}
            }
            reader.seek(SeekFrom::Start(next_at))?;
        }
    }

    /// Keeps the flag for animation, and clears all others except that for alpha. Some programs
    /// remove or add a chunk but do not update the flags. The decoder that the service uses refuses most
    /// flags that announce a missing chunk; some other decoders accept all of them.
    ///
    /// An animation keeps its flag for alpha. For lossless pixels, the corrected flag says whether they
    /// use alpha. For lossy pixels, it is cleared if the chunk of alpha is missing, but never set.
    fn correct_flags(&self, flags: u8) -> u8 {
        let has_alpha_flag = flags & HAS_ALPHA != 0;
        let has_alpha = if flags & ANIMATED != 0 {
            has_alpha_flag // the pixels are inside of frames, which `read` has not read
        } else {
            self.lossless_alpha.unwrap_or(has_alpha_flag && self.has_alpha_chunk)
        };
        (flags & ANIMATED) | if has_alpha { HAS_ALPHA } else { 0 }
    }
}

impl WebP {
    /// Returns the header in the form that all formats have in common.
    pub(super) fn header(&self) -> Result<Header, HeaderError> {
        Header::new(self.width, self.height, self.orientation).ok_or(HeaderError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Content;

    /// A chunk, with a byte of padding if its length is odd.
    fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u32).to_le_bytes();
        [&name[..], &length, data, &[0][..data.len() % 2]].concat()
    }

    /// A WebP file with these chunks.
    fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
        let chunks = chunks.concat();
        [b"RIFF", &(chunks.len() as u32 + 4).to_le_bytes()[..], b"WEBP", &chunks].concat()
    }

    /// An extended WebP of 160 × 120 pixels with these flags and chunks.
    fn extended(flags: u8, chunks: &[Vec<u8>]) -> Vec<u8> {
        let head = chunk(b"VP8X", &[flags, 0, 0, 0, 159, 0, 0, 119, 0, 0]);
        riff(&[&[head][..], chunks].concat())
    }

    fn read_bytes(bytes: &[u8]) -> Result<WebP, HeaderError> {
        read(&mut Content::Memory(bytes.to_vec().into()).header_reader())
    }

    /// EXIF data with the orientation 6, a quarter turn clockwise.
    const EXIF: &[u8; 26] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    /// [`EXIF`] after the prefix that some programs write.
    const PREFIXED_EXIF: &[u8; 32] =
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";

    /// Asserts that the size is 160 × 120, and returns the orientation.
    fn orientation_of_160_by_120(bytes: &[u8]) -> Orientation {
        let header = read_bytes(bytes).unwrap().header().unwrap();
        assert_eq!((header.width, header.height), (160, 120));
        header.orientation
    }

    #[test]
    fn the_size_of_lossy_lossless_and_extended_pictures_is_read_unless_they_are_truncated() {
        // `orientation_of_160_by_120` asserts the size.
        let lossy = |scale: u16| {
            let sides = [160 | scale << 14, 120 | scale << 14].map(u16::to_le_bytes).concat();
            riff(&[chunk(b"VP8 ", &[b"\x30\0\0\x9d\x01\x2a", &sides[..], &[0; 8]].concat())])
        };
        for scale in 0..4 {
            assert_eq!(orientation_of_160_by_120(&lossy(scale)), Orientation::NoTransforms);
        }
        let sides = (159u32 | 119 << 14).to_le_bytes();
        let lossless = riff(&[chunk(b"VP8L", &[&[0x2f], &sides[..]].concat())]);
        assert_eq!(orientation_of_160_by_120(&lossless), Orientation::NoTransforms);
        assert_eq!(orientation_of_160_by_120(&extended(0, &[])), Orientation::NoTransforms);
        for (complete, header_len) in [(lossy(0), 30), (lossless, 25), (extended(0, &[]), 30)] {
            assert!(read_bytes(&complete[..header_len]).is_ok());
            for len in 0..header_len {
                assert_eq!(read_bytes(&complete[..len]), Err(HeaderError::Damaged), "{len} bytes");
            }
        }
        let without_size = riff(&[chunk(b"ALPH", &[0; 30])]);
        assert_eq!(read_bytes(&without_size), Err(HeaderError::Damaged));
    }

    #[test]
    fn the_orientation_is_read_from_an_exif_chunk_before_or_after_the_pixels_if_its_flag_is_set() {
        let pixels = chunk(b"VP8 ", &[1; 7]);
        for exif in [chunk(b"EXIF", EXIF), chunk(b"EXIF", PREFIXED_EXIF)] {
            for chunks in [
                [pixels.clone(), exif.clone()],
                [exif.clone(), pixels.clone()],
                // The first EXIF chunk counts.
                [exif.clone(), chunk(b"EXIF", b"")],
            ] {
                assert_eq!(
                    orientation_of_160_by_120(&extended(HAS_EXIF, &chunks)),
                    Orientation::Rotate90
                );
                assert_eq!(
                    orientation_of_160_by_120(&extended(0, &chunks)),
                    Orientation::NoTransforms
                );
            }
        }
    }

    #[test]
    fn missing_and_invalid_exif_and_invalid_lengths_give_no_orientation() {
        let exif = chunk(b"EXIF", EXIF);
        let longer_than_the_file = [b"ICCP", &u32::MAX.to_le_bytes()[..]].concat();
        for chunks in [
            vec![longer_than_the_file, exif.clone()],
            // The second EXIF chunk is ignored even if the first one is invalid.
            vec![chunk(b"EXIF", b"II*\0"), exif.clone()],
            vec![exif[..20].to_vec()],
            // Zeros are not valid EXIF data. Only the first 64 KiB of them are read.
            vec![chunk(b"EXIF", &[0; 70_000])],
            // Many chunks, but none with EXIF data.
            vec![chunk(b"ALPH", &[]); 10],
            vec![],
        ] {
            assert_eq!(
                orientation_of_160_by_120(&extended(HAS_EXIF, &chunks)),
                Orientation::NoTransforms
            );
        }
    }

    #[test]
    fn the_alpha_flag_is_corrected_the_animation_flag_kept_and_all_others_cleared() {
        let lossless = |alpha_bit| chunk(b"VP8L", &[0x2f, 159, 0, 0, alpha_bit]);
        let (lossy, alpha) = (chunk(b"VP8 ", &[1; 7]), chunk(b"ALPH", &[0; 3]));
        let corrected = |stored_flags, chunks: &[Vec<u8>]| {
            read_bytes(&extended(stored_flags, chunks)).unwrap().corrected_flags
        };
        // `!ANIMATED` is all flags but that for animation.
        assert_eq!(corrected(!ANIMATED, std::slice::from_ref(&lossy)), Some(0));
        assert_eq!(corrected(!ANIMATED, &[alpha.clone(), lossy.clone()]), Some(HAS_ALPHA));
        // Without the flag, the decoder ignores a chunk of alpha.
        assert_eq!(corrected(0, &[alpha, lossy]), Some(0));
        for stored_flags in [0, HAS_ALPHA] {
            assert_eq!(corrected(stored_flags, &[lossless(0)]), Some(0));
            assert_eq!(corrected(stored_flags, &[lossless(ALPHA_IS_USED)]), Some(HAS_ALPHA));
        }
        // In an animation, the pixels are inside of frames, so the flag for alpha is not corrected.
        assert_eq!(corrected(0xff, &[]), Some(ANIMATED | HAS_ALPHA));
        assert_eq!(corrected(ANIMATED, &[]), Some(ANIMATED));
    }

    proptest! {
        #[test]
        fn damaged_headers_cause_no_panic_and_sides_are_at_most_2_to_the_24(
            flags in any::<u8>(),
            start in 12..120usize,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes =
                extended(flags, &[chunk(b"VP8L", &[0; 9]), chunk(b"EXIF", EXIF)]);
            // The file has 82 bytes. Noise that would start after them changes nothing.
            let start = start.min(bytes.len());
            let end = (start + noise.len()).min(bytes.len());
            bytes[start..end].copy_from_slice(&noise[..end - start]);
            if let Ok(webp) = read_bytes(&bytes) {
                prop_assert!(webp.width <= 1 << 24 && webp.height <= 1 << 24);
            }
        }
    }
}
