//! Tests of decoding TIFF. `codec` tests the compressions themselves.

use image_rs::RgbImage;
use proptest::prelude::*;

use self::codec::samples_and_jpeg;
use super::*;
use crate::image::{
    Content,
    header::tiff::{
        COLOR_MAP, COMPRESSION, EXTRA_SAMPLES, FILL_ORDER, JPEG_TABLES, PLANAR_CONFIGURATION,
        PREDICTOR, ROWS_PER_STRIP, SAMPLE_FORMAT, STRIP_BYTE_COUNTS, STRIP_OFFSETS, TILE_LENGTH,
        TILE_WIDTH, crafted::Crafted,
    },
    probe,
};

mod codec;

// Values of PhotometricInterpretation.
const WHITE_IS_ZERO: u64 = 0;
const GREY: u64 = 1;
const RGB: u64 = 2;
const PALETTE: u64 = 3;
const CMYK: u64 = 5;
const YCBCR: u64 = 6;

// Values of Compression.
const UNCOMPRESSED: u64 = 1;
const GROUP_3: u64 = 3;
const GROUP_4: u64 = 4;
const LZW: u64 = 5;
const JPEG: u64 = 7;
const DEFLATE: u64 = 8;
const PACKBITS: u64 = 32_773;

// Values of ExtraSamples.
const NO_ALPHA: u64 = 0;
const PREMULTIPLIED_ALPHA: u64 = 1;
const ALPHA: u64 = 2;

// Values of other tags.
/// Predictor: each sample is the difference from the pixel to the left.
const DIFFERENCE: u64 = 2;
/// Predictor: the bytes of floating-point numbers are grouped by their significance. Each byte is the
/// difference from the pixel to the left.
const FLOAT_DIFFERENCE: u64 = 3;
/// SampleFormat: floating-point numbers.
const FLOAT: u64 = 3;
/// PlanarConfiguration: each sample has a plane of its own.
const SEPARATE_PLANES: u64 = 2;
/// FillOrder: the first pixel of a byte is in its lowest bit.
const REVERSED_BITS: u64 = 2;

fn decoded(file: Vec<u8>) -> Result<RgbImage, Error> {
    let max_pixels = 64_000_000;
    decode(&probe(Content::Memory(file.into()), max_pixels)?)
}

/// Decodes a file that contains this one strip, and returns the pixels.
fn pixels(crafted: &Crafted, strip: &[u8]) -> Vec<[u8; 3]> {
    rgb(&decoded(crafted.file(&[strip])).unwrap())
}

/// The pixels of an image, row by row.
fn rgb(image: &RgbImage) -> Vec<[u8; 3]> {
    image.pixels().map(|pixel| pixel.0).collect()
}

/// Grey pixels with these values.
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
        // Little-endian: 0, 128, 129 and 65,535. They are divided by 257 and rounded.
        (16, &[0, 0, 128, 0, 129, 0, 0xff, 0xff], &[0, 0, 1, 255]),
    ] {
        assert_eq!(pixels(&picture(GREY, bits, 4), strip), grey(expected), "{bits}");
        let inverted: Vec<_> = expected.iter().map(|value| 255 - value).collect();
        assert_eq!(
            pixels(&picture(WHITE_IS_ZERO, bits, 4), strip),
            grey(&inverted),
            "{bits} inverted"
        );
    }
    let big_endian = picture(GREY, 16, 2).big_endian();
    assert_eq!(pixels(&big_endian, &[0x12, 0x34, 0xff, 0]), grey(&[0x12, 0xfe]));
    // Each row begins at a new byte.
    let narrow = Crafted::new((3, 2), GREY, &[1]);
    assert_eq!(pixels(&narrow, &[0b1010_0000, 0b0100_0000]), grey(&[255, 0, 255, 0, 255, 0]));
}

#[test]
fn a_strip_without_a_length_is_read_to_the_end_of_the_file() {
    let values = [7, 8, 9, 10];
    let picture = Crafted::new((4, 1), GREY, &[8]).with(COMPRESSION, &[DEFLATE]);
    // The length is 0, or the tag is missing.
    for lengths in [&[0][..], &[]] {
        let picture = picture.clone().with(STRIP_BYTE_COUNTS, lengths);
        assert_eq!(pixels(&picture, &zlib(&values)), grey(&values), "{lengths:?}");
    }
}

#[test]
fn palette_indices_become_the_colours_of_the_palette() {
    // A palette has 16-bit values. Programs multiply 8-bit values by 256 or 257, or wrongly by 1.
    let map = |scale: u64| [9, 10, 11, 12, 20, 21, 22, 23, 30, 31, 32, 33].map(|n| n * scale);
    for scale in [256, 257, 1] {
        let picture = Crafted::new((4, 1), PALETTE, &[2]).with(COLOR_MAP, &map(scale));
        let expected = [[9, 20, 30], [12, 23, 33], [10, 21, 31], [11, 22, 32]];
        assert_eq!(pixels(&picture, &[0b0011_0110]), expected, "{scale}");
    }
}

#[test]
fn alpha_is_blended_with_white_and_other_extra_samples_are_ignored() {
    let rgba = |extra: u64| Crafted::new((3, 1), RGB, &[8; 4]).with(EXTRA_SAMPLES, &[extra]);
    let strip = [100, 0, 50, 128, 100, 0, 50, 0, 100, 0, 50, 255];
    let (white, opaque) = ([255; 3], [100, 0, 50]);
    assert_eq!(pixels(&rgba(ALPHA), &strip), [[177, 127, 152], white, opaque]);
    assert_eq!(pixels(&rgba(PREMULTIPLIED_ALPHA), &strip), [[227, 127, 177], white, opaque]);
    assert_eq!(pixels(&rgba(NO_ALPHA), &strip), [opaque; 3]);
    let grey_alpha = Crafted::new((2, 1), GREY, &[8, 8]).with(EXTRA_SAMPLES, &[ALPHA]);
    assert_eq!(pixels(&grey_alpha, &[100, 255, 100, 0]), grey(&[100, 255]));
    let palette = Crafted::new((2, 1), PALETTE, &[1, 1]).with(EXTRA_SAMPLES, &[ALPHA]);
    let palette = palette.with(COLOR_MAP, &[0, 256, 512, 768, 1024, 1280]);
    // Two bits for each pixel: its index, and its alpha.
    assert_eq!(pixels(&palette, &[0b1101_0000]), [[1, 3, 5], [0, 2, 4]]);
}

#[test]
fn floating_point_numbers_and_cmyk_are_converted_to_rgb() {
    let float = Crafted::new((2, 1), RGB, &[32; 3]).with(SAMPLE_FORMAT, &[FLOAT; 3]);
    let strip = [0.0, 0.5, 1.0, -1.0, 2.0, f32::NAN].map(f32::to_le_bytes).concat();
    assert_eq!(pixels(&float, &strip), [[0, 128, 255], [0, 255, 0]]);
    let cmyk = Crafted::new((2, 1), CMYK, &[8; 4]);
    assert_eq!(pixels(&cmyk, &[0, 128, 255, 0, 0, 0, 0, 128]), [[255, 127, 0], [127; 3]]);
    let cmyk_of_16_bits = Crafted::new((1, 1), CMYK, &[16; 4]);
    assert_eq!(pixels(&cmyk_of_16_bits, &[0, 0, 0xff, 0xff, 0, 0, 0, 0]), [[255, 0, 255]]);
}

#[test]
fn a_predictor_is_undone_even_if_pixels_have_extra_samples() {
    let picture = Crafted::new((2, 1), RGB, &[8; 4]).with(EXTRA_SAMPLES, &[NO_ALPHA]);
    let picture = picture.with(PREDICTOR, &[DIFFERENCE]);
    let strip = [10, 20, 30, 99, 1, 2, 253, 7];
    for (compression, strip) in [(DEFLATE, zlib(&strip)), (LZW, lzw(&strip))] {
        let picture = picture.clone().with(COMPRESSION, &[compression]);
        assert_eq!(pixels(&picture, &strip), [[10, 20, 30], [11, 22, 27]]);
    }
    // Predictors exist for LZW and Deflate only, so the tag is ignored without compression.
    assert_eq!(pixels(&picture, &strip), [[10, 20, 30], [1, 2, 253]]);
}

#[test]
fn predictors_are_undone_for_samples_of_several_bytes_in_both_byte_orders() {
    let grey_16 = Crafted::new((3, 1), GREY, &[16]).with(PREDICTOR, &[DIFFERENCE]);
    let grey_16 = grey_16.with(COMPRESSION, &[DEFLATE]);
    // The sums are 0x12ff, 0x1301 (with a carry) and 0x1201. Divided by 257, they are 18.9, 18.9 and 17.9.
    let differences = [0x12ff_u16, 2, 0xff00];
    for (picture, strip) in [
        (grey_16.clone(), differences.map(u16::to_le_bytes).concat()),
        (grey_16.big_endian(), differences.map(u16::to_be_bytes).concat()),
    ] {
        assert_eq!(pixels(&picture, &zlib(&strip)), grey(&[19, 19, 18]));
    }
    let float = Crafted::new((2, 1), RGB, &[32; 3]).with(SAMPLE_FORMAT, &[FLOAT; 3]);
    let float = float.with(COMPRESSION, &[DEFLATE]).with(PREDICTOR, &[FLOAT_DIFFERENCE]);
    let samples = [0.0_f32, 0.25, 1.0, 1.0, 0.5, 0.75];
    // The most significant byte of every sample, then the next byte of every sample, and so on. The file's
    // byte order changes nothing.
    let mut strip: Vec<u8> =
        (0..4).flat_map(|byte| samples.map(|sample| sample.to_be_bytes()[byte])).collect();
    let channels = 3;
    for at in (channels..strip.len()).rev() {
        strip[at] = strip[at].wrapping_sub(strip[at - channels]);
    }
    for picture in [float.clone(), float.big_endian()] {
        assert_eq!(pixels(&picture, &zlib(&strip)), [[0, 64, 255], [255, 128, 191]]);
    }
}

#[test]
fn reversed_bits_are_decoded_without_compression_and_with_lzw_deflate_and_packbits() {
    let rows = [0b1100_0000, 0b0101_0000];
    for (compression, strip) in [
        (UNCOMPRESSED, rows.to_vec()),
        (LZW, lzw(&rows)),
        (DEFLATE, zlib(&rows)),
        (PACKBITS, vec![1, rows[0], rows[1]]),
    ] {
        let picture = Crafted::new((4, 2), GREY, &[1]).with(COMPRESSION, &[compression]);
        let expected = grey(&[255, 255, 0, 0, 0, 255, 0, 255]);
        assert_eq!(pixels(&picture, &strip), expected, "{compression}");
        let reversed: Vec<u8> = strip.iter().map(|byte| byte.reverse_bits()).collect();
        assert_eq!(
            pixels(&picture.with(FILL_ORDER, &[REVERSED_BITS]), &reversed),
            expected,
            "{compression} reversed"
        );
    }
}

/// The value of a sample. It differs between neighbouring pixels and between channels.
fn sample(x: u32, y: u32, channel: u32) -> u8 {
    (x * 7 + y * 13 + channel * 50) as u8
}

#[test]
fn tiles_that_extend_beyond_the_picture_are_decoded_with_one_plane_and_with_several() {
    const SIZE: (u32, u32) = (21, 19);
    let expected =
        RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| [0, 1, 2].map(|c| sample(x, y, c)).into());
    // Outside of the picture, a tile contains more samples, which must be ignored.
    let tile = |left: u32, top: u32, channels: std::ops::Range<u32>| -> Vec<u8> {
        let positions = (top..top + 16).flat_map(|y| (left..left + 16).map(move |x| (x, y)));
        positions.flat_map(|(x, y)| channels.clone().map(move |c| sample(x, y, c))).collect()
    };
    let corners = [(0, 0), (16, 0), (0, 16), (16, 16)];
    let one_plane: Vec<_> = corners.iter().map(|(x, y)| tile(*x, *y, 0..4)).collect();
    let four_planes = (0..4).flat_map(|c| corners.map(|(x, y)| tile(x, y, c..c + 1)));
    let four_planes: Vec<_> = four_planes.collect();
    let tiled = Crafted::new((SIZE.0.into(), SIZE.1.into()), RGB, &[8; 4]);
    let tiled =
        tiled.with(EXTRA_SAMPLES, &[NO_ALPHA]).with(TILE_WIDTH, &[16]).with(TILE_LENGTH, &[16]);
    for (picture, chunks) in [
        (tiled.clone(), one_plane),
        (tiled.with(PLANAR_CONFIGURATION, &[SEPARATE_PLANES]), four_planes),
    ] {
        let deflated: Vec<_> = chunks.iter().map(|chunk| zlib(chunk)).collect();
        for (compression, chunks) in [(UNCOMPRESSED, chunks), (DEFLATE, deflated)] {
            let chunks: Vec<_> = chunks.iter().map(Vec::as_slice).collect();
            let file = picture.clone().with(COMPRESSION, &[compression]).file(&chunks);
            assert_eq!(rgb(&decoded(file).unwrap()), rgb(&expected), "{compression}");
        }
    }
}

#[test]
fn the_planes_of_cmyk_and_of_grey_with_alpha_are_combined() {
    let cmyk = Crafted::new((2, 1), CMYK, &[8; 4]).with(PLANAR_CONFIGURATION, &[SEPARATE_PLANES]);
    let planes = [&[0, 0][..], &[128, 0], &[255, 0], &[0, 128]];
    assert_eq!(rgb(&decoded(cmyk.file(&planes)).unwrap()), [[255, 127, 0], [127; 3]]);
    let grey_alpha = Crafted::new((2, 1), GREY, &[8; 2]).with(EXTRA_SAMPLES, &[ALPHA]);
    let grey_alpha = grey_alpha.with(PLANAR_CONFIGURATION, &[SEPARATE_PLANES]);
    let planes = [&[100, 100][..], &[255, 0]];
    assert_eq!(rgb(&decoded(grey_alpha.file(&planes)).unwrap()), grey(&[100, 255]));
}

#[test]
fn truncated_pixels_are_broken() {
    let picture = Crafted::new((16, 16), RGB, &[8; 3]);
    let values: Vec<u8> = (0..16 * 16 * 3).map(|n| (n * n / 5) as u8).collect();
    for (compression, strip) in [(LZW, lzw(&values)), (DEFLATE, zlib(&values))] {
        let picture = picture.clone().with(COMPRESSION, &[compression]);
        assert!(decoded(picture.file(&[&strip])).is_ok());
        let result = decoded(picture.file(&[&strip[..strip.len() / 2]]));
        assert!(matches!(result, Err(Error::Broken { .. })), "{result:?}");
    }
    // The decoder ignores the length of an uncompressed strip, and would read on into the tags after it.
    // So the short strip, 700 of 768 bytes, is at the end of the file, where `STRIP_OFFSETS` points.
    let mut file = picture.with(STRIP_OFFSETS, &[4000]).file(&[&values]);
    file.resize(4000, 0);
    file.extend(&values[..700]);
    assert!(matches!(decoded(file), Err(Error::Broken { .. })));
}

proptest! {
    #[test]
    fn damaged_files_cause_no_panic(
        file_number in 0..8_usize,
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8),
    ) {
        let values: Vec<u8> = (0..20 * 10 * 3).map(|n| (n * n / 5) as u8).collect();
        let rgb = Crafted::new((20, 10), RGB, &[8; 3]);
        let deflated = rgb.clone().with(COMPRESSION, &[DEFLATE]).with(PREDICTOR, &[DIFFERENCE]);
        let mut file = match file_number {
            0 => rgb.file(&[&values]),
            1 => deflated.file(&[&zlib(&values)]),
            2 => rgb.with(COMPRESSION, &[LZW]).file(&[&lzw(&values)]),
            3 => rgb.with(COMPRESSION, &[JPEG]).file(&[&samples_and_jpeg((20, 10), 3).1]),
            4 => rgb.with(PLANAR_CONFIGURATION, &[SEPARATE_PLANES]).file(&[&values[..200]; 3]),
            5 => {
                let palette = Crafted::new((20, 10), PALETTE, &[4]).with(COLOR_MAP, &[7; 48]);
                palette.with(COMPRESSION, &[PACKBITS]).file(&[&values])
            }
            6 => rgb.with(TILE_WIDTH, &[16]).with(TILE_LENGTH, &[16]).file(&[&values[..]; 2]),
            _ => {
                let fax = Crafted::new((20, 10), GREY, &[1]);
                fax.with(COMPRESSION, &[GROUP_4]).file(&[&values])
            }
        };
        for (at, value) in changes {
            let at = usize::from(at) % file.len();
            file[at] = value;
        }
        if let Ok(picture) = probe(Content::Memory(file.into()), 10_000) {
            let _ = decode(&picture); // may fail, but not panic
        }
    }
}
