//! Encodes a JPEG, but not one that is longer than a limit.

use std::io::{self, Write};

use image_rs::{GenericImageView, ImageError, Rgb, codecs::jpeg::JpegEncoder};

use crate::image::{Error, Format};

/// Encodes an image with a quality from 1 to 100. Stops and returns `None` if the JPEG would have more
/// than `max_len` bytes. `format` is the format of the original picture, for the error.
pub(super) fn encode_jpeg(
    format: Format,
    image: &impl GenericImageView<Pixel = Rgb<u8>>,
    quality: u8,
    max_len: usize,
) -> Result<Option<Vec<u8>>, Error> {
    let mut output = LimitedBuffer { bytes: Vec::new(), max_len, has_overflowed: false };
    match JpegEncoder::new_with_quality(&mut output, quality).encode_image(image) {
        Ok(()) => Ok(Some(output.bytes)),
        Err(ImageError::IoError(_)) if output.has_overflowed => Ok(None),
        Err(error) => Err(Error::Broken { format, reason: error.to_string() }),
    }
}

/// A buffer that fails on a write past its maximum length.
struct LimitedBuffer {
    bytes: Vec<u8>,
    max_len: usize,
    /// Whether a write has failed, because the buffer would have exceeded `max_len`.
    has_overflowed: bool,
}

impl Write for LimitedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.max_len {
            self.has_overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
