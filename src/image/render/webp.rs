//! Decodes WebP. The decoder refuses most flags that announce a missing chunk, so the flags are corrected
//! first.

use image_rs::{DynamicImage, ImageFormat};

use super::{decode_with_image_crate, spliced::SplicedReader};
use crate::image::{
    Error, Picture,
    header::{
        self,
        webp::{self, FLAGS_AT},
    },
};

/// Decodes the picture. The decoder may allocate at most `memory_estimate` bytes.
pub(super) fn decode(picture: &Picture, memory_estimate: u64) -> Result<DynamicImage, Error> {
    let bytes = with_correct_flags(picture)?;
    decode_with_image_crate(picture, bytes, ImageFormat::WebP, memory_estimate)
}

/// Returns a reader of the picture's bytes, in which the flags announce no missing chunk.
fn with_correct_flags(picture: &Picture) -> Result<SplicedReader, Error> {
    let webp = header::read_bounded(picture.format, &picture.content, webp::read)?;
    let Some(flags) = webp.corrected_flags else {
        // A simple WebP contains no flags, so nothing is replaced.
        return Ok(SplicedReader::new(Vec::new(), &picture.content, 0)?);
    };
    let bytes_before_flags = picture.content.read_at(0, FLAGS_AT)?;
    let head = [&bytes_before_flags[..], &[flags]].concat();
    let flags_end = FLAGS_AT as u64 + 1;
    Ok(SplicedReader::new(head, &picture.content, flags_end)?)
}

#[cfg(test)]
mod tests {
    use image_rs::{DynamicImage, ImageFormat, RgbImage, Rgba, RgbaImage};

    use crate::image::render::tests::decoded;

    // The flags of an extended WebP.
    const ANIMATED: u8 = 0b10;
    const XMP: u8 = 0b100;
    const EXIF: u8 = 0b1000;
    const ALPHA: u8 = 0b1_0000;
    const PROFILE: u8 = 0b10_0000;

    /// A lossless WebP of 4 × 4 pixels in the extended format, with these flags.
    fn extended(flags: u8, image: &DynamicImage) -> Vec<u8> {
        let mut simple = std::io::Cursor::new(Vec::new());
        image.write_to(&mut simple, ImageFormat::WebP).unwrap();
        // What comes after `RIFF`, the length and `WEBP`.
        let pixel_chunk = simple.into_inner().split_off(12);
        // After the flags and three zeros: the width and the height, each minus one, in 24 bits.
        let head = [flags, 0, 0, 0, 3, 0, 0, 3, 0, 0];
        let chunks = [b"VP8X\x0a\0\0\0", &head[..], &pixel_chunk].concat();
        let len = (b"WEBP".len() + chunks.len()) as u32;
        [b"RIFF", &len.to_le_bytes()[..], b"WEBP", &chunks].concat()
    }

    #[test]
    fn pictures_with_flags_for_missing_chunks_are_decoded() {
        let red = RgbImage::from_pixel(4, 4, [200, 10, 20].into());
        // ANIMATED is left out, because the correction keeps it. `!ANIMATED` is all other flags.
        for flags in [0, XMP, EXIF, XMP | EXIF, ALPHA, PROFILE, !ANIMATED] {
            let image = decoded(&extended(flags, &red.clone().into())).unwrap();
            assert_eq!(image, red, "{flags:#b}");
        }
    }

    #[test]
    fn the_alpha_of_lossless_pixels_does_not_depend_on_the_flag() {
        let transparent = RgbaImage::from_pixel(4, 4, Rgba([200, 10, 20, 0]));
        for flags in [0, ALPHA] {
            let image = decoded(&extended(flags, &transparent.clone().into())).unwrap();
            // Transparent pixels are drawn on white.
            assert!(image.pixels().all(|pixel| pixel.0 == [255; 3]), "{flags:#b}");
        }
    }
}
