//! Reads the headers of a WebP (RFC 9649, 2; RFC 6386, 9.1, for the lossy kind).

use std::io::{self, Read, Seek, SeekFrom};

use image_rs::metadata::Orientation;

use super::{Fault, Header, Reader, exif};

/// What a WebP's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct WebP {
    width: u32,
    height: u32,
    orientation: Orientation,
    /// The flags of the extended kind, as the chunks bear them out.
    pub(in crate::image) flags: Option<u8>,
}

/// Where the first chunk begins, and in the extended kind the second.
const FIRST_CHUNK: usize = 12;
const SECOND_CHUNK: u64 = 30;

/// Where the flags of the extended kind stand.
pub(in crate::image) const FLAGS_AT: usize = 20;
/// The flags: the picture is animated, it has EXIF, it has alpha.
const ANIMATED: u8 = 0b10;
const HAS_EXIF: u8 = 0b1000;
const HAS_ALPHA: u8 = 0b1_0000;
/// In the fifth byte of lossless pixels: alpha is used.
const ALPHA_IS_USED: u8 = 0b1_0000;

/// Reads the headers.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<WebP, Fault> {
    read_sizes(reader).ok_or(Fault::Damaged)
}

fn read_sizes(reader: &mut Reader) -> Option<WebP> {
    let mut head = [0; SECOND_CHUNK as usize];
    // The smallest lossless picture has no more.
    reader.read_exact(&mut head[..25]).ok()?;
    let is_lossless = head[FIRST_CHUNK..].starts_with(b"VP8L");
    if !is_lossless {
        reader.read_exact(&mut head[25..]).ok()?;
    }
    let three = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], 0]);
    let plain = |width, height| {
        Some(WebP { width, height, orientation: Orientation::NoTransforms, flags: None })
    };
    match &head[FIRST_CHUNK..][..4] {
        _ if is_lossless => {
            let sizes = three(21) | u32::from(head[24]) << 24;
            plain((sizes & 0x3fff) + 1, (sizes >> 14 & 0x3fff) + 1)
        }
        b"VP8 " => {
            // Above the 14 bits of a size stand two that say how it should be scaled when shown.
            let side = |at: usize| u32::from(u16::from_le_bytes([head[at], head[at + 1]])) & 0x3fff;
            plain(side(26), side(28))
        }
        b"VP8X" => {
            let mut chunks = Chunks::default();
            // A file that is cut short has no more chunks; what is cut, its decoder tells.
            let _ = chunks.read(reader);
            let flags = head[FLAGS_AT];
            let exif = chunks.orientation.filter(|_| flags & HAS_EXIF != 0);
            Some(WebP {
                width: three(24) + 1,
                height: three(27) + 1,
                orientation: exif.unwrap_or(Orientation::NoTransforms),
                flags: Some(chunks.borne_out(flags)),
            })
        }
        _ => None,
    }
}

/// What the chunks of the extended kind hold.
#[derive(Debug, Default)]
struct Chunks {
    /// Of the first EXIF.
    orientation: Option<Orientation>,
    has_exif: bool,
    /// Whether there is alpha beside lossy pixels.
    has_alpha_chunk: bool,
    /// Whether lossless pixels have alpha, if they are lossless.
    lossless_alpha: Option<bool>,
}

impl Chunks {
    fn read(&mut self, reader: &mut Reader) -> io::Result<()> {
        reader.seek(SeekFrom::Start(SECOND_CHUNK))?;
        loop {
            let mut head = [0; 8];
            reader.read_exact(&mut head)?;
            let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
            let next = reader.stream_position()? + u64::from(length) + u64::from(length % 2);
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
            reader.seek(SeekFrom::Start(next))?;
        }
    }

    /// The flags without those for metadata, and with the one for alpha as it should be: writers that
    /// drop a chunk, and add alpha, forget the flags, and other decoders do not ask them.
    fn borne_out(&self, flags: u8) -> u8 {
        let has_alpha = match self.lossless_alpha {
            _ if flags & ANIMATED != 0 => flags & HAS_ALPHA != 0,
            Some(has_alpha) => has_alpha,
            None => flags & HAS_ALPHA != 0 && self.has_alpha_chunk,
        };
        flags & ANIMATED | if has_alpha { HAS_ALPHA } else { 0 }
    }
}

impl WebP {
    /// What the header of any format says.
    pub(super) fn header(&self) -> Result<Header, Fault> {
        Header::new(self.width, self.height, self.orientation).ok_or(Fault::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Content;

    fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u32).to_le_bytes();
        [&name[..], &length, data, &[0][..data.len() % 2]].concat()
    }

    fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
        let chunks = chunks.concat();
        [b"RIFF", &(chunks.len() as u32 + 4).to_le_bytes()[..], b"WEBP", &chunks].concat()
    }

    /// The extended kind, of 160 × 120 pixels.
    fn extended(flags: u8, chunks: &[Vec<u8>]) -> Vec<u8> {
        let head = chunk(b"VP8X", &[flags, 0, 0, 0, 159, 0, 0, 119, 0, 0]);
        riff(&[&[head][..], chunks].concat())
    }

    fn read_bytes(bytes: &[u8]) -> Result<WebP, Fault> {
        read(&mut Content::Memory(bytes.to_vec().into()).header_reader())
    }

    /// A quarter clockwise.
    const TURNED: &[u8; 26] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    const PREFIXED: &[u8; 32] =
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";

    fn orientation(bytes: &[u8]) -> Orientation {
        let header = read_bytes(bytes).unwrap().header().unwrap();
        assert_eq!((header.width, header.height), (160, 120));
        header.orientation
    }

    #[test]
    fn each_kind_tells_its_size() {
        let lossy = |bits: u16| {
            let sides = [160 | bits << 14, 120 | bits << 14].map(u16::to_le_bytes).concat();
            riff(&[chunk(b"VP8 ", &[b"\x30\0\0\x9d\x01\x2a", &sides[..], &[0; 8]].concat())])
        };
        // The bits above the size say how the picture should be scaled when shown.
        for bits in 0..4 {
            assert_eq!(orientation(&lossy(bits)), Orientation::NoTransforms);
        }
        let sizes = (159u32 | 119 << 14).to_le_bytes();
        let lossless = riff(&[chunk(b"VP8L", &[&[0x2f], &sizes[..]].concat())]);
        assert_eq!(orientation(&lossless[..25]), Orientation::NoTransforms);
        assert_eq!(orientation(&extended(0, &[])), Orientation::NoTransforms);
        for cut in [lossy(0), lossless, extended(0, &[])] {
            for len in 0..25 {
                assert_eq!(read_bytes(&cut[..len]), Err(Fault::Damaged));
            }
        }
        assert_eq!(read_bytes(&riff(&[chunk(b"ALPH", &[0; 30])])), Err(Fault::Damaged));
    }

    #[test]
    fn exif_turns_with_or_without_its_prefix_wherever_it_stands_if_the_flag_says_so() {
        let pixels = chunk(b"VP8 ", &[1; 7]);
        for exif in [chunk(b"EXIF", TURNED), chunk(b"EXIF", PREFIXED)] {
            for chunks in [
                [pixels.clone(), exif.clone()],
                [exif.clone(), pixels.clone()],
                // The first one counts.
                [exif.clone(), chunk(b"EXIF", b"")],
            ] {
                assert_eq!(orientation(&extended(HAS_EXIF, &chunks)), Orientation::Rotate90);
                assert_eq!(orientation(&extended(0, &chunks)), Orientation::NoTransforms);
            }
        }
    }

    #[test]
    fn broken_exif_and_lengths_turn_nothing() {
        let exif = chunk(b"EXIF", TURNED);
        let absurd = [b"ICCP", &u32::MAX.to_le_bytes()[..]].concat();
        for chunks in [
            vec![absurd, exif.clone()],
            vec![chunk(b"EXIF", b"II*\0"), exif.clone()],
            vec![exif[..20].to_vec()],
            vec![chunk(b"EXIF", &[0; 70_000])],
            vec![chunk(b"ALPH", &[]); 10],
            vec![],
        ] {
            assert_eq!(orientation(&extended(HAS_EXIF, &chunks)), Orientation::NoTransforms);
        }
    }

    #[test]
    fn flags_are_what_the_chunks_bear_out() {
        let lossless = |alpha| chunk(b"VP8L", &[0x2f, 159, 0, 0, alpha]);
        let (lossy, alpha) = (chunk(b"VP8 ", &[1; 7]), chunk(b"ALPH", &[0; 3]));
        let flags = |flags, chunks: &[Vec<u8>]| read_bytes(&extended(flags, chunks)).unwrap().flags;
        assert_eq!(flags(0xfd, std::slice::from_ref(&lossy)), Some(0));
        assert_eq!(flags(0xfd, &[alpha.clone(), lossy.clone()]), Some(HAS_ALPHA));
        assert_eq!(flags(0, &[alpha, lossy]), Some(0));
        for said in [0, HAS_ALPHA] {
            assert_eq!(flags(said, &[lossless(0)]), Some(0));
            assert_eq!(flags(said, &[lossless(0x10)]), Some(HAS_ALPHA));
        }
        // Frames are chunks of their own.
        assert_eq!(flags(0xff, &[]), Some(ANIMATED | HAS_ALPHA));
        assert_eq!(flags(ANIMATED, &[]), Some(ANIMATED));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_every_size_is_within_bounds(
            flags in any::<u8>(),
            at in 12..120usize,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes =
                extended(flags, &[chunk(b"VP8L", &[0; 9]), chunk(b"EXIF", TURNED)]);
            let at = at.min(bytes.len());
            let end = (at + noise.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
            if let Ok(webp) = read_bytes(&bytes) {
                prop_assert!(webp.width <= 1 << 24 && webp.height <= 1 << 24);
            }
        }
    }
}
