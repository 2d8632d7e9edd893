//! Reads the headers of a BMP.
//!
//! There are two families of headers. Those of Windows are documented at
//! <https://learn.microsoft.com/windows/win32/api/wingdi/ns-wingdi-bitmapv5header>. Those of OS/2 are
//! shorter, or have other fields after the first forty bytes.

use std::io::{Read, Seek, SeekFrom};

use image_rs::metadata::Orientation;

use super::{Header, HeaderError, Reader};
use crate::image::Unsupported;

/// The headers and the palette of a BMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Bmp {
    pub(in crate::image) width: u32,
    pub(in crate::image) height: u32,
    /// Whether the first row is stored first.
    pub(in crate::image) is_top_down: bool,
    /// Bits per pixel.
    pub(in crate::image) bits: u16,
    /// [`RGB`], [`RLE8`], [`RLE4`] or [`BITFIELDS`].
    pub(in crate::image) compression: u32,
    /// The bits of red, green, blue and alpha within a pixel, for [`BITFIELDS`].
    pub(in crate::image) masks: [u32; 4],
    /// Four bytes for each value that a pixel can have: blue, green, red and zero. Empty if a pixel has
    /// more than 8 bits.
    pub(in crate::image) palette: Vec<u8>,
    /// The offset of the pixels in the file.
    pub(in crate::image) data_at: u64,
}

pub(in crate::image) const RGB: u32 = 0;
pub(in crate::image) const RLE8: u32 = 1;
pub(in crate::image) const RLE4: u32 = 2;
pub(in crate::image) const BITFIELDS: u32 = 3;
/// [`BITFIELDS`] with a mask for alpha, as in Windows CE.
const ALPHA_BITFIELDS: u32 = 6;

/// The length of the first header, the file header.
const FILE_HEADER: usize = 14;

// The lengths of the second header.
/// OS/2 1. Its width and height have 16 bits.
const CORE: u32 = 12;
/// OS/2 2, with all its fields.
const OS2: u32 = 64;
// Windows.
const INFO: u32 = 40;
const V2: u32 = 52;
const V3: u32 = 56;
const V4: u32 = 108;
const V5: u32 = 124;

/// The longest side that the decoder supports, in pixels.
const MAX_SIDE: u32 = 0xffff;

/// The masks for 32 bits per pixel if the header contains no masks.
const DEFAULT_MASKS: [u32; 4] = [0xff_0000, 0xff00, 0xff, 0xff00_0000];

/// Whether this is a valid length of the second header. In OS/2 2, the header may end after any field.
pub(in crate::image) fn is_header_length(length: u32) -> bool {
    matches!(length, CORE | 16..=OS2 | V4 | V5)
}

/// Reads the headers and the palette.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Bmp, HeaderError> {
    let mut head = [0; FILE_HEADER + V3 as usize];
    reader.read_exact(&mut head[..18]).map_err(|_| HeaderError::Damaged)?;
    let length = number(&head, 14);
    let is_windows = matches!(length, INFO | V2 | V3 | V4 | V5);
    let fields = match length {
        _ if !is_header_length(length) => return Err(HeaderError::Damaged),
        _ if is_windows => length.min(V3),
        // In OS/2, the fields after the first forty bytes are for printers.
        _ => length.min(INFO),
    };
    let fields_end = FILE_HEADER + fields as usize;
    reader.read_exact(&mut head[18..fields_end]).map_err(|_| HeaderError::Damaged)?;
    let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let (width, height, bits) = if length == CORE {
        (u16_at(18).into(), u16_at(20).into(), u16_at(24))
    } else {
        (number(&head, 18).cast_signed(), number(&head, 22).cast_signed(), u16_at(28))
    };
    let compression_field = if length == CORE { RGB } else { number(&head, 30) };
    let compression = supported_compression(compression_field, bits, length)?;
    // In the newer Windows headers, the masks are fields. In a file with the oldest Windows header, the
    // masks follow the header.
    let masks_len = match compression_field {
        BITFIELDS if length == INFO => 12,
        ALPHA_BITFIELDS if length == INFO => 16,
        _ => 0,
    };
    let read_masks = reader.read_exact(&mut head[fields_end..fields_end + masks_len]);
    read_masks.map_err(|_| HeaderError::Damaged)?;
    let masks = match [54, 58, 62, 66].map(|at| number(&head, at)) {
        [0, 0, 0, 0] if bits == 32 => DEFAULT_MASKS,
        masks => masks,
    };
    let headers_end = FILE_HEADER as u64 + u64::from(length) + masks_len as u64;
    let palette = Palette {
        at: headers_end,
        bits,
        colors: if length == CORE { 0 } else { number(&head, 46) },
        entry_len: if length == CORE { 3 } else { 4 },
    };
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
        ..=0 => Err(HeaderError::Damaged),
        _ if bmp.width.max(bmp.height) > MAX_SIDE => {
            Err(unsupported("a BMP with more than 65,535 pixels a side"))
        }
        _ => Ok(bmp),
    }
}

fn number(head: &[u8], at: usize) -> u32 {
    head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn unsupported(kind: &'static str) -> HeaderError {
    HeaderError::Unsupported(Unsupported::Kind(kind))
}

/// Returns the compression if the decoder supports it. In OS/2, the values 3 and 4 have other meanings
/// than in Windows.
fn supported_compression(field: u32, bits: u16, length: u32) -> Result<u32, HeaderError> {
    match (field, bits) {
        (RGB, 1 | 2 | 4 | 8 | 16 | 24 | 32) | (RLE8, 8) | (RLE4, 4) => Ok(field),
        (BITFIELDS, 1) => Err(unsupported("a BMP with fax compression")),
        (BITFIELDS | ALPHA_BITFIELDS, 16 | 32) => Ok(BITFIELDS),
        (RGB, 64) => Err(unsupported("a BMP with 64 bits a pixel")),
        (4, 24) if length < V4 => Err(unsupported("a BMP with run-length coding of 24 bits")),
        (4, _) => Err(unsupported("a BMP with a JPEG inside")),
        (5, _) => Err(unsupported("a BMP with a PNG inside")),
        (11..=13, _) => Err(unsupported("a BMP with CMYK colours")),
        _ => Err(HeaderError::Damaged),
    }
}

/// The position and the size of the palette in the file.
struct Palette {
    at: u64,
    /// Bits per pixel.
    bits: u16,
    /// The number of colours. Zero means that there is a colour for each value that a pixel can have.
    colors: u32,
    /// Bytes per colour: three for blue, green and red, or four if a byte without meaning follows.
    entry_len: usize,
}

impl Palette {
    /// Returns the colours and the offset of the pixels. Missing colours are black.
    ///
    /// `data_at` is the offset of the pixels according to the header. In some files it is zero, or it
    /// is the offset of the palette. The pixels then follow the palette. In all other files, the
    /// palette cannot extend beyond `data_at`.
    fn read(&self, reader: &mut Reader, data_at: u64) -> Result<(Vec<u8>, u64), HeaderError> {
        let max_colors = if self.bits > 8 { 0 } else { 1 << self.bits };
        let colors =
            if self.colors == 0 { max_colors } else { max_colors.min(self.colors as usize) };
        let len = (colors * self.entry_len) as u64;
        let data_at = match data_at.checked_sub(self.at) {
            Some(1..) => data_at,
            _ if data_at == 0 || data_at == self.at => self.at + len,
            _ => return Err(HeaderError::Damaged),
        };
        let mut stored = Vec::new();
        let read = reader.seek(SeekFrom::Start(self.at)).and_then(|_| {
            reader.by_ref().take(len.min(data_at - self.at)).read_to_end(&mut stored)
        });
        read.map_err(|_| HeaderError::Damaged)?;
        let stored_colors = stored.chunks_exact(self.entry_len);
        let mut palette: Vec<u8> =
            stored_colors.flat_map(|color| [color[0], color[1], color[2], 0]).collect();
        palette.resize(max_colors * 4, 0);
        Ok((palette, data_at))
    }
}

impl Bmp {
    /// Returns the header in the form that all formats have in common. BMP has no orientation.
    pub(super) fn header(&self) -> Result<Header, HeaderError> {
        Header::new(self.width, self.height, Orientation::NoTransforms).ok_or(HeaderError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Content;

    /// A BMP of 5 × 3 pixels, with 8 bits per pixel and two colours.
    fn bmp() -> Vec<u8> {
        let mut bytes =
            b"BM\0\0\0\0\0\0\0\0\x3e\0\0\0\x28\0\0\0\x05\0\0\0\x03\0\0\0\x01\0\x08\0".to_vec();
        bytes.resize(46, 0);
        bytes.extend([2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes
    }

    fn read_bytes(bytes: &[u8]) -> Result<Bmp, HeaderError> {
        read(&mut Content::Memory(bytes.to_vec().into()).header_reader())
    }

    #[test]
    fn the_size_the_palette_and_the_offset_of_the_pixels_are_read() {
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
    fn a_truncated_header_is_damaged_and_missing_colors_are_black() {
        for len in 0..54 {
            assert_eq!(read_bytes(&bmp()[..len]), Err(HeaderError::Damaged));
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
        fn damaged_headers_cause_no_panic_and_exceed_no_limit(
            start in 2..70usize,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = bmp();
            let start = start.min(bytes.len());
            let end = (start + noise.len()).min(bytes.len());
            bytes[start..end].copy_from_slice(&noise[..end - start]);
            if let Ok(bmp) = read_bytes(&bytes) {
                prop_assert!(bmp.width.max(bmp.height) <= MAX_SIDE);
                prop_assert!(bmp.palette.len() <= 1024);
                prop_assert!(bmp.compression <= BITFIELDS);
            }
        }
    }
}
