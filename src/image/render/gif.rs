//! Decodes a GIF's first frame. The decoder is handed the headers anew: it wants a canvas that the
//! frame fits into, colours, and no block that it does not know.

use image_rs::{DynamicImage, ImageFormat, Rgba};

use super::{read, spliced::Spliced};
use crate::image::{
    Error, Picture,
    header::{
        self,
        gif::{self, Gif},
    },
};

/// Decodes the first frame, on its canvas; the decoder is asked to take at most `cost` bytes.
pub(super) fn decode(picture: &Picture, cost: u64) -> Result<DynamicImage, Error> {
    let gif = header::read_bounded(picture.format, &picture.content, gif::read)?;
    // Some files lack the zero that ends the pixels.
    let bytes = Spliced::new(headers(&gif), &picture.content, gif.data_at)?.padded(1);
    Ok(match (read(picture, bytes, ImageFormat::Gif, cost)?, gif.transparent) {
        // Around a frame without transparency the canvas has the first colour, as in Pillow.
        (DynamicImage::ImageRgba8(mut image), None) => {
            let first = Rgba([gif.palette[0], gif.palette[1], gif.palette[2], 255]);
            let around = image.pixels_mut().filter(|pixel| pixel.0[3] == 0);
            around.for_each(|pixel| *pixel = first);
            image.into()
        }
        (image, _) => image,
    })
}

fn headers(gif: &Gif) -> Vec<u8> {
    let sizes =
        |sizes: &[u16]| sizes.iter().flat_map(|size| size.to_le_bytes()).collect::<Vec<_>>();
    let frame = &gif.frame;
    let mut head = b"GIF89a".to_vec();
    head.extend(sizes(&[gif.width, gif.height]));
    head.extend([0xf7, 0, 0]); // a table of 256 colours follows
    head.extend(&gif.palette);
    if let Some(transparent) = gif.transparent {
        head.extend([b'!', 0xf9, 4, 1, 0, 0, transparent, 0]);
    }
    head.push(b',');
    head.extend(sizes(&[frame.left, frame.top, frame.width, frame.height]));
    head.push(if frame.is_interlaced { 0x40 } else { 0 });
    head
}

#[cfg(test)]
mod tests {
    use image_rs::{GrayImage, RgbImage};

    use super::*;
    use crate::image::render::tests::decoded;

    /// Four colours.
    const TABLE: [u8; 12] = [200, 10, 20, 30, 210, 40, 50, 60, 220, 7, 77, 177];
    const A: [u8; 3] = [200, 10, 20];
    const B: [u8; 3] = [30, 210, 40];
    const C: [u8; 3] = [50, 60, 220];
    const D: [u8; 3] = [7, 77, 177];
    const WHITE: [u8; 3] = [255; 3];

    const CLEAR: &[u8] = b"!\xf9\x04\x01\0\0\x01\0";

    /// The screen, with a table of four colours or none.
    fn screen(width: u16, height: u16, table: &[u8]) -> Vec<u8> {
        let flags = if table.is_empty() { 0 } else { 0x81 };
        let sizes = [width.to_le_bytes(), height.to_le_bytes()].concat();
        [b"GIF89a", &sizes[..], &[flags, 0, 0], table].concat()
    }

    /// A frame of colours below four, with a table of its own or none.
    fn frame(place: [u16; 4], table: &[u8], colors: &[u8]) -> Vec<u8> {
        let flags = if table.is_empty() { 0 } else { 0x81 };
        let place: Vec<u8> = place.iter().flat_map(|number| number.to_le_bytes()).collect();
        // Codes of three bits: clear, two colours, and again; so they never grow.
        let mut codes: Vec<u8> = colors.chunks(2).flat_map(|pair| [&[4], pair].concat()).collect();
        codes.push(5);
        let bits: Vec<u8> =
            codes.iter().flat_map(|code| (0..3).map(move |bit| code >> bit & 1)).collect();
        let byte = |bits: &[u8]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | bit);
        let data: Vec<u8> = bits.chunks(8).map(byte).collect();
        [b",", &place[..], &[flags], table, &[2, data.len() as u8], &data, &[0]].concat()
    }

    fn pixels(parts: &[&[u8]]) -> Vec<[u8; 3]> {
        image(parts).pixels().map(|pixel| pixel.0).collect()
    }

    fn image(parts: &[&[u8]]) -> RgbImage {
        decoded(&parts.concat()).unwrap()
    }

    #[test]
    fn colours_come_from_the_frame_or_else_the_screen_or_else_are_grey() {
        let place = [0, 0, 4, 1];
        let own: Vec<u8> = TABLE.iter().rev().copied().collect();
        let (plain, with_own) =
            (frame(place, &[], &[0, 1, 2, 3]), frame(place, &own, &[0, 1, 2, 3]));
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), &plain, b";"]), [A, B, C, D]);
        let expected = [[177, 77, 7], [220, 60, 50], [40, 210, 30], [20, 10, 200]];
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), &with_own, b";"]), expected);
        assert_eq!(pixels(&[&screen(4, 1, &[]), &with_own, b";"]), expected);
        let grey = [[0; 3], [1; 3], [2; 3], [3; 3]];
        assert_eq!(pixels(&[&screen(4, 1, &[]), &plain, b";"]), grey);
        // A table of two colours.
        let mut short = screen(4, 1, &TABLE[..6]);
        short[10] = 0x80;
        assert_eq!(pixels(&[&short, &plain, b";"]), [A, B, [0; 3], [0; 3]]);
    }

    #[test]
    fn the_transparent_colour_is_white() {
        let plain = frame([0, 0, 4, 1], &[], &[0, 1, 2, 3]);
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), CLEAR, &plain]), [A, WHITE, C, D]);
        assert_eq!(pixels(&[&screen(4, 1, &[]), CLEAR, &plain]), [[0; 3], WHITE, [2; 3], [3; 3]]);
    }

    #[test]
    fn a_frame_that_is_smaller_than_its_canvas_stands_on_the_first_colour_or_on_nothing() {
        let small = frame([1, 1, 2, 1], &[], &[2, 3]);
        let expected = [A, A, A, A, A, C, D, A, A, A, A, A];
        assert_eq!(pixels(&[&screen(4, 3, &TABLE), &small]), expected);
        let clear = expected.map(|color| if color == A { WHITE } else { color });
        assert_eq!(pixels(&[&screen(4, 3, &TABLE), CLEAR, &small]), clear);
    }

    #[test]
    fn a_frame_that_leaves_its_canvas_makes_it_larger() {
        let off = frame([1, 1, 2, 1], &[], &[2, 3]);
        for (width, height) in [(0, 0), (2, 1), (3, 1), (3, 2)] {
            let image = image(&[&screen(width, height, &TABLE), &off]);
            assert_eq!(image.dimensions(), (3, 2));
            assert_eq!(image.get_pixel(2, 1).0, D);
        }
    }

    #[test]
    fn what_stands_before_the_frame_is_gone_over_and_what_follows_is_not_read() {
        let plain = frame([0, 0, 4, 1], &[], &[0, 1, 2, 3]);
        for before in [
            &b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"[..],
            b"!\xfe\x05hello\x03you\0",
            b"!\x05\x03abc\0",  // no such extension
            b"!\xf9\x01\x01\0", // cut short
            b"\0\0\0",
        ] {
            let file = [&screen(4, 1, &TABLE), before, &plain];
            assert_eq!(pixels(&file), [A, B, C, D], "{}", before.escape_ascii());
        }
        // Without its end, and with another frame.
        let cut = &plain[..plain.len() - 1];
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), cut]), [A, B, C, D]);
        let next = frame([0, 0, 4, 1], &[], &[3, 3, 3, 3]);
        assert_eq!(pixels(&[&screen(4, 1, &TABLE), &plain, &next, b";"]), [A, B, C, D]);
    }

    #[test]
    fn rows_that_are_interlaced_are_put_in_order() {
        let mut interlaced = frame([0, 0, 1, 5], &[], &[0, 1, 2, 3, 1]);
        interlaced[9] |= 0x40;
        let image = image(&[&screen(1, 5, &TABLE), &interlaced]);
        // Rows 0, 4, 2, 1 and 3.
        assert_eq!(image.pixels().map(|pixel| pixel.0).collect::<Vec<_>>(), [A, D, C, B, B]);
    }

    #[test]
    fn without_a_whole_frame_there_is_no_picture() {
        let plain = frame([0, 0, 4, 1], &[], &[0, 1, 2, 3]);
        let empty = frame([0, 0, 4, 0], &[], &[]);
        let far = frame([65_535, 0, 4, 1], &[], &[0, 1, 2, 3]);
        let short = frame([0, 0, 4, 2], &[], &[0, 1, 2, 3]);
        for parts in [
            &[&b";"[..]][..],
            &[],
            &[CLEAR],
            &[CLEAR, b";", &plain],
            &[&plain[..7]],
            &[&plain[..12]],
            &[&empty],
            &[&far],
            &[&short],
        ] {
            let file = [&screen(4, 1, &TABLE), &parts.concat()[..]].concat();
            assert!(decoded(&file).is_err(), "{}", file.escape_ascii());
        }
        assert!(decoded(&screen(4, 1, &TABLE)[..20]).is_err());
    }

    #[test]
    fn what_the_library_writes_is_read() {
        let grey = GrayImage::from_fn(50, 40, |x, y| [(x * 5) as u8 ^ (y * 3) as u8].into());
        let mut bytes = std::io::Cursor::new(Vec::new());
        let rgb = DynamicImage::ImageLuma8(grey).into_rgb8();
        rgb.write_to(&mut bytes, ImageFormat::Gif).unwrap();
        assert_eq!(decoded(bytes.get_ref()).unwrap(), rgb);
    }
}
