//! Hostile TIFFs (TIFF 6.0) and BigTIFFs.

use super::Bomb;
use crate::support::{
    craft::{
        Entry, HighBits, big_tiff, jpeg_head, packbits, scan_head, tiff, tiff_lzw, zlib, zlib_zeros,
    },
    tiff_tags::{self as tag, DATA_AT},
};

// The markers of JPEG's frame headers (ITU-T T.81, B.1.1.3).
const BASELINE: u8 = 0xc0;
const PROGRESSIVE: u8 = 0xc2;
const LOSSLESS: u8 = 0xc3;

// Values of the tag `COMPRESSION`.
const NONE: u64 = 1;
const GROUP_3: u64 = 3;
const GROUP_4: u64 = 4;
const LZW: u64 = 5;
const JPEG: u64 = 7;
const DEFLATE: u64 = 8;
const PACKBITS: u64 = 32_773;
const OLD_DEFLATE: u64 = 32_946;

pub(super) fn quick() -> Vec<Bomb> {
    let mut bombs = vec![
        ("tiff-inner-jpeg-larger", strip_of_jpeg(PROGRESSIVE, 16_384)),
        ("tiff-inner-jpeg-larger-baseline", strip_of_jpeg(BASELINE, 16_384)),
        ("tiff-inner-jpeg-65500", strip_of_jpeg(PROGRESSIVE, 65_500)),
        ("tiff-inner-lossless-jpeg", strip_of_jpeg(LOSSLESS, 16)),
        // A row of the tile has 2³² − 1 pixels of 16 samples of 2 bytes.
        ("tiff-wide-tile-137gb", wide_tile(u32::MAX.into(), 16, 16, &[0; 1000], NONE)),
        ("tiff-wide-tile-extra-sample", wide_tile(1 << 28, 4, 8, &zlib_zeros(1 << 30), DEFLATE)),
        ("tiff-wide-tile-extra-pixels", wide_tile(1 << 28, 3, 8, &zlib_zeros(1 << 30), DEFLATE)),
        // The next two resemble those of `endless`, but end soon. Here, the decoder refuses the JPEGs
        // because of their size.
        ("tiff-shared-jpeg", shared_jpeg()),
        // Here, the decoder decompresses only the visible pixel of each tile.
        ("tiff-shared-deflate", shared(DEFLATE, &zlib_zeros(1 << 24), Some(1 << 24))),
        ("tiff-wide-tile-of-floats", wide_tile_of_floats()),
        ("tiff-large-tile-jpeg", large_tile_jpeg()),
        ("tiff-150000-far-entries", far_entries(150_000)),
        ("tiff-endless-directory", endless_directory()),
        ("tiff-directory-of-itself", directory_of_itself()),
        ("tiff-planar-ragged-tiles", planar_ragged_tiles()),
        ("tiff-65535-strips-of-nothing", strips_of_nothing()),
        ("tiff-no-data", no_data()),
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
        // The strip's declared length is longer than the file.
        let strip = (DATA_AT, 1 << 20);
        bombs.push((name, picture(compression, &data, (16, 16), u32::MAX.into(), strip)));
    }
    for (name, entry_tag) in [
        ("tiff-two-billion-bits", tag::BITS_PER_SAMPLE),
        ("tiff-two-billion-strips", tag::STRIP_OFFSETS),
        ("tiff-two-billion-colours", tag::COLOR_MAP),
        ("tiff-two-billion-extra-samples", tag::EXTRA_SAMPLES),
        ("tiff-two-billion-sample-formats", tag::SAMPLE_FORMAT),
        ("tiff-two-billion-jpeg", tag::JPEG_TABLES),
        ("tiff-two-billion-orientation", tag::ORIENTATION),
    ] {
        bombs.push((name, entry_with_too_many_values(entry_tag)));
    }
    bombs
}

/// Pictures that take minutes or hours to decode. See [`shared`].
pub(super) fn endless() -> Vec<Bomb> {
    vec![
        // 0x80 means nothing in PackBits. The two zeros are one black pixel.
        ("tiff-shared-packbits", shared(PACKBITS, &[&[0x80; 1 << 20][..], &[0, 0]].concat(), None)),
        ("tiff-shared-lzw", shared_lzw()),
        ("tiff-shared-group-3", shared(GROUP_3, &empty_runs_of_group_3(), None)),
        ("tiff-shared-group-4", shared(GROUP_4, &empty_runs_of_group_4(), None)),
    ]
}

/// A picture of 1 × 65,535 pixels with a strip for each pixel. If there is a `tile_width`, the
/// picture has a tile of this width for each pixel instead. All strips or tiles share the same bytes
/// of the file, so a decoder decompresses these bytes 65,535 times.
fn shared(compression: u64, data: &[u8], tile_width: Option<u64>) -> Vec<u8> {
    const PIXELS: usize = 65_535;
    let bits = if matches!(compression, GROUP_3 | GROUP_4) { 1 } else { 8 };
    let mut entries = base_entries(compression, (1, PIXELS as u64), 1, bits);
    let (offsets, lengths) = (vec![DATA_AT; PIXELS], vec![data.len() as u64; PIXELS]);
    if let Some(width) = tile_width {
        entries.extend([
            (tag::TILE_WIDTH, tag::LONG, vec![width]),
            (tag::TILE_LENGTH, tag::LONG, vec![1]),
        ]);
        entries.extend([
            (tag::TILE_OFFSETS, tag::LONG, offsets),
            (tag::TILE_BYTE_COUNTS, tag::LONG, lengths),
        ]);
    } else {
        entries.extend([
            (tag::STRIP_OFFSETS, tag::LONG, offsets),
            (tag::ROWS_PER_STRIP, tag::LONG, vec![1]),
            (tag::STRIP_BYTE_COUNTS, tag::LONG, lengths),
        ]);
    }
    sorted_tiff(data, entries)
}

/// A picture whose strips should have one pixel each. Each of them is a JPEG of 4096 × 4096 pixels.
fn shared_jpeg() -> Vec<u8> {
    let jpeg =
        [jpeg_head(BASELINE, (4096, 4096), &[0x11]), scan_head(&[1], (0, 63), 0), vec![0; 65_000]];
    shared(JPEG, &jpeg.concat(), None)
}

/// A picture with a megabyte of LZW for each pixel.
pub fn shared_lzw() -> Vec<u8> {
    shared(LZW, &clear_codes(), None)
}

/// A megabyte of LZW with codes of nine bits: clear codes (256), one pixel (0), and the end (257).
fn clear_codes() -> Vec<u8> {
    let mut bits = HighBits::default();
    for _ in 0..900_000 {
        bits.put(256, 9);
    }
    bits.put(0, 9);
    bits.put(257, 9);
    bits.finish()
}

/// A row of a fax (ITU-T T.4): 400,000 pairs of empty runs, and then one white pixel.
fn empty_runs_of_group_3() -> Vec<u8> {
    let mut bits = HighBits::default();
    bits.put(1, 16); // the code that precedes a row
    for _ in 0..400_000 {
        put_empty_runs(&mut bits);
    }
    bits.put(0b00_0111, 6); // a white run of length 1
    bits.finish()
}

/// A row of a fax (ITU-T T.6): 400,000 pairs of empty runs, and then the end of the row.
fn empty_runs_of_group_4() -> Vec<u8> {
    let mut bits = HighBits::default();
    for _ in 0..400_000 {
        bits.put(0b001, 3); // horizontal mode: two runs follow
        put_empty_runs(&mut bits);
    }
    bits.put(1, 1); // the end of the row
    bits.finish()
}

/// A white and a black run, each of length 0.
fn put_empty_runs(bits: &mut HighBits) {
    bits.put(0b0011_0101, 8);
    bits.put(0b00_0011_0111, 10);
}

/// The entries of a grey picture (one sample) or an RGB picture, without those for strips or tiles.
fn base_entries(compression: u64, size: (u64, u64), samples: u64, bits: u64) -> Vec<Entry> {
    vec![
        (tag::WIDTH, tag::LONG, vec![size.0]),
        (tag::HEIGHT, tag::LONG, vec![size.1]),
        (tag::BITS_PER_SAMPLE, tag::SHORT, vec![bits]),
        (tag::COMPRESSION, tag::SHORT, vec![compression]),
        (tag::PHOTOMETRIC, tag::SHORT, vec![if samples == 1 { 1 } else { 2 }]), // grey, or RGB
        (tag::SAMPLES_PER_PIXEL, tag::SHORT, vec![samples]),
    ]
}

/// A TIFF of these entries, which need not be sorted.
fn sorted_tiff(data: &[u8], mut entries: Vec<Entry>) -> Vec<u8> {
    entries.sort_by_key(|entry| entry.0);
    tiff(data, &entries)
}

/// A picture of one strip. `rows` is the number of rows in the strip, according to its tag. `strip`
/// contains the strip's offset and length in bytes.
fn picture(
    compression: u64,
    data: &[u8],
    size: (u64, u64),
    rows: u64,
    strip: (u64, u64),
) -> Vec<u8> {
    let is_fax = matches!(compression, GROUP_3 | GROUP_4);
    let (samples, bits) = if is_fax { (1, 1) } else { (3, 8) };
    let mut entries = base_entries(compression, size, samples, bits);
    entries.extend([
        (tag::STRIP_OFFSETS, tag::LONG, vec![strip.0]),
        (tag::ROWS_PER_STRIP, tag::LONG, vec![rows]),
    ]);
    entries.push((tag::STRIP_BYTE_COUNTS, tag::LONG, vec![strip.1]));
    sorted_tiff(data, entries)
}

/// A picture of 16 × 16 pixels in one strip, with 3 bytes for each pixel. Its data is valid only
/// without compression.
fn small_picture(compression: u64) -> Vec<u8> {
    const LEN: usize = 16 * 16 * 3;
    picture(compression, &[7; LEN], (16, 16), 16, (DATA_AT, LEN as u64))
}

/// A picture with nearly 64 million pixels, the default limit. Its strip is empty, and begins beyond
/// the end of the file.
fn no_data() -> Vec<u8> {
    picture(NONE, &[], (8000, 7900), 7900, (u32::MAX.into(), 0))
}

/// A picture of 16 × 16 pixels in a single strip, which is a JPEG. The JPEG's header announces
/// `side` × `side` pixels, but the JPEG has no pixel data. A decoder that trusts a progressive
/// header with a `side` of 16,384 allocates 2.4 GB.
fn strip_of_jpeg(frame: u8, side: u16) -> Vec<u8> {
    let spectrum = if frame == PROGRESSIVE { (0, 0) } else { (0, 63) };
    let jpeg =
        [jpeg_head(frame, (side, side), &[0x11; 3]), scan_head(&[1, 2, 3], spectrum, 0)].concat();
    picture(JPEG, &jpeg, (16, 16), 16, (DATA_AT, jpeg.len() as u64))
}

/// A picture of 8 × 8 pixels in an extremely wide tile. To skip the samples after the third, a
/// decoder may allocate a whole row of the tile. To skip the pixels right of the picture, a decoder
/// may decompress a whole row.
fn wide_tile(width: u64, samples: u64, bits: u64, data: &[u8], compression: u64) -> Vec<u8> {
    let mut entries = base_entries(compression, (8, 8), samples, bits);
    if samples > 3 {
        // The purpose of the extra samples is not specified (0).
        entries.push((tag::EXTRA_SAMPLES, tag::SHORT, vec![0; samples as usize - 3]));
    }
    entries.extend([
        (tag::TILE_WIDTH, tag::LONG, vec![width]),
        (tag::TILE_LENGTH, tag::LONG, vec![8]),
    ]);
    entries.extend([
        (tag::TILE_OFFSETS, tag::LONG, vec![DATA_AT]),
        (tag::TILE_BYTE_COUNTS, tag::LONG, vec![data.len() as u64]),
    ]);
    sorted_tiff(data, entries)
}

/// A picture of 8 × 8 pixels in an extremely wide tile with the floating-point predictor. This
/// predictor distributes the bytes of a number over the whole row.
fn wide_tile_of_floats() -> Vec<u8> {
    let mut entries = base_entries(DEFLATE, (8, 8), 3, 32);
    entries.push((tag::PREDICTOR, tag::SHORT, vec![tag::FLOAT_PREDICTOR]));
    entries.push((tag::SAMPLE_FORMAT, tag::SHORT, vec![tag::FLOAT]));
    entries.extend([
        (tag::TILE_WIDTH, tag::LONG, vec![u32::MAX.into()]),
        (tag::TILE_LENGTH, tag::LONG, vec![8]),
    ]);
    entries.extend([
        (tag::TILE_OFFSETS, tag::LONG, vec![DATA_AT]),
        // The tile ends after 1000 bytes, in the middle of the compressed data.
        (tag::TILE_BYTE_COUNTS, tag::LONG, vec![1000]),
    ]);
    sorted_tiff(&zlib_zeros(1 << 28), entries)
}

/// A picture of 16 × 16 pixels in a tile with JPEG compression. The tile is as large as possible: a
/// JPEG has at most 65,535 pixels a side, and the side of a tile must be a multiple of 16.
fn large_tile_jpeg() -> Vec<u8> {
    let jpeg =
        [jpeg_head(PROGRESSIVE, (65_520, 65_520), &[0x11; 3]), scan_head(&[1, 2, 3], (0, 0), 0)];
    let jpeg = jpeg.concat();
    let mut entries = base_entries(JPEG, (16, 16), 3, 8);
    entries.extend([
        (tag::TILE_WIDTH, tag::LONG, vec![65_520]),
        (tag::TILE_LENGTH, tag::LONG, vec![65_520]),
    ]);
    entries.extend([
        (tag::TILE_OFFSETS, tag::LONG, vec![DATA_AT]),
        (tag::TILE_BYTE_COUNTS, tag::LONG, vec![jpeg.len() as u64]),
    ]);
    sorted_tiff(&jpeg, entries)
}

/// A BigTIFF with this number of entries. The values of most entries are far away from the entry. A
/// decoder that reads all values seeks twice for each entry.
fn far_entries(entry_count: usize) -> Vec<u8> {
    const DATA_LEN: usize = 1 << 17;
    let mut entries = vec![(tag::WIDTH, tag::LONG, vec![16]), (tag::HEIGHT, tag::LONG, vec![16])];
    entries.resize(entry_count, (tag::BITS_PER_SAMPLE, tag::SHORT, vec![DATA_AT, 0, 0, 0]));
    let mut file = big_tiff(&[8, 0].repeat(DATA_LEN / 2), &entries);
    // The directory follows the data, and begins with the number of entries, in 8 bytes.
    let entries_at = DATA_AT as usize + DATA_LEN + 8;
    for index in 2..entry_count {
        // An entry has 20 bytes. The number of values follows the tag and the type, which have 4 bytes.
        let value_count_at = entries_at + index * 20 + 4;
        // Four SHORTs fit into the entry, eight do not. So a decoder reads the four SHORTs as the offset
        // of eight values: `DATA_AT`, far before the directory.
        file[value_count_at] = 8;
    }
    file
}

/// A BigTIFF whose directory has 2⁶⁴ − 1 entries, according to its count.
fn endless_directory() -> Vec<u8> {
    let mut file = big_tiff(&[], &base_entries(NONE, (16, 16), 3, 8));
    // The directory begins at byte 16, because there is no data before it.
    file[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    file.resize(1 << 20, 0);
    file
}

/// A TIFF whose first directory links to itself as the next directory.
fn directory_of_itself() -> Vec<u8> {
    let mut file = small_picture(NONE);
    let directory = directory_offset(&file);
    // The directory has 2 bytes with the number of entries, and 9 entries of 12 bytes.
    let next = directory + 2 + 9 * 12;
    let address = (directory as u32).to_le_bytes();
    file[next..next + 4].copy_from_slice(&address);
    file
}

/// The offset of a file's directory. It has four bytes, but the upper two are zero, because the
/// files for which this is called are short.
fn directory_offset(file: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([file[4], file[5]]))
}

/// Separate planes in tiles that extend beyond the picture: four tiles for each of three planes.
/// Such a TIFF made the crate `tiff` panic (image-tiff, issue 403).
fn planar_ragged_tiles() -> Vec<u8> {
    let mut entries = base_entries(NONE, (20, 20), 3, 8);
    entries.extend([
        (tag::PLANAR_CONFIGURATION, tag::SHORT, vec![tag::SEPARATE_PLANES]),
        (tag::TILE_WIDTH, tag::LONG, vec![16]),
        (tag::TILE_LENGTH, tag::LONG, vec![16]),
    ]);
    entries.push((
        tag::TILE_OFFSETS,
        tag::LONG,
        (0..12).map(|tile| DATA_AT + tile * 256).collect(),
    ));
    entries.push((tag::TILE_BYTE_COUNTS, tag::LONG, vec![256; 12]));
    sorted_tiff(&[100; 12 * 256], entries)
}

/// Strips with a length of 0 bytes.
fn strips_of_nothing() -> Vec<u8> {
    shared(NONE, &[], None)
}

/// A picture whose entry with this tag has two billion values, according to the entry's count.
fn entry_with_too_many_values(entry_tag: u16) -> Vec<u8> {
    // Decoders ignore the JPEG tables of a picture with another compression.
    let compression = if entry_tag == tag::JPEG_TABLES { JPEG } else { NONE };
    let mut file = small_picture(compression);
    let directory = directory_offset(&file);
    let entry_count = usize::from(file[directory]);
    // Entries are sorted by their tags.
    let at = (0..entry_count)
        .map(|index| directory + 2 + index * 12)
        .find(|at| u16::from_le_bytes([file[*at], file[at + 1]]) >= entry_tag)
        .unwrap_or(directory + 2 + entry_count * 12);
    // The type SHORT, 0x8000_0000 values, and their offset.
    let entry = [&entry_tag.to_le_bytes()[..], &[3, 0, 0, 0, 0, 0x80, 16, 0, 0, 0]].concat();
    if file[at..at + 2] == entry_tag.to_le_bytes() {
        file[at..at + 12].copy_from_slice(&entry);
    } else {
        file.splice(at..at, entry);
        file[directory] += 1;
    }
    file
}
