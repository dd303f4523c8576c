//! The largest products with the rows of a matrix, without reading all of the matrix.
//!
//! A copy of the matrix in 8 bits gives each product up to an error that is known: by Cauchy and Schwarz the difference
//! between a row and its copy, times `x`, is at most the product of both lengths. Only the rows that can be among the largest
//! are then multiplied as they are. That is half of the memory traffic of a matrix in 16 bits, and the result is exact.

use burn::tensor::DType;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::kernels::{BYTE_ROWS, BYTE_STEP, ByteOperand, SplitRow, bytes_are_fast};
use crate::weight::Weight;

/// Rows whose products are computed together.
const BLOCK: usize = 2 * BYTE_ROWS;
/// Blocks of a thread's piece of work.
const BLOCKS: usize = 16;
/// Rows that are converted at once.
const CHUNK: usize = 8192;
/// Rounding of sums in f32, relative to the lengths of both operands; generously.
const ROUNDING: f32 = 2e-5;

/// A matrix in 8 bits, and how far its rows are from those that it was made of.
#[derive(Debug)]
pub struct RowBounds {
    /// `[rows, padded]`, rows to whole blocks: a value is `(code - 128) * scale`.
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
    /// The longest rows.
    pub const MAX_INNER: usize = 8192;

    /// Whether this CPU multiplies bytes fast enough for it to pay.
    pub fn pays() -> bool {
        bytes_are_fast()
    }

    /// The most rows of `x` at once: with more, a product with all of the matrix costs less.
    pub fn max_rows() -> usize {
        ByteOperand::max_rows()
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
            codes: vec![128; rows.next_multiple_of(BLOCK) * padded],
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
        rows.next_multiple_of(BLOCK) * inner.next_multiple_of(BYTE_STEP) + 12 * rows
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
        let count = x.len() / self.inner;
        let rows = self.scales.len();
        if !(1..=Self::max_rows()).contains(&count) || rows < num * BLOCK {
            return None;
        }
        let rounded: Option<Vec<_>> = x
            .chunks_exact(self.inner)
            .map(|x| self.rounded(x))
            .collect();
        let (splits, factors): (Vec<_>, Vec<_>) = rounded?.into_iter().unzip();
        let x = Factors::new(splits, &factors, self.padded);
        // `[blocks, BLOCK, width]`.
        let mut uppers = vec![0.0f32; rows.next_multiple_of(BLOCK) * x.width];
        let mut extremes = vec![Extremes::NONE; rows.div_ceil(BLOCK) * x.width];
        (uppers.par_chunks_mut(BLOCK * BLOCKS * x.width))
            .zip(extremes.par_chunks_mut(BLOCKS * x.width))
            .enumerate()
            .for_each(|(piece, (uppers, extremes))| {
                let blocks = uppers.chunks_exact_mut(BLOCK * x.width);
                let blocks = blocks.zip(extremes.chunks_exact_mut(x.width));
                for (block, (uppers, extremes)) in blocks.enumerate() {
                    self.bound_block((piece * BLOCKS + block) * BLOCK, &x, uppers, extremes);
                }
            });
        let find = |i: usize| {
            let extremes = || extremes.iter().skip(i).step_by(x.width);
            let mut lowers: Vec<f32> = extremes().map(|extremes| extremes.lower).collect();
            // Of `num` different blocks: there are at least so many products that are as large.
            let (_, bound, _) = lowers.select_nth_unstable_by(num - 1, |a, b| b.total_cmp(a));
            let bound = *bound;
            let mut found = Vec::new();
            for (block, _) in (0..).zip(extremes()).filter(|(_, e)| e.upper > bound) {
                let uppers = &uppers[block * BLOCK * x.width..][..BLOCK * x.width];
                let uppers = uppers.iter().skip(i).step_by(x.width);
                let uppers = (block * BLOCK..rows).zip(uppers);
                found.extend(
                    uppers
                        .filter(|(_, upper)| **upper > bound)
                        .map(|(row, _)| row as u32),
                );
            }
            bound.is_finite().then_some(Largest { rows: found, bound })
        };
        (0..count).map(find).collect()
    }

    /// Bounds of the products of the rows from `first` on.
    fn bound_block(
        &self,
        first: usize,
        x: &Factors,
        uppers: &mut [f32],
        extremes: &mut [Extremes],
    ) {
        let codes = &self.codes[first * self.padded..][..BLOCK * self.padded];
        // What are products becomes bounds.
        x.bytes.dot(codes, self.padded, x.width, uppers);
        let rows = first..usize::min(first + BLOCK, self.scales.len());
        for (row, uppers) in rows.zip(uppers.chunks_exact_mut(x.width)) {
            let scale = self.scales[row];
            let rounding = self.errors[row] + ROUNDING * self.norms[row];
            // A copy is at most so much longer than its row.
            let norm = self.norms[row] + self.errors[row];
            let lanes = uppers.as_chunks_mut::<LANES>().0.iter_mut();
            let lanes = lanes.zip(extremes.as_chunks_mut::<LANES>().0).zip(&x.lanes);
            for ((uppers, extremes), x) in lanes {
                for lane in 0..LANES {
                    let value = uppers[lane] * x.scale[lane] * scale;
                    let error = x.norm[lane] * rounding + x.error[lane] * norm;
                    let (lower, upper) = (value - error, value + error);
                    // A product that is not a number is looked at, too.
                    let upper = if upper.is_nan() { f32::INFINITY } else { upper };
                    let extremes = &mut extremes[lane];
                    extremes.lower = if lower > extremes.lower {
                        lower
                    } else {
                        extremes.lower
                    };
                    extremes.upper = if upper > extremes.upper {
                        upper
                    } else {
                        extremes.upper
                    };
                    uppers[lane] = upper;
                }
            }
        }
    }

    /// A row of `x` as it is multiplied with bytes.
    fn rounded(&self, x: &[f32]) -> Option<(SplitRow, Factor)> {
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

/// Rows of `x` whose bounds are computed side by side.
const LANES: usize = 4;

/// Rows of `x`, and zeros up to a multiple of [`LANES`].
struct Factors {
    bytes: ByteOperand,
    lanes: Vec<Lanes>,
    width: usize,
}

/// The [`Factor`]s of some rows.
struct Lanes {
    scale: [f32; LANES],
    norm: [f32; LANES],
    error: [f32; LANES],
}

impl Factors {
    fn new(splits: Vec<SplitRow>, factors: &[Factor], padded: usize) -> Self {
        let lanes = factors.chunks(LANES).map(|factors| {
            let of = |value: fn(&Factor) -> f32| {
                std::array::from_fn(|lane| factors.get(lane).map_or(0.0, value))
            };
            Lanes {
                scale: of(|factor| factor.scale),
                norm: of(|factor| factor.norm),
                error: of(|factor| factor.error),
            }
        });
        Self {
            lanes: lanes.collect(),
            width: factors.len().next_multiple_of(LANES),
            bytes: ByteOperand::new(splits, padded),
        }
    }
}

/// Of the products of a block with a row of `x`.
#[derive(Clone, Copy)]
struct Extremes {
    /// The largest is at least this.
    lower: f32,
    /// None is larger.
    upper: f32,
}

impl Extremes {
    const NONE: Self = Self {
        lower: f32::NEG_INFINITY,
        upper: f32::NEG_INFINITY,
    };
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
            for count in [1, 3, 4].into_iter().chain(5..=RowBounds::max_rows()) {
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
