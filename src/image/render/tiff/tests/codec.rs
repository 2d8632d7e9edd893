//! What strips and tiles are compressed with.

use image_rs::{ExtendedColorType, codecs::jpeg::JpegEncoder};

use super::*;

#[test]
fn packbits_are_unpacked_across_rows() {
    let picture = Crafted::new((3, 2), GREY, &[8]).with(COMPRESSION, &[PACKBITS]);
    // Nothing, four times 7, and two that are not repeated.
    assert_eq!(pixels(&picture, &[128, 253, 7, 1, 8, 9]), grey(&[7, 7, 7, 7, 8, 9]));
    assert!(decoded(picture.file(&[&[253, 7, 1, 8]])).is_err(), "cut short");
}

#[test]
fn lzw_of_before_tiff_5_is_told_by_its_first_code() {
    let values: Vec<u8> = (0..2000_u32).map(|n| (n * n / 7) as u8).collect();
    let old = weezl::encode::Encoder::new(weezl::BitOrder::Lsb, 8).encode(&values).unwrap();
    let picture = Crafted::new((100, 20), GREY, &[8]).with(COMPRESSION, &[LZW]);
    assert_eq!(pixels(&picture, &old), grey(&values));
    assert_eq!(pixels(&picture, &lzw(&values)), grey(&values));
}

#[test]
fn lzw_words_may_be_longer_than_a_row() {
    // The longest are those of a flat picture.
    for width in 1..40 {
        for height in [1, 7, 64, 200] {
            let picture = Crafted::new((width, height), GREY, &[8]).with(COMPRESSION, &[LZW]);
            let values = vec![7; (width * height) as usize];
            assert_eq!(pixels(&picture, &lzw(&values)), grey(&values), "{width} × {height}");
        }
    }
}

/// Bits as a string has them.
fn bits(text: &str) -> Vec<u8> {
    let bits: Vec<_> = text.bytes().filter(|byte| *byte != b' ').collect();
    let byte = |some: &[u8]| (0..).zip(some).fold(0, |byte, (n, bit)| byte | (bit & 1) << (7 - n));
    bits.chunks(8).map(byte).collect()
}

#[test]
fn faxes_are_decoded_to_black_and_white() {
    const END_OF_ROW: &str = "000000000001";
    let fax = |compression: u64, photometric| {
        Crafted::new((8, 3), photometric, &[1]).with(COMPRESSION, &[compression])
    };
    // Four white, three black and one white; all white; the first again.
    let (row, blank) = ("1011 10 000111", "10011");
    let group_3 = [END_OF_ROW, row, END_OF_ROW, blank, END_OF_ROW, row].concat();
    // Horizontal; up to the end of a row unlike the one above: pass and vertical; horizontal.
    let group_4 = format!("001 {} {} 1  0001 1  001 {} {} 1", "1011", "10", "1011", "10");
    let first = [255, 255, 255, 255, 0, 0, 0, 255];
    let expected = [first, [255; 8], first].concat();
    for (compression, strip) in [(3, bits(&group_3)), (4, bits(&group_4))] {
        assert_eq!(pixels(&fax(compression, 0), &strip), grey(&expected), "{compression}");
        let inverted: Vec<_> = expected.iter().map(|value| 255 - value).collect();
        assert_eq!(pixels(&fax(compression, 1), &strip), grey(&inverted), "{compression}");
        let reversed: Vec<u8> = strip.iter().map(|byte| byte.reverse_bits()).collect();
        let picture = fax(compression, 0).with(FILL_ORDER, &[2]);
        assert_eq!(pixels(&picture, &reversed), grey(&expected), "{compression}");
    }
    assert!(decoded(fax(3, 0).file(&[&bits(&group_3)[..2]])).is_err(), "cut short");
    // A row that ends early, by the end of a row or by a code that is none, is not made up.
    for damaged in ["1011", "1011 00000000111"] {
        let strip = [END_OF_ROW, row, END_OF_ROW, damaged, END_OF_ROW, row, END_OF_ROW].concat();
        assert!(decoded(fax(3, 0).file(&[&bits(&strip)])).is_err(), "{damaged}");
    }
    // Where Group 4 ends early, the rest is white, as with libtiff; but a fax of no rows is none.
    let early = bits(&format!("001 1011 10 1 {END_OF_ROW}{END_OF_ROW}"));
    let expected = [&first[..], &[255; 16]].concat();
    assert_eq!(pixels(&fax(4, 0), &early), grey(&expected));
    assert!(decoded(fax(4, 0).file(&[&bits(&END_OF_ROW.repeat(2))])).is_err());
}

/// A photograph's colours, which change slowly, and its JPEG.
pub(super) fn jpeg(size: (u32, u32), channels: u32) -> (Vec<u8>, Vec<u8>) {
    let places = (0..size.1).flat_map(|y| (0..size.0).map(move |x| (x, y)));
    let values: Vec<u8> = places
        .flat_map(|(x, y)| (0..channels).map(move |c| (x * 3 + y * 2 + c * 40) as u8))
        .collect();
    let mut jpeg = Vec::new();
    let color = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    JpegEncoder::new_with_quality(&mut jpeg, 100).encode(&values, size.0, size.1, color).unwrap();
    (values, jpeg)
}

/// Parts a JPEG from its tables, as TIFF's writers do.
fn without_tables(jpeg: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut tables, mut rest, mut at) = (b"\xff\xd8".to_vec(), b"\xff\xd8".to_vec(), 2);
    loop {
        let len = 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        match jpeg[at + 1] {
            0xda => break,
            0xdb | 0xc4 => tables.extend(&jpeg[at..at + len]),
            _ => rest.extend(&jpeg[at..at + len]),
        }
        at += len;
    }
    tables.extend(b"\xff\xd9");
    rest.extend(&jpeg[at..]);
    (tables, rest)
}

fn assert_close(found: &RgbImage, expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    let most = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(most <= Some(4), "{most:?}");
}

#[test]
fn a_jpeg_inside_has_the_colours_that_the_tags_say() {
    const SIZE: (u32, u32) = (40, 24);
    let (values, jpeg) = jpeg(SIZE, 3);
    let picture =
        |photometric| Crafted::new((40, 24), photometric, &[8; 3]).with(COMPRESSION, &[JPEG]);
    let plain = decoded(picture(YCBCR).file(&[&jpeg])).unwrap();
    assert_close(&plain, &values);
    let (tables, rest) = without_tables(&jpeg);
    let tables: Vec<u64> = tables.into_iter().map(u64::from).collect();
    let parted = picture(YCBCR).with(JPEG_TABLES, &tables).file(&[&rest]);
    assert_eq!(decoded(parted).unwrap(), plain);
    // The same bytes as RGB are the luminance and two differences.
    let stored = decoded(picture(RGB).file(&[&jpeg])).unwrap();
    let [red, green, blue] = [0, 1, 2].map(|channel| f64::from(values[channel]));
    let luminance = 0.299 * red + 0.587 * green + 0.114 * blue;
    assert!((f64::from(stored.get_pixel(0, 0)[0]) - luminance).abs() < 4.0);
    // Bits in another order are none of a JPEG's business.
    let reversed = picture(YCBCR).with(FILL_ORDER, &[2]).file(&[&jpeg]);
    assert_eq!(decoded(reversed).unwrap(), plain);
}

#[test]
fn a_jpeg_inside_of_another_size_is_refused() {
    let grey = |size| Crafted::new(size, GREY, &[8]).with(COMPRESSION, &[JPEG]);
    let (values, jpeg) = jpeg((40, 24), 1);
    let values: Vec<u8> = values.iter().flat_map(|value| [*value; 3]).collect();
    assert_close(&decoded(grey((40, 24)).file(&[&jpeg])).unwrap(), &values);
    // The last strip may be as high as the others.
    let last = grey((40, 40)).with(278, &[24]).file(&[&jpeg, &jpeg]);
    let last = decoded(last).unwrap();
    assert_close(&last, &[&values[..], &values[..40 * 16 * 3]].concat());
    for size in [(41, 24), (39, 24), (40, 25), (40, 23)] {
        assert!(decoded(grey(size).file(&[&jpeg])).is_err(), "{size:?}");
    }
    let three = Crafted::new((40, 24), RGB, &[8; 3]).with(COMPRESSION, &[JPEG]);
    assert!(decoded(three.file(&[&jpeg])).is_err());
}
