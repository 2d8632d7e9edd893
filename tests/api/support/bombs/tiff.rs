//! Hostile TIFFs (TIFF 6.0) and BigTIFFs.

use super::Bomb;
use crate::support::craft::{
    Entry, HighBits, big_tiff, jpeg_head, packbits, scan_head, tiff, tiff_lzw, zlib, zlib_zeros,
};

const SHORT: u16 = 3;
const LONG: u16 = 4;

const NONE: u64 = 1;
const GROUP_3: u64 = 3;
const GROUP_4: u64 = 4;
const LZW: u64 = 5;
const JPEG: u64 = 7;
const DEFLATE: u64 = 8;
const PACKBITS: u64 = 32_773;
const OLD_DEFLATE: u64 = 32_946;

/// The offset of the data in the files of [`tiff`].
const DATA_AT: u64 = 16;

pub(super) fn all() -> Vec<Bomb> {
    let mut bombs = vec![
        ("tiff-inner-jpeg-larger", strip_of_jpeg(0xc2, 16_384)),
        ("tiff-inner-jpeg-larger-baseline", strip_of_jpeg(0xc0, 16_384)),
        ("tiff-inner-jpeg-65500", strip_of_jpeg(0xc2, 65_500)),
        ("tiff-inner-lossless-jpeg", strip_of_jpeg(0xc3, 16)),
        ("tiff-wide-tile-137gb", wide_tile(u32::MAX.into(), 16, 16, &[0; 1000], NONE)),
        ("tiff-wide-tile-extra-sample", wide_tile(1 << 28, 4, 8, &zlib_zeros(1 << 30), DEFLATE)),
        ("tiff-wide-tile-extra-pixels", wide_tile(1 << 28, 3, 8, &zlib_zeros(1 << 30), DEFLATE)),
        ("tiff-shared-jpeg", shared_jpeg()),
        ("tiff-shared-deflate", shared(DEFLATE, &zlib_zeros(1 << 24), Some(1 << 24))),
        ("tiff-wide-tile-of-floats", wide_tile_of_floats()),
        ("tiff-large-tile-jpeg", large_tile_jpeg()),
        ("tiff-150000-far-entries", far_entries(150_000)),
        ("tiff-endless-directory", endless_directory()),
        ("tiff-directory-of-itself", directory_of_itself()),
        ("tiff-planar-ragged-tiles", planar_ragged_tiles()),
        ("tiff-65535-strips-of-nothing", strips_of_nothing()),
        ("tiff-no-data", picture(NONE, &[], (8000, 7900), 7900, (u32::MAX.into(), 0))),
    ];
    for (name, compression, data) in [
        ("tiff-strip-of-4g-rows-none", NONE, vec![0; 100]),
        ("tiff-strip-of-4g-rows-group-3", GROUP_3, vec![0; 100]),
        ("tiff-strip-of-4g-rows-group-4", GROUP_4, vec![0; 100]),
        ("tiff-strip-of-4g-rows-lzw", LZW, tiff_lzw(&[0; 100])),
        ("tiff-strip-of-4g-rows-jpeg", JPEG, vec![0; 100]),
        ("tiff-strip-of-4g-rows-deflate", DEFLATE, zlib(&[0; 100])),
        ("tiff-strip-of-4g-rows-old-deflate", OLD_DEFLATE, zlib_zeros(1 << 28)),
        ("tiff-strip-of-4g-rows-packbits", PACKBITS, packbits(&[0; 100])),
    ] {
        let strip = (DATA_AT, 1 << 20);
        bombs.push((name, picture(compression, &data, (16, 16), u32::MAX.into(), strip)));
    }
    for (name, tag) in [
        ("tiff-two-billion-bits", 258),
        ("tiff-two-billion-strips", 273),
        ("tiff-two-billion-colours", 320),
        ("tiff-two-billion-extra-samples", 338),
        ("tiff-two-billion-sample-formats", 339),
        ("tiff-two-billion-jpeg", 347),
        ("tiff-two-billion-orientation", 274),
    ] {
        bombs.push((name, entry_with_too_many_values(tag)));
    }
    bombs
}

/// Pictures that take minutes or hours to decode. See [`shared`].
pub(super) fn endless() -> Vec<Bomb> {
    vec![
        ("tiff-shared-packbits", shared(PACKBITS, &[&[0x80; 1 << 20][..], &[0, 0]].concat(), None)),
        ("tiff-shared-lzw", shared_lzw()),
        ("tiff-shared-group-3", shared(GROUP_3, &[&[0, 1][..], &empty_runs()].concat(), None)),
        ("tiff-shared-group-4", shared(GROUP_4, &empty_runs(), None)),
    ]
}

/// A picture of 1 × 65,535 pixels with a strip or a tile for each pixel. All strips or tiles share the
/// same bytes of the file, so a decoder decompresses these bytes 65,535 times.
fn shared(compression: u64, data: &[u8], tile_width: Option<u64>) -> Vec<u8> {
    const PIXELS: usize = 65_535;
    let bits = if matches!(compression, GROUP_3 | GROUP_4) { 1 } else { 8 };
    let mut entries = base(compression, (1, PIXELS as u64), 1, bits);
    let (offsets, lengths) = (vec![DATA_AT; PIXELS], vec![data.len() as u64; PIXELS]);
    if let Some(width) = tile_width {
        entries.extend([(322, LONG, vec![width]), (323, LONG, vec![1])]);
        entries.extend([(324, LONG, offsets), (325, LONG, lengths)]);
    } else {
        entries.extend([(273, LONG, offsets), (278, LONG, vec![1]), (279, LONG, lengths)]);
    }
    sorted(data, entries)
}

/// Every strip should have one pixel, but is a JPEG of 4096 × 4096 pixels.
fn shared_jpeg() -> Vec<u8> {
    let jpeg =
        [jpeg_head(0xc0, (4096, 4096), &[0x11]), scan_head(&[1], (0, 63), 0), vec![0; 65_000]];
    shared(JPEG, &jpeg.concat(), None)
}

/// Every pixel is compressed to a megabyte of LZW.
pub fn shared_lzw() -> Vec<u8> {
    shared(LZW, &clear_codes(), None)
}

/// A megabyte of LZW: clear codes, and then one pixel.
fn clear_codes() -> Vec<u8> {
    let mut bits = HighBits::default();
    for _ in 0..900_000 {
        bits.put(256, 9);
    }
    bits.put(0, 9);
    bits.put(257, 9);
    bits.finish()
}

/// Fax data (ITU-T T.6): 400,000 pairs of a white and a black run, each of length 0, and then the end of
/// the row.
fn empty_runs() -> Vec<u8> {
    let mut bits = HighBits::default();
    for _ in 0..400_000 {
        bits.put(0b001, 3);
        bits.put(0b0011_0101, 8);
        bits.put(0b00_0011_0111, 10);
    }
    bits.put(1, 1);
    bits.finish()
}

/// The tags of a picture, without the tags of its strips or tiles.
fn base(compression: u64, size: (u64, u64), samples: u64, bits: u64) -> Vec<Entry> {
    vec![
        (256, LONG, vec![size.0]),
        (257, LONG, vec![size.1]),
        (258, SHORT, vec![bits]),
        (259, SHORT, vec![compression]),
        (262, SHORT, vec![if samples == 1 { 1 } else { 2 }]),
        (277, SHORT, vec![samples]),
    ]
}

fn sorted(data: &[u8], mut entries: Vec<Entry>) -> Vec<u8> {
    entries.sort_by_key(|entry| entry.0);
    tiff(data, &entries)
}

/// A picture of one strip. `strip` contains the offset and the length of the strip, in bytes.
fn picture(
    compression: u64,
    data: &[u8],
    size: (u64, u64),
    rows: u64,
    strip: (u64, u64),
) -> Vec<u8> {
    let is_fax = matches!(compression, GROUP_3 | GROUP_4);
    let (samples, bits) = if is_fax { (1, 1) } else { (3, 8) };
    let mut entries = base(compression, size, samples, bits);
    entries.extend([(273, LONG, vec![strip.0]), (278, LONG, vec![rows])]);
    entries.push((279, LONG, vec![strip.1]));
    sorted(data, entries)
}

/// A picture of 16 × 16 pixels whose only strip is a JPEG. The JPEG's header announces `side` × `side`
/// pixels, but the JPEG has no pixel data. If it is progressive and `side` is 16384, a decoder that
/// ignores the size of the strip allocates 2.4 GB.
fn strip_of_jpeg(frame: u8, side: u16) -> Vec<u8> {
    let spectrum = if frame == 0xc2 { (0, 0) } else { (0, 63) };
    let jpeg =
        [jpeg_head(frame, (side, side), &[0x11; 3]), scan_head(&[1, 2, 3], spectrum, 0)].concat();
    picture(JPEG, &jpeg, (16, 16), 16, (DATA_AT, jpeg.len() as u64))
}

/// A picture of 8 × 8 pixels in an extremely wide tile. To skip the samples after the third, a decoder
/// may allocate a whole row of the tile. To skip the pixels right of the picture, a decoder may
/// decompress a whole row.
fn wide_tile(width: u64, samples: u64, bits: u64, data: &[u8], compression: u64) -> Vec<u8> {
    let mut entries = base(compression, (8, 8), samples, bits);
    if samples > 3 {
        entries.push((338, SHORT, vec![0; samples as usize - 3]));
    }
    entries.extend([(322, LONG, vec![width]), (323, LONG, vec![8])]);
    entries.extend([(324, LONG, vec![DATA_AT]), (325, LONG, vec![data.len() as u64])]);
    sorted(data, entries)
}

/// A picture of 8 × 8 pixels in an extremely wide tile with the floating-point predictor, which
/// distributes the bytes of a number over the whole row.
fn wide_tile_of_floats() -> Vec<u8> {
    let mut entries = base(DEFLATE, (8, 8), 3, 32);
    entries.extend([(317, SHORT, vec![3]), (339, SHORT, vec![3])]);
    entries.extend([(322, LONG, vec![u32::MAX.into()]), (323, LONG, vec![8])]);
    entries.extend([(324, LONG, vec![DATA_AT]), (325, LONG, vec![1000])]);
    sorted(&zlib_zeros(1 << 28), entries)
}

/// A picture of 16 × 16 pixels in a tile with JPEG compression. The tile is about as large as a JPEG can
/// be.
fn large_tile_jpeg() -> Vec<u8> {
    let jpeg = [jpeg_head(0xc2, (65_520, 65_520), &[0x11; 3]), scan_head(&[1, 2, 3], (0, 0), 0)];
    let jpeg = jpeg.concat();
    let mut entries = base(JPEG, (16, 16), 3, 8);
    entries.extend([(322, LONG, vec![65_520]), (323, LONG, vec![65_520])]);
    entries.extend([(324, LONG, vec![DATA_AT]), (325, LONG, vec![jpeg.len() as u64])]);
    sorted(&jpeg, entries)
}

/// A BigTIFF with this number of entries. The values of most entries are far away from the entry. A
/// decoder that reads all values seeks twice for each entry.
fn far_entries(count: usize) -> Vec<u8> {
    const DATA_LEN: usize = 1 << 17;
    let mut entries = vec![(256, LONG, vec![16]), (257, LONG, vec![16])];
    entries.resize(count, (258, SHORT, vec![DATA_AT, 0, 0, 0]));
    let mut file = big_tiff(&[8, 0].repeat(DATA_LEN / 2), &entries);
    for entry in 2..count {
        // Four SHORTs fit into the entry. Eight do not, so with a count of eight, a decoder reads the
        // same bytes as an offset: `DATA_AT`, far before the directory.
        file[DATA_AT as usize + DATA_LEN + 8 + entry * 20 + 4] = 8;
    }
    file
}

/// A BigTIFF whose directory has 2⁶⁴ − 1 entries, according to its count.
fn endless_directory() -> Vec<u8> {
    let mut file = big_tiff(&[], &base(NONE, (16, 16), 3, 8));
    file[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    file.resize(1 << 20, 0);
    file
}

/// A TIFF whose first directory links to itself as the next directory.
fn directory_of_itself() -> Vec<u8> {
    let mut file = picture(NONE, &[7; 768], (16, 16), 16, (DATA_AT, 768));
    let directory = usize::from(u16::from_le_bytes([file[4], file[5]]));
    let next = directory + 2 + 9 * 12;
    let address = (directory as u32).to_le_bytes();
    file[next..next + 4].copy_from_slice(&address);
    file
}

/// Separate planes in tiles that extend beyond the picture. Such a TIFF made the crate `tiff` panic
/// (image-tiff, issue 403).
fn planar_ragged_tiles() -> Vec<u8> {
    let mut entries = base(NONE, (20, 20), 3, 8);
    entries.extend([(284, SHORT, vec![2]), (322, LONG, vec![16]), (323, LONG, vec![16])]);
    entries.push((324, LONG, (0..12).map(|tile| DATA_AT + tile * 256).collect()));
    entries.push((325, LONG, vec![256; 12]));
    sorted(&[100; 12 * 256], entries)
}

/// Strips with a length of 0 bytes.
fn strips_of_nothing() -> Vec<u8> {
    shared(NONE, &[], None)
}

/// A picture whose entry for this tag has two billion values.
fn entry_with_too_many_values(tag: u16) -> Vec<u8> {
    let compression = if tag == 347 { JPEG } else { NONE };
    let mut file = picture(compression, &[7; 768], (16, 16), 16, (DATA_AT, 768));
    let directory = usize::from(u16::from_le_bytes([file[4], file[5]]));
    let entries = usize::from(file[directory]);
    let at = (0..entries)
        .map(|entry| directory + 2 + entry * 12)
        .find(|at| u16::from_le_bytes([file[*at], file[at + 1]]) >= tag)
        .unwrap_or(directory + 2 + entries * 12);
    let entry = [&tag.to_le_bytes()[..], &[3, 0, 0, 0, 0, 0x80, 16, 0, 0, 0]].concat();
    if file[at..at + 2] == tag.to_le_bytes() {
        file[at..at + 12].copy_from_slice(&entry);
    } else {
        file.splice(at..at, entry);
        file[directory] += 1;
    }
    file
}
