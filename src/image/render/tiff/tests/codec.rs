//! Tests of the compressions of strips and tiles.

use std::io::Seek;

use image_rs::{ExtendedColorType, codecs::jpeg::JpegEncoder};

use super::*;
use crate::image::render::tiff::codec::rows;

#[test]
fn packbits_runs_may_continue_in_the_next_row_but_must_not_be_truncated() {
    let picture = Crafted::new((3, 2), GREY, &[8]).with(COMPRESSION, &[PACKBITS]);
    // 128 has no effect, `253, 7` is four times 7, and `1, 8, 9` is the two bytes 8 and 9.
    assert_eq!(pixels(&picture, &[128, 253, 7, 1, 8, 9]), grey(&[7, 7, 7, 7, 8, 9]));
    let truncated = picture.file(&[&[253, 7, 1, 8]]);
    assert!(decoded(truncated).is_err());
}

#[test]
fn lzw_from_before_tiff_5_and_lzw_since_tiff_5_are_decoded() {
    let values: Vec<u8> = (0..2000_u32).map(|n| (n * n / 7) as u8).collect();
    let before_5 = weezl::encode::Encoder::new(weezl::BitOrder::Lsb, 8).encode(&values).unwrap();
    let picture = Crafted::new((100, 20), GREY, &[8]).with(COMPRESSION, &[LZW]);
    assert_eq!(pixels(&picture, &before_5), grey(&values));
    assert_eq!(pixels(&picture, &lzw(&values)), grey(&values));
}

#[test]
fn an_lzw_code_may_stand_for_more_than_a_row() {
    // In a picture of one colour, the codes stand for the most pixels.
    for width in 1..40 {
        for height in [1, 7, 64, 200] {
            let picture = Crafted::new((width, height), GREY, &[8]).with(COMPRESSION, &[LZW]);
            let values = vec![7; (width * height) as usize];
            assert_eq!(pixels(&picture, &lzw(&values)), grey(&values), "{width} × {height}");
        }
    }
}

/// Packs a string of zeros and ones into bytes, and ignores spaces.
fn bits(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.bytes().filter(|byte| *byte != b' ').collect();
    // The first digit is the highest bit.
    let pack =
        |digits: &[u8]| (0..).zip(digits).fold(0, |byte, (n, digit)| byte | (digit & 1) << (7 - n));
    digits.chunks(8).map(pack).collect()
}

#[test]
fn fax_is_decoded_unless_a_group_3_row_is_too_short_or_group_4_has_no_rows() {
    const END_OF_ROW: &str = "000000000001";
    let fax = |compression: u64, photometric| {
        Crafted::new((8, 3), photometric, &[1]).with(COMPRESSION, &[compression])
    };
    // The first and the last row have four white (1011), three black (10) and one white pixel (000111).
    // The second row has eight white pixels.
    let (row, white_row) = ("1011 10 000111", "10011");
    let group_3 = [END_OF_ROW, row, END_OF_ROW, white_row, END_OF_ROW, row].concat();
    // The modes: 001 is horizontal, with two runs after it, 1 is vertical, and 0001 is pass.
    let group_4_row = "001 1011 10 1";
    let group_4 = [group_4_row, "0001 1", group_4_row].concat();
    let row_pixels = [255, 255, 255, 255, 0, 0, 0, 255];
    let expected = [row_pixels, [255; 8], row_pixels].concat();
    for (compression, strip) in [(GROUP_3, bits(&group_3)), (GROUP_4, bits(&group_4))] {
        let white_is_zero = fax(compression, WHITE_IS_ZERO);
        assert_eq!(pixels(&white_is_zero, &strip), grey(&expected), "{compression}");
        let inverted: Vec<_> = expected.iter().map(|value| 255 - value).collect();
        let black_is_zero = fax(compression, GREY);
        assert_eq!(pixels(&black_is_zero, &strip), grey(&inverted), "{compression}");
        let reversed: Vec<u8> = strip.iter().map(|byte| byte.reverse_bits()).collect();
        let picture = white_is_zero.with(FILL_ORDER, &[REVERSED_BITS]);
        assert_eq!(pixels(&picture, &reversed), grey(&expected), "{compression} reversed");
    }
    let fax_3 = fax(GROUP_3, WHITE_IS_ZERO);
    // The data end within the first row.
    assert!(decoded(fax_3.file(&[&bits(&group_3)[..2]])).is_err());
    // A row ends early, at the code for the end of a row or at an invalid code.
    for short_row in ["1011", "1011 00000000111"] {
        let strip = [END_OF_ROW, row, END_OF_ROW, short_row, END_OF_ROW, row, END_OF_ROW].concat();
        assert!(decoded(fax_3.file(&[&bits(&strip)])).is_err(), "{short_row}");
    }
    // In Group 4, two codes for the end of a row end the fax. The missing rows are then white, as in
    // libtiff. A fax without rows is refused.
    let end_of_fax = END_OF_ROW.repeat(2);
    let fax_4 = fax(GROUP_4, WHITE_IS_ZERO);
    let one_row = bits(&format!("{group_4_row} {end_of_fax}"));
    let expected = [&row_pixels[..], &[255; 16]].concat();
    assert_eq!(pixels(&fax_4, &one_row), grey(&expected));
    assert!(decoded(fax_4.file(&[&bits(&end_of_fax)])).is_err());
}

/// The samples of a picture whose colours change gradually, and the picture's JPEG.
pub(super) fn samples_and_jpeg(size: (u32, u32), channels: u32) -> (Vec<u8>, Vec<u8>) {
    let positions = (0..size.1).flat_map(|y| (0..size.0).map(move |x| (x, y)));
    let values: Vec<u8> = positions
        .flat_map(|(x, y)| (0..channels).map(move |c| (x * 3 + y * 2 + c * 40) as u8))
        .collect();
    let mut jpeg = Vec::new();
    let color = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    JpegEncoder::new_with_quality(&mut jpeg, 100).encode(&values, size.0, size.1, color).unwrap();
    (values, jpeg)
}

/// Splits a JPEG into a JPEG with its tables and a JPEG with the rest, as programs that write TIFF do.
fn split_tables(jpeg: &[u8]) -> (Vec<u8>, Vec<u8>) {
    const START_OF_IMAGE: &[u8] = b"\xff\xd8";
    const END_OF_IMAGE: &[u8] = b"\xff\xd9";
    const DHT: u8 = 0xc4;
    const DQT: u8 = 0xdb;
    const SOS: u8 = 0xda;
    let (mut tables, mut rest) = (START_OF_IMAGE.to_vec(), START_OF_IMAGE.to_vec());
    let mut at = START_OF_IMAGE.len();
    loop {
        let len = 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        match jpeg[at + 1] {
            SOS => break,
            DHT | DQT => tables.extend(&jpeg[at..at + len]),
            _ => rest.extend(&jpeg[at..at + len]),
        }
        at += len;
    }
    tables.extend(END_OF_IMAGE);
    rest.extend(&jpeg[at..]);
    (tables, rest)
}

/// Asserts that the samples are equal, except for what JPEG changes at quality 100.
fn assert_close(actual: &RgbImage, expected: &[u8]) {
    assert_eq!(actual.len(), expected.len());
    let largest_difference = actual.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(largest_difference <= Some(4), "{largest_difference:?}");
}

#[test]
fn an_embedded_jpeg_uses_the_colours_and_tables_of_the_tags_and_ignores_their_fill_order() {
    const SIZE: (u32, u32) = (40, 24);
    let (values, jpeg) = samples_and_jpeg(SIZE, 3);
    let picture_with = |photometric| {
        Crafted::new((SIZE.0.into(), SIZE.1.into()), photometric, &[8; 3])
            .with(COMPRESSION, &[JPEG])
    };
    let image = decoded(picture_with(YCBCR).file(&[&jpeg])).unwrap();
    assert_close(&image, &values);
    let (tables, rest) = split_tables(&jpeg);
    let tables: Vec<u64> = tables.into_iter().map(u64::from).collect();
    let with_separate_tables = picture_with(YCBCR).with(JPEG_TABLES, &tables).file(&[&rest]);
    assert_eq!(decoded(with_separate_tables).unwrap(), image);
    // If the tags say RGB, the JPEG's luminance is decoded as red.
    let as_rgb = decoded(picture_with(RGB).file(&[&jpeg])).unwrap();
    let [red, green, blue] = [0, 1, 2].map(|channel| f64::from(values[channel]));
    let luminance = 0.299 * red + 0.587 * green + 0.114 * blue;
    assert!((f64::from(as_rgb.get_pixel(0, 0)[0]) - luminance).abs() < 4.0);
    // FillOrder does not apply to JPEG.
    let with_fill_order = picture_with(YCBCR).with(FILL_ORDER, &[REVERSED_BITS]).file(&[&jpeg]);
    assert_eq!(decoded(with_fill_order).unwrap(), image);
}

#[test]
fn an_embedded_jpeg_is_read_up_to_the_end_of_its_strip_with_and_without_separate_tables() {
    const SIZE: (u32, u32) = (40, 24);
    let (_, jpeg) = samples_and_jpeg(SIZE, 3);
    let (tables, rest) = split_tables(&jpeg);
    for (tables, strip) in [(tables, rest), (Vec::new(), jpeg)] {
        let picture = Crafted::new((SIZE.0.into(), SIZE.1.into()), YCBCR, &[8; 3]);
        let file = picture.with(COMPRESSION, &[JPEG]).file(&[&strip]);
        let content = Content::Memory(file.into());
        let tiff = tiff::read(&mut content.header_reader()).unwrap();
        let (columns, rows_of_strip) = SIZE;
        let (offset, len) = (16, strip.len() as u64); // a crafted file has its first strip there
        let chunk = Chunk { plane: 0, x: 0, y: 0, columns, rows: rows_of_strip, offset, len };
        let mut reader = content.reader();
        // `rows` decodes the whole JPEG before it returns.
        drop(rows(&tiff, &tables, &chunk, &mut reader).unwrap());
        assert_eq!(reader.stream_position().unwrap(), offset + len);
    }
}

#[test]
fn an_embedded_jpeg_whose_size_or_number_of_channels_differs_from_the_tags_is_refused() {
    let grey_picture = |size| Crafted::new(size, GREY, &[8]).with(COMPRESSION, &[JPEG]);
    let (values, jpeg) = samples_and_jpeg((40, 24), 1);
    let values: Vec<u8> = values.iter().flat_map(|value| [*value; 3]).collect();
    assert_close(&decoded(grey_picture((40, 24)).file(&[&jpeg])).unwrap(), &values);
    // The JPEG of the last strip may be as high as the other JPEGs, and extend beyond the picture.
    let two_strips = grey_picture((40, 40)).with(ROWS_PER_STRIP, &[24]).file(&[&jpeg, &jpeg]);
    let image = decoded(two_strips).unwrap();
    assert_close(&image, &[&values[..], &values[..40 * 16 * 3]].concat());
    // The JPEG of a picture's only strip must have the picture's size.
    for size in [(41, 24), (39, 24), (40, 25), (40, 23)] {
        assert!(decoded(grey_picture(size).file(&[&jpeg])).is_err(), "{size:?}");
    }
    let rgb = Crafted::new((40, 24), RGB, &[8; 3]).with(COMPRESSION, &[JPEG]);
    assert!(decoded(rgb.file(&[&jpeg])).is_err());
}
