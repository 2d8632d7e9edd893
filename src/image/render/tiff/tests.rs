use image_rs::{ExtendedColorType, RgbImage, codecs::jpeg::JpegEncoder};
use proptest::prelude::*;

use super::*;
use crate::image::{Content, header::tiff::crafted::Crafted, probe};

const BITS_PER_SAMPLE: u16 = 258;
const COMPRESSION: u16 = 259;
const FILL_ORDER: u16 = 266;
const PLANAR_CONFIGURATION: u16 = 284;
const PREDICTOR: u16 = 317;
const COLOR_MAP: u16 = 320;
const TILE_WIDTH: u16 = 322;
const TILE_LENGTH: u16 = 323;
const EXTRA_SAMPLES: u16 = 338;
const SAMPLE_FORMAT: u16 = 339;
const JPEG_TABLES: u16 = 347;

const GREY: u64 = 1;
const RGB: u64 = 2;
const PALETTE: u64 = 3;
const CMYK: u64 = 5;
const YCBCR: u64 = 6;

const LZW: u64 = 5;
const JPEG: u64 = 7;
const DEFLATE: u64 = 8;
const PACKBITS: u64 = 32_773;

fn decoded(file: Vec<u8>) -> Result<RgbImage, Error> {
    decode(&probe(Content::Memory(file.into()), 64_000_000)?)
}

/// The pixels of a picture of one strip.
fn pixels(crafted: &Crafted, strip: &[u8]) -> Vec<[u8; 3]> {
    rgb(&decoded(crafted.file(&[strip])).unwrap())
}

fn rgb(image: &RgbImage) -> Vec<[u8; 3]> {
    image.pixels().map(|pixel| pixel.0).collect()
}

fn grey(values: &[u8]) -> Vec<[u8; 3]> {
    values.iter().map(|value| [*value; 3]).collect()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut stream, bytes).unwrap();
    stream.finish().unwrap()
}

fn lzw(bytes: &[u8]) -> Vec<u8> {
    weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8).encode(bytes).unwrap()
}

#[test]
fn grey_of_every_depth_is_scaled_to_eight_bits() {
    let picture = |photometric, bits, width| Crafted::new((width, 1), photometric, &[bits]);
    for (bits, strip, expected) in [
        (1, &[0b0101_0000][..], &[0, 255, 0, 255][..]),
        (2, &[0b0001_1011], &[0, 85, 170, 255]),
        (4, &[0x0f, 0x17], &[0, 255, 17, 119]),
        (8, &[0, 1, 128, 255], &[0, 1, 128, 255]),
        (16, &[0, 0, 128, 0, 129, 0, 0xff, 0xff], &[0, 0, 1, 255]),
    ] {
        assert_eq!(pixels(&picture(GREY, bits, 4), strip), grey(expected), "{bits}");
        let inverted: Vec<_> = expected.iter().map(|value| 255 - value).collect();
        assert_eq!(pixels(&picture(0, bits, 4), strip), grey(&inverted), "{bits}");
    }
    let big_endian = picture(GREY, 16, 2).big_endian();
    assert_eq!(pixels(&big_endian, &[0x12, 0x34, 0xff, 0]), grey(&[0x12, 0xfe]));
    // Each row begins with a byte of its own.
    let narrow = Crafted::new((3, 2), GREY, &[1]);
    assert_eq!(pixels(&narrow, &[0b1010_0000, 0b0100_0000]), grey(&[255, 0, 255, 0, 255, 0]));
}

#[test]
fn a_strip_whose_length_is_not_told_goes_on_to_the_end_of_the_file() {
    const STRIP_BYTE_COUNTS: u16 = 279;
    let values = [7, 8, 9, 10];
    let picture = Crafted::new((4, 1), GREY, &[8]).with(COMPRESSION, &[DEFLATE]);
    for lengths in [&[0][..], &[]] {
        let picture = picture.clone().with(STRIP_BYTE_COUNTS, lengths);
        assert_eq!(pixels(&picture, &zlib(&values)), grey(&values), "{lengths:?}");
    }
}

#[test]
fn a_palettes_numbers_become_its_colours() {
    let map = |scale: u64| [9, 10, 11, 12, 20, 21, 22, 23, 30, 31, 32, 33].map(|n| n * scale);
    for scale in [256, 257, 1] {
        let picture = Crafted::new((4, 1), PALETTE, &[2]).with(COLOR_MAP, &map(scale));
        let expected = [[9, 20, 30], [12, 23, 33], [10, 21, 31], [11, 22, 32]];
        assert_eq!(pixels(&picture, &[0b0011_0110]), expected, "{scale}");
    }
}

#[test]
fn transparency_lies_on_white() {
    let rgba = |extra: u64| Crafted::new((3, 1), RGB, &[8; 4]).with(EXTRA_SAMPLES, &[extra]);
    let strip = [100, 0, 50, 128, 100, 0, 50, 0, 100, 0, 50, 255];
    let [half, none, all] = [[177, 127, 152], [255; 3], [100, 0, 50]];
    assert_eq!(pixels(&rgba(2), &strip), [half, none, all]);
    assert_eq!(pixels(&rgba(1), &strip), [[227, 127, 177], [255; 3], all], "multiplied before");
    assert_eq!(pixels(&rgba(0), &strip), [all; 3], "something else than transparency");
    let grey_alpha = Crafted::new((2, 1), GREY, &[8, 8]).with(EXTRA_SAMPLES, &[2]);
    assert_eq!(pixels(&grey_alpha, &[100, 255, 100, 0]), grey(&[100, 255]));
    let palette = Crafted::new((2, 1), PALETTE, &[1, 1]).with(EXTRA_SAMPLES, &[2]);
    let palette = palette.with(COLOR_MAP, &[0, 256, 512, 768, 1024, 1280]);
    assert_eq!(pixels(&palette, &[0b1101_0000]), [[1, 3, 5], [0, 2, 4]]);
}

#[test]
fn floating_point_and_inks_become_rgb() {
    let float = Crafted::new((2, 1), RGB, &[32; 3]).with(SAMPLE_FORMAT, &[3; 3]);
    let strip = [0.0, 0.5, 1.0, -1.0, 2.0, f32::NAN].map(f32::to_le_bytes).concat();
    assert_eq!(pixels(&float, &strip), [[0, 128, 255], [0, 255, 0]]);
    let inks = Crafted::new((2, 1), CMYK, &[8; 4]);
    assert_eq!(pixels(&inks, &[0, 128, 255, 0, 0, 0, 0, 128]), [[255, 127, 0], [127; 3]]);
    let deep = Crafted::new((1, 1), CMYK, &[16; 4]);
    assert_eq!(pixels(&deep, &[0, 0, 0xff, 0xff, 0, 0, 0, 0]), [[255, 0, 255]]);
}

#[test]
fn a_predictor_is_undone_beside_samples_that_are_left_out() {
    // image-tiff takes the distance of all samples among those that it keeps.
    let picture = Crafted::new((2, 1), RGB, &[8; 4]).with(EXTRA_SAMPLES, &[0]);
    let picture = picture.with(PREDICTOR, &[2]);
    let strip = [10, 20, 30, 99, 1, 2, 253, 7];
    for (compression, strip) in [(DEFLATE, zlib(&strip)), (LZW, lzw(&strip))] {
        let picture = picture.clone().with(COMPRESSION, &[compression]);
        assert_eq!(pixels(&picture, &strip), [[10, 20, 30], [11, 22, 27]]);
    }
    // What is not compressed so has no predictor, whatever the tag says.
    assert_eq!(pixels(&picture, &strip), [[10, 20, 30], [1, 2, 253]]);
}

#[test]
fn predictors_of_wide_samples_follow_the_files_order_of_bytes() {
    let deep = Crafted::new((3, 1), GREY, &[16]).with(PREDICTOR, &[2]);
    let deep = deep.with(COMPRESSION, &[DEFLATE]);
    let (first, carried) = (0x12ff_u16, 2_u16); // 0x1301
    for (picture, strip) in [
        (deep.clone(), [first, carried, 0xff00].map(u16::to_le_bytes).concat()),
        (deep.big_endian(), [first, carried, 0xff00].map(u16::to_be_bytes).concat()),
    ] {
        assert_eq!(pixels(&picture, &zlib(&strip)), grey(&[0x13, 0x13, 0x12]));
    }
    let float = Crafted::new((2, 1), RGB, &[32; 3]).with(SAMPLE_FORMAT, &[3; 3]);
    let float = float.with(COMPRESSION, &[DEFLATE]).with(PREDICTOR, &[3]);
    let samples = [0.0_f32, 0.25, 1.0, 1.0, 0.5, 0.75];
    let mut strip: Vec<u8> =
        (0..4).flat_map(|byte| samples.map(|sample| sample.to_be_bytes()[byte])).collect();
    for at in (3..strip.len()).rev() {
        strip[at] = strip[at].wrapping_sub(strip[at - 3]);
    }
    for picture in [float.clone(), float.big_endian()] {
        assert_eq!(pixels(&picture, &zlib(&strip)), [[0, 64, 255], [255, 128, 191]]);
    }
}

#[test]
fn bits_that_lie_the_other_way_round_are_turned_whatever_compresses_them() {
    let rows = [0b1100_0000, 0b0101_0000];
    for (compression, strip) in [
        (1, rows.to_vec()),
        (LZW, lzw(&rows)),
        (DEFLATE, zlib(&rows)),
        (PACKBITS, vec![1, rows[0], rows[1]]),
    ] {
        let picture = Crafted::new((4, 2), GREY, &[1]).with(COMPRESSION, &[compression]);
        let expected = grey(&[255, 255, 0, 0, 0, 255, 0, 255]);
        assert_eq!(pixels(&picture, &strip), expected);
        let reversed: Vec<u8> = strip.iter().map(|byte| byte.reverse_bits()).collect();
        assert_eq!(pixels(&picture.with(FILL_ORDER, &[2]), &reversed), expected, "{compression}");
    }
}

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

/// Four bytes a pixel that are different everywhere.
fn sample(x: u32, y: u32, channel: u32) -> u8 {
    (x * 7 + y * 13 + channel * 50) as u8
}

#[test]
fn tiles_and_planes_fall_into_place_also_where_they_do_not_fill_the_picture() {
    const SIZE: (u32, u32) = (21, 19);
    let expected =
        RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| [0, 1, 2].map(|c| sample(x, y, c)).into());
    // Beyond the picture there is anything.
    let tile = |left: u32, top: u32, channels: std::ops::Range<u32>| -> Vec<u8> {
        let places = (top..top + 16).flat_map(|y| (left..left + 16).map(move |x| (x, y)));
        places.flat_map(|(x, y)| channels.clone().map(move |c| sample(x, y, c))).collect()
    };
    let corners = [(0, 0), (16, 0), (0, 16), (16, 16)];
    let together: Vec<_> = corners.iter().map(|(x, y)| tile(*x, *y, 0..4)).collect();
    let planes = (0..4).flat_map(|c| corners.map(|(x, y)| tile(x, y, c..c + 1)));
    let planes: Vec<_> = planes.collect();
    let tiled = Crafted::new((SIZE.0.into(), SIZE.1.into()), RGB, &[8; 4]);
    let tiled = tiled.with(EXTRA_SAMPLES, &[0]).with(TILE_WIDTH, &[16]).with(TILE_LENGTH, &[16]);
    for (picture, chunks) in
        [(tiled.clone(), together), (tiled.with(PLANAR_CONFIGURATION, &[2]), planes)]
    {
        for compression in [1, DEFLATE] {
            let chunks: Vec<_> = chunks
                .iter()
                .map(|chunk| if compression == 1 { chunk.clone() } else { zlib(chunk) })
                .collect();
            let chunks: Vec<_> = chunks.iter().map(Vec::as_slice).collect();
            let file = picture.clone().with(COMPRESSION, &[compression]).file(&chunks);
            assert_eq!(rgb(&decoded(file).unwrap()), rgb(&expected));
        }
    }
}

#[test]
fn planes_of_every_colour_are_put_together() {
    let inks = Crafted::new((2, 1), CMYK, &[8; 4]).with(PLANAR_CONFIGURATION, &[2]);
    let planes = [&[0, 0][..], &[128, 0], &[255, 0], &[0, 128]];
    assert_eq!(rgb(&decoded(inks.file(&planes)).unwrap()), [[255, 127, 0], [127; 3]]);
    let grey_alpha = Crafted::new((2, 1), GREY, &[8; 2]).with(EXTRA_SAMPLES, &[2]);
    let grey_alpha = grey_alpha.with(PLANAR_CONFIGURATION, &[2]);
    let planes = [&[100, 100][..], &[255, 0]];
    assert_eq!(rgb(&decoded(grey_alpha.file(&planes)).unwrap()), grey(&[100, 255]));
}

/// A photograph's colours, which change slowly, and its JPEG.
fn jpeg(size: (u32, u32), channels: u32) -> (Vec<u8>, Vec<u8>) {
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

#[test]
fn what_is_cut_short_is_broken() {
    let picture = Crafted::new((16, 16), RGB, &[8; 3]);
    let values: Vec<u8> = (0..16 * 16 * 3).map(|n| (n * n / 5) as u8).collect();
    for (compression, strip) in [(LZW, lzw(&values)), (DEFLATE, zlib(&values))] {
        let picture = picture.clone().with(COMPRESSION, &[compression]);
        assert!(decoded(picture.file(&[&strip])).is_ok());
        let result = decoded(picture.file(&[&strip[..strip.len() / 2]]));
        assert!(matches!(result, Err(Error::Broken { .. })), "{result:?}");
    }
    // Not compressed, it stands before the directory here; at the end of a file it is cut.
    let mut file = picture.with(273, &[4000]).file(&[&values]);
    file.resize(4000, 0);
    file.extend(&values[..700]);
    assert!(matches!(decoded(file), Err(Error::Broken { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        kind in 0..8_usize,
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8),
    ) {
        let values: Vec<u8> = (0..20 * 10 * 3).map(|n| (n * n / 5) as u8).collect();
        let rgb = Crafted::new((20, 10), RGB, &[8; 3]);
        let deflated = rgb.clone().with(COMPRESSION, &[DEFLATE]).with(PREDICTOR, &[2]);
        let mut file = match kind {
            0 => rgb.file(&[&values]),
            1 => deflated.file(&[&zlib(&values)]),
            2 => rgb.with(COMPRESSION, &[LZW]).file(&[&lzw(&values)]),
            3 => rgb.with(COMPRESSION, &[JPEG]).file(&[&jpeg((20, 10), 3).1]),
            4 => rgb.with(PLANAR_CONFIGURATION, &[2]).file(&[&values[..200]; 3]),
            5 => {
                let palette = Crafted::new((20, 10), PALETTE, &[4]).with(COLOR_MAP, &[7; 48]);
                palette.with(COMPRESSION, &[PACKBITS]).file(&[&values])
            }
            6 => rgb.with(TILE_WIDTH, &[16]).with(TILE_LENGTH, &[16]).file(&[&values[..]; 2]),
            _ => {
                let fax = Crafted::new((20, 10), GREY, &[1]).with(BITS_PER_SAMPLE, &[1]);
                fax.with(COMPRESSION, &[4]).file(&[&values])
            }
        };
        for (at, value) in changes {
            let at = usize::from(at) % file.len();
            file[at] = value;
        }
        if let Ok(picture) = probe(Content::Memory(file.into()), 10_000) {
            let _ = decode(&picture);
        }
    }
}
