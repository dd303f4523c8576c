//! The largest products with the rows of a matrix, without reading all of the matrix.
//!
//! A copy of the matrix in 8 bits gives each product up to an error that is known: by Cauchy and Schwarz the difference
//! between a row and its copy, times `x`, is at most the product of both lengths. Only the rows that can be among the largest
//! are then multiplied as they are. That is half of the memory traffic of a matrix in 16 bits, and the result is exact.

use burn::tensor::DType;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::kernels::{BYTE_STEP, SplitRow, bytes_are_fast, dot_bytes};
use crate::weight::Weight;

/// Rows whose products are computed together.
const BLOCK: usize = 64;
/// Blocks of a thread's piece of work.
const BLOCKS: usize = 16;
/// Rows that are converted at once.
const CHUNK: usize = 8192;
/// Rounding of sums in f32, relative to the lengths of both factors; generously.
const ROUNDING: f32 = 2e-5;

/// A matrix in 8 bits, and how far its rows are from those that it was made of.
#[derive(Debug)]
pub struct RowBounds {
    /// `[rows, padded]`: a value is `(code - 128) * scale`.
    codes: Vec<u8>,
    scales: Vec<f32>,
    /// Length of the difference between a row and its copy.
    errors: Vec<f32>,
    /// Length of each row.
    norms: Vec<f32>,
    inner: usize,
    padded: usize,
}

/// Rows that may have the largest products.
#[derive(Clone, Debug)]
pub struct Largest {
    /// Ascending numbers of rows.
    pub rows: Vec<u32>,
    /// No other row has a larger product; as many as asked for have one at least as large.
    pub bound: f32,
}

impl RowBounds {
    /// The most rows of `x` at once: with eight, a product with all of the matrix costs less.
    pub const MAX_ROWS: usize = 4;
    /// The longest rows.
    pub const MAX_INNER: usize = 8192;

    /// Whether this CPU multiplies bytes fast enough for it to pay.
    pub fn pays() -> bool {
        bytes_are_fast()
    }

    /// The bounds of `weight [rows, inner]`; `None` if its rows are too long, or of another type than a float of 16 or 32 bits.
    pub fn new(weight: &Weight) -> Option<Self> {
        let [rows, inner] = weight.shape();
        let padded = inner.next_multiple_of(BYTE_STEP);
        let Weight::Dense(weight) = weight else {
            return None;
        };
        if !Self::supports([rows, inner], weight.dtype()) {
            return None;
        }
        let mut bounds = Self {
            codes: vec![128; rows * padded],
            scales: vec![0.0; rows],
            errors: vec![0.0; rows],
            norms: vec![0.0; rows],
            inner,
            padded,
        };
        for first in (0..rows).step_by(CHUNK) {
            let num = CHUNK.min(rows - first);
            let values = weight.clone().narrow(0, first, num).into_data();
            let range = first..first + num;
            let bytes = values.as_bytes();
            (bytes.par_chunks_exact(bytes.len() / num))
                .zip(bounds.codes[first * padded..][..num * padded].par_chunks_exact_mut(padded))
                .zip(&mut bounds.scales[range.clone()])
                .zip(&mut bounds.errors[range.clone()])
                .zip(&mut bounds.norms[range])
                .for_each_init(Vec::new, |row, ((((bytes, codes), scale), error), norm)| {
                    row.clear();
                    match values.dtype() {
                        DType::BF16 => {
                            row.extend(floats(bytes, |b| bf16::from_le_bytes(b).to_f32()))
                        }
                        DType::F16 => row.extend(floats(bytes, |b| f16::from_le_bytes(b).to_f32())),
                        _ => row.extend(floats(bytes, f32::from_le_bytes)),
                    }
                    (*scale, *error, *norm) = quantize(row, codes);
                });
        }
        Some(bounds)
    }

    /// Whether there can be bounds of a matrix of this shape and type.
    pub fn supports([rows, inner]: [usize; 2], dtype: DType) -> bool {
        rows > 0
            && (1..=Self::MAX_INNER).contains(&inner.next_multiple_of(BYTE_STEP))
            && matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
    }

    /// Bytes of memory of the bounds of a matrix `[rows, inner]`.
    pub fn bytes_of([rows, inner]: [usize; 2]) -> usize {
        rows * (inner.next_multiple_of(BYTE_STEP) + 12)
    }

    /// Bytes of memory.
    pub fn num_bytes(&self) -> usize {
        Self::bytes_of([self.scales.len(), self.inner])
    }

    /// For each row of `x [rows, inner]` the rows of the matrix that may have the `num` largest products. `None` if there are
    /// too many rows of `x`, too few of the matrix, or values that are not finite.
    ///
    /// # Panics
    ///
    /// If `x` has no whole number of rows.
    pub fn largest(&self, x: &[f32], num: usize) -> Option<Vec<Largest>> {
        assert!(
            x.len().is_multiple_of(self.inner),
            "rows of {} values",
            self.inner
        );
        let x: Vec<(SplitRow, Factor)> = x
            .chunks_exact(self.inner)
            .map(|x| self.factor(x))
            .collect::<Option<_>>()?;
        if x.is_empty() || x.len() > Self::MAX_ROWS || self.scales.len() < num * BLOCK {
            return None;
        }
        let (splits, x): (Vec<SplitRow>, Vec<Factor>) = x.into_iter().unzip();
        let (count, rows) = (x.len(), self.scales.len());
        // `[rows, x]`, and `[blocks, x]`: the largest that a product is at least.
        let mut uppers = vec![0.0f32; rows * count];
        let mut maxima = vec![f32::NEG_INFINITY; rows.div_ceil(BLOCK) * count];
        (uppers.par_chunks_mut(BLOCK * BLOCKS * count))
            .zip(maxima.par_chunks_mut(BLOCKS * count))
            .enumerate()
            .for_each(|(piece, (uppers, maxima))| {
                let mut dots = vec![0i64; BLOCK * count];
                let blocks = uppers
                    .chunks_mut(BLOCK * count)
                    .zip(maxima.chunks_exact_mut(count));
                for (block, (uppers, maxima)) in blocks.enumerate() {
                    let first = (piece * BLOCKS + block) * BLOCK;
                    self.bound_block(first, &x, &splits, &mut dots, uppers, maxima);
                }
            });
        let find = |i: usize| {
            let mut lowers: Vec<f32> = maxima.iter().skip(i).step_by(count).copied().collect();
            // Of `num` different blocks: there are at least so many products that are as large.
            let (_, bound, _) = lowers.select_nth_unstable_by(num - 1, |a, b| b.total_cmp(a));
            let bound = *bound;
            // A product that is not a number is looked at, too.
            let may_exceed = |upper: f32| upper > bound || upper.is_nan();
            let uppers = uppers.iter().skip(i).step_by(count);
            let rows = (0..).zip(uppers).filter(|(_, upper)| may_exceed(**upper));
            let rows = rows.map(|(row, _)| row).collect();
            bound.is_finite().then_some(Largest { rows, bound })
        };
        (0..count).map(find).collect()
    }

    /// Bounds of the products of the rows from `first` on.
    fn bound_block(
        &self,
        first: usize,
        x: &[Factor],
        splits: &[SplitRow],
        dots: &mut [i64],
        uppers: &mut [f32],
        maxima: &mut [f32],
    ) {
        let num = uppers.len() / x.len();
        let codes = &self.codes[first * self.padded..][..num * self.padded];
        dot_bytes(codes, self.padded, splits, &mut dots[..uppers.len()]);
        for ((row, uppers), dots) in (first..)
            .zip(uppers.chunks_exact_mut(x.len()))
            .zip(dots.chunks_exact(x.len()))
        {
            for (((upper, dot), x), max) in uppers.iter_mut().zip(dots).zip(x).zip(&mut *maxima) {
                let value = *dot as f32 * x.scale * self.scales[row];
                let error = x.norm * (self.errors[row] + ROUNDING * self.norms[row])
                    // A copy is at most so much longer than its row.
                    + x.error * (self.norms[row] + self.errors[row]);
                *upper = value + error;
                *max = max.max(value - error);
            }
        }
    }

    /// A row of `x` as it is multiplied with bytes.
    fn factor(&self, x: &[f32]) -> Option<(SplitRow, Factor)> {
        let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let norm = length(x.iter().copied());
        if !norm.is_finite() {
            return None;
        }
        let scale = (largest / SplitRow::MAX).max(f32::MIN_POSITIVE);
        let rounded = |x: f32| (x / scale).round();
        let split = SplitRow::new(x.iter().map(|&x| rounded(x) as i32), self.padded);
        let error = length(x.iter().map(|&x| x - rounded(x) * scale));
        let factor = Factor { scale, norm, error };
        Some((split, factor))
    }
}

/// What a row of `x` is besides its integers.
struct Factor {
    scale: f32,
    norm: f32,
    /// Length of what the integers lack.
    error: f32,
}

fn floats<const N: usize>(bytes: &[u8], float: fn([u8; N]) -> f32) -> impl Iterator<Item = f32> {
    let (values, _) = bytes.as_chunks::<N>();
    values.iter().map(move |value| float(*value))
}

/// Added to a number below 2^22, this rounds it; the lowest bits are the integer then.
const ROUNDER: f32 = 12_582_912.0;
/// A zero as a code.
const ZERO: f32 = 128.0;

/// Scale, length of the difference, and length of a row.
fn quantize(values: &[f32], codes: &mut [u8]) -> (f32, f32, f32) {
    let largest = values
        .iter()
        .fold(0.0f32, |max, value| max.max(value.abs()));
    let scale = (largest / 127.0).max(f32::MIN_POSITIVE);
    let inverse = 1.0 / scale;
    // Some sums side by side, so that a compiler makes vectors of them.
    let (mut errors, mut squares) = ([0.0f32; 16], [0.0f32; 16]);
    for (values, codes) in values.chunks(16).zip(codes.chunks_mut(16)) {
        let pairs = values.iter().zip(codes);
        for ((value, code), (error, square)) in pairs.zip(errors.iter_mut().zip(&mut squares)) {
            let rounded = value * inverse + (ROUNDER + ZERO);
            *code = rounded.to_bits() as u8;
            let difference = value - (rounded - (ROUNDER + ZERO)) * scale;
            *error += difference * difference;
            *square += value * value;
        }
    }
    let length = |sums: [f32; 16]| sums.iter().sum::<f32>().sqrt() * (1.0 + 1e-4);
    (scale, length(errors), length(squares))
}

/// Length of a vector, rounded up.
fn length(values: impl Iterator<Item = f32>) -> f32 {
    let sum: f64 = values
        .map(|value| f64::from(value) * f64::from(value))
        .sum();
    (sum.sqrt() * (1.0 + 1e-6)) as f32
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tensor};

    use super::*;
    use crate::kernels::{ComputeDtype, dense_linear};

    fn random(shape: [usize; 2]) -> Tensor<2> {
        Tensor::random(
            shape,
            Distribution::Normal(0.0, 1.0),
            (&Device::flex(), DType::F32),
        )
    }

    #[test]
    fn no_row_that_counts_is_missing() {
        for (rows, inner, num) in [(5_000, 70, 20), (3_000, 896, 8), (130, 64, 2)] {
            let w = random([rows, inner]).cast(DType::BF16);
            let bounds = RowBounds::new(&Weight::Dense(w.clone())).expect("short rows");
            for count in [1, 3, 4] {
                let x = random([count, inner]) * 3.0;
                let products = dense_linear(x.clone(), w.clone(), ComputeDtype::F32);
                let products: Vec<f32> = products.into_data().iter().collect();
                let x: Vec<f32> = x.into_data().iter().collect();
                let largest = bounds.largest(&x, num).expect("enough rows");
                assert_eq!(largest.len(), count);
                for (largest, products) in largest.iter().zip(products.chunks_exact(rows)) {
                    assert!(largest.rows.is_sorted() && largest.rows.len() < rows / 2);
                    let reach = products.iter().filter(|product| **product >= largest.bound);
                    assert!(reach.count() >= num);
                    for (row, product) in (0..).zip(products) {
                        let is_known = largest.rows.binary_search(&row).is_ok();
                        assert!(is_known || *product <= largest.bound, "row {row}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_has_no_bounds() {
        let w = random([640, 64]);
        let bounds = RowBounds::new(&Weight::Dense(w)).expect("short rows");
        for value in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; 64];
            x[7] = value;
            assert!(bounds.largest(&x, 4).is_none());
        }
        // Rows of a matrix that are not are always looked at.
        let mut values = vec![0.5f32; 640 * 64];
        values[3 * 64] = f32::NAN;
        values[5 * 64] = f32::INFINITY;
        let w = burn::tensor::TensorData::new(values, [640, 64]);
        let w = Tensor::from_data(w, (&Device::flex(), DType::F32));
        let bounds = RowBounds::new(&Weight::Dense(w)).expect("short rows");
        let largest = bounds.largest(&[1.0; 64], 4).expect("finite values of x");
        assert!(largest[0].rows.contains(&3) && largest[0].rows.contains(&5));
    }
}
