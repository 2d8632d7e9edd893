//! How much memory decoding a picture takes, told from its header alone.
//!
//! No decoder is opened to find out: some read the whole file, inflate profiles or expand tables
//! before they tell anything, and nothing is reserved yet. The figures are those of the decoders
//! that [`super::render`] uses, on the high side; a picture that takes more is ended.
//!
//! `tests/api/peaks.rs` holds each figure against what children really take at their peak for
//! ordinary pictures of every format, depth and kind.

use std::io::Read;

use super::{
    Error, Format, Picture, Reader,
    header::{
        self, Fault, heif, jpeg,
        tiff::{
            self,
            kinds::{Compression, Predictor},
        },
    },
};

/// What a decoder may take for profiles, text and tables, whatever the picture's size, in bytes.
const METADATA: u64 = 8 << 20;

/// Encoding holds the pixels, in what was four bytes for each, and an output that noise makes
/// large, in bytes a pixel.
const ENCODING: u64 = 7;

/// The memory that decoding and encoding anew take at their peak, in bytes. Blocks the thread.
///
/// The file's length is part of it: JPEG's decoder holds all of the file, the others its profiles
/// and text, which may be nearly all of it.
///
/// # Errors
/// [`Error::BadHeader`] when the header makes no sense or claims absurd tables;
/// [`Error::Unsupported`] when it is of a kind that can be sent as it is, and not decoded.
pub(super) fn decode_cost(picture: &Picture) -> Result<u64, Error> {
    let bounded = |read: &dyn Fn(&mut Reader) -> Option<u64>| {
        let read = |reader: &mut Reader| read(reader).ok_or(Fault::Damaged);
        header::bounded(picture.format, &picture.content, read)
    };
    let per_pixel = match picture.format {
        Format::Jpeg => {
            let jpeg = header::bounded(picture.format, &picture.content, jpeg::read)?;
            if let Some(kind) = jpeg.undecodable() {
                return Err(Error::Unsupported(kind));
            }
            per_pixel_of_jpeg(&jpeg)
        }
        Format::Png => bounded(&png)?,
        Format::WebP => bounded(&webp)?,
        // The canvas, a frame of it, and the frame's indices.
        Format::Gif => 4 + 5,
        Format::Bmp => 4,
        Format::Tiff => {
            let bytes = header::bounded(picture.format, &picture.content, |reader| {
                tiff(reader, picture.content.len())
            })?;
            let bytes = bytes.max(picture.pixels() * ENCODING);
            return Ok(bytes.saturating_add(picture.content.len() + METADATA));
        }
        Format::Heic => {
            return Ok(bounded(&|reader| heic(reader, picture.content.len()))? + METADATA);
        }
    };
    Ok(picture.pixels() * per_pixel.max(ENCODING) + picture.content.len() + METADATA)
}

/// A picture that comes in several scans is held as 16-bit coefficients of each component, none of
/// them finer than the picture.
fn per_pixel_of_jpeg(jpeg: &jpeg::Jpeg) -> u64 {
    const MOST: u8 = 4;
    let coefficients =
        if jpeg.has_several_scans() { 2 * u64::from(jpeg.frame.components.min(MOST)) } else { 0 };
    3 + coefficients
}

/// Bit depth and colour type are bytes 24 and 25 (PNG specification, 11.2.1).
fn png(reader: &mut Reader) -> Option<u64> {
    let mut head = [0; 26];
    reader.read_exact(&mut head).ok()?;
    match head[24] {
        16 => Some(8 + 4), // and the same in 8 bits
        1..=8 => Some(4),
        _ => None,
    }
}

/// The kind of WebP stands in the first chunk's name and, if that is `VP8X`, in its flags
/// (<https://developers.google.com/speed/webp/docs/riff_container>).
fn webp(reader: &mut Reader) -> Option<u64> {
    const ANIMATED: u8 = 0b10;
    let mut head = [0; 21];
    reader.read_exact(&mut head).ok()?;
    match &head[12..16] {
        // The pixels, as YUV and as RGB, and copies of the compressed partitions.
        b"VP8 " => Some(3 + 3 + 3),
        // The pixels with alpha and without, and Huffman tables, which an encoder may make
        // thousands of.
        b"VP8L" => Some(4 + 3 + 4),
        // The pixels, the canvas, and a frame.
        b"VP8X" if head[20] & ANIMATED != 0 => Some(4 + 4 + 4),
        // As `VP8L`; or the pixels, as YUV too, and alpha, which is decoded as RGBA.
        b"VP8X" => Some(4 + 2 + 1 + 4),
        _ => None,
    }
}

/// What is wanted of a pixel is held in 8 bits a sample, and made RGB in place. Beside that there are a
/// row, as it is stored and in 8 bits; of floating-point numbers twice, and of the whole width of a tile,
/// where bytes are taken apart. A JPEG is decoded as a whole, of whatever kind it is, from a copy.
fn tiff(reader: &mut Reader, file_len: u64) -> Result<u64, Fault> {
    let tiff = tiff::read(reader)?;
    let (chunk, samples) = (tiff.chunks, tiff.samples_together());
    let held = (tiff.color.samples() + u64::from(tiff.alpha.is_some())).max(3 + 2);
    let row =
        u64::from(chunk.width.min(tiff.width)) * samples * (tiff.depth.bits().div_ceil(8) + 1);
    let chunk = match (tiff.compression, tiff.predictor) {
        (Compression::Jpeg, _) => {
            let samples = u64::from(chunk.width) * u64::from(chunk.height) * samples;
            samples.saturating_mul(1 + 2).saturating_add(file_len)
        }
        (_, Predictor::FloatDifference) => u64::from(chunk.width) * samples * 2 * 4,
        _ => 0,
    };
    Ok((u64::from(tiff.width) * u64::from(tiff.height) * held).saturating_add(row + chunk))
}

/// HEVC is decoded to planes of 16 bits a sample, whatever the depth, and these are made pixels of four
/// bytes. A grid's tiles are decoded one after another into the whole; cutting, turning and mirroring
/// take a second copy. The file is held whole, and the stream of the picture, or of a tile, twice more.
fn heic(reader: &mut Reader, file_len: u64) -> Option<u64> {
    const PIXEL: u64 = 4;
    let header = heif::read(reader).ok()?;
    let (pixels, stream) = (header.pixels(), header.padded_stream());
    let has_alpha = header.alpha != heif::Alpha::None;
    let sample = match header.chroma {
        0 => 2,
        1 => 3,
        2 => 4,
        _ => 6,
    };
    let turned = if header.is_turned { PIXEL } else { 0 };
    // The planes, before and after the filters that smooth blocks.
    let planes = 2 * sample + 2;
    let decoding = if header.is_grid {
        let alpha = if has_alpha { PIXEL + turned } else { 0 };
        pixels * (PIXEL + turned.max(alpha)) + stream * (planes + PIXEL)
    } else {
        let alpha = if has_alpha { 6 } else { 0 };
        stream.max(pixels) * planes.max(sample + PIXEL + alpha).max(PIXEL + turned)
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

    fn cost(bytes: &[u8]) -> Result<u64, Error> {
        decode_cost(&probe(Content::Memory(bytes.to_vec().into()), 64_000_000)?)
    }

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::new(1000, 1000).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// A JPEG's headers: a frame of 1000 × 1000 with three components, and a scan of some of them.
    fn jpeg(frame: u8, components_in_scan: u8) -> Vec<u8> {
        let mut bytes = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0".to_vec();
        bytes.extend([
            0xff, frame, 0, 17, 8, 0x03, 0xe8, 0x03, 0xe8, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1,
        ]);
        bytes.extend([0xff, 0xda, 0, 12, components_in_scan, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0]);
        bytes
    }

    /// A TIFF of 1000 × 1000 whose strip is not there.
    fn tiff(photometric: u64, bits: &[u64]) -> Crafted {
        Crafted::new((1000, 1000), photometric, bits)
    }

    #[test]
    fn a_jpeg_of_several_scans_takes_more_than_one_of_a_single_scan() {
        let single = cost(&jpeg(0xc0, 3)).unwrap();
        assert!((6_000_000..7_000_000 + 2 * METADATA).contains(&single));
        for several in [jpeg(0xc2, 3), jpeg(0xc2, 1)] {
            assert!(cost(&several).unwrap() > single + 1_500_000);
        }
    }

    #[test]
    fn deep_pictures_take_more() {
        let mut deep = encoded(ImageFormat::Png);
        let flat = cost(&deep).unwrap();
        deep[24] = 16;
        assert!(cost(&deep).unwrap() > flat + 4_000_000);
    }

    #[test]
    fn a_tiff_takes_more_where_a_strip_or_a_row_is_large() {
        let cost = |crafted: Crafted| cost(&crafted.file(&[&[]])).unwrap();
        let plain = cost(tiff(2, &[8; 3]));
        assert!((7_000_000..8_000_000).contains(&(plain - METADATA)), "{plain}");
        let row = cost(Crafted::new((1_000_000, 1), 2, &[16; 3]));
        assert!(row > plain + 6_000_000, "{row}");
        let float = tiff(2, &[32; 3]).with(339, &[3]).with(259, &[8]).with(317, &[3]);
        let tile = cost(float.clone().with(322, &[1_000_000]).with(323, &[1000]));
        assert!(tile > cost(float) + 20_000_000, "{tile}");
        let jpeg = jpeg(0xc0, 3);
        let jpeg = self::cost(&tiff(6, &[8; 3]).with(259, &[7]).file(&[&jpeg])).unwrap();
        assert!(jpeg > plain + 6_000_000, "{jpeg}");
    }

    #[test]
    fn every_format_costs_at_least_its_pixels_and_is_not_overrated() {
        for format in [
            ImageFormat::Jpeg,
            ImageFormat::Png,
            ImageFormat::WebP,
            ImageFormat::Gif,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
        ] {
            let cost = cost(&encoded(format)).unwrap();
            assert!((7_000_000..30_000_000).contains(&cost), "{format:?}: {cost}");
        }
    }

    /// What a HEIC of 1600 × 1200 pixels takes beside its file and its metadata.
    fn heic(name: &str) -> u64 {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/heic");
        let bytes = std::fs::read(format!("{folder}/{name}.heic")).unwrap();
        let len = bytes.len() as u64;
        let content = Content::Memory(bytes.into());
        let orientation = Orientation::NoTransforms;
        let picture =
            Picture { content, format: Format::Heic, width: 1600, height: 1200, orientation };
        decode_cost(&picture).unwrap() - METADATA - 3 * len
    }

    #[test]
    fn a_heic_takes_more_in_one_piece_with_more_colour_turned_or_with_alpha() {
        let [grid, turned, grey, single, alpha, full] =
            ["grid", "grid-turned", "single-grey", "single", "single-alpha", "single-444"]
                .map(|name| heic(&format!("large-{name}")));
        assert!(grid < turned && grid < single, "{grid} {turned} {single}");
        assert!(grey < single && single < alpha && single < full, "{grey} {single} {alpha} {full}");
        assert!(grid >= 1600 * 1200 * ENCODING);
    }

    #[test]
    fn a_tiff_with_absurd_tables_is_refused() {
        for (tag, values) in
            [(273, &[8; 70_000][..]), (279, &[8; 70_000]), (258, &[9999]), (277, &[999])]
        {
            let result = cost(&tiff(1, &[8]).with(tag, values).file(&[&[]]));
            assert!(matches!(result, Err(Error::BadHeader(Format::Tiff))), "{tag}");
        }
    }

    #[test]
    fn a_picture_with_long_metadata_is_still_decoded() {
        let mut png = Vec::new();
        RgbaImage::new(16, 16).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
        let text = [&b"tEXtComment\0"[..], &[b'x'; 50_000]].concat();
        let mut chunk = (text.len() as u32 - 4).to_be_bytes().to_vec();
        chunk.extend(&text);
        chunk.extend(crc32(&text).to_be_bytes());
        png.splice(33..33, chunk);
        let picture = probe(Content::Memory(png.into()), 64_000_000).unwrap();
        let cost = decode_cost(&picture).unwrap();
        assert_eq!(decode(&picture, cost).unwrap().width(), 16);
    }

    /// The checksum of PNG's chunks (PNG specification, annex D).
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
            })
        })
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(
            which in 0..6usize,
            at in 0..120usize,
            noise in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = Cursor::new(Vec::new());
            let formats =
                [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff];
            RgbImage::new(5, 3).write_to(&mut bytes, formats[which]).unwrap();
            let mut bytes = bytes.into_inner();
            let at = at.min(bytes.len());
            let end = (at + noise.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
            let _ = cost(&bytes);
        }
    }

    #[test]
    fn the_readmes_bounds_are_those_of_the_estimate() {
        // The file twice more, and a tile.
        const HEIC_BESIDE: u64 = (40 << 20) + (4 << 20);
        let bound = |per_pixel: u64, beside: u64| {
            ((384 << 20) - (20 << 20) - METADATA - beside) / per_pixel / 1_000_000
        };
        let per_pixel =
            |bytes: &[u8]| (cost(bytes).unwrap() - METADATA - bytes.len() as u64) / 1_000_000;
        let animated = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xe7\x03\0\xe7\x03\0";
        let bounds = [
            (bound(per_pixel(&jpeg(0xc0, 3)), SCALING_MEMORY), "JPEG or PNG"),
            (bound(per_pixel(&encoded(ImageFormat::Png)), SCALING_MEMORY), "JPEG or PNG"),
            (bound(per_pixel(&encoded(ImageFormat::Gif)), 0), "GIF"),
            (bound(per_pixel(&encoded(ImageFormat::WebP)), 0), "lossless WebP"),
            (bound(per_pixel(&jpeg(0xc2, 3)), SCALING_MEMORY), "progressive JPEG"),
            (bound(per_pixel(animated), 0), "animated WebP"),
            (bound(heic("large-single") / 1_920_000, HEIC_BESIDE), "HEIC"),
        ];
        assert_eq!(bounds.map(|(megapixels, _)| megapixels), [46, 46, 41, 33, 35, 31, 40]);
        let page = include_str!("../../docs/api.md");
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        for (megapixels, kind) in bounds {
            let said =
                [format!("{megapixels} as {kind}"), format!("{megapixels} megapixels as {kind}")];
            assert!(said.iter().any(|said| page.contains(said)), "{said:?}");
        }
    }
}
