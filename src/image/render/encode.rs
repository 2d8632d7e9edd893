//! Encodes JPEG, up to a length.

use std::io::{self, Write};

use image_rs::{GenericImageView, ImageError, Rgb, codecs::jpeg::JpegEncoder};

use crate::image::{Error, Format};

/// Encodes an image; `None` if it has more bytes than that, which ends it at once.
pub(super) fn encode_jpeg(
    format: Format,
    image: &impl GenericImageView<Pixel = Rgb<u8>>,
    quality: u8,
    max_len: usize,
) -> Result<Option<Vec<u8>>, Error> {
    let mut bounded = Bounded { bytes: Vec::new(), max_len, is_full: false };
    match JpegEncoder::new_with_quality(&mut bounded, quality).encode_image(image) {
        Ok(()) => Ok(Some(bounded.bytes)),
        Err(ImageError::IoError(_)) if bounded.is_full => Ok(None),
        Err(error) => Err(Error::Broken { format, reason: error.to_string() }),
    }
}

/// Takes bytes until there are too many.
struct Bounded {
    bytes: Vec<u8>,
    max_len: usize,
    is_full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.max_len {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
