//! Decodes BMP. The decoder of the `image` crate supports only the headers of Windows, and refuses some
//! headers that sloppy programs write. The decoder therefore gets new headers, followed by the
//! original pixels.

use image_rs::{DynamicImage, ImageFormat};

use super::{decode_with_image_crate, spliced::SplicedReader};
use crate::image::{
    Error, Picture,
    header::{
        self,
        bmp::{self, BITFIELDS, Bmp, RGB},
    },
};

/// The length of a BITMAPFILEHEADER, in bytes.
const FILE_HEADER_LEN: u32 = 14;
/// The length of a BITMAPV3INFOHEADER, in bytes.
const V3_HEADER_LEN: u32 = 56;

/// The length of the marker at the end of a run-length coded row (two zeros), in bytes.
const END_OF_ROW_LEN: usize = 2;

/// Decodes the picture. The decoder may allocate at most `memory_estimate` bytes.
pub(super) fn decode(picture: &Picture, memory_estimate: u64) -> Result<DynamicImage, Error> {
    let bmp = header::read_bounded(picture.format, &picture.content, bmp::read)?;
    let is_uncompressed = matches!(bmp.compression, RGB | BITFIELDS);
    // The decoder supports top-down rows only without compression. Compressed top-down rows are decoded
    // as if the bottom row came first, and are then flipped.
    let must_flip = bmp.is_top_down && !is_uncompressed;
    // Some programs leave out the padding of the last row, or the marker at the end of run-length
    // coded pixels. Zeros after the file replace either. After run-length coded pixels, they are an
    // end-of-row marker, which the decoder accepts as well.
    let zero_count = if is_uncompressed { row_padding(&bmp) } else { END_OF_ROW_LEN };
    let height = bmp.height.cast_signed();
    let signed_height = if bmp.is_top_down && !must_flip { -height } else { height };
    let headers = write_headers(&bmp, signed_height);
    let bytes =
        SplicedReader::new(headers, &picture.content, bmp.data_at)?.with_padding(zero_count);
    let mut image = decode_with_image_crate(picture, bytes, ImageFormat::Bmp, memory_estimate)?;
    if must_flip {
        image_rs::imageops::flip_vertical_in_place(&mut image);
    }
    Ok(match image {
        // If every pixel is transparent, alpha is ignored, as in browsers: the program that wrote the
        // file did not use the alpha channel.
        DynamicImage::ImageRgba8(mut image) if image.pixels().all(|pixel| pixel.0[3] == 0) => {
            image.pixels_mut().for_each(|pixel| pixel.0[3] = 255);
            image.into()
        }
        image => image,
    })
}

/// The number of bytes that pad a row to a multiple of four bytes.
fn row_padding(bmp: &Bmp) -> usize {
    let row_len = (u64::from(bmp.width) * u64::from(bmp.bits)).div_ceil(8);
    usize::try_from(row_len.next_multiple_of(4) - row_len).unwrap_or_default()
}

/// Writes a BITMAPFILEHEADER, a BITMAPV3INFOHEADER and the palette. `signed_height` is negative if the
/// decoder must read the rows top-down.
fn write_headers(bmp: &Bmp, signed_height: i32) -> Vec<u8> {
    let data_at = FILE_HEADER_LEN + V3_HEADER_LEN + bmp.palette.len() as u32;
    let planes_and_bits = u32::from(bmp.bits) << 16 | 1; // always one plane
    let mut headers = b"BM".to_vec();
    let mut put = |numbers: &[u32]| headers.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    // The decoder ignores the two zeros: the length of the file, and the reserved bytes.
    put(&[0, 0, data_at]);
    put(&[
        V3_HEADER_LEN,
        bmp.width,
        signed_height.cast_unsigned(),
        planes_and_bits,
        bmp.compression,
    ]);
    // The fourth zero means that the palette has a colour for each value of a pixel. The decoder ignores
    // the others: the length of the pixels, two resolutions, and the number of important colours.
    put(&[0, 0, 0, 0, 0]);
    put(&bmp.masks);
    headers.extend(&bmp.palette);
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Unsupported, render::tests::decoded};

    /// The fields and the contents of a BMP file.
    #[derive(Clone)]
    struct File<'a> {
        /// The length of the second header, which follows the file header.
        header_len: u32,
        size: (i32, i32),
        planes: u16,
        bits: u16,
        compression: u32,
        colors: u32,
        masks: &'a [u32],
        palette: &'a [[u8; 3]],
        data: &'a [u8],
        /// A wrong offset of the pixels in the file header. `None` means that the offset is correct.
        data_at: Option<u32>,
    }

    /// A BMP as Windows writes it: two rows of two pixels of 24 bits.
    const FILE: File = File {
        header_len: 40,
        size: (2, 2),
        planes: 1,
        bits: 24,
        compression: RGB,
        colors: 0,
        masks: &[],
        palette: &[],
        data: &[1, 2, 3, 4, 5, 6, 0, 0, 7, 8, 9, 10, 11, 12, 0, 0],
        data_at: None,
    };
    /// The pixels of [`FILE`], from the upper left.
    const PIXELS: [[u8; 3]; 4] = [[9, 8, 7], [12, 11, 10], [3, 2, 1], [6, 5, 4]];

    /// A palette of three colours, each as blue, green and red.
    const COLORS: [[u8; 3]; 3] = [[1, 2, 3], [11, 12, 13], [21, 22, 23]];
    // The colours of `COLORS`, as red, green and blue.
    const A: [u8; 3] = [3, 2, 1];
    const B: [u8; 3] = [13, 12, 11];
    const C: [u8; 3] = [23, 22, 21];
    const BLACK: [u8; 3] = [0; 3];
    /// A BMP of two rows of two pixels, which are indices into [`COLORS`].
    const INDEXED: File =
        File { bits: 8, palette: &COLORS, colors: 3, data: &[0, 1, 0, 0, 2, 1, 0, 0], ..FILE };
    /// The pixels of [`INDEXED`], from the upper left.
    const INDEXED_PIXELS: [[u8; 3]; 4] = [C, B, A, B];

    impl File<'_> {
        fn bytes(&self) -> Vec<u8> {
            let (width, height) = self.size;
            let mut head = self.header_len.to_le_bytes().to_vec();
            if self.header_len == 12 {
                head.extend([width, height].iter().flat_map(|side| (*side as u16).to_le_bytes()));
                head.extend([self.planes, self.bits].iter().flat_map(|n| n.to_le_bytes()));
            } else {
                head.extend([width, height].iter().flat_map(|side| side.to_le_bytes()));
                head.extend([self.planes, self.bits].iter().flat_map(|n| n.to_le_bytes()));
                let numbers = [self.compression, 0, 0, 0, self.colors, 0];
                head.extend(numbers.iter().chain(self.masks).flat_map(|n| n.to_le_bytes()));
                // A header of 40 bytes is followed by the masks. Longer headers contain them.
                let masks_len = if self.header_len == 40 { 4 * self.masks.len() } else { 0 };
                head.resize(self.header_len as usize + masks_len, 0);
            }
            let palette_entry_len = if self.header_len == 12 { 3 } else { 4 };
            for [blue, green, red] in self.palette {
                head.extend(&[*blue, *green, *red, 0x55][..palette_entry_len]);
            }
            let data_at = self.data_at.unwrap_or(FILE_HEADER_LEN + head.len() as u32);
            // The reserved bytes contain the hotspot of a mouse pointer, which must be ignored.
            let file = [b"BM\0\0\0\0\x05\0\x07\0", &data_at.to_le_bytes()[..], &head, self.data];
            file.concat()
        }

        fn pixels(&self) -> Vec<[u8; 3]> {
            let image = decoded(&self.bytes()).unwrap();
            assert_eq!(image.dimensions(), (self.size.0 as u32, self.size.1.unsigned_abs()));
            image.pixels().map(|pixel| pixel.0).collect()
        }
    }

    #[test]
    fn headers_of_every_known_length_are_read_and_other_lengths_are_refused() {
        for header_len in [12, 16, 20, 36, 40, 48, 52, 56, 60, 64, 108, 124] {
            assert_eq!(File { header_len, ..FILE }.pixels(), PIXELS, "{header_len}");
            // The shortest headers do not contain the number of colours. The palette then ends where the
            // pixels begin.
            assert_eq!(File { header_len, ..INDEXED }.pixels(), INDEXED_PIXELS, "{header_len}");
        }
        for header_len in [0, 8, 11, 13, 65, 107, 125, 200, 0x4000_0000u32] {
            // The file header is followed by the length of the second header.
            let bytes = FILE.bytes();
            let bytes = [&bytes[..14], &header_len.to_le_bytes()[..], &bytes[18..]].concat();
            assert!(decoded(&bytes).is_err(), "{header_len}");
        }
    }

    #[test]
    fn a_picture_stored_top_down_is_decoded_upright() {
        let flipped = [PIXELS[2], PIXELS[3], PIXELS[0], PIXELS[1]];
        assert_eq!(File { size: (2, -2), ..FILE }.pixels(), flipped);
        // One A and one B, the end of the row, two C, the end of the row, the end of the pixels.
        let run_length_coded =
            File { compression: bmp::RLE8, data: &[1, 0, 1, 1, 0, 0, 2, 2, 0, 0, 0, 1], ..INDEXED };
        assert_eq!(run_length_coded.pixels(), [C, C, A, B]);
        assert_eq!(File { size: (2, -2), ..run_length_coded }.pixels(), [A, B, C, C]);
    }

    #[test]
    fn every_bit_depth_is_decoded() {
        let indexed_row = |bits, data: &[u8]| {
            File { size: (4, 1), bits, data, colors: 3, palette: &COLORS, ..FILE }.pixels()
        };
        assert_eq!(indexed_row(1, &[0b0110_0000, 0, 0, 0]), [A, B, B, A]);
        assert_eq!(indexed_row(2, &[0b0110_0001, 0, 0, 0]), [B, C, A, B]);
        assert_eq!(indexed_row(4, &[0x01, 0x20, 0, 0]), [A, B, C, A]);
        assert_eq!(indexed_row(8, &[2, 1, 0, 1]), [C, B, A, B]);
        let rgb_row = |bits, compression, masks, data| {
            File { size: (2, 1), bits, compression, masks, data, ..FILE }.pixels()
        };
        // Without masks, 16 bits contain three colours of 5 bits.
        let data_16 = [0x34, 0x12, 0xff, 0x7f];
        assert_eq!(rgb_row(16, RGB, &[], &data_16), [[33, 140, 165], [255; 3]]);
        let masks = [0xf800, 0x7e0, 0x1f];
        assert_eq!(rgb_row(16, BITFIELDS, &masks, &data_16), [[16, 69, 165], [123, 255, 255]]);
        // The fourth byte of a pixel is ignored.
        let data_32 = [1, 2, 3, 9, 4, 5, 6, 0];
        assert_eq!(rgb_row(32, RGB, &[], &data_32), [[3, 2, 1], [6, 5, 4]]);
        let masks = [0xff, 0xff00, 0xff_0000];
        assert_eq!(rgb_row(32, BITFIELDS, &masks, &data_32), [[1, 2, 3], [4, 5, 6]]);
        // If all masks are zero, the usual masks for 32 bits are used: the fourth byte is alpha.
        let opaque = [1, 2, 3, 255, 4, 5, 6, 255];
        assert_eq!(rgb_row(32, BITFIELDS, &[0, 0, 0], &opaque), [[3, 2, 1], [6, 5, 4]]);
    }

    #[test]
    fn alpha_is_read_by_its_mask_unless_every_pixel_is_transparent() {
        const ALPHA_BITFIELDS: u32 = 6;
        let masks = [0xff_0000, 0xff00, 0xff, 0xff00_0000];
        let row = |header_len, compression, masks, data| {
            File { header_len, size: (2, 1), bits: 32, compression, masks, data, ..FILE }.pixels()
        };
        for (header_len, compression) in
            [(56, BITFIELDS), (108, BITFIELDS), (124, BITFIELDS), (40, ALPHA_BITFIELDS)]
        {
            // A transparent pixel becomes white.
            let one_transparent = row(header_len, compression, &masks, &[1, 2, 3, 255, 4, 5, 6, 0]);
            assert_eq!(one_transparent, [[3, 2, 1], [255; 3]], "{header_len}");
            let all_transparent = row(header_len, compression, &masks, &[1, 2, 3, 0, 4, 5, 6, 0]);
            assert_eq!(all_transparent, [[3, 2, 1], [6, 5, 4]], "{header_len}");
        }
    }

    #[test]
    fn wrong_values_in_headers_are_tolerated_except_a_nonzero_pixel_offset_within_the_headers() {
        assert_eq!(File { planes: 0, ..FILE }.pixels(), PIXELS);
        assert_eq!(File { data_at: Some(0), ..FILE }.pixels(), PIXELS);
        // In a file with a palette, the wrong offset may also be that of the palette: 54.
        for data_at in [0, 54] {
            let file = File { data_at: Some(data_at), ..INDEXED };
            assert_eq!(file.pixels(), INDEXED_PIXELS, "{data_at}");
        }
        // Two is too low, so the third colour is black. More than 256 are too many for eight bits. Zero means
        // all colours.
        for colors in [0, 2, 300, u32::MAX] {
            let expected = if colors == 2 { [BLACK, B, A, B] } else { INDEXED_PIXELS };
            assert_eq!(File { colors, ..INDEXED }.pixels(), expected, "{colors}");
        }
        // 40 is inside the second header, which ends at 54.
        assert!(decoded(&File { data_at: Some(40), ..FILE }.bytes()).is_err());
    }

    #[test]
    fn the_padding_of_the_last_row_may_be_missing_but_no_byte_of_a_pixel() {
        let data = FILE.data; // each row has six bytes of pixels and two of padding
        assert_eq!(File { data: &data[..14], ..FILE }.pixels(), PIXELS);
        assert!(decoded(&File { data: &data[..13], ..FILE }.bytes()).is_err());
    }

    #[test]
    fn the_marker_at_the_end_of_run_length_coding_may_be_missing_but_no_pixel() {
        // Two A, the end of the row, one C, one B.
        let run_length_coded =
            File { compression: bmp::RLE8, data: &[2, 0, 0, 0, 1, 2, 1, 1], ..INDEXED };
        assert_eq!(run_length_coded.pixels(), [C, B, A, A]);
        let cut_in_second_row = File { data: &run_length_coded.data[..5], ..run_length_coded };
        assert!(decoded(&cut_in_second_row.bytes()).is_err());
    }

    #[test]
    fn the_error_contains_the_name_of_an_unsupported_kind_and_invalid_values_are_refused() {
        for (header_len, bits, compression, words) in [
            // In OS/2, compression 3 is fax and 4 is run-length coding. In Windows, 3 is `BITFIELDS` and 4
            // is a JPEG. Only Windows has headers of 124 bytes.
            (64, 1, 3, "fax"),
            (64, 24, 4, "run-length coding of 24 bits"),
            (40, 0, 4, "JPEG"),
            (124, 24, 4, "JPEG"),
            (40, 0, 5, "PNG"),
            (40, 32, 11, "CMYK"),
            (40, 64, 0, "64 bits"),
        ] {
            let bytes = File { header_len, bits, compression, ..FILE }.bytes();
            match decoded(&bytes) {
                Err(Error::Unsupported(Unsupported::Kind(kind))) => {
                    assert!(kind.contains(words), "{words}: {kind}");
                }
                other => panic!("the BMP for {words:?} must be unsupported: {other:?}"),
            }
        }
        // Either the bits or the compression is invalid, or they do not fit together.
        for (bits, compression) in [(0, 0), (3, 0), (4, 1), (8, 2), (24, 3), (32, 7), (8, 9)] {
            let bytes = File { bits, compression, ..FILE }.bytes();
            assert!(matches!(decoded(&bytes), Err(Error::BadHeader(_))), "{bits} {compression}");
        }
        // A side may have at most 65,535 pixels.
        let wide = File { size: (65_536, 1), bits: 1, ..FILE }.bytes();
        assert!(matches!(decoded(&wide), Err(Error::Unsupported(Unsupported::Kind(_)))));
        for size in [(0, 2), (2, 0), (-2, 2), (i32::MIN, 2), (2, i32::MIN)] {
            assert!(decoded(&File { size, ..FILE }.bytes()).is_err(), "{size:?}");
        }
    }
}
