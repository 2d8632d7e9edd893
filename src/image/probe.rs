//! Reads a picture's format and size from its header, decoding nothing.

use image_rs::metadata::Orientation;

use super::{
    Content, Error, Format,
    header::{self, Header},
    sniff,
    sniff::SNIFFED,
};

/// A picture whose header was read.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Its bytes.
    pub content: Content,
    /// Its format, by its first bytes.
    pub format: Format,
    /// Width in pixels, as stored; a HEIC's as its own cuts and turns leave it.
    pub width: u32,
    /// Height in pixels, likewise.
    pub height: u32,
    /// What makes it stand upright, by its EXIF.
    pub orientation: Orientation,
}

impl Picture {
    /// Width times height.
    pub fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Whether it is stored as it should be seen.
    pub fn is_upright(&self) -> bool {
        self.orientation == Orientation::NoTransforms
    }
}

/// Reads format, size and orientation.
///
/// # Errors
/// [`Error::Empty`], [`Error::Unsupported`], [`Error::BadHeader`], [`Error::TooManyPixels`],
/// [`Error::Unreadable`].
pub fn probe(content: Content, max_pixels: u64) -> Result<Picture, Error> {
    if content.is_empty() {
        return Err(Error::Empty);
    }
    let format = sniff(&content.read_at(0, SNIFFED)?).map_err(Error::Unsupported)?;
    let header = header::read(format, &content)?;
    let Header { width, height, pixels, orientation } = header;
    if pixels > max_pixels {
        return Err(Error::TooManyPixels { pixels, limit: max_pixels });
    }
    Ok(Picture { content, format, width, height, orientation })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn probe_bytes(bytes: &[u8]) -> Result<Picture, Error> {
        probe(Content::Memory(bytes.to_vec().into()), 64_000_000)
    }

    /// The same picture, 5 × 3, in each format.
    fn sample(format: Format) -> Vec<u8> {
        let encoded = match format {
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
        image_rs::RgbImage::new(5, 3).write_to(&mut bytes, encoded).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn every_format_tells_its_size() {
        for format in Format::read() {
            let picture = probe_bytes(&sample(format)).unwrap();
            assert_eq!((picture.format, picture.width, picture.height), (format, 5, 3));
        }
    }

    #[test]
    fn a_bitmap_stored_top_down_or_with_the_old_header_tells_its_size() {
        let mut top_down = sample(Format::Bmp);
        top_down[22..26].copy_from_slice(&(-3i32).to_le_bytes());
        assert_eq!(probe_bytes(&top_down).unwrap().height, 3);
        let mut old = b"BM\0\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x05\0\x03\0\x01\0\x18\0".to_vec();
        old.resize(64, 0);
        let picture = probe_bytes(&old).unwrap();
        assert_eq!((picture.width, picture.height), (5, 3));
    }

    #[test]
    fn a_header_cut_short_is_refused() {
        for format in Format::read() {
            assert!(probe_bytes(&sample(format)[..8]).is_err(), "{format}");
        }
        assert!(matches!(probe_bytes(b""), Err(Error::Empty)));
    }

    #[test]
    fn pixels_over_the_limit_are_refused_with_both_numbers() {
        let mut huge = sample(Format::Png);
        huge[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        huge[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let Err(Error::TooManyPixels { pixels: 3_600_000_000, limit: 64_000_000 }) =
            probe_bytes(&huge)
        else {
            panic!("must be refused")
        };
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            which in 0..7usize,
            at in 0..200usize,
            noise in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = sample(Format::ALL[which]);
            let at = at.min(bytes.len());
            let end = (at + noise.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
            let _ = probe_bytes(&bytes);
        }
    }
}
