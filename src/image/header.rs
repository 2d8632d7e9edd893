//! Reads the size and the orientation of pictures from their headers.
//!
//! Each format has a module. The modules tolerate the same violations of the specifications as libjpeg,
//! libpng, libwebp and libtiff, because browsers and Pillow use these libraries. The modules do not
//! call the decoders: some decoders read the whole file, decompress profiles or expand tables before
//! they return a size. The [`Reader`] limits the work for each header.

use std::io;

use image_rs::metadata::Orientation;

use super::{Content, Error, Format, Reader, Unsupported, content::ReadError};

pub(super) mod bmp;
mod exif;
pub(super) mod gif;
pub(super) mod heif;
pub(super) mod jpeg;
mod png;
pub(super) mod tiff;
pub(super) mod webp;

/// The values that are read from the header of every format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The width in pixels before `orientation` is applied. For a HEIC, the width after cropping and
    /// turning.
    pub(super) width: u32,
    /// The height in pixels, like `width`.
    pub(super) height: u32,
    /// The number of pixels that are decoded: `width` × `height`, but more if a HEIC is cropped, or if
    /// one of its tiles is larger than the picture.
    pub(super) decoded_pixels: u64,
    /// The transformation that turns the decoded picture upright: none for a HEIC, whose decoder turns it.
    pub(super) orientation: Orientation,
}

impl Header {
    /// Creates the header of a picture with `width` × `height` decoded pixels. Returns `None` if there
    /// are no pixels.
    fn new(width: u32, height: u32, orientation: Orientation) -> Option<Self> {
        let decoded_pixels = u64::from(width) * u64::from(height);
        (decoded_pixels > 0).then_some(Self { width, height, decoded_pixels, orientation })
    }
}

/// Why a header cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// The header is truncated or contradicts itself.
    Damaged,
    /// The header is valid, but this variant of the format is not supported.
    Unsupported(Unsupported),
}

impl HeaderError {
    fn into_error(self, format: Format) -> Error {
        match self {
            Self::Damaged => Error::BadHeader(format),
            Self::Unsupported(reason) => Error::Unsupported(reason),
        }
    }
}

/// Reads the header of a picture of this format.
///
/// # Errors
/// [`Error::BadHeader`] if the header is damaged or takes too much work, [`Error::Unsupported`], or
/// [`Error::Unreadable`] if the file cannot be read.
pub(super) fn read(format: Format, content: &Content) -> Result<Header, Error> {
    read_bounded(format, content, |reader| match format {
        Format::Jpeg => jpeg::read(reader).and_then(|jpeg| jpeg.header()),
        Format::Png => png::read(reader),
        Format::WebP => webp::read(reader).and_then(|webp| webp.header()),
        Format::Gif => gif::read(reader).and_then(|gif| gif.header()),
        Format::Bmp => bmp::read(reader).and_then(|bmp| bmp.header()),
        Format::Tiff => tiff::read(reader).and_then(|tiff| tiff.header()),
        Format::Heic => heif::read(reader).and_then(|heif| heif.header()),
    })
}

/// Reads a header with [`Content::header_reader`], which limits the work.
///
/// `parse` need not distinguish a failed read from the end of the file: it may return what it has found
/// up to then. If a read failed, this function ignores that result, and returns an error.
///
/// # Errors
/// The same as [`read`].
pub(super) fn read_bounded<T>(
    format: Format,
    content: &Content,
    parse: impl FnOnce(&mut Reader) -> Result<T, HeaderError>,
) -> Result<T, Error> {
    let mut reader = content.header_reader();
    let result = parse(&mut reader);
    match reader.error() {
        None => result.map_err(|error| error.into_error(format)),
        Some(ReadError::TooMuchWork) => Err(Error::BadHeader(format)),
        Some(ReadError::System(code)) => Err(Error::Unreadable(io::Error::from_raw_os_error(code))),
    }
}
