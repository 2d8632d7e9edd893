//! Reads the headers of a BMP.
//!
//! A BMP has a file header and then a second header, whose length identifies its version. Windows
//! and OS/2 have different second headers. Those of Windows are documented at
//! <https://learn.microsoft.com/windows/win32/api/wingdi/ns-wingdi-bitmapv5header>. Those of OS/2
//! may be shorter, and have other fields after the first forty bytes.

use std::io::{Read, Seek, SeekFrom};

use image_rs::metadata::Orientation;

use super::{Header, HeaderError, Reader};
use crate::image::Unsupported;

/// The headers and the palette of a BMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Bmp {
    pub(in crate::image) width: u32,
    pub(in crate::image) height: u32,
    /// Whether the top row is stored first. In most files, the bottom row is stored first.
    pub(in crate::image) is_top_down: bool,
    /// Bits per pixel.
    pub(in crate::image) bits: u16,
    /// [`RGB`], [`RLE8`], [`RLE4`] or [`BITFIELDS`].
    pub(in crate::image) compression: u32,
    /// Which bits of a pixel are red, green, blue and alpha. The decoder in `render` uses them
    /// only for [`BITFIELDS`].
    pub(in crate::image) masks: [u32; 4],
    /// Four bytes for each value that a pixel can have: blue, green, red and zero. Empty if a pixel
    /// has more than 8 bits.
    pub(in crate::image) palette: Vec<u8>,
    /// The offset of the pixels in the file.
    pub(in crate::image) data_at: u64,
}

/// No compression.
pub(in crate::image) const RGB: u32 = 0;
/// Run-length coding of 8 bits a pixel.
pub(in crate::image) const RLE8: u32 = 1;
/// Run-length coding of 4 bits a pixel.
pub(in crate::image) const RLE4: u32 = 2;
/// No compression, with a mask for each colour.
pub(in crate::image) const BITFIELDS: u32 = 3;
/// [`BITFIELDS`] with a mask for alpha, as in Windows CE.
const ALPHA_BITFIELDS: u32 = 6;

/// The length of the file header, in bytes.
const FILE_HEADER_LEN: usize = 14;

/// How much of both headers is read at most, in bytes. The mask for alpha is the last field that is read.
const HEAD_LEN: usize = FILE_HEADER_LEN + V3 as usize;

// The lengths of the second header, in bytes.
/// Version 1 of OS/2: BITMAPCOREHEADER. Its width and height have 16 bits.
const CORE: u32 = 12;
/// Version 2 of OS/2, with all its fields.
const OS2: u32 = 64;
/// Windows: BITMAPINFOHEADER.
const INFO: u32 = 40;
// Windows: BITMAPV2INFOHEADER, BITMAPV3INFOHEADER, BITMAPV4HEADER and BITMAPV5HEADER.
const V2: u32 = 52;
const V3: u32 = 56;
const V4: u32 = 108;
const V5: u32 = 124;

/// The longest side that the decoder in `render` supports, in pixels.
const MAX_SIDE: u32 = 0xffff;

/// The masks for 32 bits per pixel if all masks in the header are zero or missing.
const DEFAULT_MASKS: [u32; 4] = [0xff_0000, 0xff00, 0xff, 0xff00_0000];

/// Whether this is a valid length of the second header. In version 2 of OS/2, the header may be
/// shortened to any length from 16 bytes on; [`INFO`], [`V2`] and [`V3`] are among these lengths.
pub(in crate::image) fn is_header_length(length: u32) -> bool {
    matches!(length, CORE | 16..=OS2 | V4 | V5)
}

/// Reads the headers and the palette.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Bmp, HeaderError> {
    // Fields that the file's headers do not have stay zero.
    let mut head = [0; HEAD_LEN];
    let length_end = FILE_HEADER_LEN + 4;
    reader.read_exact(&mut head[..length_end]).map_err(|_| HeaderError::Damaged)?;
    let length = u32_at(&head, FILE_HEADER_LEN); // of the second header
    if !is_header_length(length) {
        return Err(HeaderError::Damaged);
    }
    let is_windows = matches!(length, INFO | V2 | V3 | V4 | V5);
    // In OS/2, the fields after the first forty bytes are for printers, and are not read.
    let needed_len = length.min(if is_windows { V3 } else { INFO });
    let needed_end = FILE_HEADER_LEN + needed_len as usize;
    reader.read_exact(&mut head[length_end..needed_end]).map_err(|_| HeaderError::Damaged)?;
    let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let (width, height, bits) = if length == CORE {
        (u16_at(18).into(), u16_at(20).into(), u16_at(24))
    } else {
        (u32_at(&head, 18).cast_signed(), u32_at(&head, 22).cast_signed(), u16_at(28))
    };
    let compression_field = if length == CORE { RGB } else { u32_at(&head, 30) };
    let compression = supported_compression(compression_field, bits, length)?;
    // In the newer Windows headers, the masks are fields. After the oldest Windows header, the
    // masks follow at the same offset.
    let masks_len = match compression_field {
        BITFIELDS if length == INFO => 12,
        ALPHA_BITFIELDS if length == INFO => 16,
        _ => 0,
    };
    let following_masks = &mut head[needed_end..needed_end + masks_len];
    reader.read_exact(following_masks).map_err(|_| HeaderError::Damaged)?;
    let masks = match [54, 58, 62, 66].map(|at| u32_at(&head, at)) {
        [0, 0, 0, 0] if bits == 32 => DEFAULT_MASKS,
        masks => masks,
    };
    let headers_end = FILE_HEADER_LEN as u64 + u64::from(length) + masks_len as u64;
    let layout = PaletteLayout {
        at: headers_end,
        bits,
        colors: if length == CORE { 0 } else { u32_at(&head, 46) },
        entry_len: if length == CORE { 3 } else { 4 },
    };
    let (palette, data_at) = layout.read_palette(reader, u32_at(&head, 10).into())?;
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
    if width <= 0 {
        return Err(HeaderError::Damaged);
    }
    if bmp.width.max(bmp.height) > MAX_SIDE {
        return Err(unsupported("a BMP with more than 65,535 pixels a side"));
    }
    Ok(bmp)
}

/// Returns the 32-bit field at this offset in the file.
fn u32_at(head: &[u8; HEAD_LEN], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

fn unsupported(kind: &'static str) -> HeaderError {
    HeaderError::Unsupported(Unsupported::Kind(kind))
}

/// Returns the compression if the decoder supports it. `length` is the length of the second header.
///
/// In OS/2, a `field` of 3 with 1 bit per pixel means fax compression, and 4 with 24 bits per pixel means
/// run-length coding. In Windows, a `field` of 4 means a JPEG. Only a header shorter than [`V4`] can be
/// from OS/2.
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

/// Where and how the palette is stored in the file.
struct PaletteLayout {
    /// The palette's offset in the file.
    at: u64,
    /// Bits per pixel.
    bits: u16,
    /// The number of stored colours. Zero means that there is a colour for each value of a pixel.
    colors: u32,
    /// Bytes per colour: three for blue, green and red, or four if a byte without meaning follows.
    entry_len: usize,
}

impl PaletteLayout {
    /// Returns the colours and the offset of the pixels. Missing colours are black.
    ///
    /// `data_at` is the offset of the pixels according to the header. In some files, `data_at` is
    /// zero or the offset of the palette. The pixels then follow the palette. In all other valid
    /// files, the palette ends at `data_at` at the latest.
    ///
    /// # Errors
    /// The file is damaged if `data_at` is inside the headers.
    fn read_palette(
        &self,
        reader: &mut Reader,
        data_at: u64,
    ) -> Result<(Vec<u8>, u64), HeaderError> {
        let max_colors = if self.bits > 8 { 0 } else { 1 << self.bits };
        let colors =
            if self.colors == 0 { max_colors } else { max_colors.min(self.colors as usize) };
        let len = (colors * self.entry_len) as u64;
        let data_at = if data_at > self.at {
            data_at
        } else if data_at == 0 || data_at == self.at {
            self.at + len
        } else {
            return Err(HeaderError::Damaged);
        };
        let mut stored = Vec::new();
        reader.seek(SeekFrom::Start(self.at)).map_err(|_| HeaderError::Damaged)?;
        let mut available = reader.by_ref().take(len.min(data_at - self.at));
        available.read_to_end(&mut stored).map_err(|_| HeaderError::Damaged)?;
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

    // Offsets in `file_without_pixels`, which ends with the palette.
    const PALETTE_AT: usize = 54;
    const PALETTE_END: usize = 62;

    /// The headers and the palette of a BMP of 5 × 3 pixels, with 8 bits per pixel and two stored
    /// colours. The pixels are missing.
    fn file_without_pixels() -> Vec<u8> {
        let mut bytes =
            b"BM\0\0\0\0\0\0\0\0\x3e\0\0\0\x28\0\0\0\x05\0\0\0\x03\0\0\0\x01\0\x08\0".to_vec();
        bytes.resize(46, 0);
        // The number of stored colours, the number of important colours, and the palette.
        bytes.extend([2, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes
    }

    fn read_bytes(bytes: &[u8]) -> Result<Bmp, HeaderError> {
        read(&mut Content::Memory(bytes.to_vec().into()).header_reader())
    }

    #[test]
    fn the_size_the_palette_and_the_offset_of_the_pixels_are_read() {
        let bmp = read_bytes(&file_without_pixels()).unwrap();
        assert_eq!((bmp.width, bmp.height, bmp.is_top_down), (5, 3, false));
        assert_eq!((bmp.bits, bmp.compression, bmp.data_at), (8, RGB, PALETTE_END as u64));
        assert_eq!(bmp.palette.len(), 4 * 256);
        assert!(bmp.palette.starts_with(&[1, 2, 3, 0, 5, 6, 7, 0, 0]));
        // A negative height means that the top row is stored first.
        let mut top_down = file_without_pixels();
        top_down[22..26].copy_from_slice(&(-3i32).to_le_bytes());
        let bmp = read_bytes(&top_down).unwrap();
        assert_eq!((bmp.height, bmp.is_top_down), (3, true));
    }

    #[test]
    fn a_truncated_header_is_damaged_and_missing_colours_are_black() {
        for len in 0..PALETTE_AT {
            assert_eq!(read_bytes(&file_without_pixels()[..len]), Err(HeaderError::Damaged));
        }
        for len in PALETTE_AT..PALETTE_END {
            let palette = read_bytes(&file_without_pixels()[..len]).unwrap().palette;
            let first_color = if len < PALETTE_AT + 4 { [0; 4] } else { [1, 2, 3, 0] };
            assert_eq!(palette[..4], first_color);
            assert_eq!(palette[4..], [0; 1020]);
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_cause_no_panic_and_exceed_no_limit(
            start in 2..PALETTE_END,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = file_without_pixels();
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
