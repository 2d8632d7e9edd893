//! TIFFs of many colour types, bit depths and compressions, in strips or tiles, and with interleaved
//! samples or separate planes.

use fax::{Color, VecWriter, encoder::Encoder};

use super::{Kind, jpeg, packed, palette};
use crate::support::{
    craft::{Entry, packbits, tiff, tiff_lzw, zlib},
    tiff_tags::{self as tag, DATA_AT},
};

// Photometric interpretations.
const WHITE_IS_ZERO: u64 = 0;
const GREY: u64 = 1;
const RGB: u64 = 2;
const PALETTE: u64 = 3;
const CMYK: u64 = 5;
const YCBCR: u64 = 6;

// Compressions that are not in the list `compressions` of [`all`].
const GROUP_4: u64 = 4;
const JPEG: u64 = 7;

type Compress = fn(&[u8]) -> Vec<u8>;

#[derive(Clone, Copy)]
enum Layout {
    /// Strips of this many rows.
    Strips(u32),
    /// Square tiles with sides of this many pixels.
    Tiles(u32),
}

/// What the samples of a pixel mean, and how they are stored.
#[derive(Clone, Copy)]
struct Samples {
    photometric: u64,
    /// The number of samples of each pixel.
    count: u32,
    /// The number of bits of each sample.
    bits: u32,
    /// Whether samples are floating-point numbers.
    is_float: bool,
    /// Whether each channel has a plane of its own.
    is_planar: bool,
}

/// TIFFs of this width and height.
pub(super) fn all(size: (u32, u32)) -> Vec<Kind> {
    // For each compression: its number in a TIFF, the function that compresses, and its name.
    let compressions: [(u64, Compress, &str); 5] = [
        (1, <[u8]>::to_vec, "none"),
        (5, tiff_lzw, "lzw"),
        (8, zlib, "deflate"),
        (32_946, zlib, "old-deflate"),
        (32_773, packbits, "packbits"),
    ];
    let layouts = [
        (Layout::Strips(size.1), "strip"), // one strip with all rows
        (Layout::Strips(16), "strips"),
        (Layout::Tiles(64), "tiles"),
    ];
    let [uncompressed, ..] = compressions;
    let mut kinds = Vec::new();
    for (photometric, count, name, depths) in [
        (GREY, 1, "grey", &[1, 2, 4, 8, 16, 32][..]),
        (GREY, 2, "grey-alpha", &[8, 16]),
        (RGB, 3, "rgb", &[8, 16, 32]),
        (RGB, 4, "rgba", &[8, 16, 32]),
        (PALETTE, 1, "palette", &[1, 4, 8]),
        (CMYK, 4, "cmyk", &[8, 16]),
    ] {
        for bits in depths {
            let samples = Samples {
                photometric,
                count,
                bits: *bits,
                is_float: *bits == 32,
                is_planar: false,
            };
            let depth = if samples.is_float { "float-32".into() } else { bits.to_string() };
            for (layout, layout_name) in layouts {
                let file = picture(size, samples, layout, uncompressed);
                kinds.push((format!("tiff-{name}-{depth}-{layout_name}"), file));
            }
            if count > 1 {
                let planar = Samples { is_planar: true, ..samples };
                let file = picture(size, planar, Layout::Strips(16), uncompressed);
                kinds.push((format!("tiff-{name}-{depth}-planar"), file));
            }
        }
    }
    let rgb = Samples { photometric: RGB, count: 3, bits: 8, is_float: false, is_planar: false };
    for compression in &compressions[1..] {
        let (_, _, compression_name) = compression;
        for (layout, layout_name) in layouts {
            let file = picture(size, rgb, layout, *compression);
            kinds.push((format!("tiff-{compression_name}-{layout_name}"), file));
        }
    }
    let planar_rgb = Samples { is_planar: true, ..rgb };
    let planar_tiles = picture(size, planar_rgb, Layout::Tiles(64), uncompressed);
    kinds.push(("tiff-planar-tiles".into(), planar_tiles));
    kinds.extend(with_jpeg_compression(size));
    kinds.push(("tiff-fax".into(), one_strip(size, (GROUP_4, WHITE_IS_ZERO), (1, 1), &fax(size))));
    kinds
}

/// TIFFs with JPEG compression in one strip, as scanners write them.
fn with_jpeg_compression(size: (u32, u32)) -> Vec<Kind> {
    let jpegs = jpeg::all(size).into_iter();
    // JPEGs with a scan for each component are left out. The service cannot decode them if their
    // colours are subsampled.
    let jpegs = jpegs.filter(|(name, _)| !name.starts_with("jpeg-scan-per-component-"));
    let wrap = |(name, jpeg): Kind| {
        let (photometric, samples) = match name.rsplit('-').next() {
            Some("grey") => (GREY, 1),
            Some("cmyk") => (CMYK, 4),
            _ => (YCBCR, 3),
        };
        (format!("tiff-{name}"), one_strip(size, (JPEG, photometric), (samples, 8), &jpeg))
    };
    jpegs.map(wrap).collect()
}

/// A TIFF of one strip. `data` is the compressed strip.
fn one_strip(
    (width, height): (u32, u32),
    (compression, photometric): (u64, u64),
    (samples, bits): (usize, u64),
    data: &[u8],
) -> Vec<u8> {
    let entries = [
        (tag::WIDTH, tag::LONG, vec![width.into()]),
        (tag::HEIGHT, tag::LONG, vec![height.into()]),
        (tag::BITS_PER_SAMPLE, tag::SHORT, vec![bits; samples]),
        (tag::COMPRESSION, tag::SHORT, vec![compression]),
        (tag::PHOTOMETRIC, tag::SHORT, vec![photometric]),
        (tag::STRIP_OFFSETS, tag::LONG, vec![DATA_AT]),
        (tag::SAMPLES_PER_PIXEL, tag::SHORT, vec![samples as u64]),
        (tag::ROWS_PER_STRIP, tag::LONG, vec![height.into()]),
        (tag::STRIP_BYTE_COUNTS, tag::LONG, vec![data.len() as u64]),
    ];
    tiff(data, &entries)
}

/// The data of a black-and-white picture with fax compression (Group 4, ITU-T T.6).
fn fax(size: (u32, u32)) -> Vec<u8> {
    let mut encoder = Encoder::new(VecWriter::new());
    for row in packed(size, 1, 1) {
        let is_black = |x: u32| (row[x as usize / 8] << (x % 8)) & 0x80 != 0;
        let pixels = (0..size.0).map(|x| if is_black(x) { Color::Black } else { Color::White });
        let Ok(()) = encoder.encode_line(pixels, size.0 as u16);
    }
    let Ok(writer) = encoder.finish();
    writer.finish()
}

/// A TIFF with this layout. The last argument is one of the `compressions` of [`all`]. Each strip or tile
/// is compressed separately.
fn picture(
    (width, height): (u32, u32),
    samples: Samples,
    layout: Layout,
    (compression, compress, _): (u64, Compress, &str),
) -> Vec<u8> {
    let (planes, channels_per_plane) =
        if samples.is_planar { (samples.count, 1) } else { (1, samples.count) };
    // A chunk is a strip or a tile. All chunks have the same width, but the last strip may have fewer rows.
    let (chunk_width, chunk_heights): (u32, Vec<u32>) = match layout {
        Layout::Strips(rows) => (
            width,
            (0..height.div_ceil(rows)).map(|strip| rows.min(height - strip * rows)).collect(),
        ),
        // All tiles have the same size, even those that extend beyond the picture.
        Layout::Tiles(side) => {
            (side, vec![side; (width.div_ceil(side) * height.div_ceil(side)) as usize])
        }
    };
    let (mut data, mut offsets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..planes {
        for chunk_height in &chunk_heights {
            let pixels = chunk((chunk_width, *chunk_height), channels_per_plane, samples.bits);
            let compressed = compress(&pixels);
            offsets.push(DATA_AT + data.len() as u64);
            lengths.push(compressed.len() as u64);
            data.extend(compressed);
        }
    }
    let interleaved = 1;
    let planar_configuration = if samples.is_planar { tag::SEPARATE_PLANES } else { interleaved };
    let mut entries: Vec<Entry> = vec![
        (tag::WIDTH, tag::LONG, vec![width.into()]),
        (tag::HEIGHT, tag::LONG, vec![height.into()]),
        (tag::BITS_PER_SAMPLE, tag::SHORT, vec![samples.bits.into(); samples.count as usize]),
        (tag::COMPRESSION, tag::SHORT, vec![compression]),
        (tag::PHOTOMETRIC, tag::SHORT, vec![samples.photometric]),
        (tag::SAMPLES_PER_PIXEL, tag::SHORT, vec![samples.count.into()]),
        (tag::PLANAR_CONFIGURATION, tag::SHORT, vec![planar_configuration]),
    ];
    let layout_entries = match layout {
        Layout::Strips(rows) => {
            vec![
                (tag::STRIP_OFFSETS, tag::LONG, offsets),
                (tag::ROWS_PER_STRIP, tag::LONG, vec![rows.into()]),
                (tag::STRIP_BYTE_COUNTS, tag::LONG, lengths),
            ]
        }
        Layout::Tiles(side) => vec![
            (tag::TILE_WIDTH, tag::LONG, vec![side.into()]),
            (tag::TILE_LENGTH, tag::LONG, vec![side.into()]),
            (tag::TILE_OFFSETS, tag::LONG, offsets),
            (tag::TILE_BYTE_COUNTS, tag::LONG, lengths),
        ],
    };
    entries.extend(layout_entries);
    if samples.photometric == PALETTE {
        // First all reds, then all greens, then all blues, with 16 bits each.
        let colors = palette();
        let channel = |c| (0..1 << samples.bits).map(move |n: usize| n * 3 + c);
        let values = (0..3).flat_map(channel).map(|index| u64::from(colors[index]) << 8);
        entries.push((tag::COLOR_MAP, tag::SHORT, values.collect()));
    }
    if matches!((samples.photometric, samples.count), (GREY, 2) | (RGB, 4)) {
        entries.push((tag::EXTRA_SAMPLES, tag::SHORT, vec![tag::UNASSOCIATED_ALPHA]));
    }
    if samples.is_float {
        entries.push((tag::SAMPLE_FORMAT, tag::SHORT, vec![tag::FLOAT; samples.count as usize]));
    }
    entries.sort_by_key(|entry| entry.0);
    tiff(&data, &entries)
}

/// An uncompressed strip or tile. All strips, tiles and planes of a file repeat the same samples. Samples
/// of several bytes are little-endian, as the file is.
fn chunk(size: (u32, u32), channels: u32, bits: u32) -> Vec<u8> {
    match bits {
        32 => packed(size, channels, 8)
            .concat()
            .into_iter()
            .flat_map(|sample| (f32::from(sample) / 255.0).to_le_bytes())
            .collect(),
        16 => {
            let mut bytes = packed(size, channels, 16).concat(); // big-endian
            bytes.chunks_exact_mut(2).for_each(<[u8]>::reverse);
            bytes
        }
        _ => packed(size, channels, bits).concat(),
    }
}
