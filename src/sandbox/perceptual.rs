//! Computes a vector from a picture's pixels. Resized or recompressed copies of a photograph get
//! similar vectors, and different photographs get different vectors.

use crate::nvidia::DIMENSIONS;

/// The picture is scaled to a square, which is divided into `GRID` × `GRID` cells.
const GRID: usize = 16;
/// The side of a cell, in pixels.
const CELL: usize = 8;
/// The side of the square, in pixels.
pub const SIDE: u32 = (GRID * CELL) as u32;
/// The length of the square in bytes: three bytes of RGB for each pixel.
pub const SQUARE_LEN: usize = 3 * ROW * ROW;
/// The number of pixels in a row of the square: [`SIDE`] as `usize`.
const ROW: usize = GRID * CELL;
/// The number of features of each cell. In the colour space CIELAB, these are the means of L, a and
/// b, the strengths of the horizontal and the vertical gradient of L, and the standard deviation of
/// L.
const FEATURES: usize = 6;

/// The weight of each feature. The last three weigh less, because scaling and compression change them
/// more than they change the means.
const WEIGHTS: [f32; FEATURES] = [1.0, 1.0, 1.0, 0.5, 0.5, 0.5];

/// A vector of at least this Euclidean length, in units of CIELAB, is scaled to length 1. A shorter
/// vector comes from a picture with almost a single colour, and is replaced by a constant vector.
const MIN_LENGTH: f32 = 1.0;

const _: () = assert!(GRID * GRID * FEATURES == DIMENSIONS);

/// Computes the vector of a square of [`SIDE`] × [`SIDE`] pixels, 8-bit RGB, row by row. The vector
/// is finite and has length 1 for every picture.
///
/// Returns `None` if `square` does not have [`SQUARE_LEN`] bytes.
pub fn vector(square: &[u8]) -> Option<Vec<f32>> {
    if square.len() != SQUARE_LEN {
        return None;
    }
    let (rgb, _) = square.as_chunks();
    let pixels: Vec<_> = rgb.iter().map(|rgb| lab(*rgb)).collect();
    let mut numbers: Vec<f32> = (0..GRID * GRID).flat_map(|cell| features(&pixels, cell)).collect();
    for (feature, weight) in WEIGHTS.into_iter().enumerate() {
        // The indices of this feature's numbers, one for each cell.
        let indices = || (0..GRID * GRID).map(move |cell| cell * FEATURES + feature);
        let mean = indices().map(|index| numbers[index]).sum::<f32>() / (GRID * GRID) as f32;
        for index in indices() {
            numbers[index] = (numbers[index] - mean) * weight;
        }
    }
    let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
    if length < MIN_LENGTH {
        return Some(vec![1.0 / (DIMENSIONS as f32).sqrt(); DIMENSIONS]);
    }
    Some(numbers.iter().map(|number| number / length).collect())
}

/// The L, a and b of a pixel in the colour space CIELAB.
type Lab = [f32; 3];

/// Computes the features of one cell.
fn features(pixels: &[Lab], cell: usize) -> [f32; FEATURES] {
    let (left, top) = (cell % GRID * CELL, cell / GRID * CELL);
    // Beyond the square, its last column and row are repeated.
    let at = |x: usize, y: usize| pixels[y.min(ROW - 1) * ROW + x.min(ROW - 1)];
    let mut sums = [0.0; FEATURES];
    for y in top..top + CELL {
        for x in left..left + CELL {
            let [l, a, b] = at(x, y);
            let (across, down) = (at(x + 1, y)[0] - l, at(x, y + 1)[0] - l);
            for (sum, value) in sums.iter_mut().zip([l, a, b, across * across, down * down, l * l])
            {
                *sum += value;
            }
        }
    }
    // `across`, `down` and `l_squared` are means of squares.
    let [l, a, b, across, down, l_squared] = sums.map(|sum| sum / (CELL * CELL) as f32);
    [l, a, b, across.sqrt(), down.sqrt(), (l_squared - l * l).max(0.0).sqrt()]
}

/// Converts sRGB to CIELAB under D65 (IEC 61966-2-1, CIE 15).
fn lab(rgb: [u8; 3]) -> Lab {
    let [r, g, b] = rgb.map(|channel| {
        let value = f32::from(channel) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    });
    // The function f of CIELAB: a cube root, and a line near zero.
    let root =
        |value: f32| if value > 0.008_856 { value.cbrt() } else { 7.787 * value + 16.0 / 116.0 };
    let x = root((0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505);
    let y = root(0.2126 * r + 0.7152 * g + 0.0722 * b);
    let z = root((0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089);
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

#[cfg(test)]
mod tests {
    use image_rs::{
        DynamicImage, ImageFormat, Rgb, RgbImage,
        codecs::jpeg::JpegEncoder,
        imageops::{self, FilterType},
    };

    use super::*;
    use crate::image::{Content, Target, probe};

    /// Computes the vector of a picture of any size.
    fn vector_of(picture: &RgbImage) -> Vec<f32> {
        let mut png = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png).unwrap();
        let picture = probe(Content::Memory(png.into_inner().into()), u64::MAX).unwrap();
        let memory_limit = 1 << 30; // more than the pictures of these tests need
        let square = Target::Square { side: SIDE }.render(&picture, memory_limit).unwrap();
        vector(&square).unwrap()
    }

    const PHOTOS: [&[u8]; 3] = [
        include_bytes!("../../tests/fixtures/rocket.jpg"),
        include_bytes!("../../tests/fixtures/chelsea.png"),
        include_bytes!("../../tests/fixtures/hubble_deep_field.jpg"),
    ];

    fn photos() -> Vec<RgbImage> {
        PHOTOS.iter().map(|bytes| image_rs::load_from_memory(bytes).unwrap().into_rgb8()).collect()
    }

    /// The cosine of the angle between two vectors of length 1.
    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// Whether a vector has [`DIMENSIONS`] numbers, all finite, and the Euclidean length 1.
    fn is_unit(vector: &[f32]) -> bool {
        vector.len() == DIMENSIONS
            && vector.iter().all(|n| n.is_finite())
            && (cosine(vector, vector) - 1.0).abs() < 1e-4
    }

    /// The photo, encoded and decoded again.
    fn reencoded(
        photo: &RgbImage,
        encode: impl Fn(&DynamicImage, &mut std::io::Cursor<Vec<u8>>),
    ) -> RgbImage {
        let mut bytes = std::io::Cursor::new(Vec::new());
        encode(&photo.clone().into(), &mut bytes);
        image_rs::load_from_memory(bytes.get_ref()).unwrap().into_rgb8()
    }

    #[test]
    fn resized_and_recompressed_copies_get_similar_vectors() {
        for photo in photos() {
            let original = vector_of(&photo);
            assert!(is_unit(&original));
            let (width, height) = photo.dimensions();
            let mut copies = vec![
                ("half", imageops::resize(&photo, width / 2, height / 2, FilterType::Lanczos3)),
                ("half, averaged", imageops::thumbnail(&photo, width / 2, height / 2)),
                (
                    "quality 60",
                    reencoded(&photo, |image, to| {
                        JpegEncoder::new_with_quality(to, 60).encode_image(image).unwrap();
                    }),
                ),
            ];
            for (format_name, format) in [
                ("GIF", ImageFormat::Gif),
                ("WebP", ImageFormat::WebP),
                ("BMP", ImageFormat::Bmp),
                ("TIFF", ImageFormat::Tiff),
                ("PNG", ImageFormat::Png),
            ] {
                copies.push((
                    format_name,
                    reencoded(&photo, |image, to| image.to_rgb8().write_to(to, format).unwrap()),
                ));
            }
            for (change, copy) in copies {
                let similarity = cosine(&original, &vector_of(&copy));
                assert!(similarity > 0.95, "{change}: {similarity}");
            }
        }
    }

    #[test]
    fn a_different_photograph_or_a_mirror_image_gets_a_different_vector() {
        let vectors: Vec<_> = photos().iter().map(vector_of).collect();
        for (first, second) in [(0, 1), (0, 2), (1, 2)] {
            let similarity = cosine(&vectors[first], &vectors[second]);
            assert!(similarity < 0.9, "photos {first} and {second}: {similarity}");
        }
        for (photo, original) in photos().iter().zip(&vectors) {
            let similarity = cosine(original, &vector_of(&imageops::flip_horizontal(photo)));
            assert!(similarity < 0.9, "mirrored: {similarity}");
        }
    }

    #[test]
    fn a_picture_of_one_colour_or_one_pixel_gets_a_vector_of_length_one() {
        for (width, height, colour) in
            [(64, 64, 0), (64, 64, 255), (1, 1, 7), (1, 90_000, 90), (90_000, 1, 200)]
        {
            let picture = RgbImage::from_pixel(width, height, Rgb([colour; 3]));
            assert!(is_unit(&vector_of(&picture)), "{width} x {height}");
        }
    }
}
