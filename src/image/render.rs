//! Decodes pictures, and renders them as what is asked for. Called in the decoder's process alone:
//! what the header promised bounds no decoder.

use std::io::{BufRead, Seek};

use image_rs::{
    DynamicImage, ImageError, ImageFormat, ImageReader, Limits, RgbImage, RgbaImage,
    imageops::{self, FilterType},
};

use self::{encode::encode_jpeg, upright::Upright};
use super::{Error, Format, Picture, memory_estimate::estimate_memory};

mod bmp;
mod encode;
mod gif;
mod heic;
mod jpeg;
mod spliced;
mod tiff;
mod upright;
mod webp;

/// JPEG qualities of a picture that is only converted, as long as it has too many bytes: the first is
/// hard to tell from the original.
const CONVERTED_QUALITIES: [u8; 5] = [95, 85, 70, 50, 25];
/// JPEG quality of a picture that is scaled down: detail goes into pixels, not into quality.
const SHRUNK_QUALITY: u8 = 90;
/// The longest side that a JPEG can have (ITU-T T.81, B.2.2).
const JPEG_SIDE: u32 = 65_535;
/// The long side of a shrunk picture, at the most.
const SHRUNK_SIDE: u32 = 1024;
/// Room for a JPEG of a few pixels, in bytes.
const SMALLEST_LIMIT: u64 = 64 << 10;
/// What scaling down takes beside the decoded picture, in bytes: a copy of at most twice the side,
/// and the filter's floating-point rows (2048 × 1024 × 16 bytes).
pub(super) const SCALING_MEMORY: u64 = 48 << 20;

/// The same for a square, in bytes for each of its pixels: a copy of four times the side, and the
/// filter's floating-point rows.
const SQUARING: u64 = 4 * 4 * 3 + 4 * 16;

/// What a picture is rendered as: the first frame, transparency onto white.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A JPEG of the same size, upright, of at most this length; nothing where no JPEG of this size is
    /// so short.
    Converted {
        /// In bytes.
        max_len: usize,
    },
    /// A JPEG, upright, scaled down until it has at most this length.
    Shrunk {
        /// In bytes.
        max_len: usize,
    },
    /// A square without regard to the picture's shape, as plain RGB, 8 bits each, row by row; as it is
    /// stored.
    Square {
        /// Pixels along a side.
        side: u32,
    },
}

impl Target {
    /// The memory that rendering a picture takes at its peak, in bytes, by its header. Blocks the thread.
    ///
    /// # Errors
    /// [`Error::BadHeader`]
    pub fn memory_estimate(self, picture: &Picture) -> Result<u64, Error> {
        let scaling = match self {
            Self::Converted { .. } => 0,
            Self::Shrunk { .. } => SCALING_MEMORY,
            Self::Square { side } => u64::from(side).pow(2).saturating_mul(SQUARING),
        };
        Ok(estimate_memory(picture)? + scaling)
    }

    /// The most bytes that it is rendered to.
    pub fn max_len(self) -> u64 {
        match self {
            Self::Converted { max_len } | Self::Shrunk { max_len } => {
                (max_len as u64).max(SMALLEST_LIMIT)
            }
            Self::Square { side } => 3 * u64::from(side) * u64::from(side),
        }
    }

    /// Renders a picture; the decoder is asked to take at most `cost` bytes. Blocks the thread.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Unreadable`].
    pub fn render(self, picture: &Picture, cost: u64) -> Result<Vec<u8>, Error> {
        match self {
            Self::Converted { max_len } => convert(picture, cost, max_len),
            Self::Shrunk { max_len } => shrink(picture, &decode(picture, cost)?, max_len),
            Self::Square { side } => Ok(square(&decode(picture, cost)?, side).into_raw()),
        }
    }
}

fn convert(picture: &Picture, cost: u64, max_len: usize) -> Result<Vec<u8>, Error> {
    if picture.width.max(picture.height) > JPEG_SIDE {
        return Ok(Vec::new());
    }
    let image = decode(picture, cost)?;
    let upright = Upright::new(&image, picture.orientation);
    for quality in CONVERTED_QUALITIES {
        if let Some(jpeg) = encode_jpeg(picture.format, &upright, quality, max_len)? {
            return Ok(jpeg);
        }
    }
    Ok(Vec::new())
}

fn shrink(picture: &Picture, image: &RgbImage, max_len: usize) -> Result<Vec<u8>, Error> {
    let mut side = SHRUNK_SIDE.min(image.width().max(image.height()));
    let image = scale_down(image, side);
    loop {
        let scaled = scale_down(&image, side);
        let upright = Upright::new(&scaled, picture.orientation);
        // A JPEG of a few pixels is some 600 bytes, far below any limit that the settings accept.
        let max_len = if side <= 16 { usize::MAX } else { max_len };
        if let Some(jpeg) = encode_jpeg(picture.format, &upright, SHRUNK_QUALITY, max_len)? {
            return Ok(jpeg);
        }
        side = side * 3 / 4;
    }
}

/// Large steps by averaging, each side for itself: the filter takes memory for the longer one.
fn square(image: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let coarse = 4 * side;
    let averaged = (width > coarse || height > coarse)
        .then(|| imageops::thumbnail(image, width.min(coarse), height.min(coarse)));
    imageops::resize(averaged.as_ref().unwrap_or(image), side, side, FilterType::Triangle)
}

/// Decodes the first frame as it is stored, transparency onto white.
pub(super) fn decode(picture: &Picture, cost: u64) -> Result<RgbImage, Error> {
    let bytes = || picture.content.reader();
    let image = match picture.format {
        Format::Jpeg => return jpeg::decode(picture),
        Format::Heic => return heic::decode(picture),
        Format::Tiff => return tiff::decode(picture),
        Format::Png => read(picture, bytes(), ImageFormat::Png, cost)?,
        Format::WebP => read(picture, webp::bytes(picture)?, ImageFormat::WebP, cost)?,
        Format::Gif => gif::decode(picture, cost)?,
        Format::Bmp => bmp::decode(picture, cost)?,
    };
    Ok(match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        image if image.color().has_alpha() => onto_white(image.into_rgba8(), blend_onto_white),
        image => image.into_rgb8(),
    })
}

/// Decodes the picture from these bytes by the library; the decoder is asked to take at most
/// `max_alloc` bytes.
fn read(
    picture: &Picture,
    bytes: impl BufRead + Seek,
    format: ImageFormat,
    max_alloc: u64,
) -> Result<DynamicImage, Error> {
    let mut reader = ImageReader::with_format(bytes, format);
    let mut limits = Limits::no_limits();
    // The header was judged by its size; a decoder that finds another size is stopped.
    (limits.max_image_width, limits.max_image_height) = (Some(picture.width), Some(picture.height));
    limits.max_alloc = Some(max_alloc);
    reader.limits(limits);
    let image = reader.into_decoder().and_then(DynamicImage::from_decoder);
    image.map_err(|source| broken(picture, source))
}

fn broken(picture: &Picture, error: ImageError) -> Error {
    match error {
        // The system's own word: it is the disk that fails.
        ImageError::IoError(error) if error.raw_os_error().is_some() => Error::Unreadable(error),
        error => Error::Broken { format: picture.format, reason: error.to_string() },
    }
}

/// Lays a channel's value onto white, whose colours were not multiplied by alpha.
fn blend_onto_white(value: u32, alpha: u32) -> u32 {
    (value * alpha + 255 * (255 - alpha) + 127) / 255
}

/// Lays the picture onto white, in the memory it has: three bytes overwrite four.
fn onto_white(image: RgbaImage, blend: fn(value: u32, alpha: u32) -> u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let mut bytes = image.into_raw();
    let pixels = bytes.len() / 4;
    for pixel in 0..pixels {
        let [red, green, blue, alpha] =
            [0, 1, 2, 3].map(|channel| u32::from(bytes[pixel * 4 + channel]));
        for (channel, value) in [red, green, blue].into_iter().enumerate() {
            bytes[pixel * 3 + channel] = blend(value, alpha).min(255) as u8;
        }
    }
    bytes.truncate(pixels * 3);
    // Room for what comes next: the encoded picture.
    bytes.shrink_to_fit();
    // The buffer has exactly three bytes for each pixel.
    RgbImage::from_raw(width, height, bytes).unwrap_or_default()
}

/// Scales to a long side, never up. Large steps by averaging, which takes no memory beside the
/// result, the last one by a filter.
fn scale_down(image: &RgbImage, long_side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let longest = width.max(height);
    if longest <= long_side {
        return image.clone();
    }
    let scaled = |side: u32, to: u32| {
        let pixels = (u64::from(side) * u64::from(to)).div_ceil(u64::from(longest));
        u32::try_from(pixels).unwrap_or(to).max(1)
    };
    let coarse = long_side * 2;
    let averaged = (longest > coarse)
        .then(|| imageops::thumbnail(image, scaled(width, coarse), scaled(height, coarse)));
    let image = averaged.as_ref().unwrap_or(image);
    imageops::resize(
        image,
        scaled(width, long_side),
        scaled(height, long_side),
        FilterType::CatmullRom,
    )
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image_rs::{Rgb, Rgba, codecs::jpeg::JpegEncoder};

    use super::*;
    use crate::image::{Content, probe};

    const CONVERTED: Target = Target::Converted { max_len: 20 << 20 };

    fn picture(bytes: Vec<u8>) -> Picture {
        probe(Content::Memory(bytes.into()), 64_000_000).unwrap()
    }

    /// Decodes a picture that was made elsewhere.
    pub(super) fn decoded(bytes: &[u8]) -> Result<RgbImage, Error> {
        let picture = probe(Content::Memory(bytes.to_vec().into()), 64_000_000)?;
        decode(&picture, estimate_memory(&picture)?)
    }

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Picture {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        picture(bytes.into_inner())
    }

    /// Left half red, right half blue, so that turning shows.
    fn two_halves() -> RgbImage {
        RgbImage::from_fn(64, 32, |x, _| if x < 32 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) })
    }

    /// A JPEG of [`two_halves`] whose EXIF says that it must be turned (TIFF tag 0x0112).
    fn turned_jpeg(orientation: u8) -> Picture {
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 95).encode_image(&two_halves()).unwrap();
        let exif = [
            &b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..],
            &[orientation, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        jpeg.splice(2..2, exif);
        picture(jpeg)
    }

    fn is_close(pixel: &Rgb<u8>, expected: [u8; 3]) -> bool {
        pixel.0.iter().zip(expected).all(|(a, b)| a.abs_diff(b) < 40)
    }

    #[test]
    fn transparency_lies_on_white() {
        let glass = RgbaImage::from_fn(8, 8, |x, _| {
            if x < 4 { Rgba([9, 9, 9, 0]) } else { Rgba([255, 0, 0, 255]) }
        });
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
            let picture = encoded(&glass.clone().into(), format);
            let image = decode(&picture, estimate_memory(&picture).unwrap()).unwrap();
            assert_eq!(image.get_pixel(0, 0).0, [255, 255, 255], "{format:?}");
            assert!(is_close(image.get_pixel(7, 7), [255, 0, 0]), "{format:?}");
        }
    }

    #[test]
    fn exif_orientation_is_applied_when_converting_and_when_shrinking() {
        let picture = turned_jpeg(6); // turn a quarter clockwise: left comes on top
        let cost = estimate_memory(&picture).unwrap();
        for jpeg in [
            CONVERTED.render(&picture, cost).unwrap(),
            Target::Shrunk { max_len: 100_000 }.render(&picture, cost).unwrap(),
        ] {
            let image = image_rs::load_from_memory(&jpeg).unwrap().into_rgb8();
            assert_eq!(image.dimensions(), (32, 64));
            assert!(is_close(image.get_pixel(16, 8), [255, 0, 0]));
            assert!(is_close(image.get_pixel(16, 56), [0, 0, 255]));
        }
    }

    #[test]
    fn sixteen_bit_and_grey_pictures_are_converted() {
        let deep = DynamicImage::ImageRgba16(image_rs::ImageBuffer::from_pixel(
            4,
            4,
            Rgba([65535, 0, 0, 65535]),
        ));
        let grey =
            DynamicImage::ImageLuma8(image_rs::GrayImage::from_pixel(4, 4, image_rs::Luma([128])));
        for (image, format) in
            [(&deep, ImageFormat::Png), (&deep, ImageFormat::Tiff), (&grey, ImageFormat::Bmp)]
        {
            let picture = encoded(image, format);
            assert!(
                !CONVERTED.render(&picture, estimate_memory(&picture).unwrap()).unwrap().is_empty()
            );
        }
    }

    #[test]
    fn a_shrunk_picture_fits_and_keeps_its_shape() {
        let mut random = fastrand::Rng::with_seed(1);
        let noise = RgbImage::from_fn(3000, 1500, |_, _| {
            Rgb([random.u8(..), random.u8(..), random.u8(..)])
        });
        let picture = encoded(&noise.into(), ImageFormat::Jpeg);
        let cost = estimate_memory(&picture).unwrap();
        for limit in [1_000_000, 100_000, 15_000] {
            let jpeg = Target::Shrunk { max_len: limit }.render(&picture, cost).unwrap();
            assert!(jpeg.len() <= limit);
            let image = image_rs::load_from_memory(&jpeg).unwrap();
            assert!(image.width() <= 1024);
            assert!(image.width().abs_diff(2 * image.height()) <= 2);
        }
    }

    #[test]
    fn a_small_picture_is_never_scaled_up() {
        let picture = encoded(&two_halves().into(), ImageFormat::Png);
        let jpeg = Target::Shrunk { max_len: 100_000 }
            .render(&picture, estimate_memory(&picture).unwrap())
            .unwrap();
        assert_eq!(image_rs::load_from_memory(&jpeg).unwrap().width(), 64);
    }

    #[test]
    fn a_picture_cut_in_the_middle_is_an_error_or_a_picture_but_no_panic() {
        for format in [
            ImageFormat::Png,
            ImageFormat::WebP,
            ImageFormat::Gif,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
        ] {
            let mut bytes = Cursor::new(Vec::new());
            two_halves().write_to(&mut bytes, format).unwrap();
            let bytes = bytes.into_inner();
            for len in 0..bytes.len() {
                if let Ok(picture) =
                    probe(Content::Memory(bytes[..len].to_vec().into()), 64_000_000)
                {
                    let _ =
                        estimate_memory(&picture).and_then(|cost| CONVERTED.render(&picture, cost));
                }
            }
        }
    }
}
