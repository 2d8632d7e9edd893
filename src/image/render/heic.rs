//! Decodes HEIC.

use image_rs::RgbImage;

use crate::image::{Error, Format, Picture};

/// Decodes the picture, applies its crop, rotation and mirroring, and blends it onto white. An EXIF
/// orientation is ignored (ISO/IEC 23008-12, annex A).
#[cfg(feature = "heic")]
pub(super) fn decode(picture: &Picture) -> Result<RgbImage, Error> {
    use image_rs::RgbaImage;

    use super::{blend_image_onto_white, blend_value_onto_white};
    use crate::image::header::heif::{self, Alpha};

    let header = heif::read(&mut picture.content.header_reader());
    let header = header.map_err(|_| broken("its header cannot be read"))?;
    let len = usize::try_from(header.boxes_end).map_err(|_| broken("it is too long"))?;
    let bytes = picture.content.read_at(0, len)?;
    let options = heifer::Options {
        // The memory limit of the child process is computed for one thread.
        max_threads: 1,
        // The limit for each HEVC stream, which contains the whole picture or one tile, and padding. The
        // padding may make the stream of a small picture larger than the picture. For one of many tiles,
        // the limit is far too high. Below it, only the limits of the process stop a tile that is larger
        // than the header says.
        max_pixels: header.coded_pixels().max(header.padded_stream_pixels()),
    };
    let image =
        heifer::decode_rgba8(&bytes, &options).map_err(|error| broken(&error.to_string()))?;
    // If the stream is smaller than the header announces, the decoder returns a smaller picture and
    // no error.
    if (image.width, image.height) != (picture.width, picture.height) {
        return Err(broken("its size differs from its header"));
    }
    let (width, height) = (image.width, image.height);
    let blend = match header.alpha {
        // The value is multiplied by alpha already, so only white is added.
        Alpha::Premultiplied => |value: u32, alpha: u32| value + 255 - alpha,
        Alpha::Straight | Alpha::None => blend_value_onto_white,
    };
    let image = if image.has_alpha {
        RgbaImage::from_raw(width, height, image.data)
            .map(|image| blend_image_onto_white(image, blend))
    } else {
        RgbImage::from_raw(width, height, image.into_rgb8())
    };
    image.ok_or_else(|| broken("it has too few pixels"))
}

/// Without the feature `heic`, no file is recognized as HEIC, so this function is never called.
#[cfg(not(feature = "heic"))]
pub(super) fn decode(_: &Picture) -> Result<RgbImage, Error> {
    Err(broken("this build does not support it"))
}

fn broken(reason: &str) -> Error {
    Error::Broken { format: Format::Heic, reason: reason.into() }
}

#[cfg(feature = "heic")]
#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::image::{Content, probe};

    fn file(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heic");
        fs::read(folder.join(name)).unwrap()
    }

    fn decoded(bytes: Vec<u8>) -> Result<RgbImage, Error> {
        decode(&probe(Content::Memory(bytes.into()), 64_000_000)?)
    }

    /// The mean colour of each cell, row by row, if the picture is divided into 8 rows of 8 cells.
    fn mean_colors(image: &RgbImage) -> Vec<u8> {
        let (width, height) = image.dimensions();
        // The pixels of cell `n` along a side. A cell has at least one pixel.
        let cell_range = |n: u32, side: u32| {
            let start = n * side / 8;
            start..((n + 1) * side / 8).max(start + 1)
        };
        let mut means = Vec::new();
        for (cell_y, cell_x) in (0..8).flat_map(|y| (0..8).map(move |x| (y, x))) {
            for channel in 0..3 {
                let mut values = Vec::new();
                for y in cell_range(cell_y, height) {
                    for x in cell_range(cell_x, width) {
                        values.push(f64::from(image.get_pixel(x, y)[channel]));
                    }
                }
                means.push((values.iter().sum::<f64>() / values.len() as f64).round() as u8);
            }
        }
        means
    }

    #[test]
    fn the_mean_colours_of_cells_are_close_to_those_that_libheif_decodes() {
        let mut too_different = Vec::new();
        for line in include_str!("../../../tests/fixtures/heic/expected.txt").lines() {
            // The name, the width, the height, and the mean colours in hexadecimal digits.
            let fields: Vec<_> = line.split(' ').collect();
            let (name, hex) = (fields[0], fields[3]);
            let byte_at = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let expected: Vec<u8> = (0..hex.len()).step_by(2).map(byte_at).collect();
            let actual = mean_colors(&decoded(file(&format!("{name}.heic"))).unwrap());
            let differences = || actual.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
            // Most files store the colour of every second pixel only, and the decoders interpolate the
            // colours of the other pixels differently.
            let mean = differences().map(f64::from).sum::<f64>() / actual.len() as f64;
            let largest = differences().max().unwrap();
            if mean > 2.0 || largest > 20 {
                too_different.push(format!("{name}: {mean:.2} on average, {largest} at most"));
            }
        }
        assert!(too_different.is_empty(), "the colours differ too much: {too_different:#?}");
    }

    #[test]
    fn the_colours_of_pixels_are_close_to_those_that_libheif_decodes() {
        // In 4:4:4 and in grey, every pixel has its own colour, so only rounding differs.
        for (name, max_mean_difference, max_difference) in [
            ("pixels-444", 0.1, 1),
            ("pixels-grey", 0.1, 1),
            ("pixels-10bit-444", 0.2, 2),
            ("pixels-422", 2.0, 40),
            ("pixels-420", 2.0, 40),
            ("pixels-10bit-420", 2.0, 40),
        ] {
            let actual = decoded(file(&format!("{name}.heic"))).unwrap();
            let expected = image_rs::load_from_memory(&file(&format!("{name}.png"))).unwrap();
            let expected = expected.into_rgb8();
            assert_eq!(actual.dimensions(), expected.dimensions());
            let differences: Vec<u8> =
                actual.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
            let sum: f64 = differences.iter().map(|difference| f64::from(*difference)).sum();
            let mean = sum / differences.len() as f64;
            let largest = *differences.iter().max().unwrap();
            assert!(
                mean <= max_mean_difference && largest <= max_difference,
                "the colours of {name} differ by {mean:.3} on average, {largest} at most"
            );
        }
    }

    #[test]
    fn a_truncated_file_is_refused() {
        for name in ["iphone-grid", "alpha", "grid-mdat-first", "thumbnail"] {
            let bytes = file(&format!("{name}.heic"));
            for len in 0..bytes.len() {
                assert!(decoded(bytes[..len].to_vec()).is_err(), "{name} of {len} bytes");
            }
        }
    }

    #[test]
    fn a_stream_whose_size_differs_from_the_header_is_broken() {
        // In the first file, the header's size is larger than the stream's. In the second, it is smaller.
        for name in ["bad-size-larger.heic", "bomb-stream-larger.heic"] {
            assert!(matches!(decoded(file(name)), Err(Error::Broken { .. })), "{name}");
        }
    }
}
