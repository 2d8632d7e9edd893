//! Estimates the memory that decoding a picture needs, from its header alone.
//!
//! No decoder is called for the estimate. Some decoders read the whole file, decompress profiles or
//! expand tables before they return a size. Memory for that is reserved only after the estimate.
//!
//! The estimates are upper bounds for the decoders that [`super::render`] uses. A child process that
//! needs much more memory than estimated cannot get it, and fails. `tests/api/peaks.rs` compares the
//! estimates with the peak memory of real child processes, for ordinary pictures of every format, depth
//! and kind.

use std::io::Read;

use super::{
    Error, Format, Picture, Reader,
    header::{
        self, HeaderError, heif, jpeg,
        tiff::{
            self,
            kinds::{Compression, Predictor},
        },
    },
};

/// A fixed part of every estimate, in bytes: for tables, profiles and text, in addition to the file's length.
const METADATA: u64 = 8 << 20;

/// The memory while a picture is encoded, in bytes for each pixel: four for the buffer of the pixels,
/// which may have been allocated for RGBA, and three for the JPEG, which is large if the picture is
/// noise.
const ENCODING_BYTES_PER_PIXEL: u64 = 4 + 3;

/// Estimates the peak memory of decoding a picture and encoding it again, in bytes. Blocks the thread.
///
/// The estimate also contains the length of the file: the JPEG decoder copies the whole file to memory. The
/// other decoders copy profiles and text, which may be almost the whole file.
///
/// # Errors
/// [`Error::BadHeader`], if the header is invalid or announces absurdly large tables.
/// [`Error::Unsupported`], if the decoder does not support this kind of picture. NVIDIA may accept such
/// a picture.
/// [`Error::Unreadable`], if the file cannot be read.
pub(super) fn estimate_memory(picture: &Picture) -> Result<u64, Error> {
    let from_header = |parse: &dyn Fn(&mut Reader) -> Option<u64>| {
        let parse_or_fail = |reader: &mut Reader| parse(reader).ok_or(HeaderError::Damaged);
        header::read_bounded(picture.format, &picture.content, parse_or_fail)
    };
    let bytes_per_pixel = match picture.format {
        Format::Jpeg => {
            let jpeg = header::read_bounded(picture.format, &picture.content, jpeg::read)?;
            if let Some(kind) = jpeg.undecodable_kind() {
                return Err(Error::Unsupported(kind));
            }
            jpeg_bytes_per_pixel(&jpeg)
        }
        Format::Png => from_header(&png_bytes_per_pixel)?,
        Format::WebP => from_header(&webp_bytes_per_pixel)?,
        // The RGBA canvas is four bytes, a frame on it another four, and the frame's indices one.
        Format::Gif => 4 + 4 + 1,
        Format::Bmp => 4, // RGBA
        Format::Tiff => {
            let decoding = header::read_bounded(picture.format, &picture.content, |reader| {
                tiff_bytes(reader, picture.content.len())
            })?;
            let bytes = decoding.max(picture.pixels() * ENCODING_BYTES_PER_PIXEL);
            return Ok(bytes.saturating_add(picture.content.len() + METADATA));
        }
        Format::Heic => {
            let bytes = from_header(&|reader| heic_bytes(reader, picture.content.len()))?;
            return Ok(bytes + METADATA);
        }
    };
    let pixel_bytes = picture.pixels() * bytes_per_pixel.max(ENCODING_BYTES_PER_PIXEL);
    Ok(pixel_bytes + picture.content.len() + METADATA)
}

/// For each pixel, the decoder stores three bytes of RGB. If there are several scans, it also stores a
/// 16-bit coefficient for each component. Subsampling is ignored, so the estimate may be too high.
fn jpeg_bytes_per_pixel(jpeg: &jpeg::Jpeg) -> u64 {
    const MAX_COMPONENTS: u8 = 4;
    let coefficients = if jpeg.has_several_scans() {
        2 * u64::from(jpeg.frame.components.min(MAX_COMPONENTS))
    } else {
        0
    };
    3 + coefficients
}

/// Byte 24 of the file is the bit depth (PNG specification, 11.2.1).
fn png_bytes_per_pixel(reader: &mut Reader) -> Option<u64> {
    let mut head = [0; 26];
    reader.read_exact(&mut head).ok()?;
    match head[24] {
        16 => Some(8 + 4), // RGBA with 16 bits a sample, then with 8 bits
        1..=8 => Some(4),  // RGBA with 8 bits a sample
        _ => None,
    }
}

/// The name of the first chunk identifies the kind of WebP. A chunk `VP8X` contains flags. One of them means
/// that the picture is animated (<https://developers.google.com/speed/webp/docs/riff_container>).
fn webp_bytes_per_pixel(reader: &mut Reader) -> Option<u64> {
    const ANIMATED: u8 = 0b10;
    let mut head = [0; 21]; // up to the byte with the flags
    reader.read_exact(&mut head).ok()?;
    match &head[12..16] {
        // Lossy: YUV, RGB, and copies of the compressed partitions. Each has at most three bytes a pixel.
        b"VP8 " => Some(3 + 3 + 3),
        // Lossless: RGBA, RGB, and Huffman tables. An encoder may create thousands of tables.
        b"VP8L" => Some(4 + 3 + 4),
        // Animated: RGBA, the canvas, and a frame.
        b"VP8X" if head[20] & ANIMATED != 0 => Some(4 + 4 + 4),
        // Lossy pixels with alpha: RGBA, YUV (1.5 bytes), alpha, and the RGBA that alpha is first
        // decoded to. This is also enough if the pixels are lossless: see `VP8L`.
        b"VP8X" => Some(4 + 2 + 1 + 4),
        _ => None,
    }
}

/// The decoder stores the colour and alpha samples of each pixel with 8 bits, and then converts them
/// to RGB. Three or more samples are converted in place. For one or two samples, the buffer grows, and
/// for a moment there are 2 + 3 bytes for each pixel. No TIFF's estimate is below these 5 bytes.
///
/// For the current row, the decoder has a buffer with the stored samples and one with 8-bit samples.
/// The floating-point predictor needs two more buffers, as wide as a whole tile. A JPEG strip or tile
/// is decoded as a whole, possibly from several scans, and from a copy of its bytes. The result
/// contains all of this, but no memory for encoding.
fn tiff_bytes(reader: &mut Reader, file_len: u64) -> Result<u64, HeaderError> {
    let tiff = tiff::read(reader)?;
    let (chunk, samples_per_pixel) = (tiff.chunks, tiff.samples_of_a_pixel_in_one_chunk());
    let bytes_per_pixel = (tiff.color.samples() + u64::from(tiff.alpha.is_some())).max(2 + 3);
    let row_samples = u64::from(chunk.width.min(tiff.width)) * samples_per_pixel;
    let row_bytes = row_samples * (tiff.depth.bits().div_ceil(8) + 1);
    let chunk_row_samples = u64::from(chunk.width) * samples_per_pixel;
    let chunk_bytes = match (tiff.compression, tiff.predictor) {
        // For each sample, one byte, and two bytes for its coefficient.
        (Compression::Jpeg, _) => (chunk_row_samples * u64::from(chunk.height))
            .saturating_mul(1 + 2)
            .saturating_add(file_len),
        // Two buffers of samples of four bytes.
        (_, Predictor::FloatDifference) => chunk_row_samples * 2 * 4,
        _ => 0,
    };
    let pixel_bytes = u64::from(tiff.width) * u64::from(tiff.height) * bytes_per_pixel;
    Ok(pixel_bytes.saturating_add(row_bytes + chunk_bytes))
}

/// The decoder stores HEVC planes with 16 bits a sample for any bit depth, and converts them to RGBA. It
/// decodes the tiles of a grid one after the other, and copies each to the whole picture. Cropping, turning
/// and mirroring need a second copy of the pixels. The alpha of a grid becomes RGBA, too. A single stream's
/// alpha counts as grey. The picture's planes and RGBA stay in memory while this alpha is decoded.
///
/// The whole file is in memory, and the HEVC stream of the picture or of a tile is copied twice. The
/// result is enough for all of this, and for encoding, which comes later.
fn heic_bytes(reader: &mut Reader, file_len: u64) -> Option<u64> {
    // The constants, `planes`, `transformed_copy`, `decoder` and `alpha` are bytes for each pixel.
    const RGBA: u64 = 4;
    const GREY_PLANE: u64 = 2;
    let header = heif::read(reader).ok()?;
    let (pixels, stream_pixels) = (header.coded_pixels(), header.padded_stream_pixels());
    let has_alpha = header.alpha != heif::Alpha::None;
    // All planes, with two bytes a sample. A pixel has one grey sample. On average, it also has zero, a
    // half, one or two colour samples, depending on the chroma format.
    let planes = match header.chroma {
        0 => GREY_PLANE,
        1 => 3,
        2 => 4,
        _ => 6,
    };
    let transformed_copy = if header.is_transformed { RGBA } else { 0 };
    // The planes before and after the deblocking filters, and two bytes for everything else.
    let decoder = 2 * planes + 2;
    let decoding_bytes = if header.is_grid {
        let alpha = if has_alpha { RGBA + transformed_copy } else { 0 };
        pixels * (RGBA + transformed_copy.max(alpha)) + stream_pixels * (decoder + RGBA)
    } else {
        let alpha = if has_alpha { 2 * GREY_PLANE + 2 } else { 0 }; // like `decoder`, for grey
        let bytes_per_pixel = decoder.max(planes + RGBA + alpha).max(RGBA + transformed_copy);
        stream_pixels.max(pixels) * bytes_per_pixel
    };
    Some(decoding_bytes.max(pixels * ENCODING_BYTES_PER_PIXEL) + 3 * file_len)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image_rs::{ImageFormat, RgbImage, RgbaImage};
    use proptest::prelude::*;

    use super::*;
    use crate::image::{
        Content, Orientation,
        header::tiff::{
            BITS_PER_SAMPLE, COMPRESSION, PREDICTOR, SAMPLE_FORMAT, SAMPLES_PER_PIXEL,
            STRIP_BYTE_COUNTS, STRIP_OFFSETS, TILE_LENGTH, TILE_WIDTH, crafted::Crafted,
        },
        probe,
        render::{SCALING_MEMORY, decode},
    };

    /// Every format except HEIC, which the `image` crate does not encode.
    const FORMATS: [ImageFormat; 6] = {
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
        [Jpeg, Png, WebP, Gif, Bmp, Tiff]
    };

    fn estimate(bytes: &[u8]) -> Result<u64, Error> {
        estimate_memory(&probe(Content::Memory(bytes.to_vec().into()), 64_000_000)?)
    }

    /// A picture of 1000 × 1000 pixels in this format.
    fn encoded(format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::new(1000, 1000).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// The headers of a JPEG of 1000 × 1000 pixels with three components. The second byte of the frame's
    /// marker is `frame_marker`: 0xC0 is a baseline JPEG, and 0xC2 a progressive one. With fewer than three
    /// `components_in_scan`, further scans must follow.
    fn jpeg(frame_marker: u8, components_in_scan: u8) -> Vec<u8> {
        let mut bytes = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0".to_vec();
        bytes.extend([0xff, frame_marker, 0, 17, 8]); // the length is 17, and a sample has 8 bits
        bytes.extend([1000u16; 2].map(u16::to_be_bytes).concat()); // the height and the width
        bytes.extend([3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]); // the components
        bytes.extend([0xff, 0xda, 0, 12, components_in_scan, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0]);
        bytes
    }

    // Values of the tag PhotometricInterpretation.
    const GREY: u64 = 1;
    const RGB: u64 = 2;
    const YCBCR: u64 = 6;

    /// A TIFF of 1000 × 1000 pixels, without the data of its strip.
    fn tiff(photometric: u64, bits: &[u64]) -> Crafted {
        Crafted::new((1000, 1000), photometric, bits)
    }

    // Most pictures of these tests have a million pixels: a million bytes are one byte for each.

    #[test]
    fn several_scans_raise_the_estimate_of_a_jpeg() {
        let single_scan = estimate(&jpeg(0xc0, 3)).unwrap();
        // Encoding needs 7 bytes for each of the million pixels.
        assert!((7_000_000..8_000_000).contains(&(single_scan - METADATA)), "{single_scan}");
        for progressive in [jpeg(0xc2, 3), jpeg(0xc2, 1)] {
            assert!(estimate(&progressive).unwrap() > single_scan + 1_500_000); // 9 bytes, not 7
        }
    }

    #[test]
    fn sixteen_bits_a_sample_raise_the_estimate_of_a_png() {
        let mut png = encoded(ImageFormat::Png);
        let with_8_bits = estimate(&png).unwrap();
        png[24] = 16; // the bit depth
        assert!(estimate(&png).unwrap() > with_8_bits + 4_000_000); // 12 bytes, not 7
    }

    #[test]
    fn wide_rows_wide_float_tiles_and_jpeg_compression_raise_the_estimate_of_a_tiff() {
        let estimate_of = |crafted: Crafted| estimate(&crafted.file(&[&[]])).unwrap();
        let usual = estimate_of(tiff(RGB, &[8; 3]));
        assert!((7_000_000..8_000_000).contains(&(usual - METADATA)), "{usual}");
        // For each pixel, 5 bytes, and 9 bytes in the buffers of its row.
        let wide_row = estimate_of(Crafted::new((1_000_000, 1), RGB, &[16; 3]));
        assert!(wide_row > usual + 6_000_000, "{wide_row}");
        // The float predictor requires compression (Deflate), and needs 24 bytes a pixel in a tile's row.
        let float = tiff(RGB, &[32; 3]).with(SAMPLE_FORMAT, &[3]);
        let float = float.with(COMPRESSION, &[8]).with(PREDICTOR, &[3]);
        let wide_tile = float.clone().with(TILE_WIDTH, &[1_000_000]).with(TILE_LENGTH, &[1000]);
        let wide_tile = estimate_of(wide_tile);
        assert!(wide_tile > estimate_of(float) + 20_000_000, "{wide_tile}");
        // For each pixel, 5 bytes, and 9 bytes for the JPEG in the strip.
        let with_jpeg = tiff(YCBCR, &[8; 3]).with(COMPRESSION, &[7]).file(&[&jpeg(0xc0, 3)]);
        let with_jpeg = estimate(&with_jpeg).unwrap();
        assert!(with_jpeg > usual + 6_000_000, "{with_jpeg}");
    }

    #[test]
    fn the_estimate_of_every_format_except_heic_is_between_7_and_12_bytes_for_each_pixel() {
        for format in FORMATS {
            let bytes = estimate(&encoded(format)).unwrap() - METADATA;
            assert!((7_000_000..12_000_000).contains(&bytes), "{format:?}: {bytes}");
        }
    }

    /// The estimate for a HEIC of 1600 × 1200 pixels, without the memory for its file and its metadata.
    fn heic_pixel_bytes(name: &str) -> u64 {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/heic");
        let bytes = std::fs::read(format!("{folder}/{name}.heic")).unwrap();
        let len = bytes.len() as u64;
        let content = Content::Memory(bytes.into());
        let orientation = Orientation::NoTransforms;
        let picture =
            Picture { content, format: Format::Heic, width: 1600, height: 1200, orientation };
        estimate_memory(&picture).unwrap() - METADATA - 3 * len
    }

    #[test]
    fn rotation_alpha_colour_and_a_single_stream_raise_the_estimate_of_a_heic() {
        let [grid, turned_grid, grey, single, single_with_alpha, single_444] =
            ["grid", "grid-turned", "single-grey", "single", "single-alpha", "single-444"]
                .map(|name| heic_pixel_bytes(&format!("large-{name}")));
        assert!(grid < turned_grid, "{grid} {turned_grid}");
        assert!(grid < single, "{grid} {single}");
        assert!(grey < single, "{grey} {single}");
        assert!(single < single_with_alpha, "{single} {single_with_alpha}");
        assert!(single < single_444, "{single} {single_444}");
        assert!(grid >= 1600 * 1200 * ENCODING_BYTES_PER_PIXEL);
    }

    #[test]
    fn a_tiff_with_too_many_strips_bits_or_samples_is_refused() {
        for (tag, values) in [
            (STRIP_OFFSETS, &[8; 70_000][..]), // at most 65,536 are allowed
            (STRIP_BYTE_COUNTS, &[8; 70_000]),
            (BITS_PER_SAMPLE, &[9999]),
            (SAMPLES_PER_PIXEL, &[999]),
        ] {
            let result = estimate(&tiff(GREY, &[8]).with(tag, values).file(&[&[]]));
            assert!(matches!(result, Err(Error::BadHeader(Format::Tiff))), "{tag}");
        }
    }

    #[test]
    fn a_picture_whose_metadata_is_longer_than_its_pixels_is_decoded() {
        let mut png = Vec::new();
        RgbaImage::new(16, 16).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
        let type_and_data = [&b"tEXtComment\0"[..], &[b'x'; 50_000]].concat();
        let mut chunk = (type_and_data.len() as u32 - 4).to_be_bytes().to_vec(); // without the type
        chunk.extend(&type_and_data);
        chunk.extend(crc32(&type_and_data).to_be_bytes());
        png.splice(33..33, chunk); // after the signature and the chunk IHDR
        let picture = probe(Content::Memory(png.into()), 64_000_000).unwrap();
        let memory_estimate = estimate_memory(&picture).unwrap();
        assert_eq!(decode(&picture, memory_estimate).unwrap().width(), 16);
    }

    /// The checksum of a PNG chunk (PNG specification, annex D).
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
            })
        })
    }

    proptest! {
        #[test]
        fn damaged_headers_cause_no_panic(
            format in proptest::sample::select(FORMATS.to_vec()),
            start in 0..120usize,
            noise in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = Cursor::new(Vec::new());
            RgbImage::new(5, 3).write_to(&mut bytes, format).unwrap();
            let mut bytes = bytes.into_inner();
            let start = start.min(bytes.len());
            let end = (start + noise.len()).min(bytes.len());
            bytes[start..end].copy_from_slice(&noise[..end - start]);
            let _ = estimate(&bytes);
        }
    }

    #[test]
    fn the_documented_size_limits_match_the_estimates() {
        // By default, a picture may use 384 MiB, and a file may have 20 MiB.
        const MAX_MEMORY: u64 = 384 << 20;
        const MAX_FILE_LEN: u64 = 20 << 20;
        // Two more copies of the file, and a margin for padding or for a tile.
        const HEIC_EXTRA: u64 = 2 * MAX_FILE_LEN + (4 << 20);
        let max_megapixels = |bytes_per_pixel: u64, extra_bytes: u64| {
            (MAX_MEMORY - MAX_FILE_LEN - METADATA - extra_bytes) / bytes_per_pixel / 1_000_000
        };
        // All files but the HEIC have 1000 × 1000 pixels.
        let bytes_per_pixel =
            |file: &[u8]| (estimate(file).unwrap() - METADATA - file.len() as u64) / 1_000_000;
        let animated = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xe7\x03\0\xe7\x03\0";
        let heic = heic_pixel_bytes("large-single") / (1600 * 1200);
        // The limits of JPEG and PNG include the memory for shrinking. Those of the other formats are for
        // converting a picture in its full size.
        let jpeg_limit = max_megapixels(bytes_per_pixel(&jpeg(0xc0, 3)), SCALING_MEMORY);
        let png_limit = max_megapixels(bytes_per_pixel(&encoded(ImageFormat::Png)), SCALING_MEMORY);
        assert_eq!(jpeg_limit, png_limit, "JPEG and PNG share a column of the documented table");
        let limits = [
            ("JPEG, PNG", jpeg_limit),
            ("GIF", max_megapixels(bytes_per_pixel(&encoded(ImageFormat::Gif)), 0)),
            ("HEIC", max_megapixels(heic, HEIC_EXTRA)),
            ("progressive JPEG", max_megapixels(bytes_per_pixel(&jpeg(0xc2, 3)), SCALING_MEMORY)),
            ("lossless WebP", max_megapixels(bytes_per_pixel(&encoded(ImageFormat::WebP)), 0)),
            ("animated WebP", max_megapixels(bytes_per_pixel(animated), 0)),
        ];
        let kinds = limits.map(|(kind, _)| kind).join(" | ");
        let megapixels = limits.map(|(_, megapixels)| megapixels.to_string()).join(" | ");
        let columns = "|---".repeat(limits.len());
        let table = format!("| {kinds} |\n{columns}|\n| {megapixels} |\n");
        assert!(include_str!("../../docs/api.md").contains(&table), "{table}");
    }
}
