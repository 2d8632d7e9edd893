//! Decodes a GIF's first frame. The decoder of the `image` crate requires a colour table, and a canvas
//! that contains the whole frame. It also refuses unknown blocks. The decoder therefore gets new
//! headers, followed by the original pixels.

use image_rs::{DynamicImage, ImageFormat, Rgba};

use super::{decode_with_image_crate, spliced::SplicedReader};
use crate::image::{
    Error, Picture,
    header::{
        self,
        gif::{self, Gif},
    },
};

/// Decodes the first frame with its canvas. The decoder may allocate at most `memory_estimate` bytes.
pub(super) fn decode(picture: &Picture, memory_estimate: u64) -> Result<DynamicImage, Error> {
    let gif = header::read_bounded(picture.format, &picture.content, gif::read)?;
    let headers = write_headers(&gif);
    // Some files lack the zero that ends the pixels, so one is appended.
    let bytes = SplicedReader::new(headers, &picture.content, gif.data_at)?.with_padding(1);
    let image = decode_with_image_crate(picture, bytes, ImageFormat::Gif, memory_estimate)?;
    Ok(match (image, gif.transparent) {
        // Without a transparent colour, only the canvas around the frame is transparent. It gets the
        // first colour, as in Pillow.
        (DynamicImage::ImageRgba8(mut image), None) => {
            let first_color = Rgba([gif.palette[0], gif.palette[1], gif.palette[2], 255]);
            for pixel in image.pixels_mut() {
                if pixel.0[3] == 0 {
                    *pixel = first_color;
                }
            }
            image.into()
        }
        (image, _) => image,
    })
}

/// Writes everything before the frame's pixels: the screen, the colour table and the frame's header.
fn write_headers(gif: &Gif) -> Vec<u8> {
    let to_bytes = |numbers: &[u16]| {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>()
    };
    let frame = &gif.frame;
    let mut headers = b"GIF89a".to_vec();
    headers.extend(to_bytes(&[gif.width, gif.height]));
    // The flags announce a table of 256 colours. The zeros are the background's index and the aspect ratio.
    headers.extend([0xf7, 0, 0]);
    headers.extend(&gif.palette);
    if let Some(transparent) = gif.transparent {
        // A graphic control extension.
        headers.extend([b'!', 0xf9, 4, 1, 0, 0, transparent, 0]);
    }
    headers.push(b',');
    headers.extend(to_bytes(&[frame.left, frame.top, frame.width, frame.height]));
    headers.push(if frame.is_interlaced { 0x40 } else { 0 });
    headers
}

#[cfg(test)]
mod tests {
    use image_rs::{GrayImage, RgbImage};

    use super::*;
    use crate::image::render::tests::decoded;

    /// A table of the four colours [`A`], [`B`], [`C`] and [`D`].
    const TABLE: [u8; 12] = [200, 10, 20, 30, 210, 40, 50, 60, 220, 7, 77, 177];
    const A: [u8; 3] = [200, 10, 20];
    const B: [u8; 3] = [30, 210, 40];
    const C: [u8; 3] = [50, 60, 220];
    const D: [u8; 3] = [7, 77, 177];
    const WHITE: [u8; 3] = [255; 3];

    /// A graphic control extension: colour 1 is transparent.
    const TRANSPARENT_1: &[u8] = b"!\xf9\x04\x01\0\0\x01\0";

    /// The headers of a file, before its blocks. `table` is empty, or contains two or four colours.
    fn screen(width: u16, height: u16, table: &[u8]) -> Vec<u8> {
        // 0x80 announces a table. The lowest bits are 0 for two colours, and 1 for four.
        let flags = match table.len() / 3 {
            0 => 0,
            2 => 0x80,
            _ => 0x81,
        };
        let size = [width.to_le_bytes(), height.to_le_bytes()].concat();
        [b"GIF89a", &size[..], &[flags, 0, 0], table].concat()
    }

    /// A frame whose `area` is `[left, top, width, height]`. `table` is empty or contains four colours.
    /// `colors` contains an index into the table for each pixel.
    fn encoded_frame(area: [u16; 4], table: &[u8], colors: &[u8]) -> Vec<u8> {
        let flags = if table.is_empty() { 0 } else { 0x81 };
        let area: Vec<u8> = area.iter().flat_map(|number| number.to_le_bytes()).collect();
        // A clear code (4) before every two colours keeps the length of the codes at three bits.
        let mut codes: Vec<u8> = colors.chunks(2).flat_map(|pair| [&[4], pair].concat()).collect();
        codes.push(5); // the code for the end
        let bits: Vec<u8> =
            codes.iter().flat_map(|code| (0..3).map(move |bit| code >> bit & 1)).collect();
        let pack = |bits: &[u8]| bits.iter().rev().fold(0, |packed, bit| packed << 1 | bit);
        let data: Vec<u8> = bits.chunks(8).map(pack).collect();
        // The 2 is how many bits a colour has. One block of data follows, with its length.
        [b",", &area[..], &[flags], table, &[2, data.len() as u8], &data, &[0]].concat()
    }

    /// The pixels of the decoded GIF that consists of these parts. `decoded` makes transparent pixels white.
    fn pixels(parts: &[&[u8]]) -> Vec<[u8; 3]> {
        decoded_image(parts).pixels().map(|pixel| pixel.0).collect()
    }

    fn decoded_image(parts: &[&[u8]]) -> RgbImage {
        decoded(&parts.concat()).unwrap()
    }

    #[test]
    fn the_table_of_the_frame_overrides_the_table_of_the_screen_and_grey_replaces_missing_tables() {
        let area = [0, 0, 4, 1];
        let local_table: Vec<u8> = TABLE.iter().rev().copied().collect();
        let without_table = encoded_frame(area, &[], &[0, 1, 2, 3]);
        let with_local_table = encoded_frame(area, &local_table, &[0, 1, 2, 3]);
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), &without_table, b";"]), [A, B, C, D]);
        let expected = [[177, 77, 7], [220, 60, 50], [40, 210, 30], [20, 10, 200]];
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), &with_local_table, b";"]), expected);
        assert_eq!(pixels(&[&screen(4, 1, &[]), &with_local_table, b";"]), expected);
        let grey = [[0; 3], [1; 3], [2; 3], [3; 3]];
        assert_eq!(pixels(&[&screen(4, 1, &[]), &without_table, b";"]), grey);
    }

    #[test]
    fn colours_beyond_the_table_are_black() {
        let frame = encoded_frame([0, 0, 4, 1], &[], &[0, 1, 2, 3]);
        let screen_of_two_colors = screen(4, 1, &TABLE[..6]);
        let expected = [A, B, [0; 3], [0; 3]];
        assert_eq!(pixels(&[&screen_of_two_colors, &frame, b";"]), expected);
    }

    #[test]
    fn the_transparent_colour_becomes_white() {
        let frame = encoded_frame([0, 0, 4, 1], &[], &[0, 1, 2, 3]);
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), TRANSPARENT_1, &frame]), [A, WHITE, C, D]);
        let grey = [[0; 3], WHITE, [2; 3], [3; 3]];
        assert_eq!(pixels(&[&screen(4, 1, &[]), TRANSPARENT_1, &frame]), grey);
    }

    #[test]
    fn the_canvas_around_a_frame_has_the_first_colour_or_is_transparent() {
        let small_frame = encoded_frame([1, 1, 2, 1], &[], &[2, 3]);
        let first_color = [A, A, A, A, A, C, D, A, A, A, A, A];
        assert_eq!(pixels(&[&screen(4, 3, &TABLE), &small_frame]), first_color);
        let transparent = first_color.map(|color| if color == A { WHITE } else { color });
        assert_eq!(pixels(&[&screen(4, 3, &TABLE), TRANSPARENT_1, &small_frame]), transparent);
    }

    #[test]
    fn the_canvas_grows_to_contain_the_frame() {
        let frame = encoded_frame([1, 1, 2, 1], &[], &[2, 3]);
        for (width, height) in [(0, 0), (2, 1), (3, 1), (3, 2)] {
            let image = decoded_image(&[&screen(width, height, &TABLE), &frame]);
            assert_eq!(image.dimensions(), (3, 2));
            assert_eq!(image.get_pixel(2, 1).0, D);
        }
    }

    #[test]
    fn stray_zeros_control_blocks_without_transparency_and_all_after_the_frame_are_ignored() {
        let first = encoded_frame([0, 0, 4, 1], &[], &[0, 1, 2, 3]);
        for before in [
            &b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"[..],
            b"!\xfe\x05hello\x03you\0",
            b"!\x05\x03abc\0",  // an unknown extension
            b"!\xf9\x01\x01\0", // a truncated extension
            b"\0\0\0",          // zeros between two blocks
        ] {
            let file = [&screen(4, 1, &TABLE), before, &first];
            assert_eq!(pixels(&file), [A, B, C, D], "{}", before.escape_ascii());
        }
        let second = encoded_frame([0, 0, 4, 1], &[], &[3, 3, 3, 3]);
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), &first, &second, b";"]), [A, B, C, D]);
    }

    #[test]
    fn a_frame_may_lack_the_zero_that_ends_its_pixels() {
        let frame = encoded_frame([0, 0, 4, 1], &[], &[0, 1, 2, 3]);
        let without_final_zero = &frame[..frame.len() - 1];
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), without_final_zero]), [A, B, C, D]);
    }

    #[test]
    fn interlaced_rows_are_put_in_order() {
        let mut interlaced = encoded_frame([0, 0, 1, 5], &[], &[0, 1, 2, 3, 1]);
        interlaced[9] |= 0x40; // the flag for interlaced rows
        let image = decoded_image(&[&screen(1, 5, &TABLE), &interlaced]);
        // The file contains the rows 0, 4, 2, 1 and 3, in this order.
        assert_eq!(image.pixels().map(|pixel| pixel.0).collect::<Vec<_>>(), [A, D, C, B, B]);
    }

    #[test]
    fn a_frame_that_is_missing_empty_incomplete_or_beyond_the_largest_canvas_is_refused() {
        let complete = encoded_frame([0, 0, 4, 1], &[], &[0, 1, 2, 3]);
        let without_rows = encoded_frame([0, 0, 4, 0], &[], &[]);
        let beyond_largest_canvas = encoded_frame([65_535, 0, 4, 1], &[], &[0, 1, 2, 3]);
        let without_second_row = encoded_frame([0, 0, 4, 2], &[], &[0, 1, 2, 3]);
        for parts in [
            &[&b";"[..]][..],
            &[],
            &[TRANSPARENT_1],
            &[TRANSPARENT_1, b";", &complete],
            &[&complete[..7]],  // ends in the header
            &[&complete[..12]], // ends before the pixels
            &[&without_rows],
            &[&beyond_largest_canvas],
            &[&without_second_row],
        ] {
            let file = [&screen(4, 1, &TABLE), &parts.concat()[..]].concat();
            assert!(decoded(&file).is_err(), "{}", file.escape_ascii());
        }
        let truncated_table = &screen(4, 1, &TABLE)[..20];
        assert!(decoded(truncated_table).is_err());
    }

    #[test]
    fn a_gif_that_the_image_crate_encoded_is_decoded() {
        let grey = GrayImage::from_fn(50, 40, |x, y| [(x * 5) as u8 ^ (y * 3) as u8].into());
        let mut bytes = std::io::Cursor::new(Vec::new());
        let rgb = DynamicImage::ImageLuma8(grey).into_rgb8();
        rgb.write_to(&mut bytes, ImageFormat::Gif).unwrap();
        assert_eq!(decoded(bytes.get_ref()).unwrap(), rgb);
    }
}
