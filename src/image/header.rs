//! Reads the headers of pictures: their size, and how they lie. Nothing is decoded.
//!
//! Each format has a module. Headers are read as leniently as the libraries do that browsers and
//! Pillow use (libjpeg, libpng, libwebp, libtiff): what those show is a picture. No decoder is asked:
//! some read the whole file, inflate profiles or expand tables before they tell anything. The
//! [`Reader`] bounds the work.

use std::io;

use image_rs::metadata::Orientation;

use super::{Content, Error, Format, Reader, Unsupported, content::ReadFault};

mod bmp;
mod exif;
mod gif;
pub(super) mod heif;
pub(super) mod jpeg;
mod png;
pub(super) mod tiff;
mod webp;

/// What the header of any format says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// In pixels, as stored; a HEIC's as its own cuts and turns leave it.
    pub(super) width: u32,
    /// Likewise.
    pub(super) height: u32,
    /// How many pixels are decoded; a HEIC may have more than it shows.
    pub(super) pixels: u64,
    /// What makes it stand upright.
    pub(super) orientation: Orientation,
}

impl Header {
    /// Of a picture that is decoded as large as it is shown; `None` if it has no pixels.
    fn new(width: u32, height: u32, orientation: Orientation) -> Option<Self> {
        let pixels = u64::from(width) * u64::from(height);
        (pixels > 0).then_some(Self { width, height, pixels, orientation })
    }
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Cut short, or contradicting itself.
    Damaged,
    /// Right, but of a kind that is not read.
    Unsupported(Unsupported),
}

impl Fault {
    fn into_error(self, format: Format) -> Error {
        match self {
            Self::Damaged => Error::BadHeader(format),
            Self::Unsupported(what) => Error::Unsupported(what),
        }
    }
}

/// Reads the header of a picture of this format.
///
/// # Errors
/// [`Error::BadHeader`], [`Error::Unsupported`], [`Error::Unreadable`].
pub(super) fn read(format: Format, content: &Content) -> Result<Header, Error> {
    bounded(format, content, |reader| match format {
        Format::Jpeg => jpeg::read(reader).and_then(|jpeg| jpeg.header()),
        Format::Png => png::read(reader),
        Format::WebP => webp::read(reader),
        Format::Gif => gif::read(reader),
        Format::Bmp => bmp::read(reader),
        Format::Tiff => tiff::read(reader).and_then(|tiff| tiff.header()),
        Format::Heic => heif::read(reader).and_then(|heif| heif.header()),
    })
}

/// Reads something of a header with so much work as a header may take. A format's reader may take
/// every error for the end of the file, and say what it knows by then; where the file did not end,
/// that is not enough to judge by.
///
/// # Errors
/// As [`read`].
pub(super) fn bounded<T>(
    format: Format,
    content: &Content,
    read: impl FnOnce(&mut Reader) -> Result<T, Fault>,
) -> Result<T, Error> {
    let mut reader = content.header_reader();
    let found = read(&mut reader);
    match reader.fault() {
        None => found.map_err(|fault| fault.into_error(format)),
        Some(ReadFault::TooMuchWork) => Err(Error::BadHeader(format)),
        Some(ReadFault::System(code)) => Err(Error::Unreadable(io::Error::from_raw_os_error(code))),
    }
}
