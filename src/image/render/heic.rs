//! Decodes HEIC.

use image_rs::RgbImage;

use crate::image::{Error, Format, Picture};

/// Decodes the picture as it is shown: cut, turned and mirrored as the file itself says, transparency
/// onto white. What its EXIF says of the orientation does not count (ISO/IEC 23008-12, annex A).
#[cfg(feature = "heic")]
pub(super) fn decode(picture: &Picture) -> Result<RgbImage, Error> {
    use image_rs::RgbaImage;

    use super::{blend_onto_white, onto_white};
    use crate::image::header::heif::{self, Alpha};

    let header = heif::read(&mut picture.content.header_reader());
    let header = header.map_err(|_| broken("its header cannot be read"))?;
    let end = usize::try_from(header.end).map_err(|_| broken("it is too long"))?;
    let bytes = picture.content.read_at(0, end)?;
    let options = heifer::Options {
        // The child is limited to what one thread takes.
        max_threads: 1,
        // A stream, too, may not be larger than the header has it. (A tile may be as large as the
        // whole: the process's own limits hold that.)
        max_pixels: header.pixels().max(header.padded_stream_pixels()),
    };
    let image =
        heifer::decode_rgba8(&bytes, &options).map_err(|error| broken(&error.to_string()))?;
    // A stream that is smaller than the header has it makes a smaller picture, without an error.
    if (image.width, image.height) != (picture.width, picture.height) {
        return Err(broken("its header tells another size"));
    }
    let (width, height) = (image.width, image.height);
    let blend = match header.alpha {
        Alpha::Premultiplied => |value, alpha| value + 255 - alpha,
        Alpha::Straight | Alpha::None => blend_onto_white,
    };
    let image = if image.has_alpha {
        RgbaImage::from_raw(width, height, image.data).map(|image| onto_white(image, blend))
    } else {
        RgbImage::from_raw(width, height, image.into_rgb8())
    };
    image.ok_or_else(|| broken("it has too few pixels"))
}

/// No file is told to be HEIC in this build.
#[cfg(not(feature = "heic"))]
pub(super) fn decode(_: &Picture) -> Result<RgbImage, Error> {
    Err(broken("this build does not read it"))
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

    /// The mean colours of 8 × 8 cells.
    fn cells(image: &RgbImage) -> Vec<u8> {
        let (width, height) = image.dimensions();
        let part = |n: u32, side: u32| (n * side / 8)..((n + 1) * side / 8).max(n * side / 8 + 1);
        let mean = |x, y, channel: usize| {
            let rows = part(y, height);
            let values = rows.flat_map(|y| part(x, width).map(move |x| (x, y)));
            let values: Vec<_> =
                values.map(|(x, y)| f64::from(image.get_pixel(x, y)[channel])).collect();
            (values.iter().sum::<f64>() / values.len() as f64).round() as u8
        };
        let places = (0..8).flat_map(|y| (0..8).map(move |x| (x, y)));
        places
            .flat_map(|(x, y)| (0..3).map(move |c| (x, y, c)))
            .map(|(x, y, c)| mean(x, y, c))
            .collect()
    }

    #[test]
    fn every_file_shows_what_libheif_shows() {
        let mut wrong = Vec::new();
        for line in include_str!("../../../tests/fixtures/heic/expected.txt").lines() {
            let fields: Vec<_> = line.split(' ').collect();
            let hex = |at: usize| u8::from_str_radix(&fields[3][at..at + 2], 16).unwrap();
            let expected: Vec<u8> = (0..fields[3].len()).step_by(2).map(hex).collect();
            let found = cells(&decoded(file(&format!("{}.heic", fields[0]))).unwrap());
            let differences = || found.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
            // Colour is told for every second pixel alone, and laid between them in another way.
            let mean = differences().map(f64::from).sum::<f64>() / found.len() as f64;
            if mean > 2.0 || differences().max() > Some(20) {
                wrong.push(format!("{} {mean:.2} {:?}", fields[0], differences().max()));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn pixels_are_those_that_libheif_decodes() {
        // Where every pixel has its colour, nothing but rounding differs.
        for (name, mean, most) in [
            ("pixels-444", 0.1, 1),
            ("pixels-grey", 0.1, 1),
            ("pixels-10bit-444", 0.2, 2),
            ("pixels-422", 2.0, 40),
            ("pixels-420", 2.0, 40),
            ("pixels-10bit-420", 2.0, 40),
        ] {
            let found = decoded(file(&format!("{name}.heic"))).unwrap();
            let expected = image_rs::load_from_memory(&file(&format!("{name}.png"))).unwrap();
            let expected = expected.into_rgb8();
            assert_eq!(found.dimensions(), expected.dimensions());
            let differences: Vec<u8> =
                found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
            let sum: f64 = differences.iter().map(|n| f64::from(*n)).sum();
            let (is_mean, is_most) =
                (sum / differences.len() as f64, *differences.iter().max().unwrap());
            assert!(is_mean <= mean && is_most <= most, "{name}: {is_mean:.3} {is_most}");
        }
    }

    #[test]
    fn a_file_that_is_cut_short_is_never_half_a_picture() {
        for name in ["iphone-grid", "alpha", "grid-mdat-first", "thumbnail"] {
            let bytes = file(&format!("{name}.heic"));
            for len in 0..bytes.len() {
                assert!(decoded(bytes[..len].to_vec()).is_err(), "{name} to {len}");
            }
        }
    }

    #[test]
    fn a_stream_of_another_size_than_the_header_has_it_is_broken() {
        for name in ["bad-size-larger.heic", "bomb-stream-larger.heic"] {
            assert!(matches!(decoded(file(name)), Err(Error::Broken { .. })), "{name}");
        }
    }
}
