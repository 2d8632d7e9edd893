//! Reads the headers of a BMP: those of Windows
//! (<https://learn.microsoft.com/windows/win32/api/wingdi/ns-wingdi-bitmapv5header>) and those of OS/2,
//! which are shorter, or say other things after the first forty bytes.

use std::io::{Read, Seek, SeekFrom};

use image_rs::metadata::Orientation;

use super::{Fault, Header, Reader};
use crate::image::Unsupported;

/// What a BMP's headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Bmp {
    pub(in crate::image) width: u32,
    pub(in crate::image) height: u32,
    /// Whether the first row is stored first.
    pub(in crate::image) is_top_down: bool,
    /// Bits of a pixel.
    pub(in crate::image) bits: u16,
    /// [`RGB`], [`RLE8`], [`RLE4`] or [`BITFIELDS`].
    pub(in crate::image) compression: u32,
    /// Where red, green, blue and alpha stand in a pixel, with [`BITFIELDS`].
    pub(in crate::image) masks: [u32; 4],
    /// As many colours as the bits can tell apart, in four bytes each; none of more than 8 bits.
    pub(in crate::image) palette: Vec<u8>,
    /// Where the pixels begin.
    pub(in crate::image) data_at: u64,
}

pub(in crate::image) const RGB: u32 = 0;
pub(in crate::image) const RLE8: u32 = 1;
pub(in crate::image) const RLE4: u32 = 2;
pub(in crate::image) const BITFIELDS: u32 = 3;
/// [`BITFIELDS`] with a mask for alpha, by Windows CE.
const ALPHA_BITFIELDS: u32 = 6;

/// The header that comes first.
const FILE_HEADER: usize = 14;
/// Lengths of the second: OS/2 1, whose sizes have 16 bits; OS/2 2 with all its fields; Windows.
const CORE: u32 = 12;
const OS2: u32 = 64;
const INFO: u32 = 40;
const V2: u32 = 52;
const V3: u32 = 56;
const V4: u32 = 108;
const V5: u32 = 124;

/// The longest side that the decoder takes.
const MAX_SIDE: u32 = 0xffff;

/// Where writers put the colours of 32 bits, and alpha, if they do not say it.
const USUAL_MASKS: [u32; 4] = [0xff_0000, 0xff00, 0xff, 0xff00_0000];

/// Whether a second header of this length is known. OS/2 2 lets it end after any field.
pub(in crate::image) fn is_header_length(length: u32) -> bool {
    matches!(length, CORE | 16..=OS2 | V4 | V5)
}

/// Reads the headers and the palette.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Bmp, Fault> {
    let mut head = [0; FILE_HEADER + V3 as usize];
    reader.read_exact(&mut head[..18]).map_err(|_| Fault::Damaged)?;
    let length = number(&head, 14);
    let is_windows = matches!(length, INFO | V2 | V3 | V4 | V5);
    let fields = match length {
        _ if !is_header_length(length) => return Err(Fault::Damaged),
        _ if is_windows => length.min(V3),
        // What OS/2 says after these fields is for printers.
        _ => length.min(INFO),
    };
    let fields_end = FILE_HEADER + fields as usize;
    reader.read_exact(&mut head[18..fields_end]).map_err(|_| Fault::Damaged)?;
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let (width, height, bits) = if length == CORE {
        (half(18).into(), half(20).into(), half(24))
    } else {
        (number(&head, 18).cast_signed(), number(&head, 22).cast_signed(), half(28))
    };
    let said = if length == CORE { RGB } else { number(&head, 30) };
    let compression = known_compression(said, bits, length)?;
    // The oldest of Windows' headers is followed by the masks, the later ones hold them.
    let behind = match said {
        BITFIELDS if length == INFO => 12,
        ALPHA_BITFIELDS if length == INFO => 16,
        _ => 0,
    };
    let end = reader.read_exact(&mut head[fields_end..fields_end + behind]);
    end.map_err(|_| Fault::Damaged)?;
    let masks = match [54, 58, 62, 66].map(|at| number(&head, at)) {
        [0, 0, 0, 0] if bits == 32 => USUAL_MASKS,
        masks => masks,
    };
    let headers_end = FILE_HEADER as u64 + u64::from(length) + behind as u64;
    let colors = if length == CORE { 0 } else { number(&head, 46) };
    let palette =
        Palette { at: headers_end, bits, colors, entry: if length == CORE { 3 } else { 4 } };
    let (palette, data_at) = palette.read(reader, number(&head, 10).into())?;
    let bmp = Bmp {
        width: width.cast_unsigned(),
        height: height.unsigned_abs(),
        is_top_down: height < 0,
        bits,
        compression,
        masks,
        palette,
        data_at,
    };
    match width {
        ..=0 => Err(Fault::Damaged),
        _ if bmp.width.max(bmp.height) > MAX_SIDE => {
            Err(unsupported("a BMP with more than 65,535 pixels a side"))
        }
        _ => Ok(bmp),
    }
}

fn number(head: &[u8], at: usize) -> u32 {
    head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn unsupported(kind: &'static str) -> Fault {
    Fault::Unsupported(Unsupported::Kind(kind))
}

/// How pixels are stored, if the decoder knows it. OS/2 and Windows give 3 and 4 different meanings.
fn known_compression(said: u32, bits: u16, length: u32) -> Result<u32, Fault> {
    match (said, bits) {
        (RGB, 1 | 2 | 4 | 8 | 16 | 24 | 32) | (RLE8, 8) | (RLE4, 4) => Ok(said),
        (BITFIELDS, 1) => Err(unsupported("a BMP with fax compression")),
        (BITFIELDS | ALPHA_BITFIELDS, 16 | 32) => Ok(BITFIELDS),
        (RGB, 64) => Err(unsupported("a BMP with 64 bits a pixel")),
        (4, 24) if length < V4 => Err(unsupported("a BMP with run-length coding of 24 bits")),
        (4, _) => Err(unsupported("a BMP with a JPEG inside")),
        (5, _) => Err(unsupported("a BMP with a PNG inside")),
        (11..=13, _) => Err(unsupported("a BMP with CMYK colours")),
        _ => Err(Fault::Damaged),
    }
}

/// Where the palette stands, and what is said of it.
struct Palette {
    at: u64,
    bits: u16,
    /// 0: as many as the bits can tell apart.
    colors: u32,
    /// Bytes of a colour: blue, green, red, and in later versions one that means nothing.
    entry: usize,
}

impl Palette {
    /// Its colours, black where they are missing; and where the pixels begin. Files say that wrongly:
    /// not at all, or without the palette. Where they say it, the palette ends there.
    fn read(&self, reader: &mut Reader, data_at: u64) -> Result<(Vec<u8>, u64), Fault> {
        let all = if self.bits > 8 { 0 } else { 1 << self.bits };
        let said = if self.colors == 0 { all } else { all.min(self.colors as usize) };
        let (len, data_at) = match data_at.checked_sub(self.at) {
            Some(1..) => ((said * self.entry) as u64, data_at),
            _ if data_at == 0 || data_at == self.at => {
                let len = (said * self.entry) as u64;
                (len, self.at + len)
            }
            _ => return Err(Fault::Damaged),
        };
        let mut stored = Vec::new();
        let read = reader.seek(SeekFrom::Start(self.at)).and_then(|_| {
            reader.by_ref().take(len.min(data_at - self.at)).read_to_end(&mut stored)
        });
        read.map_err(|_| Fault::Damaged)?;
        let colors = stored.chunks_exact(self.entry);
        let mut palette: Vec<u8> =
            colors.flat_map(|color| [color[0], color[1], color[2], 0]).collect();
        palette.resize(all * 4, 0);
        Ok((palette, data_at))
    }
}

impl Bmp {
    /// What the header of any format says; BMP knows no orientation.
    pub(super) fn header(&self) -> Result<Header, Fault> {
        Header::new(self.width, self.height, Orientation::NoTransforms).ok_or(Fault::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Content;

    /// Of 5 × 3 pixels, 8 bits each, with two colours.
    fn bmp() -> Vec<u8> {
        let mut bytes =
            b"BM\0\0\0\0\0\0\0\0\x3e\0\0\0\x28\0\0\0\x05\0\0\0\x03\0\0\0\x01\0\x08\0".to_vec();
        bytes.resize(46, 0);
        bytes.extend([2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes
    }

    fn read_bytes(bytes: &[u8]) -> Result<Bmp, Fault> {
        read(&mut Content::Memory(bytes.to_vec().into()).header_reader())
    }

    #[test]
    fn headers_tell_size_and_palette_and_where_the_pixels_are() {
        let read = read_bytes(&bmp()).unwrap();
        assert_eq!((read.width, read.height, read.is_top_down), (5, 3, false));
        assert_eq!((read.bits, read.compression, read.data_at), (8, RGB, 62));
        assert_eq!(read.palette.len(), 4 * 256);
        assert!(read.palette.starts_with(&[1, 2, 3, 0, 5, 6, 7, 0, 0]));
        let mut top_down = bmp();
        top_down[22..26].copy_from_slice(&(-3i32).to_le_bytes());
        let read = read_bytes(&top_down).unwrap();
        assert_eq!((read.height, read.is_top_down), (3, true));
    }

    #[test]
    fn a_header_cut_short_is_damaged_and_a_palette_is_black_where_it_is() {
        for len in 0..54 {
            assert_eq!(read_bytes(&bmp()[..len]), Err(Fault::Damaged));
        }
        for len in 54..62 {
            let palette = read_bytes(&bmp()[..len]).unwrap().palette;
            let expected = if len < 58 { [0; 4] } else { [1, 2, 3, 0] };
            assert_eq!(palette[..4], expected);
            assert_eq!(palette[4..], [0; 1020]);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_what_is_read_is_within_bounds(
            at in 2..70usize,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = bmp();
            let at = at.min(bytes.len());
            let end = (at + noise.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
            if let Ok(bmp) = read_bytes(&bytes) {
                prop_assert!(bmp.width.max(bmp.height) <= MAX_SIDE);
                prop_assert!(bmp.palette.len() <= 1024);
                prop_assert!(bmp.compression <= BITFIELDS);
            }
        }
    }
}
