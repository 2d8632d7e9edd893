//! Reads a picture's format, size and orientation from its header. Decodes no pixels.

use image_rs::metadata::Orientation;

use super::{
    Content, Error, Format,
    header::{self, Header},
    sniff,
    sniff::MAX_SNIFF_LEN,
};

/// A picture whose header was read.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The bytes of the file.
    pub content: Content,
    /// The format, according to the first bytes.
    pub format: Format,
    /// The width in pixels before `orientation` is applied. In a HEIC, the properties that crop and
    /// turn the picture are already applied, so `orientation` is `NoTransforms`.
    pub width: u32,
    /// The height in pixels, like `width`.
    pub height: u32,
    /// The transformation that turns the picture upright.
    pub orientation: Orientation,
}

impl Picture {
    /// The number of pixels: width times height. The decoder of HEIC may decode more pixels than that,
    /// and crop them.
    pub fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Whether the pixels are stored upright.
    pub fn is_upright(&self) -> bool {
        self.orientation == Orientation::NoTransforms
    }
}

/// Reads the format, the size and the orientation.
///
/// # Errors
/// [`Error::Empty`], [`Error::Unsupported`], [`Error::BadHeader`], [`Error::TooManyPixels`],
/// [`Error::Unreadable`].
pub fn probe(content: Content, max_pixels: u64) -> Result<Picture, Error> {
    if content.is_empty() {
        return Err(Error::Empty);
    }
    let format = sniff(&content.read_at(0, MAX_SNIFF_LEN)?).map_err(Error::Unsupported)?;
    let header = header::read(format, &content)?;
    let Header { width, height, decoded_pixels, orientation } = header;
    if decoded_pixels > max_pixels {
        return Err(Error::TooManyPixels { pixels: decoded_pixels, limit: max_pixels });
    }
    Ok(Picture { content, format, width, height, orientation })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX_PIXELS: u64 = 64_000_000;

    fn probe_bytes(bytes: &[u8]) -> Result<Picture, Error> {
        probe(Content::Memory(bytes.to_vec().into()), MAX_PIXELS)
    }

    /// A picture of 5 × 3 pixels in this format.
    fn sample(format: Format) -> Vec<u8> {
        let encoder_format = match format {
            Format::Jpeg => image_rs::ImageFormat::Jpeg,
            Format::Png => image_rs::ImageFormat::Png,
            Format::WebP => image_rs::ImageFormat::WebP,
            Format::Gif => image_rs::ImageFormat::Gif,
            Format::Bmp => image_rs::ImageFormat::Bmp,
            Format::Tiff => image_rs::ImageFormat::Tiff,
            Format::Heic => {
                return include_bytes!("../../tests/fixtures/heic/5x3.heic").to_vec();
            }
        };
        let mut bytes = std::io::Cursor::new(Vec::new());
        image_rs::RgbImage::new(5, 3).write_to(&mut bytes, encoder_format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn the_size_of_every_supported_format_is_read() {
        for format in Format::supported() {
            let picture = probe_bytes(&sample(format)).unwrap();
            assert_eq!((picture.format, picture.width, picture.height), (format, 5, 3));
        }
    }

    #[test]
    fn the_size_of_a_top_down_bmp_and_of_an_os2_bmp_is_read() {
        let mut top_down = sample(Format::Bmp);
        // A negative height means that the top row is stored first.
        top_down[22..26].copy_from_slice(&(-3i32).to_le_bytes());
        assert_eq!(probe_bytes(&top_down).unwrap().height, 3);
        // The file header has 14 bytes, and ends with the offset of the pixels: 26. The OS/2 header has 12
        // bytes: its length, the width, the height, one plane, and 24 bits per pixel.
        let mut os2 = b"BM\0\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x05\0\x03\0\x01\0\x18\0".to_vec();
        os2.resize(64, 0); // some of the pixels
        let picture = probe_bytes(&os2).unwrap();
        assert_eq!((picture.width, picture.height), (5, 3));
    }

    #[test]
    fn the_first_8_bytes_of_a_picture_and_an_empty_file_are_refused() {
        for format in Format::supported() {
            assert!(probe_bytes(&sample(format)[..8]).is_err(), "{format}");
        }
        assert!(matches!(probe_bytes(b""), Err(Error::Empty)));
    }

    #[test]
    fn the_error_for_too_many_pixels_contains_their_number_and_the_limit() {
        let mut huge = sample(Format::Png);
        huge[16..20].copy_from_slice(&60_000u32.to_be_bytes()); // the width
        huge[20..24].copy_from_slice(&60_000u32.to_be_bytes()); // the height
        let result = probe_bytes(&huge);
        let Err(Error::TooManyPixels { pixels, limit }) = result else {
            panic!("the picture must be refused for its pixels: {result:?}")
        };
        assert_eq!((pixels, limit), (3_600_000_000, MAX_PIXELS));
    }

    proptest! {
        #[test]
        fn damaged_headers_cause_no_panic(
            // Also HEIC in a build that does not support it.
            format in proptest::sample::select(Format::ALL.to_vec()),
            start in 0..200usize,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = sample(format);
            let start = start.min(bytes.len());
            let end = (start + noise.len()).min(bytes.len());
            bytes[start..end].copy_from_slice(&noise[..end - start]);
            let _ = probe_bytes(&bytes);
        }
    }
}
