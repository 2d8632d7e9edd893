//! Compares vectors by their cosine, and finds the nearest rows.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

/// How many sums are computed side by side, so that the compiler uses SIMD instructions.
const LANES: usize = 8;

/// The vector to which all rows are compared.
#[derive(Debug)]
pub(in crate::bulk) struct Query {
    vector: Vec<f64>,
    norm: f64,
}

impl Query {
    /// Prepares a vector for comparisons.
    pub(in crate::bulk) fn new(vector: &[f32]) -> Self {
        let vector: Vec<_> = vector.iter().map(|number| f64::from(*number)).collect();
        let norm = vector.iter().map(|number| number * number).sum::<f64>().sqrt();
        Self { vector, norm }
    }

    /// The number of dimensions of the vector.
    pub(in crate::bulk) fn len(&self) -> usize {
        self.vector.len()
    }

    /// The cosine of the angle to another vector. Returns 0 if one of the vectors contains only zeros.
    /// `other` must have the same number of dimensions, and only finite numbers.
    ///
    /// The sums are 64-bit floats, because the square of a number may be too large or too small for a 32-bit
    /// float.
    pub(in crate::bulk) fn cosine(&self, other: &[f32]) -> f64 {
        let (our_chunks, our_rest) = self.vector.as_chunks::<LANES>();
        let (other_chunks, other_rest) = other.as_chunks::<LANES>();
        let (mut products, mut squares) = ([0.0; LANES], [0.0; LANES]);
        let mut add = |lane: usize, our_number: f64, other_number: f32| {
            let other_number = f64::from(other_number);
            products[lane] += our_number * other_number;
            squares[lane] += other_number * other_number;
        };
        for (ours, others) in our_chunks.iter().zip(other_chunks) {
            for lane in 0..LANES {
                add(lane, ours[lane], others[lane]);
            }
        }
        for (lane, (our_number, other_number)) in our_rest.iter().zip(other_rest).enumerate() {
            add(lane, *our_number, *other_number);
        }
        let norms = self.norm * squares.iter().sum::<f64>().sqrt();
        if norms == 0.0 {
            return 0.0;
        }
        // `total_cmp` would order -0 before 0, so `+ 0.0` turns -0 into 0.
        (products.iter().sum::<f64>() / norms).clamp(-1.0, 1.0) + 0.0
    }
}

/// A row that may be among the nearest.
#[derive(Debug)]
pub(in crate::bulk) struct Hit {
    pub cosine: f64,
    /// The number of the row in its file.
    pub row: u64,
    pub label: Option<String>,
}

/// The nearer row is greater. Of equally near rows, the earlier row is greater.
impl Ord for Hit {
    fn cmp(&self, other: &Self) -> Ordering {
        self.cosine.total_cmp(&other.cosine).then(other.row.cmp(&self.row))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Hit {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Hit {}

/// The nearest of the rows that were offered so far.
#[derive(Debug)]
pub(in crate::bulk) struct Ranking {
    /// The most rows that are kept.
    count: usize,
    /// The rows that are kept. The least near of them is at the top of the heap.
    nearest: BinaryHeap<Reverse<Hit>>,
}

impl Ranking {
    /// A ranking of the `count` nearest rows.
    pub(in crate::bulk) fn new(count: usize) -> Self {
        Self { count, nearest: BinaryHeap::new() }
    }

    /// Keeps a row if it is among the `count` nearest so far. Only then takes the row's label.
    pub(in crate::bulk) fn offer(&mut self, cosine: f64, row: u64, label: &mut Option<String>) {
        let mut hit = Hit { cosine, row, label: None };
        let is_full = self.nearest.len() == self.count;
        // `peek` of a full heap returns `None` only if `count` is 0.
        if is_full && self.nearest.peek().is_none_or(|Reverse(least)| hit <= *least) {
            return;
        }
        hit.label = label.take();
        if is_full {
            self.nearest.pop();
        }
        self.nearest.push(Reverse(hit));
    }

    /// The nearest rows, from the nearest to the least near.
    pub(in crate::bulk) fn into_sorted(self) -> Vec<Hit> {
        self.nearest.into_sorted_vec().into_iter().map(|Reverse(hit)| hit).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cosine(ours: &[f32], other: &[f32]) -> f64 {
        Query::new(ours).cosine(other)
    }

    #[test]
    fn the_cosine_of_a_zero_vector_is_zero_and_the_cosine_of_extreme_vectors_is_correct() {
        // These two have one number more than `LANES`.
        let zero = [0.0; 9];
        let any = [1.0, -2.0, 3.0, 0.5, 1.0, 1.0, 1.0, 1.0, 7.0];
        assert_eq!([cosine(&zero, &any), cosine(&any, &zero), cosine(&zero, &zero)], [0.0; 3]);
        // `f32::MAX / 8.0` times 7, the largest number of `any`, is finite. 1e-40 is a subnormal number.
        for scale in [f32::MAX / 8.0, f32::MIN_POSITIVE, 1e-40] {
            let scaled = any.map(|number| number * scale);
            // A subnormal number has fewer digits, so scaling to it rounds: hence 1e-3.
            assert!((cosine(&any, &scaled) - 1.0).abs() < 1e-3, "{scale}");
            assert!((cosine(&scaled, &scaled) - 1.0).abs() < 1e-12, "{scale}");
        }
        assert_eq!(cosine(&[f32::MAX; 9], &[f32::MIN; 9]), -1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 1.0]), 0.0);
    }

    #[test]
    fn equally_near_rows_are_in_the_order_of_the_file() {
        let mut ranking = Ranking::new(3);
        for (row, cosine) in [(1, 0.5), (2, 0.9), (3, 0.5), (4, 0.9), (5, 0.5), (6, -1.0)] {
            ranking.offer(cosine, row, &mut Some(row.to_string()));
        }
        let rows: Vec<_> = ranking.into_sorted().iter().map(|hit| hit.row).collect();
        assert_eq!(rows, [2, 4, 1]);
    }

    proptest! {
        #[test]
        fn the_ranking_equals_a_stable_sort(
            // Many of these cosines are equal.
            cosines in prop::collection::vec((-4_i8..4).prop_map(|n| f64::from(n) / 4.0), 0..40),
            count in 1..12_usize,
        ) {
            let mut ranking = Ranking::new(count);
            for (row, cosine) in cosines.iter().enumerate() {
                ranking.offer(*cosine, row as u64, &mut None);
            }
            let mut expected: Vec<_> = cosines.iter().copied().enumerate().collect();
            expected.sort_by(|a, b| b.1.total_cmp(&a.1));
            expected.truncate(count);
            let found = ranking.into_sorted();
            let found: Vec<_> = found.iter().map(|hit| (hit.row as usize, hit.cosine)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn the_cosine_equals_the_dot_product_divided_by_the_norms(
            pairs in prop::collection::vec((-9.0_f32..9.0, -9.0_f32..9.0), 1..40),
        ) {
            let (a, b): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let dot = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let norms = (dot(&a, &a) * dot(&b, &b)).sqrt();
            prop_assume!(norms > 0.0);
            prop_assert!((cosine(&a, &b) - dot(&a, &b) / norms).abs() < 1e-12);
            prop_assert!(cosine(&a, &a) > 1.0 - 1e-12);
        }
    }
}
