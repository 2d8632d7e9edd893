//! How pictures differ.

use std::fmt;

use image_rs::RgbImage;

/// How far two pictures are apart, in steps of 255.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// Of all channels of all pixels.
    pub mean: f64,
    /// Of the channel that differs most, on average over a square of 8 × 8 pixels: noise is not
    /// counted, a wrong patch is.
    pub worst: f64,
}

impl Difference {
    /// Compares two pictures; `None` if they are not of one size.
    pub fn between(a: &RgbImage, b: &RgbImage) -> Option<Self> {
        const SIDE: u32 = 8;
        if a.dimensions() != b.dimensions() {
            return None;
        }
        let (across, down) = (a.width().div_ceil(SIDE), a.height().div_ceil(SIDE));
        let mut squares = vec![[(0.0, 0.0, 0.0); 3]; (across * down) as usize];
        for ((x, y, a), b) in a.enumerate_pixels().zip(b.pixels()) {
            let square = &mut squares[(y / SIDE * across + x / SIDE) as usize];
            for ((sum, pixels, absolute), (a, b)) in square.iter_mut().zip(a.0.into_iter().zip(b.0))
            {
                *sum += f64::from(a) - f64::from(b);
                *absolute += f64::from(a.abs_diff(b));
                *pixels += 1.0;
            }
        }
        let all = || squares.iter().flatten();
        let total: f64 = all().map(|(_, _, absolute)| absolute).sum();
        let mean = total / (f64::from(a.width() * a.height()) * 3.0);
        let worst = all().map(|(sum, pixels, _)| (sum / pixels).abs()).fold(0.0, f64::max);
        Some(Self { mean, worst })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} on average, {:.1} in the worst place", self.mean, self.worst)
    }
}
