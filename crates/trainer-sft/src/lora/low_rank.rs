//! The largest singular values of a matrix and their vectors, and the first columns of its QR decomposition.
//!
//! The method for the first is block power iteration with random starting vectors (Halko, Martinsson, Tropp, 2011,
//! <https://arxiv.org/abs/0909.4061>, algorithm 4.4); the small problem that is left is solved by one-sided Jacobi rotations.

use burn::tensor::{DType, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};

/// Vectors that are iterated besides those that are asked for, at least: they make the others converge faster.
const EXTRA: usize = 16;
/// Iterations at most, where their number is not given.
const MAX_ITERATIONS: usize = 64;
/// Relative change of a singular value that ends the iteration.
const STANDSTILL: f64 = 3e-7;
/// Sweeps of rotations at most.
const MAX_SWEEPS: usize = 30;

/// `weight ≈ left · diag(values) · right`.
pub(super) struct LowRank {
    /// Rows are the left vectors: `[rank, out]`.
    pub(super) left: Vec<Vec<f64>>,
    /// Descending.
    pub(super) values: Vec<f64>,
    /// Rows are the right vectors: `[rank, in]`.
    pub(super) right: Vec<Vec<f64>>,
}

/// The `rank` largest singular values of `weight [out, in]`, f32.
pub(super) fn svd(
    weight: &Tensor<2>,
    rank: usize,
    iterations: Option<usize>,
    rng: &mut ChaCha8Rng,
) -> LowRank {
    let [outer, inner] = weight.dims();
    let rank = rank.min(outer).min(inner);
    let width = (rank + rank.max(EXTRA)).min(outer).min(inner);
    let transposed = || weight.clone().transpose();
    let start: Vec<Vec<f32>> = (0..width)
        .map(|_| (0..inner).map(|_| normal(rng)).collect())
        .collect();
    let mut left = product(&start, transposed()); // [width, out]
    let mut values = orthonormalize(&mut left);
    for _ in 0..iterations.unwrap_or(MAX_ITERATIONS) {
        let mut right = product(&left, weight.clone()); // [width, in]
        orthonormalize(&mut right);
        left = product(&right, transposed()); // [width, out]
        let before = std::mem::replace(&mut values, orthonormalize(&mut left));
        let mut pairs = before.iter().zip(&values).take(rank);
        let stands = |(before, now): (&f64, &f64)| (before - now).abs() <= STANDSTILL * now;
        if iterations.is_none() && pairs.all(stands) {
            break;
        }
    }
    let wide = |rows: Vec<Vec<f32>>| -> Vec<Vec<f64>> {
        let rows = rows.into_iter();
        rows.map(|row| row.into_iter().map(f64::from).collect())
            .collect()
    };
    let mut right = wide(product(&left, weight.clone())); // [width, in]
    let mut left = wide(left);
    rotate(&mut right, &mut left);
    let mut order: Vec<(f64, usize)> = right
        .iter()
        .map(|row| dot(row, row).sqrt())
        .zip(0..)
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    order.truncate(rank);
    let unit = |(value, row): &(f64, usize)| {
        let scale = if *value > 0.0 { value.recip() } else { 0.0 };
        right[*row].iter().map(|x| x * scale).collect()
    };
    LowRank {
        right: order.iter().map(unit).collect(),
        left: order.iter().map(|(_, row)| left[*row].clone()).collect(),
        values: order.iter().map(|(value, _)| *value).collect(),
    }
}

/// Q of the first `rank` columns of `weight [out, in]`, and the rows of R that belong to them: `[rank, out]`, `[rank, in]`.
pub(super) fn qr(weight: &Tensor<2>, rank: usize) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let [outer, inner] = weight.dims();
    let rank = rank.min(outer).min(inner);
    let columns = weight.clone().narrow(1, 0, rank).transpose(); // [rank, out]
    let mut q = rows_of(columns);
    orthonormalize(&mut q);
    let r = product(&q, weight.clone()); // [rank, in]
    (q, r)
}

/// `rows [k, m] · by [m, n]`.
fn product(rows: &[Vec<f32>], by: Tensor<2>) -> Vec<Vec<f32>> {
    let shape = [rows.len(), by.dims()[0]];
    let data = TensorData::new(rows.concat(), shape);
    let rows = Tensor::<2>::from_data(data, (&by.device(), DType::F32));
    rows_of(rows.matmul(by))
}

fn rows_of(tensor: Tensor<2>) -> Vec<Vec<f32>> {
    let width = tensor.dims()[1].max(1);
    let values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

/// Makes the rows an orthonormal system, and returns the length of what each adds to those before it. A row that adds nothing
/// becomes zero.
fn orthonormalize(rows: &mut [Vec<f32>]) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let mut lengths = Vec::with_capacity(rows.len());
    for i in 0..rows.len() {
        let (before, rest) = rows.split_at_mut(i);
        let Some(row) = rest.first_mut() else { break };
        let whole = dot(row, row).sqrt();
        // Once more for what rounding leaves.
        for other in before.iter().chain(before.iter()) {
            let part = dot(row, other) as f32;
            for (value, other) in row.iter_mut().zip(other) {
                *value -= part * other;
            }
        }
        let length = dot(row, row).sqrt();
        let adds = length > 1e-6 * whole;
        let scale = if adds { length.recip() as f32 } else { 0.0 };
        row.iter_mut().for_each(|value| *value *= scale);
        lengths.push(if adds { length } else { 0.0 });
    }
    lengths
}

/// Rotates pairs of `rows` until all are orthogonal, and `others` in the same way.
fn rotate(rows: &mut [Vec<f64>], others: &mut [Vec<f64>]) {
    for _ in 0..MAX_SWEEPS {
        let mut largest = 0.0f64;
        for j in 1..rows.len() {
            for i in 0..j {
                let (a, b) = (dot(&rows[i], &rows[i]), dot(&rows[j], &rows[j]));
                let crossed = dot(&rows[i], &rows[j]);
                let cosine = crossed.abs() / (a * b).sqrt().max(f64::MIN_POSITIVE);
                largest = largest.max(cosine);
                if cosine < 1e-12 {
                    continue;
                }
                let zeta = (b - a) / (2.0 * crossed);
                let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let cos = (1.0 + tangent * tangent).sqrt().recip();
                let angle = (cos, cos * tangent);
                turn(rows, [i, j], angle);
                turn(others, [i, j], angle);
            }
        }
        if largest < 1e-10 {
            break;
        }
    }
}

/// Rotates rows `i` and `j`, `i` below `j`.
fn turn(rows: &mut [Vec<f64>], [i, j]: [usize; 2], (cos, sin): (f64, f64)) {
    let (head, tail) = rows.split_at_mut(j);
    for (x, y) in head[i].iter_mut().zip(&mut tail[0]) {
        (*x, *y) = (cos * *x - sin * *y, sin * *x + cos * *y);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A number of the standard normal distribution.
pub(super) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    StandardNormal.sample(rng)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use rand::SeedableRng;

    use super::*;

    /// `[rows, columns]` of the given singular values.
    fn matrix(rows: usize, columns: usize, values: &[f32]) -> Tensor<2> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut system = |width: usize| {
            let mut rows: Vec<Vec<f32>> = (0..values.len())
                .map(|_| (0..width).map(|_| normal(&mut rng)).collect())
                .collect();
            orthonormalize(&mut rows);
            let data = TensorData::new(rows.concat(), [values.len(), width]);
            Tensor::<2>::from_data(data, (&Device::flex(), DType::F32))
        };
        let (left, right) = (system(rows), system(columns));
        let data = TensorData::new(values.to_vec(), [values.len(), 1]);
        let values = Tensor::<2>::from_data(data, (&Device::flex(), DType::F32));
        left.transpose().matmul(right * values)
    }

    #[test]
    fn the_largest_values_and_their_vectors_are_found() {
        let values = [9.0, 7.0, 6.5, 3.0, 2.9, 1.0, 0.5, 0.1];
        for (rows, columns) in [(40, 24), (24, 40), (8, 8)] {
            let weight = matrix(rows, columns, &values);
            for iterations in [None, Some(16)] {
                let mut rng = ChaCha8Rng::seed_from_u64(5);
                let found = svd(&weight, 4, iterations, &mut rng);
                for (found, expected) in found.values.iter().zip(values) {
                    let difference = (found - f64::from(expected)).abs();
                    assert!(difference < 1e-4, "{found}, expected {expected}");
                }
                for ((left, right), value) in found.left.iter().zip(&found.right).zip(&found.values)
                {
                    // W · right = value · left
                    let right: Vec<f32> = right.iter().map(|x| *x as f32).collect();
                    let image = product(&[right], weight.clone().transpose()).remove(0);
                    for (image, left) in image.iter().zip(left) {
                        assert!((f64::from(*image) - value * left).abs() < 1e-3);
                    }
                }
            }
        }
    }

    #[test]
    fn matrices_of_a_smaller_rank_have_zeros() {
        let weight = matrix(20, 30, &[2.0, 1.0]);
        let found = svd(&weight, 4, None, &mut ChaCha8Rng::seed_from_u64(5));
        assert_eq!(found.values.len(), 4);
        assert!((found.values[1] - 1.0).abs() < 1e-4 && found.values[2].abs() < 1e-4);
        let zero = weight * 0.0;
        let found = svd(&zero, 2, Some(2), &mut ChaCha8Rng::seed_from_u64(5));
        assert_eq!(found.values, [0.0, 0.0]);
    }

    #[test]
    fn the_rows_of_r_give_the_columns_back() {
        let weight = matrix(20, 30, &[4.0, 3.0, 2.0, 1.0, 0.5]);
        let (q, r) = qr(&weight, 3);
        let columns = rows_of(weight.transpose());
        for (j, column) in columns.iter().enumerate().take(3) {
            for (i, value) in column.iter().enumerate() {
                let sum: f32 = q.iter().zip(&r).map(|(q, r)| q[i] * r[j]).sum();
                assert!((sum - value).abs() < 1e-4);
            }
        }
    }
}
