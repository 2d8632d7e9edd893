//! Computes a vector from a picture's pixels. The same photograph, resized or recompressed, gets a
//! similar vector; different photographs get different ones.

use crate::nvidia::DIMENSIONS;

/// Cells along each side of the grid that the picture is divided into.
const GRID: usize = 16;
/// Pixels along each side of a cell, after scaling.
const CELL: usize = 8;
/// Pixels along each side of the square that the picture is scaled to.
pub const SIDE: u32 = (GRID * CELL) as u32;
/// The length of the square as plain RGB, in bytes.
pub const SQUARE_LEN: usize = 3 * ROW * ROW;
const ROW: usize = GRID * CELL;
/// Numbers for each cell: mean L, a and b; energy of the horizontal and of the vertical gradient;
/// spread of L.
const FEATURES: usize = 6;

/// The weight of each feature. Lightness and colour tell photographs apart best; scaling and
/// compression change the gradients.
const WEIGHTS: [f32; FEATURES] = [1.0, 1.0, 1.0, 0.5, 0.5, 0.5];

/// A picture whose vector is shorter than this (in units of CIELAB) counts as flat.
const FLAT: f32 = 1.0;

const _: () = assert!(GRID * GRID * FEATURES == DIMENSIONS);

/// Computes the vector of a square of [`SIDE`] × [`SIDE`] pixels in plain RGB. The vector has
/// length 1 and is finite for every picture. Returns `None` if `square` has another number of
/// bytes.
pub fn vector(square: &[u8]) -> Option<Vec<f32>> {
    if square.len() != SQUARE_LEN {
        return None;
    }
    let (rgb, _) = square.as_chunks();
    let pixels: Vec<_> = rgb.iter().map(|rgb| lab(*rgb)).collect();
    let mut numbers: Vec<f32> = (0..GRID * GRID).flat_map(|cell| features(&pixels, cell)).collect();
    for (feature, weight) in WEIGHTS.into_iter().enumerate() {
        let column = || (0..GRID * GRID).map(move |cell| cell * FEATURES + feature);
        let mean = column().map(|index| numbers[index]).sum::<f32>() / (GRID * GRID) as f32;
        for index in column() {
            numbers[index] = (numbers[index] - mean) * weight;
        }
    }
    let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
    if length < FLAT {
        return Some(vec![1.0 / (DIMENSIONS as f32).sqrt(); DIMENSIONS]);
    }
    Some(numbers.iter().map(|number| number / length).collect())
}

type Lab = [f32; 3];

fn features(pixels: &[Lab], cell: usize) -> [f32; FEATURES] {
    let (left, top) = (cell % GRID * CELL, cell / GRID * CELL);
    let at = |x: usize, y: usize| pixels[y.min(ROW - 1) * ROW + x.min(ROW - 1)];
    let mut sums = [0.0; FEATURES];
    for y in top..top + CELL {
        for x in left..left + CELL {
            let [l, a, b] = at(x, y);
            let (right, below) = (at(x + 1, y)[0] - l, at(x, y + 1)[0] - l);
            for (sum, value) in sums.iter_mut().zip([l, a, b, right * right, below * below, l * l])
            {
                *sum += value;
            }
        }
    }
    let [l, a, b, right, below, squares] = sums.map(|sum| sum / (CELL * CELL) as f32);
    [l, a, b, right.sqrt(), below.sqrt(), (squares - l * l).max(0.0).sqrt()]
}

/// Converts sRGB to CIELAB under D65 (IEC 61966-2-1, CIE 15).
fn lab(rgb: [u8; 3]) -> Lab {
    let [r, g, b] = rgb.map(|channel| {
        let value = f32::from(channel) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    });
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
    fn vector(picture: &RgbImage) -> Vec<f32> {
        let mut png = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png).unwrap();
        let picture = probe(Content::Memory(png.into_inner().into()), u64::MAX).unwrap();
        let square = Target::Square { side: SIDE }.render(&picture, 1 << 30).unwrap();
        super::vector(&square).unwrap()
    }

    const PHOTOS: [&[u8]; 3] = [
        include_bytes!("../../tests/fixtures/rocket.jpg"),
        include_bytes!("../../tests/fixtures/chelsea.png"),
        include_bytes!("../../tests/fixtures/hubble_deep_field.jpg"),
    ];

    fn photos() -> Vec<RgbImage> {
        PHOTOS.iter().map(|bytes| image_rs::load_from_memory(bytes).unwrap().into_rgb8()).collect()
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn is_unit(vector: &[f32]) -> bool {
        vector.len() == DIMENSIONS
            && vector.iter().all(|n| n.is_finite())
            && (cosine(vector, vector) - 1.0).abs() < 1e-4
    }

    fn reencoded(
        photo: &RgbImage,
        encode: impl Fn(&DynamicImage, &mut std::io::Cursor<Vec<u8>>),
    ) -> RgbImage {
        let mut bytes = std::io::Cursor::new(Vec::new());
        encode(&photo.clone().into(), &mut bytes);
        image_rs::load_from_memory(bytes.get_ref()).unwrap().into_rgb8()
    }

    #[test]
    fn the_same_photograph_in_another_size_or_format_stays_close() {
        for photo in photos() {
            let original = vector(&photo);
            assert!(is_unit(&original));
            let (width, height) = photo.dimensions();
            let mut others = vec![
                ("half", imageops::resize(&photo, width / 2, height / 2, FilterType::Lanczos3)),
                ("half, averaged", imageops::thumbnail(&photo, width / 2, height / 2)),
                (
                    "quality 60",
                    reencoded(&photo, |image, to| {
                        JpegEncoder::new_with_quality(to, 60).encode_image(image).unwrap();
                    }),
                ),
            ];
            for format in [
                ImageFormat::Gif,
                ImageFormat::WebP,
                ImageFormat::Bmp,
                ImageFormat::Tiff,
                ImageFormat::Png,
            ] {
                others.push((
                    "format",
                    reencoded(&photo, |image, to| image.to_rgb8().write_to(to, format).unwrap()),
                ));
            }
            for (what, other) in others {
                let similarity = cosine(&original, &vector(&other));
                assert!(similarity > 0.95, "{what}: {similarity}");
            }
        }
    }

    #[test]
    fn different_photographs_and_mirror_images_are_far_apart() {
        let vectors: Vec<_> = photos().iter().map(vector).collect();
        for (first, second) in [(0, 1), (0, 2), (1, 2)] {
            let similarity = cosine(&vectors[first], &vectors[second]);
            assert!(similarity < 0.9, "{first} {second}: {similarity}");
        }
        for (photo, original) in photos().iter().zip(&vectors) {
            let similarity = cosine(original, &vector(&imageops::flip_horizontal(photo)));
            assert!(similarity < 0.9, "mirrored: {similarity}");
        }
    }

    #[test]
    fn flat_and_tiny_pictures_have_unit_vectors() {
        for (width, height, colour) in
            [(64, 64, 0), (64, 64, 255), (1, 1, 7), (1, 90_000, 90), (90_000, 1, 200)]
        {
            let picture = RgbImage::from_pixel(width, height, Rgb([colour; 3]));
            assert!(is_unit(&vector(&picture)), "{width} x {height}");
        }
    }
}
