//! Decodes BMP. The decoder knows Windows' headers alone, and takes some of what they say more
//! strictly than writers do: it is handed headers anew.

use image_rs::{DynamicImage, ImageFormat};

use super::{read, spliced::Spliced};
use crate::image::{
    Error, Picture,
    header::{
        self,
        bmp::{self, BITFIELDS, Bmp, RGB},
    },
};

/// The length of the headers that the decoder is handed: BITMAPFILEHEADER and BITMAPV3INFOHEADER.
const FILE_HEADER: u32 = 14;
const V3: u32 = 56;

/// The length of the mark at the end of a row of runs: two zeros.
const END_OF_ROW: usize = 2;

/// Decodes the picture; the decoder is asked to take at most `cost` bytes.
pub(super) fn decode(picture: &Picture, cost: u64) -> Result<DynamicImage, Error> {
    let bmp = header::read_bounded(picture.format, &picture.content, bmp::read)?;
    let is_plain = matches!(bmp.compression, RGB | BITFIELDS);
    // Only what is plain may be stored top-down, says the decoder.
    let is_flipped = bmp.is_top_down && !is_plain;
    // Where the mark at the end of runs is left out, the end of a row does as well.
    let padding = if is_plain { padding(&bmp) } else { END_OF_ROW };
    let bytes =
        Spliced::new(headers(&bmp, is_plain), &picture.content, bmp.data_at)?.padded(padding);
    let mut image = read(picture, bytes, ImageFormat::Bmp, cost)?;
    if is_flipped {
        image_rs::imageops::flip_vertical_in_place(&mut image);
    }
    Ok(match image {
        // As browsers do: who writes it has an alpha channel and does not use it.
        DynamicImage::ImageRgba8(mut image) if image.pixels().all(|pixel| pixel.0[3] == 0) => {
            image.pixels_mut().for_each(|pixel| pixel.0[3] = 255);
            image.into()
        }
        image => image,
    })
}

/// The bytes behind a row, which some writers leave out behind the last one.
fn padding(bmp: &Bmp) -> usize {
    let row = (u64::from(bmp.width) * u64::from(bmp.bits)).div_ceil(8);
    usize::try_from(row.next_multiple_of(4) - row).unwrap_or_default()
}

fn headers(bmp: &Bmp, may_be_top_down: bool) -> Vec<u8> {
    let height = bmp.height.cast_signed();
    let height = if bmp.is_top_down && may_be_top_down { -height } else { height };
    let data_at = FILE_HEADER + V3 + bmp.palette.len() as u32;
    let mut head = b"BM".to_vec();
    let mut put = |numbers: &[u32]| head.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    put(&[0, 0, data_at, V3, bmp.width, height.cast_unsigned(), u32::from(bmp.bits) << 16 | 1]);
    // The length of the pixels, two resolutions, and how many colours there are: all of them.
    put(&[bmp.compression, 0, 0, 0, 0, 0]);
    put(&bmp.masks);
    head.extend(&bmp.palette);
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Unsupported, render::tests::decoded};

    /// A BMP in the making; by default two rows of two pixels, 24 bits each, as Windows writes it.
    #[derive(Clone)]
    struct File<'a> {
        /// Of the second header.
        length: u32,
        size: (i32, i32),
        planes: u16,
        bits: u16,
        compression: u32,
        colors: u32,
        masks: &'a [u32],
        palette: &'a [[u8; 3]],
        data: &'a [u8],
        /// Where the pixels are said to begin, if that is not where they do.
        data_at: Option<u32>,
    }

    const FILE: File = File {
        length: 40,
        size: (2, 2),
        planes: 1,
        bits: 24,
        compression: 0,
        colors: 0,
        masks: &[],
        palette: &[],
        data: &[1, 2, 3, 4, 5, 6, 0, 0, 7, 8, 9, 10, 11, 12, 0, 0],
        data_at: None,
    };
    /// Its pixels, from the upper left.
    const PIXELS: [[u8; 3]; 4] = [[9, 8, 7], [12, 11, 10], [3, 2, 1], [6, 5, 4]];

    const COLORS: [[u8; 3]; 3] = [[1, 2, 3], [11, 12, 13], [21, 22, 23]];
    const A: [u8; 3] = [3, 2, 1];
    const B: [u8; 3] = [13, 12, 11];
    const C: [u8; 3] = [23, 22, 21];
    const BLACK: [u8; 3] = [0; 3];
    /// The same size, as indices into [`COLORS`].
    const INDEXED: File =
        File { bits: 8, palette: &COLORS, colors: 3, data: &[0, 1, 0, 0, 2, 1, 0, 0], ..FILE };
    const INDEXED_PIXELS: [[u8; 3]; 4] = [C, B, A, B];

    impl File<'_> {
        fn bytes(&self) -> Vec<u8> {
            let (width, height) = self.size;
            let mut head = self.length.to_le_bytes().to_vec();
            if self.length == 12 {
                head.extend([width, height].iter().flat_map(|side| (*side as u16).to_le_bytes()));
                head.extend([self.planes, self.bits].iter().flat_map(|n| n.to_le_bytes()));
            } else {
                head.extend([width, height].iter().flat_map(|side| side.to_le_bytes()));
                head.extend([self.planes, self.bits].iter().flat_map(|n| n.to_le_bytes()));
                let numbers = [self.compression, 0, 0, 0, self.colors, 0];
                head.extend(numbers.iter().chain(self.masks).flat_map(|n| n.to_le_bytes()));
                // Masks stand within the longer headers, or behind the shorter ones.
                let behind = if self.length == 40 { 4 * self.masks.len() } else { 0 };
                head.resize(self.length as usize + behind, 0);
            }
            let entry = if self.length == 12 { 3 } else { 4 };
            for [blue, green, red] in self.palette {
                head.extend(&[*blue, *green, *red, 0x55][..entry]);
            }
            let data_at = self.data_at.unwrap_or(14 + head.len() as u32);
            // A hotspot, which means nothing here.
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
    fn every_length_of_header_is_read() {
        for length in [12, 16, 20, 36, 40, 48, 52, 56, 60, 64, 108, 124] {
            assert_eq!(File { length, ..FILE }.pixels(), PIXELS, "{length}");
            // The oldest headers do not say how many colours there are.
            assert_eq!(File { length, ..INDEXED }.pixels(), INDEXED_PIXELS, "{length}");
        }
        for length in [0, 8, 11, 13, 65, 107, 125, 200, 0x4000_0000u32] {
            let bytes = File { length: 40, ..FILE }.bytes();
            let bytes = [&bytes[..14], &length.to_le_bytes()[..], &bytes[18..]].concat();
            assert!(decoded(&bytes).is_err(), "{length}");
        }
    }

    #[test]
    fn a_picture_stored_top_down_is_turned_over() {
        let turned = [PIXELS[2], PIXELS[3], PIXELS[0], PIXELS[1]];
        assert_eq!(File { size: (2, -2), ..FILE }.pixels(), turned);
        let runs = File { compression: 1, data: &[1, 0, 1, 1, 0, 0, 2, 2, 0, 0, 0, 1], ..INDEXED };
        assert_eq!(runs.pixels(), [C, C, A, B]);
        assert_eq!(File { size: (2, -2), ..runs }.pixels(), [A, B, C, C]);
    }

    #[test]
    fn every_depth_is_read() {
        let row = |bits, data: &[u8]| {
            File { size: (4, 1), bits, data, colors: 3, palette: &COLORS, ..FILE }.pixels()
        };
        assert_eq!(row(1, &[0b0110_0000, 0, 0, 0]), [A, B, B, A]);
        assert_eq!(row(2, &[0b0110_0001, 0, 0, 0]), [B, C, A, B]);
        assert_eq!(row(4, &[0x01, 0x20, 0, 0]), [A, B, C, A]);
        assert_eq!(row(8, &[2, 1, 0, 1]), [C, B, A, B]);
        let row = |bits, compression, masks, data| {
            File { size: (2, 1), bits, compression, masks, data, ..FILE }.pixels()
        };
        assert_eq!(row(16, 0, &[], &[0x34, 0x12, 0xff, 0x7f]), [[33, 140, 165], [255; 3]]);
        let masks = [0xf800, 0x7e0, 0x1f];
        assert_eq!(row(16, 3, &masks, &[0x34, 0x12, 0xff, 0x7f]), [[16, 69, 165], [123, 255, 255]]);
        // The fourth byte means nothing.
        assert_eq!(row(32, 0, &[], &[1, 2, 3, 9, 4, 5, 6, 0]), [[3, 2, 1], [6, 5, 4]]);
        let masks = [0xff, 0xff00, 0xff_0000];
        assert_eq!(row(32, 3, &masks, &[1, 2, 3, 9, 4, 5, 6, 0]), [[1, 2, 3], [4, 5, 6]]);
    }

    #[test]
    fn alpha_is_what_a_mask_says() {
        let masks = [0xff_0000, 0xff00, 0xff, 0xff00_0000];
        let row = |length, compression, masks, data| {
            let file = File { length, size: (2, 1), bits: 32, compression, masks, data, ..FILE };
            file.pixels()
        };
        for (length, compression) in [(56, 3), (108, 3), (124, 3), (40, 6)] {
            let half_clear = row(length, compression, &masks, &[1, 2, 3, 255, 4, 5, 6, 0]);
            assert_eq!(half_clear, [[3, 2, 1], [255; 3]], "{length}");
            // What would show nothing at all has no alpha.
            let clear = row(length, compression, &masks, &[1, 2, 3, 0, 4, 5, 6, 0]);
            assert_eq!(clear, [[3, 2, 1], [6, 5, 4]], "{length}");
        }
        let masks = [0, 0, 0];
        assert_eq!(row(40, 3, &masks, &[1, 2, 3, 255, 4, 5, 6, 255]), [[3, 2, 1], [6, 5, 4]]);
    }

    #[test]
    fn careless_headers_are_read_as_others_read_them() {
        assert_eq!(File { planes: 0, ..FILE }.pixels(), PIXELS);
        assert_eq!(File { data_at: Some(0), ..FILE }.pixels(), PIXELS);
        // The pixels are said to begin nowhere, or where the palette does.
        for data_at in [0, 54] {
            let file = File { data_at: Some(data_at), ..INDEXED };
            assert_eq!(file.pixels(), INDEXED_PIXELS, "{data_at}");
        }
        // More colours than bits can tell apart, or fewer than are said.
        for colors in [0, 2, 300, u32::MAX] {
            let expected = if colors == 2 { [BLACK, B, A, B] } else { INDEXED_PIXELS };
            assert_eq!(File { colors, ..INDEXED }.pixels(), expected, "{colors}");
        }
        assert!(decoded(&File { data_at: Some(40), ..FILE }.bytes()).is_err());
    }

    #[test]
    fn the_padding_of_the_last_row_may_be_missing_and_no_more() {
        let data = FILE.data;
        assert_eq!(File { data: &data[..14], ..FILE }.pixels(), PIXELS);
        assert!(decoded(&File { data: &data[..13], ..FILE }.bytes()).is_err());
    }

    #[test]
    fn the_mark_at_the_end_of_runs_may_be_missing_and_no_pixel() {
        let runs = File { compression: 1, data: &[2, 0, 0, 0, 1, 2, 1, 1], ..INDEXED };
        assert_eq!(runs.pixels(), [C, B, A, A]);
        assert!(decoded(&File { data: &runs.data[..5], ..runs }.bytes()).is_err());
    }

    #[test]
    fn kinds_that_are_not_read_are_named() {
        let named = |length, bits, compression, words: &str| {
            let bytes = File { length, bits, compression, ..FILE }.bytes();
            match decoded(&bytes) {
                Err(Error::Unsupported(Unsupported::Kind(kind))) => {
                    assert!(kind.contains(words), "{kind}");
                }
                other => panic!("{words}: {other:?}"),
            }
        };
        named(64, 1, 3, "fax");
        named(64, 24, 4, "run-length coding of 24 bits");
        named(40, 0, 4, "JPEG");
        named(124, 24, 4, "JPEG");
        named(40, 0, 5, "PNG");
        named(40, 32, 11, "CMYK");
        named(40, 64, 0, "64 bits");
        for (bits, compression) in [(0, 0), (3, 0), (4, 1), (8, 2), (24, 3), (32, 7), (8, 9)] {
            let bytes = File { bits, compression, ..FILE }.bytes();
            assert!(matches!(decoded(&bytes), Err(Error::BadHeader(_))), "{bits} {compression}");
        }
        let wide = File { size: (65_536, 1), bits: 1, ..FILE }.bytes();
        assert!(matches!(decoded(&wide), Err(Error::Unsupported(Unsupported::Kind(_)))));
        for size in [(0, 2), (2, 0), (-2, 2), (i32::MIN, 2), (2, i32::MIN)] {
            assert!(decoded(&File { size, ..FILE }.bytes()).is_err(), "{size:?}");
        }
    }
}
