//! Decodes pictures, and renders them as a [`Target`]. Only the child processes of [`crate::decoder`]
//! decode pictures, because decoding may need more memory and time than the header suggests.

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

/// The JPEG qualities for [`Target::Converted`], from 1 to 100. They are tried in this order until the
/// JPEG is short enough. A JPEG of quality 95 is hard to distinguish from the original.
const CONVERTED_QUALITIES: [u8; 5] = [95, 85, 70, 50, 25];
/// The JPEG quality for [`Target::Shrunk`].
const SHRUNK_QUALITY: u8 = 90;
/// The longest side that a JPEG can have, in pixels (ITU-T T.81, B.2.2).
const MAX_JPEG_SIDE: u32 = 65_535;
/// The longest side of a shrunk picture, in pixels.
const MAX_SHRUNK_SIDE: u32 = 1024;
/// A picture whose longer side has at most this many pixels is not shrunk further, however many
/// bytes its JPEG has.
const TINY_SIDE: u32 = 16;
/// No JPEG with sides of at most [`TINY_SIDE`] has more bytes. Such a JPEG usually has about 600.
const MAX_TINY_JPEG_BYTES: u64 = 64 << 10;
/// The memory for [`scale_down`], in addition to the decoded picture, in bytes: a copy of at most
/// 2048 × 2048 pixels of 3 bytes (12 MiB), the filter's 2048 × 1024 floating-point pixels of 16 bytes
/// (32 MiB), and the result.
pub(super) const SCALING_MEMORY: u64 = 48 << 20;

/// The memory for [`square`], in addition to the decoded picture, in bytes for each pixel of the
/// square. The averaged copy is 4 times as high and 4 times as wide as the square, with 3 bytes a pixel.
/// The filter's floating-point copy is as high as the square and 4 times as wide, with 16 bytes a pixel.
const SQUARING_BYTES_PER_PIXEL: u64 = 4 * 4 * 3 + 4 * 16;

/// What a picture is rendered as. Only the first frame is rendered, and transparent pixels are
/// blended onto white.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An upright JPEG that is not scaled. The result is empty if no quality gives a JPEG of at most
    /// `max_len` bytes, or if the picture is too wide or too high for a JPEG.
    Converted {
        /// The maximum length of the JPEG, in bytes.
        max_len: usize,
    },
    /// An upright JPEG whose longer side has at most 1024 pixels. It is scaled down further until it has
    /// at most `max_len` bytes or is tiny.
    Shrunk {
        /// The maximum length of the JPEG, in bytes.
        max_len: usize,
    },
    /// A square of 8-bit RGB pixels, row by row. The picture is stretched to the square, and its
    /// orientation is ignored.
    Square {
        /// The side of the square, in pixels.
        side: u32,
    },
}

impl Target {
    /// Estimates from the header how much memory rendering needs at its peak, in bytes. Blocks the
    /// thread.
    ///
    /// # Errors
    /// [`Error::BadHeader`], [`Error::Unsupported`] or [`Error::Unreadable`].
    pub fn memory_estimate(self, picture: &Picture) -> Result<u64, Error> {
        let scaling = match self {
            Self::Converted { .. } => 0,
            Self::Shrunk { .. } => SCALING_MEMORY,
            Self::Square { side } => {
                u64::from(side).pow(2).saturating_mul(SQUARING_BYTES_PER_PIXEL)
            }
        };
        Ok(estimate_memory(picture)? + scaling)
    }

    /// An upper limit on the bytes that [`Self::render`] returns. It may be higher than `max_len`:
    /// [`Self::Shrunk`] gives a tiny JPEG even if it is longer than `max_len`.
    pub fn max_result_len(self) -> u64 {
        match self {
            Self::Converted { max_len } | Self::Shrunk { max_len } => {
                (max_len as u64).max(MAX_TINY_JPEG_BYTES)
            }
            Self::Square { side } => 3 * u64::from(side) * u64::from(side),
        }
    }

    /// Renders a picture. `memory_estimate`, in bytes, is the limit for decoders that can limit their
    /// memory. Blocks the thread.
    ///
    /// # Errors
    /// [`Error::Broken`] or [`Error::Unreadable`].
    pub fn render(self, picture: &Picture, memory_estimate: u64) -> Result<Vec<u8>, Error> {
        match self {
            Self::Converted { max_len } => convert(picture, memory_estimate, max_len),
            Self::Shrunk { max_len } => {
                shrink(picture, &decode(picture, memory_estimate)?, max_len)
            }
            Self::Square { side } => {
                Ok(square(&decode(picture, memory_estimate)?, side).into_raw())
            }
        }
    }
}

fn convert(picture: &Picture, memory_estimate: u64, max_len: usize) -> Result<Vec<u8>, Error> {
    if picture.width.max(picture.height) > MAX_JPEG_SIDE {
        return Ok(Vec::new());
    }
    let image = decode(picture, memory_estimate)?;
    let upright = Upright::new(&image, picture.orientation);
    for quality in CONVERTED_QUALITIES {
        if let Some(jpeg) = encode_jpeg(picture.format, &upright, quality, max_len)? {
            return Ok(jpeg);
        }
    }
    Ok(Vec::new())
}

fn shrink(picture: &Picture, image: &RgbImage, max_len: usize) -> Result<Vec<u8>, Error> {
    let mut max_side = MAX_SHRUNK_SIDE.min(image.width().max(image.height()));
    let image = scale_down(image, max_side); // so that every round starts from a small picture
    loop {
        let scaled = scale_down(&image, max_side);
        let upright = Upright::new(&scaled, picture.orientation);
        // A tiny JPEG of any length ends the loop.
        let accepted_len = if max_side <= TINY_SIDE { usize::MAX } else { max_len };
        if let Some(jpeg) = encode_jpeg(picture.format, &upright, SHRUNK_QUALITY, accepted_len)? {
            return Ok(jpeg);
        }
        max_side = max_side * 3 / 4;
    }
}

/// Scales to a square of `side` pixels. A side of the picture that is longer than `4 * side` is first
/// reduced to `4 * side` by averaging, because the memory of the filter grows with the picture's sides.
fn square(image: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let max_filtered_side = 4 * side;
    let averaged = (width > max_filtered_side || height > max_filtered_side).then(|| {
        imageops::thumbnail(image, width.min(max_filtered_side), height.min(max_filtered_side))
    });
    imageops::resize(averaged.as_ref().unwrap_or(image), side, side, FilterType::Triangle)
}

/// Decodes the first frame without applying the EXIF orientation, and blends it onto white.
pub(super) fn decode(picture: &Picture, memory_estimate: u64) -> Result<RgbImage, Error> {
    let image = match picture.format {
        Format::Jpeg => return jpeg::decode(picture),
        Format::Heic => return heic::decode(picture),
        Format::Tiff => return tiff::decode(picture),
        Format::Png => {
            let bytes = picture.content.reader();
            decode_with_image_crate(picture, bytes, ImageFormat::Png, memory_estimate)?
        }
        Format::WebP => webp::decode(picture, memory_estimate)?,
        Format::Gif => gif::decode(picture, memory_estimate)?,
        Format::Bmp => bmp::decode(picture, memory_estimate)?,
    };
    Ok(match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        image if image.color().has_alpha() => {
            blend_image_onto_white(image.into_rgba8(), blend_value_onto_white)
        }
        image => image.into_rgb8(),
    })
}

/// Decodes `bytes` with the `image` crate, whose decoder may allocate at most `max_alloc` bytes.
fn decode_with_image_crate(
    picture: &Picture,
    bytes: impl BufRead + Seek,
    format: ImageFormat,
    max_alloc: u64,
) -> Result<DynamicImage, Error> {
    let mut reader = ImageReader::with_format(bytes, format);
    let mut limits = Limits::no_limits();
    // The limits of pixels and memory were checked for the size in the header, so a larger picture must
    // fail.
    (limits.max_image_width, limits.max_image_height) = (Some(picture.width), Some(picture.height));
    limits.max_alloc = Some(max_alloc);
    reader.limits(limits);
    let image = reader.into_decoder().and_then(DynamicImage::from_decoder);
    image.map_err(|source| to_error(picture, source))
}

fn to_error(picture: &Picture, error: ImageError) -> Error {
    match error {
        // The error comes from the operating system, so the disk failed.
        ImageError::IoError(error) if error.raw_os_error().is_some() => Error::Unreadable(error),
        error => Error::Broken { format: picture.format, reason: error.to_string() },
    }
}

/// Blends the value of a colour channel onto white. The value must not be premultiplied by alpha.
/// Adding 127 rounds the quotient.
fn blend_value_onto_white(value: u32, alpha: u32) -> u32 {
    (value * alpha + 255 * (255 - alpha) + 127) / 255
}

/// Blends a picture onto white by calling `blend` for each colour channel of each pixel. The result
/// reuses the picture's buffer, to save memory.
fn blend_image_onto_white(image: RgbaImage, blend: fn(value: u32, alpha: u32) -> u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let mut bytes = image.into_raw();
    let pixel_count = bytes.len() / 4;
    for pixel in 0..pixel_count {
        let [red, green, blue, alpha] =
            [0, 1, 2, 3].map(|channel| u32::from(bytes[pixel * 4 + channel]));
        for (channel, value) in [red, green, blue].into_iter().enumerate() {
            // If `blend` expects premultiplied values, it returns more than 255 for a value above alpha.
            bytes[pixel * 3 + channel] = blend(value, alpha).min(255) as u8;
        }
    }
    bytes.truncate(pixel_count * 3);
    // The unused quarter of the buffer is freed before the picture is encoded.
    bytes.shrink_to_fit();
    // The buffer has exactly three bytes for each pixel.
    RgbImage::from_raw(width, height, bytes).unwrap_or_default()
}

/// Scales down until the longer side has at most `max_side` pixels. If the longer side has more than
/// twice `max_side` pixels, it is first reduced to twice `max_side` by averaging, which needs less
/// memory than the filter.
fn scale_down(image: &RgbImage, max_side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let longer_side = width.max(height);
    if longer_side <= max_side {
        return image.clone();
    }
    // Returns the new length of a side when the longer side is scaled to `new_longer_side`.
    let scaled = |side: u32, new_longer_side: u32| {
        let pixels = (u64::from(side) * u64::from(new_longer_side)).div_ceil(longer_side.into());
        u32::try_from(pixels).unwrap_or(new_longer_side).max(1)
    };
    let twice_max_side = max_side * 2;
    let averaged = (longer_side > twice_max_side).then(|| {
        let (width, height) = (scaled(width, twice_max_side), scaled(height, twice_max_side));
        imageops::thumbnail(image, width, height)
    });
    let image = averaged.as_ref().unwrap_or(image);
    imageops::resize(
        image,
        scaled(width, max_side),
        scaled(height, max_side),
        FilterType::CatmullRom,
    )
}

#[cfg(test)]
mod tests;
