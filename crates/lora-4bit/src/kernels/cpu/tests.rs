//! The kernels of every instruction set that this CPU has, against sums in f64.

use half::{bf16, f16};

use super::simd::ints::{IntKernels, plain};
use super::simd::pairs::PairKernels;
use super::simd::{Element, InstructionSet, Kernels, Nf4Rows};
use super::{ProductShape, forward, pairs, transposed};
use crate::kernels::{AbsmaxOperand, Nf4Operand};
use crate::nf4::{Absmax, Nf4Data};
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, TensorData};

/// `[m, n, k]`
const SHAPES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [1, 30, 64],
    [2, 7, 30],
    [5, 66, 128],
    [7, 9, 67],
    [9, 64, 320],
    [17, 270, 100],
    [70, 33, 192],
    [130, 41, 64],
];

#[test]
fn dense_kernels_equal_plain_sums() {
    for kernels in Kernels::supported() {
        for shape in SHAPES {
            check_dense::<f32>(kernels, shape, |value| value);
            check_dense::<bf16>(kernels, shape, bf16::from_f32);
            check_dense::<f16>(kernels, shape, f16::from_f32);
        }
    }
}

#[test]
fn nf4_kernels_equal_plain_sums() {
    for kernels in Kernels::supported() {
        for [m, n, k] in SHAPES {
            for double in [false, true] {
                let data = Nf4Data::quantize(&random(n * k, 3), [n, k], DType::F32, double);
                let w = data.dequantize();
                let operand = operand(&data);
                let rows = Nf4Rows::new(&operand).unwrap();
                check(kernels, [m, n, k], &w, &mut |x, shape, y| {
                    forward::nf4(kernels, x, rows, shape, y);
                });
                check_t(kernels, [m, n, k], &w, &mut |dy, shape, dx| {
                    transposed::nf4(kernels, dy, rows, shape, dx);
                });
            }
        }
    }
}

#[test]
fn products_of_bf16_operands_equal_plain_sums() {
    let kernels = Kernels::get();
    for pairs in PairKernels::supported() {
        for shape @ [_, n, k] in SHAPES.into_iter().chain([[65, 100, 5200], [40, 5200, 70]]) {
            check_pairs::<f32>((kernels, pairs), shape, bf16::to_f32);
            check_pairs::<f16>((kernels, pairs), shape, |value| {
                f16::from_f32(value.to_f32())
            });
            check_pairs::<bf16>((kernels, pairs), shape, |value| value);
            let data = Nf4Data::quantize(&random(n * k, 3), [n, k], DType::F32, true);
            let w = data.dequantize();
            let rounded: Vec<f32> = w.iter().copied().map(round).collect();
            let operand = operand(&data);
            let rows = Nf4Rows::new(&operand).unwrap();
            let source = pairs::Nf4 {
                kernels,
                pairs,
                rows,
                k,
            };
            check_source(pairs, shape, &rounded, &source);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn products_in_tiles_equal_plain_sums_in_any_company() {
    use super::tiles::{self, Parts};
    if !super::simd::amx::is_available() {
        return;
    }
    let shapes = [
        [1, 30, 64],
        [5, 64, 128],
        [16, 33, 96],
        [17, 100, 320],
        [33, 7, 64],
        [48, 130, 2080],
        [530, 40, 32],
    ];
    for [m, n, k] in shapes {
        // Weights of a file lie anywhere.
        let w: Vec<bf16> = random(n * k + 3, 3)
            .into_iter()
            .map(bf16::from_f32)
            .collect();
        let w = &w[3..];
        let wide: Vec<f32> = w.iter().map(|value| value.to_f32()).collect();
        for (parts, seen) in [
            (Parts::One, round as fn(f32) -> f32),
            (Parts::Three, |value| value),
        ] {
            let mut results = Vec::new();
            compare(
                (InstructionSet::Amx, seen),
                [m, n, k],
                &wide,
                &mut |x, shape, y| {
                    tiles::forward(parts, x, w, shape, y);
                    // SAFETY: just written.
                    results = unsafe { std::slice::from_raw_parts(y, m * n) }.to_vec();
                },
            );
            let x = random(m * k, 1);
            for (x, found) in x.chunks_exact(k).zip(results.chunks_exact(n)) {
                let mut alone = vec![f32::NAN; n];
                let shape = ProductShape {
                    m: 1,
                    inner: k,
                    columns: n,
                };
                tiles::forward(parts, x, w, shape, alone.as_mut_ptr());
                assert_eq!(found, alone, "{parts:?} [{m}, {n}, {k}]");
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn products_with_many_rows_of_weights_are_complete() {
    use super::tiles::{self, Parts};
    if !super::simd::amx::is_available() {
        return;
    }
    // More sums than are kept at once by few threads, in two chunks of the inner dimension.
    let [m, n, k] = [512, 5000, 1056];
    let w: Vec<bf16> = random(n * k, 3).into_iter().map(bf16::from_f32).collect();
    let x = random(m * k, 1);
    let product = |x: &[f32]| {
        let m = x.len() / k;
        let mut y = vec![f32::NAN; m * n];
        let shape = ProductShape {
            m,
            inner: k,
            columns: n,
        };
        tiles::forward(Parts::Three, x, &w, shape, y.as_mut_ptr());
        y
    };
    let y = product(&x);
    for row in [0, 31, 300, m - 1] {
        assert_eq!(y[row * n..][..n], product(&x[row * k..][..k]), "row {row}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn gated_products_equal_plain_sums() {
    use super::tiles::{self, Parts};
    if !super::simd::amx::is_available() {
        return;
    }
    for [m, n, k] in [[5, 30, 64], [18, 48, 320], [50, 100, 2080]] {
        let weight = |seed| -> Vec<bf16> {
            let values = random(n * k, seed).into_iter();
            values.map(bf16::from_f32).collect()
        };
        let (gate, up) = (weight(3), weight(4));
        // Sums from one to tens: where silu bends, and where it is 0 or its argument.
        let x: Vec<f32> = random(m * k, 1).into_iter().map(|x| 4.0 * x).collect();
        let mut y = vec![f32::NAN; m * n];
        let shape = ProductShape {
            m,
            inner: k,
            columns: n,
        };
        tiles::gated(Parts::Three, &x, [&gate, &up], shape, y.as_mut_ptr());
        for (i, y) in y.into_iter().enumerate() {
            let x = &x[i / n * k..][..k];
            let product = |w: &[bf16]| {
                let w: Vec<f32> = w[i % n * k..][..k].iter().map(|w| w.to_f32()).collect();
                sum(x.iter().zip(&w))
            };
            let (gate, up) = (product(&gate), product(&up));
            let expected = gate / (1.0 + (-gate).exp()) * up;
            let error = 8.0 * TOLERANCE * k as f64 * (1.0 + gate.abs() + up.abs());
            assert!(
                (f64::from(y) - expected).abs() < error,
                "[{m}, {n}, {k}] at {i}: {y}, not {expected}"
            );
        }
    }
}

#[test]
fn products_with_integers_equal_their_reference() {
    for kernels in IntKernels::supported() {
        // All numbers of rows of a pass; rows of weights that end inside a tile and begin inside a group of scales.
        let shapes = (1..=9).map(|m| [m, 70, 320]);
        for [m, n, k] in shapes.chain([[70, 33, 192], [130, 41, 64]]) {
            for double in [false, true] {
                let data = Nf4Data::quantize(&random(n * k, 3), [n, k], DType::F32, double);
                let operand = operand(&data);
                let rows = Nf4Rows::new(&operand).unwrap();
                let mut x = random(m * k, 1);
                if m > 1 {
                    // One value that is much larger than all others of its row, and a block of zeros.
                    x[5] = 1000.0;
                    x[(m - 1) * k..][k - 64..k].fill(0.0);
                }
                let (mut found, mut expected) = (vec![0.0; m * n], vec![0.0; m * n]);
                let shape = ProductShape {
                    m,
                    inner: k,
                    columns: n,
                };
                forward::nf4_ints(kernels, &x, rows, shape, found.as_mut_ptr());
                plain(&x, rows.blocks(0..n * k / 64), k, &mut expected);
                assert_eq!(found, expected, "{:?} {m} {n} {k}", kernels.instruction_set);
                // Far less than bf16 would lose.
                let w = data.dequantize();
                for (i, found) in found.iter().enumerate() {
                    let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                    let exact: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                    let lengths = length(x) * length(w);
                    assert!((found - exact).abs() <= 3e-4 * lengths, "{found} {exact}");
                }
            }
        }
    }
}

#[test]
fn integers_stay_within_their_bits_and_what_is_not_finite_stays_so() {
    let (n, k) = (5, 128);
    for kernels in IntKernels::supported() {
        for value in [1.0, -1.0, 1e36, 1e-38, 0.0] {
            // All codes have the largest level.
            let data = Nf4Data::quantize(&vec![0.25; n * k], [n, k], DType::F32, false);
            let operand = operand(&data);
            let rows = Nf4Rows::new(&operand).unwrap();
            let x = vec![value; k];
            let mut y = vec![0.0; n];
            let shape = ProductShape {
                m: 1,
                inner: k,
                columns: n,
            };
            forward::nf4_ints(kernels, &x, rows, shape, y.as_mut_ptr());
            let expected = value * 0.25 * k as f32;
            for y in &y {
                let error = (y - expected).abs();
                assert!(
                    error <= 2e-4 * expected.abs() + 1e-30 || *y == expected,
                    "{y} {expected}"
                );
            }
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = x.clone();
                x[77] = bad;
                forward::nf4_ints(kernels, &x, rows, shape, y.as_mut_ptr());
                assert!(y.iter().all(|y| y.is_nan()), "{y:?}");
            }
        }
    }
}

fn length(values: &[f32]) -> f32 {
    values.iter().map(|value| value * value).sum::<f32>().sqrt()
}

/// A dense weight that bf16 represents.
fn check_pairs<E: Element>(
    (kernels, pairs): (&Kernels, &PairKernels),
    shape: [usize; 3],
    to: fn(bf16) -> E,
) {
    let [_, n, k] = shape;
    // Small numbers, so that f16 represents them too.
    let w: Vec<bf16> = (0..n * k)
        .map(|i| bf16::from_f32((i * 37 % 61) as f32 / 32.0 - 1.0))
        .collect();
    let values: &Vec<E> = &w.iter().copied().map(to).collect();
    let wide: Vec<f32> = w.into_iter().map(bf16::to_f32).collect();
    let source = pairs::Dense {
        kernels,
        pairs,
        values,
        k,
    };
    check_source(pairs, shape, &wide, &source);
}

fn check_source(
    pairs: &PairKernels,
    [m, n, k]: [usize; 3],
    rounded: &[f32],
    source: &impl pairs::Source,
) {
    let subject = (pairs.instruction_set, round as fn(f32) -> f32);
    compare(subject, [m, n, k], rounded, &mut |x, shape, y| {
        pairs::forward(x, source, shape, y);
    });
    compare_t(subject, [m, n, k], rounded, &mut |dy, shape, dx| {
        pairs::transposed(dy, source, shape, dx);
    });
}

fn round(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

fn check_dense<E: Element>(kernels: &Kernels, [m, n, k]: [usize; 3], to: fn(f32) -> E) {
    let w: Vec<E> = random(n * k, 3).into_iter().map(to).collect();
    let wide: Vec<f32> = w.iter().map(|value| value.to_f32()).collect();
    check(kernels, [m, n, k], &wide, &mut |x, shape, y| {
        forward::dense(kernels, x, &w, shape, y);
    });
    check_t(kernels, [m, n, k], &wide, &mut |dy, shape, dx| {
        transposed::dense(kernels, dy, &w, shape, dx);
    });
}

type Product<'a> = &'a mut dyn FnMut(&[f32], ProductShape, *mut f32);

fn check(kernels: &Kernels, shape: [usize; 3], w: &[f32], product: Product<'_>) {
    compare((kernels.instruction_set, |value| value), shape, w, product);
}

fn check_t(kernels: &Kernels, shape: [usize; 3], w: &[f32], product: Product<'_>) {
    compare_t((kernels.instruction_set, |value| value), shape, w, product);
}

/// Instruction set of the kernels, and what they do to the values of the first operand.
type Subject = (InstructionSet, fn(f32) -> f32);

/// Errors of sums in f32, per product.
const TOLERANCE: f64 = 2e-6;

/// `x · wᵀ`
fn compare((name, seen): Subject, [m, n, k]: [usize; 3], w: &[f32], product: Product<'_>) {
    let x = random(m * k, 1);
    let mut y = vec![f32::NAN; m * n];
    let shape = ProductShape {
        m,
        inner: k,
        columns: n,
    };
    product(&x, shape, y.as_mut_ptr());
    let x: Vec<f32> = x.into_iter().map(seen).collect();
    for (i, y) in y.into_iter().enumerate() {
        let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
        let expected = sum(x.iter().zip(w));
        assert!(
            (f64::from(y) - expected).abs() < TOLERANCE * k as f64,
            "{name:?} [{m}, {n}, {k}] at {i}: {y}, not {expected}"
        );
    }
}

/// `dy · w`
fn compare_t((name, seen): Subject, [m, n, k]: [usize; 3], w: &[f32], product: Product<'_>) {
    let dy = random(m * n, 2);
    let mut dx = vec![f32::NAN; m * k];
    let shape = ProductShape {
        m,
        inner: n,
        columns: k,
    };
    product(&dy, shape, dx.as_mut_ptr());
    let dy: Vec<f32> = dy.into_iter().map(seen).collect();
    for (i, dx) in dx.into_iter().enumerate() {
        let (dy, w) = (&dy[i / k * n..][..n], w[i % k..].iter().step_by(k));
        let expected = sum(dy.iter().zip(w));
        assert!(
            (f64::from(dx) - expected).abs() < TOLERANCE * n as f64,
            "{name:?} transposed [{m}, {n}, {k}] at {i}: {dx}, not {expected}"
        );
    }
}

fn sum<'a>(pairs: impl Iterator<Item = (&'a f32, &'a f32)>) -> f64 {
    pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn operand(data: &Nf4Data) -> Nf4Operand<burn::backend::Flex> {
    let floats =
        |values: &[f32]| FlexTensor::from_data(TensorData::new(values.to_vec(), [values.len()]));
    let bytes =
        |values: &[u8]| FlexTensor::from_data(TensorData::new(values.to_vec(), [values.len()]));
    let absmax = match &data.absmax {
        Absmax::Single(absmax) => AbsmaxOperand::Single(floats(absmax)),
        Absmax::Double {
            codes,
            map,
            nested_absmax,
            offset,
        } => AbsmaxOperand::Double {
            codes: bytes(codes),
            map: floats(&map[..]),
            nested_absmax: floats(nested_absmax),
            offset: *offset,
        },
    };
    Nf4Operand {
        packed: bytes(&data.packed),
        quant_map: floats(&data.quant_map),
        absmax,
        shape: data.shape,
    }
}

/// Values between -1 and 1.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
