//! The kernels of attention without a graph, on a GPU, against their twins on the CPU.

use burn::tensor::FloatDType;
use kv_paging::{HeadNormInput, HeadNorms, HeadShape, TrainingAttention};

use super::{gpu, has_dtype};
use crate::training::{flat, matrix};
use crate::*;

/// Heads, lengths of the documents, rows behind them.
const BATCHES: [(Dims, &[usize], usize); 7] = [
    ([12, 2, 128], &[1, 63, 64, 65, 200], 5),
    ([6, 1, 128], &[2048], 0),
    ([14, 2, 64], &[130, 1, 70], 0),
    ([8, 1, 64], &[600], 3),
    ([4, 4, 128], &[129, 129], 1),
    ([2, 1, 64], &[], 4),
    ([4, 2, 32], &[17, 40], 2),
];

/// The GPU, if it has the type.
fn gpu_with(dtype: DType) -> impl Iterator<Item = Device> {
    let gpu = gpu();
    has_dtype(&gpu, dtype).then_some(gpu).into_iter()
}

/// Values that bf16 holds.
fn rounded(rng: &mut Rng, len: usize) -> Vec<f32> {
    let values = rng.values(len).into_iter();
    values.map(|x| bf16::from_f32(x).to_f32()).collect()
}

fn on(device: &Device, values: &[f32], columns: usize, dtype: FloatDType) -> Tensor<2> {
    matrix(values, columns, device).cast(dtype)
}

/// The largest error is a hundredth or two of the largest value, the mean error far below that.
#[track_caller]
fn assert_near(got: &[f32], expected: &[f32], [largest, mean]: [f32; 2], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let max = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let (mut at, mut worst, mut sum) = (0, 0.0f32, 0.0f64);
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error.is_finite(), "{what}: element {i} is {got}");
        if error > worst {
            (at, worst) = (i, error);
        }
        sum += f64::from(error);
    }
    let average = (sum / got.len().max(1) as f64) as f32;
    println!("{what}: worst {worst} at {at}, mean {average}, of {max}");
    assert!(
        worst <= largest * max && average <= mean * max,
        "{what}: element {at} is {}, expected {}; mean error {average}, largest value {max}",
        got.get(at).copied().unwrap_or_default(),
        expected.get(at).copied().unwrap_or_default(),
    );
}

/// Columns of a matrix of `row` columns.
fn columns(values: &[f32], row: usize, range: std::ops::Range<usize>) -> Vec<f32> {
    let rows = values.chunks_exact(row);
    rows.flat_map(|values| values[range.clone()].to_vec())
        .collect()
}

#[test]
fn training_kernels_match_the_twin() {
    let mut rng = Rng(41);
    for (device, (dims, lengths, behind)) in
        gpu_with(DType::BF16).flat_map(|device| BATCHES.map(|batch| (device.clone(), batch)))
    {
        let [heads, kv_heads, head_dim] = dims;
        let shape = HeadShape {
            heads,
            kv_heads,
            head_dim,
        };
        let rows = lengths.iter().sum::<usize>() + behind;
        let row = (heads + 2 * kv_heads) * head_dim;
        let qkv = rounded(&mut rng, rows * row);
        let d_out = rounded(&mut rng, rows * heads * head_dim);
        let run = |device: &Device, dtype: FloatDType| {
            let attention = TrainingAttention::new(lengths, shape, device);
            let qkv = on(device, &qkv, row, dtype);
            let d_out = on(device, &d_out, heads * head_dim, dtype);
            let (out, lse) = attention.forward(qkv.clone());
            let gradient =
                || attention.backward(qkv.clone(), out.clone(), lse.clone(), d_out.clone());
            let (first, again) = (flat(gradient()), flat(gradient()));
            assert_eq!(first, again, "{dims:?} {lengths:?}: the same input twice");
            (flat(out), flat(lse), first)
        };
        let (out, lse, d_qkv) = run(&device, FloatDType::BF16);
        let (expected_out, expected_lse, expected) = run(&Device::flex(), FloatDType::F32);
        let what = |part: &str| format!("{part} {dims:?} {lengths:?}");
        assert_near(&out, &expected_out, [2e-2, 4e-3], &what("out"));
        assert_near(&lse, &expected_lse, [2e-3, 2e-4], &what("lse"));
        let keys = heads * head_dim;
        let values = keys + kv_heads * head_dim;
        for (part, range) in [("dq", 0..keys), ("dk", keys..values), ("dv", values..row)] {
            let got = columns(&d_qkv, row, range.clone());
            let expected = columns(&expected, row, range);
            assert_near(&got, &expected, [2e-2, 4e-3], &what(part));
        }
    }
}

#[test]
fn training_rotation_on_a_gpu_matches_the_twin() {
    let mut rng = Rng(42);
    let batches = [
        ([12, 2, 128], 70),
        ([14, 2, 64], 33),
        ([3, 1, 96], 5),
        ([2, 2, 20], 4),
        ([2, 1, 8], 1),
    ];
    for (dtype, float, tolerance) in [
        (DType::F32, FloatDType::F32, 1e-5),
        (DType::BF16, FloatDType::BF16, 1e-2),
    ] {
        for (device, ([heads, kv_heads, head_dim], rows)) in
            gpu_with(dtype).flat_map(|device| batches.map(|batch| (device.clone(), batch)))
        {
            let row = (heads + 2 * kv_heads) * head_dim;
            let (qkv, d) = (rounded(&mut rng, rows * row), rounded(&mut rng, rows * row));
            let angles = rng.values(rows * head_dim / 2);
            let weights = [(); 2].map(|()| rng.values(head_dim));
            for has_norms in [false, true] {
                let run = |device: &Device, float: FloatDType| {
                    let shape = HeadShape {
                        heads,
                        kv_heads,
                        head_dim,
                    };
                    let attention = TrainingAttention::new(&[rows], shape, device);
                    let turned = |f: fn(f32) -> f32| {
                        let angles: Vec<f32> = angles.iter().map(|x| f(*x)).collect();
                        tensor(&angles, [rows, 1, head_dim / 2], device)
                    };
                    let rotary = Rotary {
                        cos: turned(f32::cos),
                        sin: turned(f32::sin),
                    };
                    let [q, k] = &weights
                        .each_ref()
                        .map(|w| Tensor::<1>::from_data(w.as_slice(), (device, DType::F32)));
                    let norms = has_norms.then_some(HeadNorms { q, k, eps: 1e-6 });
                    let qkv = on(device, &qkv, row, float);
                    let d = on(device, &d, row, float);
                    let input = norms.map(|norms| HeadNormInput {
                        qkv: qkv.clone(),
                        norms,
                    });
                    let back = attention.rotate_backward(d.clone(), input, &rotary);
                    let shared = attention.rotate(qkv.clone(), norms, &rotary);
                    assert_eq!(flat(d.clone()).len(), rows * row);
                    let kept = flat(qkv.clone());
                    let owned = attention.rotate(qkv, norms, &rotary);
                    [flat(back), flat(shared), flat(owned), kept, flat(d)]
                };
                let got = run(&device, float);
                let expected = run(&Device::flex(), FloatDType::F32);
                for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    let what = format!("{i}, {heads} {kv_heads} {head_dim} {dtype:?} {has_norms}");
                    assert_close(got, expected, tolerance, &what);
                }
            }
        }
    }
}
