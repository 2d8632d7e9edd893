//! Reads the header of a TIFF or BigTIFF file: its first directory.
//!
//! There are many kinds of TIFF. Unsupported kinds are refused here, before a decoder is started. Every tag
//! that changes the pixels in libtiff is read: a TIFF is decoded as in libtiff, or refused.
//!
//! Long tables, such as the table of the strips' offsets, are read only by the decoder, not here.

use image_rs::metadata::Orientation;

use self::{
    chunks::Chunks,
    directory::{ByteOrder, Directory, Position},
    kinds::{Alpha, Color, Compression, Depth, Predictor},
};
use super::{Header, HeaderError, Reader, jpeg};
use crate::image::Unsupported;

mod chunks;
#[cfg(test)]
pub(in crate::image) mod crafted;
pub(in crate::image) mod directory;
pub(in crate::image) mod kinds;

pub(in crate::image) const WIDTH: u16 = 256;
pub(in crate::image) const HEIGHT: u16 = 257;
pub(in crate::image) const BITS_PER_SAMPLE: u16 = 258;
pub(in crate::image) const COMPRESSION: u16 = 259;
pub(in crate::image) const PHOTOMETRIC: u16 = 262;
pub(in crate::image) const FILL_ORDER: u16 = 266;
pub(in crate::image) const STRIP_OFFSETS: u16 = 273;
pub(in crate::image) const ORIENTATION: u16 = 274;
pub(in crate::image) const SAMPLES_PER_PIXEL: u16 = 277;
pub(in crate::image) const ROWS_PER_STRIP: u16 = 278;
pub(in crate::image) const STRIP_BYTE_COUNTS: u16 = 279;
pub(in crate::image) const PLANAR_CONFIGURATION: u16 = 284;
pub(in crate::image) const T4_OPTIONS: u16 = 292;
pub(in crate::image) const PREDICTOR: u16 = 317;
pub(in crate::image) const COLOR_MAP: u16 = 320;
pub(in crate::image) const TILE_WIDTH: u16 = 322;
pub(in crate::image) const TILE_LENGTH: u16 = 323;
pub(in crate::image) const TILE_OFFSETS: u16 = 324;
pub(in crate::image) const TILE_BYTE_COUNTS: u16 = 325;
pub(in crate::image) const INK_SET: u16 = 332;
pub(in crate::image) const EXTRA_SAMPLES: u16 = 338;
pub(in crate::image) const SAMPLE_FORMAT: u16 = 339;
pub(in crate::image) const JPEG_TABLES: u16 = 347;

/// All tags that are read. The other tags do not change the pixels, and are ignored.
const TAGS: [u16; 23] = [
    WIDTH,
    HEIGHT,
    BITS_PER_SAMPLE,
    COMPRESSION,
    PHOTOMETRIC,
    FILL_ORDER,
    STRIP_OFFSETS,
    ORIENTATION,
    SAMPLES_PER_PIXEL,
    ROWS_PER_STRIP,
    STRIP_BYTE_COUNTS,
    PLANAR_CONFIGURATION,
    T4_OPTIONS,
    PREDICTOR,
    COLOR_MAP,
    TILE_WIDTH,
    TILE_LENGTH,
    TILE_OFFSETS,
    TILE_BYTE_COUNTS,
    INK_SET,
    EXTRA_SAMPLES,
    SAMPLE_FORMAT,
    JPEG_TABLES,
];

/// The maximum number of samples per pixel.
const MAX_SAMPLES: u64 = 16;
/// The maximum length of the JPEG tables, in bytes.
const MAX_JPEG_TABLES_LEN: u64 = 1 << 16;
/// The widest row that the decoder for fax compression supports, in pixels.
const MAX_FAX_WIDTH: u64 = u16::MAX as u64;

/// The header of a TIFF of a supported kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Tiff {
    pub(in crate::image) width: u32,
    pub(in crate::image) height: u32,
    orientation: Orientation,
    pub(in crate::image) order: ByteOrder,
    pub(in crate::image) compression: Compression,
    pub(in crate::image) predictor: Predictor,
    /// Whether the leftmost pixel of a byte is in the byte's lowest bit (FillOrder 2).
    pub(in crate::image) is_bit_reversed: bool,
    pub(in crate::image) color: Color,
    pub(in crate::image) depth: Depth,
    /// The number of samples per pixel, including samples that are not decoded.
    pub(in crate::image) samples: u64,
    pub(in crate::image) alpha: Option<Alpha>,
    pub(in crate::image) chunks: Chunks,
    /// Where the colours of the palette are in the file. `None` without a palette.
    pub(in crate::image) color_map: Option<Position>,
    /// Where the JPEG tables are in the file. `None` without JPEG compression, or if each strip or tile
    /// contains its own tables.
    pub(in crate::image) jpeg_tables: Option<Position>,
}

impl Tiff {
    /// Returns the header in the form that all formats have in common.
    pub(super) fn header(&self) -> Result<Header, HeaderError> {
        Header::new(self.width, self.height, self.orientation).ok_or(HeaderError::Damaged)
    }

    /// The number of samples that one chunk (strip or tile) contains for each pixel: all samples, or one
    /// if each sample has a plane of its own.
    pub(in crate::image) fn samples_of_a_pixel_in_one_chunk(&self) -> u64 {
        if self.chunks.planes > 1 { 1 } else { self.samples }
    }
}

/// Reads the first directory. The default of each missing tag, and the meaning of unusual values, are
/// those of Pillow and libtiff.
pub(in crate::image) fn read(reader: &mut Reader) -> Result<Tiff, HeaderError> {
    let directory = &mut Directory::read(reader, &TAGS).map_err(|_| HeaderError::Damaged)?;
    // A missing width or height becomes 0, which `checked_side` refuses.
    let width = checked_side(directory.first_or(WIDTH, 0)?)?;
    let height = checked_side(directory.first_or(HEIGHT, 0)?)?;
    let orientation = u8::try_from(directory.first_or(ORIENTATION, 1)?).unwrap_or(1);
    let orientation = Orientation::from_exif(orientation).unwrap_or(Orientation::NoTransforms);

    let t4_options = directory.first_or(T4_OPTIONS, 0)?;
    let compression = Compression::from_tags(directory.first_or(COMPRESSION, 1)?, t4_options)?;
    let color =
        Color::from_tags(directory.first_or(PHOTOMETRIC, 0)?, directory.first_or(INK_SET, 1)?)?;
    let samples = directory.first_or(SAMPLES_PER_PIXEL, 1)?;
    if !(color.samples()..=MAX_SAMPLES).contains(&samples) {
        return Err(HeaderError::Damaged);
    }
    let alpha = Alpha::from_tags(&directory.read_values(EXTRA_SAMPLES, samples)?, color, samples)?;
    let bits = directory.read_values(BITS_PER_SAMPLE, samples)?;
    let depth = Depth::from_tags(&bits, &directory.read_values(SAMPLE_FORMAT, samples)?, color)?;
    let predictor = directory.first_or(PREDICTOR, 1)?;
    let predictor = if compression.uses_predictors() { predictor } else { 1 }; // 1: none

    let planes = match directory.first_or(PLANAR_CONFIGURATION, 1)? {
        0 | 1 => 1,   // 0 is a mistake that libtiff tolerates
        2 => samples, // each sample has a plane of its own
        _ => return Err(HeaderError::Damaged),
    };
    let is_bit_reversed = match directory.first_or(FILL_ORDER, 1)? {
        1 => false,
        2 => true,
        _ => return Err(HeaderError::Damaged),
    };
    let chunks = Chunks::read(directory, (width, height), planes)?;
    let tiff = Tiff {
        width,
        height,
        orientation,
        order: directory.order,
        compression,
        predictor: Predictor::from_tag(predictor, depth)?,
        is_bit_reversed,
        color,
        depth,
        samples,
        alpha,
        chunks,
        color_map: directory.position(COLOR_MAP).filter(|_| color == Color::Palette),
        jpeg_tables: directory.position(JPEG_TABLES).filter(|_| compression == Compression::Jpeg),
    };
    check_combinations(&tiff)?;
    if compression == Compression::Jpeg {
        check_first_jpeg(&tiff, directory.reader())?;
    }
    Ok(tiff)
}

/// Returns a width or height, if it is positive and fits into 32 bits.
fn checked_side(value: u64) -> Result<u32, HeaderError> {
    u32::try_from(value).ok().filter(|side| *side > 0).ok_or(HeaderError::Damaged)
}

fn unsupported(kind: &'static str) -> HeaderError {
    HeaderError::Unsupported(Unsupported::Kind(kind))
}

/// Checks that the tags are consistent and that their combination is supported.
fn check_combinations(tiff: &Tiff) -> Result<(), HeaderError> {
    match tiff.compression {
        Compression::Jpeg if tiff.depth != Depth::Bits(8) => {
            return Err(unsupported("a TIFF with JPEG compression of other than 8 bits a sample"));
        }
        Compression::Jpeg if tiff.color == Color::YCbCr && tiff.chunks.planes > 1 => {
            return Err(unsupported("a TIFF in YCbCr colours with a plane for each sample"));
        }
        Compression::Jpeg => {}
        _ if tiff.color == Color::YCbCr => {
            return Err(unsupported("a TIFF in YCbCr colours without JPEG compression"));
        }
        compression if compression.is_fax() => {
            let has_fax_pixels = matches!(tiff.color, Color::Grey { .. })
                && (tiff.depth, tiff.samples) == (Depth::Bits(1), 1);
            if !has_fax_pixels {
                return Err(HeaderError::Damaged);
            }
            if u64::from(tiff.chunks.width) > MAX_FAX_WIDTH {
                return Err(unsupported(
                    "a TIFF with fax compression and more than 65,535 pixels a row",
                ));
            }
        }
        _ => {}
    }
    // A map has three values for each index.
    let is_complete = |map: Position| map.count == 3 * (1 << tiff.depth.bits());
    if tiff.color == Color::Palette && !tiff.color_map.is_some_and(is_complete) {
        return Err(HeaderError::Damaged);
    }
    match tiff.jpeg_tables {
        Some(tables) if tables.count > MAX_JPEG_TABLES_LEN => Err(HeaderError::Damaged),
        _ => Ok(()),
    }
}

/// Checks that the decoder supports the JPEG in the first strip or tile.
fn check_first_jpeg(tiff: &Tiff, reader: &mut Reader) -> Result<(), HeaderError> {
    let offsets = tiff.chunks.offsets.read(reader, tiff.order, 1);
    let offsets = offsets.map_err(|_| HeaderError::Damaged)?;
    let first_offset = *offsets.first().ok_or(HeaderError::Damaged)?;
    match jpeg::read_at(reader, first_offset) {
        Ok(jpeg) if jpeg.undecodable_kind().is_none() => Ok(()),
        Ok(_) | Err(HeaderError::Unsupported(_)) => {
            Err(unsupported("a TIFF with a rare kind of JPEG compression"))
        }
        Err(HeaderError::Damaged) => Err(HeaderError::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::{crafted::Crafted, *};
    use crate::image::Content;

    const SIZE: (u64, u64) = (20, 10);

    // `Crafted::new`: size, PhotometricInterpretation (1 grey, 2 RGB, 3 palette, 5 CMYK), each sample's bits.
    fn grey() -> Crafted {
        Crafted::new(SIZE, 1, &[8])
    }

    fn rgb() -> Crafted {
        Crafted::new(SIZE, 2, &[8, 8, 8])
    }

    /// Reads the header of a file with one strip or tile of 8 bytes, at offset 16. `read` ignores its length.
    /// `Crafted::file` adds the tags for the offset and the length, unless the test sets or removes them.
    fn read_crafted(crafted: &Crafted) -> Result<Tiff, HeaderError> {
        read_file(crafted.file(&[&[0; 8]]))
    }

    fn read_file(file: Vec<u8>) -> Result<Tiff, HeaderError> {
        read(&mut Content::Memory(file.into()).header_reader())
    }

    #[test]
    fn tiff_and_bigtiff_are_read_in_both_byte_orders() {
        let fields = |crafted: Crafted| {
            let Tiff { width, height, orientation, color, depth, samples, .. } =
                read_crafted(&crafted).unwrap();
            (width, height, orientation, color, depth, samples)
        };
        let turned = rgb().with(ORIENTATION, &[6]);
        let expected = (20, 10, Orientation::Rotate90, Color::Rgb, Depth::Bits(8), 3);
        assert_eq!(fields(turned.clone()), expected);
        assert_eq!(fields(turned.clone().big_endian()), expected);
        assert_eq!(fields(turned.clone().big_tiff()), expected);
        assert_eq!(fields(turned.big_endian().big_tiff()), expected);
    }

    #[test]
    fn the_error_contains_the_name_of_an_unsupported_kind() {
        let palette = Crafted::new(SIZE, 3, &[16]);
        for (crafted, words) in [
            (grey().with(COMPRESSION, &[2]), "modified Huffman"),
            (grey().with(COMPRESSION, &[3]).with(T4_OPTIONS, &[1]), "two dimensions"),
            (rgb().with(COMPRESSION, &[6]), "JPEG compression of the old kind"),
            (rgb().with(COMPRESSION, &[34_712]), "JPEG 2000"),
            (rgb().with(COMPRESSION, &[34_887]), "LERC"),
            (rgb().with(COMPRESSION, &[34_925]), "LZMA"),
            (rgb().with(COMPRESSION, &[50_000]), "Zstandard"),
            (rgb().with(COMPRESSION, &[50_001]), "WebP"),
            (rgb().with(COMPRESSION, &[12_345]), "rare compression"),
            (rgb().with(PHOTOMETRIC, &[6]), "YCbCr"),
            (rgb().with(PHOTOMETRIC, &[8]), "L*a*b*"),
            (rgb().with(PHOTOMETRIC, &[32_845]), "LogLuv"),
            (grey().with(PHOTOMETRIC, &[4]), "mask"),
            (grey().with(PHOTOMETRIC, &[32_803]), "raw"),
            (Crafted::new(SIZE, 5, &[8; 4]).with(INK_SET, &[2]), "inks"),
            (Crafted::new(SIZE, 5, &[8; 5]).with(EXTRA_SAMPLES, &[2]), "transparency"),
            (Crafted::new(SIZE, 1, &[12]), "rare number of bits"),
            (Crafted::new(SIZE, 1, &[32]), "rare number of bits"),
            (Crafted::new(SIZE, 2, &[4; 3]), "rare number of bits"),
            (Crafted::new(SIZE, 2, &[5, 6, 5]), "differ"),
            (palette.with(COLOR_MAP, &[0; 3 << 16]), "rare number of bits"),
            (grey().with(SAMPLE_FORMAT, &[2]), "sign"),
            (Crafted::new(SIZE, 1, &[32]).with(SAMPLE_FORMAT, &[3]), "floating-point"),
            (Crafted::new(SIZE, 2, &[16; 3]).with(SAMPLE_FORMAT, &[3]), "floating-point"),
            (Crafted::new(SIZE, 1, &[64]).with(SAMPLE_FORMAT, &[6]), "complex"),
            (
                Crafted::new(SIZE, 1, &[1]).with(COMPRESSION, &[5]).with(PREDICTOR, &[2]),
                "predictor",
            ),
            (Crafted::new((1, 100_000), 1, &[8]).with(ROWS_PER_STRIP, &[1]), "65,536 strips"),
            (Crafted::new((70_000, 2), 1, &[1]).with(COMPRESSION, &[4]), "65,535 pixels a row"),
        ] {
            let result = read_crafted(&crafted);
            let Err(HeaderError::Unsupported(kind)) = result else {
                panic!("the TIFF for {words:?} must be unsupported: {result:?}")
            };
            assert!(kind.to_string().contains(words), "{words}: {kind}");
            assert!(kind.to_string().starts_with("This is a TIFF "), "{kind}");
        }
    }

    #[test]
    fn contradictory_invalid_and_truncated_headers_count_as_damaged() {
        for (crafted, problem) in [
            (grey().without(WIDTH), "no width"),
            (grey().with(HEIGHT, &[0]), "a height of 0"),
            (grey().with(BITS_PER_SAMPLE, &[0]), "0 bits"),
            (grey().with(BITS_PER_SAMPLE, &[9999]), "too many bits"),
            (rgb().with(SAMPLES_PER_PIXEL, &[1]), "RGB of one sample"),
            (rgb().with(SAMPLES_PER_PIXEL, &[999]), "too many samples"),
            (grey().with(SAMPLE_FORMAT, &[9]), "an unknown sample format"),
            (grey().with(FILL_ORDER, &[3]), "an unknown fill order"),
            (rgb().with(PLANAR_CONFIGURATION, &[3]), "an unknown planar configuration"),
            (rgb().with(PLANAR_CONFIGURATION, &[2]), "only one strip for three planes"),
            (grey().with(ROWS_PER_STRIP, &[0]), "strips without rows"),
            (grey().with(ROWS_PER_STRIP, &[5]), "only one strip instead of two"),
            (grey().without(STRIP_OFFSETS), "no strips"),
            (grey().with(STRIP_OFFSETS, &[0; 70_000]), "too many offsets"),
            (grey().with(TILE_WIDTH, &[16]), "tiles without a height"),
            (Crafted::new(SIZE, 3, &[8]), "a palette without colours"),
            (Crafted::new(SIZE, 3, &[8]).with(COLOR_MAP, &[0; 3 * 256 - 1]), "a truncated palette"),
            (grey().with(COMPRESSION, &[5]).with(PREDICTOR, &[9]), "an unknown predictor"),
            (grey().with(COMPRESSION, &[4]), "fax compression with 8 bits a sample"),
            (rgb().with(COMPRESSION, &[7]), "JPEG compression without a JPEG"),
        ] {
            assert_eq!(read_crafted(&crafted), Err(HeaderError::Damaged), "{problem}");
        }
        // At each of these lengths, the file ends before or inside the directory.
        for len in 0..100 {
            let mut file = grey().file(&[&[0; 8]]);
            file.truncate(len);
            assert_eq!(read_file(file), Err(HeaderError::Damaged), "{len} bytes");
        }
    }

    #[test]
    fn headers_with_mistakes_that_libtiff_tolerates_are_read() {
        let tiled = grey().with(TILE_WIDTH, &[32]).with(TILE_LENGTH, &[16]);
        for (crafted, mistake) in [
            (grey().without(STRIP_BYTE_COUNTS), "no length of the strip"),
            (grey().with(STRIP_OFFSETS, &[16, 0, 0]), "three offsets for one strip"),
            (grey().with(ORIENTATION, &[0]), "an unknown orientation"),
            (grey().with(ORIENTATION, &[9]), "an unknown orientation"),
            (grey().with(ORIENTATION, &[1; 1000]), "a thousand orientations"),
            (grey().with(PREDICTOR, &[9]), "an unknown predictor, but no compression"),
            (rgb().with(BITS_PER_SAMPLE, &[8]), "one number of bits for three samples"),
            (grey().without(PHOTOMETRIC), "no colour space"),
            (rgb().with(PLANAR_CONFIGURATION, &[0]), "a planar configuration of 0"),
            (
                grey().with(ROWS_PER_STRIP, &[5]).with(STRIP_OFFSETS, &[16, 16]),
                "one length for two strips",
            ),
            (grey().without(ROWS_PER_STRIP), "no tag for the rows per strip"),
            (grey().with(ROWS_PER_STRIP, &[u32::MAX.into()]), "too many rows per strip"),
            (tiled.without(TILE_OFFSETS).with(STRIP_OFFSETS, &[16]), "strip offsets for a tile"),
        ] {
            assert!(read_crafted(&crafted).is_ok(), "{mistake}");
        }
    }

    #[test]
    fn the_tag_extra_samples_decides_which_sample_is_alpha() {
        // A value for each extra sample: 0 unknown, 1 associated alpha, 2 unassociated. `[]`: no tag.
        let alpha = |bits: &[u64], extra: &[u64]| {
            read_crafted(&Crafted::new(SIZE, 2, bits).with(EXTRA_SAMPLES, extra)).unwrap().alpha
        };
        let unassociated = |at| Some(Alpha { at, is_associated: false });
        assert_eq!(alpha(&[8; 3], &[]), None);
        assert_eq!(alpha(&[8; 4], &[]), unassociated(3)); // many programs omit the tag
        assert_eq!(alpha(&[8; 4], &[0]), None);
        assert_eq!(alpha(&[8; 4], &[1]), Some(Alpha { at: 3, is_associated: true }));
        assert_eq!(alpha(&[8; 4], &[2]), unassociated(3));
        assert_eq!(alpha(&[8; 5], &[0, 2]), unassociated(4));
        assert_eq!(alpha(&[8; 5], &[]), None);
    }
}
