//! Hands a WebP to its decoder, which refuses pictures whose flags promise what no chunk holds.

use super::spliced::Spliced;
use crate::image::{
    Error, Picture,
    header::{
        self,
        webp::{self, FLAGS_AT},
    },
};

/// The picture's bytes, with the flags that its chunks bear out.
pub(super) fn bytes(picture: &Picture) -> Result<Spliced, Error> {
    let webp = header::read_bounded(picture.format, &picture.content, webp::read)?;
    let Some(flags) = webp.flags else { return Ok(Spliced::new(Vec::new(), &picture.content, 0)?) };
    let head = picture.content.read_at(0, FLAGS_AT)?;
    let behind = FLAGS_AT as u64 + 1;
    Ok(Spliced::new([&head[..], &[flags]].concat(), &picture.content, behind)?)
}

#[cfg(test)]
mod tests {
    use image_rs::{DynamicImage, ImageFormat, RgbImage, Rgba, RgbaImage};

    use crate::image::render::tests::decoded;

    const ANIMATED: u8 = 0b10;
    const XMP: u8 = 0b100;
    const EXIF: u8 = 0b1000;
    const ALPHA: u8 = 0b1_0000;
    const PROFILE: u8 = 0b10_0000;

    /// An extended file of 4 × 4 pixels with these flags, whose pixels are lossless.
    fn extended(flags: u8, image: &DynamicImage) -> Vec<u8> {
        let mut plain = std::io::Cursor::new(Vec::new());
        image.write_to(&mut plain, ImageFormat::WebP).unwrap();
        let chunks = plain.into_inner().split_off(12);
        let head = [flags, 0, 0, 0, 3, 0, 0, 3, 0, 0];
        let chunks = [b"VP8X\x0a\0\0\0", &head[..], &chunks].concat();
        let len = (4 + chunks.len()) as u32;
        [b"RIFF", &len.to_le_bytes()[..], b"WEBP", &chunks].concat()
    }

    #[test]
    fn flags_for_chunks_that_are_missing_do_not_matter() {
        let red = RgbImage::from_pixel(4, 4, [200, 10, 20].into());
        for flags in [0, XMP, EXIF, XMP | EXIF, ALPHA, PROFILE, !ANIMATED] {
            let image = decoded(&extended(flags, &red.clone().into())).unwrap();
            assert_eq!(image, red, "{flags:#b}");
        }
    }

    #[test]
    fn lossless_pixels_say_themselves_whether_they_have_alpha() {
        let clear = RgbaImage::from_pixel(4, 4, Rgba([200, 10, 20, 0]));
        for flags in [0, ALPHA] {
            let image = decoded(&extended(flags, &clear.clone().into())).unwrap();
            assert!(image.pixels().all(|pixel| pixel.0 == [255; 3]), "{flags:#b}");
        }
    }
}
