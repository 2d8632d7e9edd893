//! Estimates the memory that decoding a picture needs, from its header alone.
//!
//! The estimate does not call the decoders. Some of them read the whole file, decompress profiles or
//! expand tables before they return a size, and no memory is reserved for that yet.
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

/// The memory for profiles, text and tables of a picture of any size, in bytes.
const METADATA: u64 = 8 << 20;

/// The memory while a picture is encoded, in bytes for each pixel. The buffer with the pixels may have
/// been allocated with four bytes for each pixel. The JPEG of noise is large, too.
const ENCODING: u64 = 7;

/// Estimates the peak memory of decoding a picture and encoding it again, in bytes. Blocks the thread.
///
/// The estimate contains the length of the file: the JPEG decoder copies the whole file to memory. The
/// other decoders copy profiles and text, which may be almost the whole file.
///
/// # Errors
/// [`Error::BadHeader`], if the header is invalid or announces absurdly large tables.
/// [`Error::Unsupported`], if the decoder does not support this kind of picture. NVIDIA may accept it.
pub(super) fn estimate_memory(picture: &Picture) -> Result<u64, Error> {
    let estimate_with = |estimate: &dyn Fn(&mut Reader) -> Option<u64>| {
        let read = |reader: &mut Reader| estimate(reader).ok_or(HeaderError::Damaged);
        header::read_bounded(picture.format, &picture.content, read)
    };
    let bytes_per_pixel = match picture.format {
        Format::Jpeg => {
            let jpeg = header::read_bounded(picture.format, &picture.content, jpeg::read)?;
            if let Some(kind) = jpeg.undecodable_kind() {
                return Err(Error::Unsupported(kind));
            }
            jpeg_bytes_per_pixel(&jpeg)
        }
        Format::Png => estimate_with(&png_bytes_per_pixel)?,
        Format::WebP => estimate_with(&webp_bytes_per_pixel)?,
        // The RGBA canvas is four bytes, a frame on it another four, and the frame's indices one.
        Format::Gif => 4 + 5,
        Format::Bmp => 4,
        Format::Tiff => {
            let bytes = header::read_bounded(picture.format, &picture.content, |reader| {
                tiff_bytes(reader, picture.content.len())
            })?;
            let bytes = bytes.max(picture.pixels() * ENCODING);
            return Ok(bytes.saturating_add(picture.content.len() + METADATA));
        }
        Format::Heic => {
            let bytes = estimate_with(&|reader| heic_bytes(reader, picture.content.len()))?;
            return Ok(bytes + METADATA);
        }
    };
    Ok(picture.pixels() * bytes_per_pixel.max(ENCODING) + picture.content.len() + METADATA)
}

/// The decoder stores three bytes of RGB. If there are several scans, it also stores a 16-bit
/// coefficient for each component. Subsampling is ignored, so the estimate may be too high.
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
        1..=8 => Some(4),
        _ => None,
    }
}

/// The name of the first chunk identifies the kind of WebP. If the name is `VP8X`, a flag in the chunk
/// is set in animated pictures (<https://developers.google.com/speed/webp/docs/riff_container>).
fn webp_bytes_per_pixel(reader: &mut Reader) -> Option<u64> {
    const ANIMATED: u8 = 0b10;
    let mut head = [0; 21];
    reader.read_exact(&mut head).ok()?;
    match &head[12..16] {
        // Lossy: YUV, RGB, and copies of the compressed partitions.
        b"VP8 " => Some(3 + 3 + 3),
        // Lossless: RGBA, RGB, and Huffman tables. An encoder may create thousands of tables.
        b"VP8L" => Some(4 + 3 + 4),
        // Animated: RGBA, the canvas, and a frame.
        b"VP8X" if head[20] & ANIMATED != 0 => Some(4 + 4 + 4),
        // Lossless pixels like `VP8L`, or lossy pixels: RGBA, YUV, and alpha, which is decoded to
        // RGBA. Both kinds need 11 bytes.
        b"VP8X" => Some(4 + 2 + 1 + 4),
        _ => None,
    }
}

/// The decoder stores the colour and alpha samples of each pixel with 8 bits, and then converts them
/// to RGB. Three or more samples are converted in place. For one or two samples, the buffer grows, and
/// for a moment there are 2 + 3 bytes for each pixel.
///
/// For the current row, the decoder has a buffer with the stored samples and one with 8-bit samples.
/// The floating-point predictor needs two more buffers, as wide as a whole tile. A JPEG strip or tile
/// is decoded as a whole, possibly from several scans, and from a copy of its bytes.
fn tiff_bytes(reader: &mut Reader, file_len: u64) -> Result<u64, HeaderError> {
    let tiff = tiff::read(reader)?;
    let (chunk, samples) = (tiff.chunks, tiff.samples_of_a_pixel_in_one_chunk());
    let bytes_per_pixel = (tiff.color.samples() + u64::from(tiff.alpha.is_some())).max(2 + 3);
    let row_bytes =
        u64::from(chunk.width.min(tiff.width)) * samples * (tiff.depth.bits().div_ceil(8) + 1);
    let chunk_bytes = match (tiff.compression, tiff.predictor) {
        (Compression::Jpeg, _) => {
            let samples = u64::from(chunk.width) * u64::from(chunk.height) * samples;
            samples.saturating_mul(1 + 2).saturating_add(file_len)
        }
        (_, Predictor::FloatDifference) => u64::from(chunk.width) * samples * 2 * 4,
        _ => 0,
    };
    let pixel_bytes = u64::from(tiff.width) * u64::from(tiff.height) * bytes_per_pixel;
    Ok(pixel_bytes.saturating_add(row_bytes + chunk_bytes))
}

/// The decoder stores HEVC planes with 16 bits a sample for any bit depth, and converts them to RGBA.
/// It decodes the tiles of a grid one after the other, and copies each to the whole picture. Cropping,
/// turning and mirroring need a second copy of the pixels.
///
/// The whole file is in memory, and the HEVC stream of the picture or of a tile is copied twice.
fn heic_bytes(reader: &mut Reader, file_len: u64) -> Option<u64> {
    const RGBA: u64 = 4;
    let header = heif::read(reader).ok()?;
    let (pixels, stream_pixels) = (header.coded_pixels(), header.padded_stream_pixels());
    let has_alpha = header.alpha != heif::Alpha::None;
    // Bytes for each pixel in all planes. A pixel has one grey sample. On average, it also has zero, a
    // half, one or two colour samples, depending on the chroma format.
    let plane_bytes = match header.chroma {
        0 => 2,
        1 => 3,
        2 => 4,
        _ => 6,
    };
    let transformed = if header.is_transformed { RGBA } else { 0 };
    // The planes before and after the deblocking filters, and two more bytes.
    let decoder_bytes = 2 * plane_bytes + 2;
    let decoding = if header.is_grid {
        let alpha = if has_alpha { RGBA + transformed } else { 0 };
        pixels * (RGBA + transformed.max(alpha)) + stream_pixels * (decoder_bytes + RGBA)
    } else {
        let alpha = if has_alpha { 6 } else { 0 };
        let bytes_per_pixel = decoder_bytes.max(plane_bytes + RGBA + alpha).max(RGBA + transformed);
        stream_pixels.max(pixels) * bytes_per_pixel
    };
    Some(decoding.max(pixels * ENCODING) + 3 * file_len)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image_rs::{ImageFormat, RgbImage, RgbaImage};
    use proptest::prelude::*;

    use super::*;
    use crate::image::{
        Content, Orientation,
        header::tiff::crafted::Crafted,
        probe,
        render::{SCALING_MEMORY, decode},
    };

    fn estimate(bytes: &[u8]) -> Result<u64, Error> {
        estimate_memory(&probe(Content::Memory(bytes.to_vec().into()), 64_000_000)?)
    }

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::new(1000, 1000).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// The headers of a JPEG of 1000 × 1000 pixels. Its frame has three components and starts with this
    /// marker.
    fn jpeg(frame_marker: u8, components_in_scan: u8) -> Vec<u8> {
        let mut bytes = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0".to_vec();
        bytes.extend([
            0xff,
            frame_marker,
            0,
            17,
            8,
            0x03,
            0xe8,
            0x03,
            0xe8,
            3,
            1,
            0x22,
            0,
            2,
            0x11,
            1,
            3,
            0x11,
            1,
        ]);
        bytes.extend([0xff, 0xda, 0, 12, components_in_scan, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0]);
        bytes
    }

    /// A TIFF of 1000 × 1000 pixels, without the data of its strip.
    fn tiff(photometric: u64, bits: &[u64]) -> Crafted {
        Crafted::new((1000, 1000), photometric, bits)
    }

    #[test]
    fn several_scans_raise_the_estimate_of_a_jpeg() {
        let single_scan = estimate(&jpeg(0xc0, 3)).unwrap();
        assert!((6_000_000..7_000_000 + 2 * METADATA).contains(&single_scan));
        for several_scans in [jpeg(0xc2, 3), jpeg(0xc2, 1)] {
            assert!(estimate(&several_scans).unwrap() > single_scan + 1_500_000);
        }
    }

    #[test]
    fn sixteen_bits_a_sample_raise_the_estimate_of_a_png() {
        let mut png = encoded(ImageFormat::Png);
        let with_8_bits = estimate(&png).unwrap();
        png[24] = 16;
        assert!(estimate(&png).unwrap() > with_8_bits + 4_000_000);
    }

    #[test]
    fn wide_rows_wide_tiles_and_jpeg_compression_raise_the_estimate_of_a_tiff() {
        let estimate_of = |crafted: Crafted| estimate(&crafted.file(&[&[]])).unwrap();
        let usual = estimate_of(tiff(2, &[8; 3]));
        assert!((7_000_000..8_000_000).contains(&(usual - METADATA)), "{usual}");
        let wide_row = estimate_of(Crafted::new((1_000_000, 1), 2, &[16; 3]));
        assert!(wide_row > usual + 6_000_000, "{wide_row}");
        let float = tiff(2, &[32; 3]).with(339, &[3]).with(259, &[8]).with(317, &[3]);
        let wide_tile = estimate_of(float.clone().with(322, &[1_000_000]).with(323, &[1000]));
        assert!(wide_tile > estimate_of(float) + 20_000_000, "{wide_tile}");
        let with_jpeg = tiff(6, &[8; 3]).with(259, &[7]).file(&[&jpeg(0xc0, 3)]);
        let with_jpeg = estimate(&with_jpeg).unwrap();
        assert!(with_jpeg > usual + 6_000_000, "{with_jpeg}");
    }

    #[test]
    fn the_estimate_of_every_format_is_between_7_and_30_bytes_for_each_pixel() {
        for format in [
            ImageFormat::Jpeg,
            ImageFormat::Png,
            ImageFormat::WebP,
            ImageFormat::Gif,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
        ] {
            let bytes = estimate(&encoded(format)).unwrap();
            assert!((7_000_000..30_000_000).contains(&bytes), "{format:?}: {bytes}");
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
    fn a_single_stream_more_colour_samples_turning_and_alpha_raise_the_estimate_of_a_heic() {
        let [grid, turned_grid, grey, single, single_with_alpha, single_444] =
            ["grid", "grid-turned", "single-grey", "single", "single-alpha", "single-444"]
                .map(|name| heic_pixel_bytes(&format!("large-{name}")));
        assert!(grid < turned_grid, "{grid} {turned_grid}");
        assert!(grid < single, "{grid} {single}");
        assert!(grey < single, "{grey} {single}");
        assert!(single < single_with_alpha, "{single} {single_with_alpha}");
        assert!(single < single_444, "{single} {single_444}");
        assert!(grid >= 1600 * 1200 * ENCODING);
    }

    #[test]
    fn a_tiff_with_too_many_strips_bits_or_samples_is_refused() {
        for (tag, values) in
            [(273, &[8; 70_000][..]), (279, &[8; 70_000]), (258, &[9999]), (277, &[999])]
        {
            let result = estimate(&tiff(1, &[8]).with(tag, values).file(&[&[]]));
            assert!(matches!(result, Err(Error::BadHeader(Format::Tiff))), "{tag}");
        }
    }

    #[test]
    fn a_picture_with_long_metadata_is_decoded() {
        let mut png = Vec::new();
        RgbaImage::new(16, 16).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
        let text = [&b"tEXtComment\0"[..], &[b'x'; 50_000]].concat();
        let mut chunk = (text.len() as u32 - 4).to_be_bytes().to_vec();
        chunk.extend(&text);
        chunk.extend(crc32(&text).to_be_bytes());
        png.splice(33..33, chunk);
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
            format in 0..6usize,
            start in 0..120usize,
            noise in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = Cursor::new(Vec::new());
            let formats =
                [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff];
            RgbImage::new(5, 3).write_to(&mut bytes, formats[format]).unwrap();
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
        // Two more copies of the file, and a tile.
        const HEIC_EXTRA: u64 = (40 << 20) + (4 << 20);
        let max_megapixels = |bytes_per_pixel: u64, extra: u64| {
            (MAX_MEMORY - MAX_FILE_LEN - METADATA - extra) / bytes_per_pixel / 1_000_000
        };
        let bytes_per_pixel =
            |bytes: &[u8]| (estimate(bytes).unwrap() - METADATA - bytes.len() as u64) / 1_000_000;
        let animated = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xe7\x03\0\xe7\x03\0";
        let heic = heic_pixel_bytes("large-single") / 1_920_000;
        let jpeg_limit = max_megapixels(bytes_per_pixel(&jpeg(0xc0, 3)), SCALING_MEMORY);
        let png_limit = max_megapixels(bytes_per_pixel(&encoded(ImageFormat::Png)), SCALING_MEMORY);
        assert_eq!(jpeg_limit, png_limit, "JPEG and PNG must have one limit: they share a column");
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
