//! Turns and mirrors a picture upright, without a second copy of its pixels.

use image_rs::{GenericImageView, Rgb, RgbImage, metadata::Orientation};

/// A view of a picture that turns and mirrors it while its pixels are read.
pub(super) struct Upright<'a> {
    image: &'a RgbImage,
    orientation: Orientation,
}

impl<'a> Upright<'a> {
    pub(super) fn new(image: &'a RgbImage, orientation: Orientation) -> Self {
        Self { image, orientation }
    }
}

impl GenericImageView for Upright<'_> {
    type Pixel = Rgb<u8>;

    fn dimensions(&self) -> (u32, u32) {
        use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
        let (width, height) = self.image.dimensions();
        match self.orientation {
            Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH => (height, width),
            _ => (width, height),
        }
    }

    fn get_pixel(&self, x: u32, y: u32) -> Rgb<u8> {
        let (width, height) = self.image.dimensions();
        // Converts the position in the upright picture to the position in the stored picture.
        let (x, y) = match self.orientation {
            Orientation::NoTransforms => (x, y),
            Orientation::FlipHorizontal => (width - 1 - x, y),
            Orientation::Rotate180 => (width - 1 - x, height - 1 - y),
            Orientation::FlipVertical => (x, height - 1 - y),
            Orientation::Rotate90FlipH => (y, x),
            Orientation::Rotate90 => (y, height - 1 - x),
            Orientation::Rotate270FlipH => (width - 1 - y, height - 1 - x),
            Orientation::Rotate270 => (width - 1 - y, x),
        };
        *self.image.get_pixel(x, y)
    }
}

#[cfg(test)]
mod tests {
    use image_rs::DynamicImage;

    use super::*;

    #[test]
    fn the_view_has_the_same_pixels_as_a_turned_copy_for_every_orientation() {
        let image = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8, y as u8, 0]));
        for exif_value in 1..=8 {
            let orientation = Orientation::from_exif(exif_value).unwrap();
            let mut turned_copy = DynamicImage::ImageRgb8(image.clone());
            turned_copy.apply_orientation(orientation);
            let turned_copy = turned_copy.into_rgb8();
            let upright = Upright::new(&image, orientation);
            assert_eq!(upright.dimensions(), turned_copy.dimensions());
            for (x, y, pixel) in turned_copy.enumerate_pixels() {
                assert_eq!(upright.get_pixel(x, y), *pixel, "{orientation:?} at {x}, {y}");
            }
        }
    }
}
