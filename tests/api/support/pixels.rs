//! Measures how much two pictures differ.

use std::fmt;

use image_rs::RgbImage;

/// The difference of two pictures. A sample of a pixel is from 0 to 255.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// The mean of the absolute differences of all samples.
    pub mean: f64,
    /// The largest difference between the two pictures' averages of one channel in one square of 8 × 8
    /// pixels. Noise hardly changes an average, but a wrong patch does.
    pub worst_square: f64,
}

impl Difference {
    /// Compares two pictures. Returns `None` if their sizes differ.
    pub fn between(a: &RgbImage, b: &RgbImage) -> Option<Self> {
        const SIDE: u32 = 8;
        if a.dimensions() != b.dimensions() {
            return None;
        }
        let (columns, rows) = (a.width().div_ceil(SIDE), a.height().div_ceil(SIDE));
        // For each square and channel: the sum of the differences, the number of pixels, and the
        // sum of the absolute differences.
        let mut squares = vec![[(0.0, 0.0, 0.0); 3]; (columns * rows) as usize];
        for ((x, y, pixel_of_a), pixel_of_b) in a.enumerate_pixels().zip(b.pixels()) {
            let square = &mut squares[(y / SIDE * columns + x / SIDE) as usize];
            let samples = pixel_of_a.0.into_iter().zip(pixel_of_b.0);
            for ((sum, pixel_count, absolute), (sample_of_a, sample_of_b)) in
                square.iter_mut().zip(samples)
            {
                *sum += f64::from(sample_of_a) - f64::from(sample_of_b);
                *absolute += f64::from(sample_of_a.abs_diff(sample_of_b));
                *pixel_count += 1.0;
            }
        }
        let channels = || squares.iter().flatten();
        let total: f64 = channels().map(|(_, _, absolute)| absolute).sum();
        let mean = total / (f64::from(a.width() * a.height()) * 3.0);
        let averages = channels().map(|(sum, pixel_count, _)| (sum / pixel_count).abs());
        Some(Self { mean, worst_square: averages.fold(0.0, f64::max) })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} on average, {:.1} in the worst square", self.mean, self.worst_square)
    }
}
