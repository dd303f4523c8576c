//! The kernels of a GPU against their twins.

use burn::tensor::Distribution;

use super::*;
use crate::kernels::cube::features::first_gpu;
use crate::weight::Weight;

fn random(shape: [usize; 2], dtype: DType, device: &Device) -> Tensor<2> {
    let uniform = Distribution::Uniform(-1.0, 1.0);
    Tensor::<2>::random(shape, uniform, (device, DType::F32)).cast(dtype)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.cast(DType::F32).into_data().iter::<f32>().collect()
}

/// Compares a result with its twin's; `error` is what sums of this length may differ by.
#[track_caller]
fn check(name: &str, found: Tensor<2>, expected: Tensor<2>, error: f32) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    assert_eq!(found.dtype(), expected.dtype(), "{name}");
    let (found, expected) = (values(found), values(expected));
    let mut worst = (0.0, 0, 0.0, 0.0);
    for (i, (&a, &b)) in found.iter().zip(&expected).enumerate() {
        let e = (a - b).abs() / (1.0 + b.abs());
        if e.is_nan() || e > worst.0 {
            worst = (e, i, a, b);
        }
    }
    let wrong = found
        .iter()
        .zip(&expected)
        .filter(|(a, b)| !((**a - **b).abs() <= error * (1.0 + b.abs())))
        .count();
    assert_eq!(
        wrong,
        0,
        "{name}: of {} values; worst {worst:?}",
        found.len()
    );
}

#[test]
fn products_equal_their_twin() {
    let device = first_gpu();
    let dtype = dtype_of(&device);
    // Rows and columns beside full tiles; one tile; many parts; narrow results.
    let shapes = [
        (128, 256, 64),
        (128, 128, 128),
        (256, 256, 512),
        (8, 8, 64),
        (200, 328, 192),
        (1024, 64, 1536),
        (72, 1544, 1024),
        (2048, 520, 2048),
        (1536, 64, 8192),
    ];
    // Where the twin itself computes, one shape tells enough.
    let num = if dtype == DType::F32 { 1 } else { shapes.len() };
    for (m, n, k) in shapes.into_iter().take(num) {
        for major_a in [Major::Inner, Major::Outer] {
            for major_b in [Major::Inner, Major::Outer] {
                for second in [0, 64] {
                    let operand = |outer: usize, major: Major| {
                        let shape = |inner: usize| match major {
                            Major::Inner => [outer, inner],
                            Major::Outer => [inner, outer],
                        };
                        ProductOperand {
                            first: random(shape(k), dtype, &device),
                            second: (second > 0).then(|| random(shape(second), dtype, &device)),
                            major,
                        }
                    };
                    let (a, b) = (operand(m, major_a), operand(n, major_b));
                    for dtype in [dtype, DType::F32] {
                        let name = format!(
                            "{m} x {n} x {k} + {second}, {major_a:?} {major_b:?}, {dtype:?}"
                        );
                        let plain = Epilogue::plain(dtype);
                        let full = Epilogue {
                            bias: Some(random([1, n], DType::F32, &device).reshape([n])),
                            residual: Some(random([m, n], dtype, &device)),
                            ..plain.clone()
                        };
                        let is_common = major_a == Major::Inner && second == 0;
                        let epilogues = if is_common {
                            vec![plain, full]
                        } else {
                            vec![full]
                        };
                        for epilogue in epilogues {
                            let found = product(a.clone(), b.clone(), epilogue.clone());
                            let expected = match dtype_of(&device) {
                                DType::F32 => by_hand(&a, &b, &epilogue),
                                _ => naive::product(a.clone(), b.clone(), epilogue),
                            };
                            check(&name, found, expected, 0.02);
                        }
                    }
                }
            }
        }
    }
}

/// A product in f64 on the host, for devices on which the twin itself computes.
fn by_hand(a: &ProductOperand, b: &ProductOperand, epilogue: &Epilogue) -> Tensor<2> {
    let (m, n) = (a.outer(), b.outer());
    // Rows of all inner values.
    let rows = |operand: &ProductOperand| {
        let parts = [Some(&operand.first), operand.second.as_ref()];
        let parts = parts.into_iter().flatten().map(|part| match operand.major {
            Major::Inner => part.clone(),
            Major::Outer => part.clone().transpose(),
        });
        Tensor::cat(parts.collect(), 1) // [outer, inner]
    };
    let [rows_a, rows_b] = [a, b].map(rows);
    let k = rows_a.dims()[1];
    let [rows_a, rows_b] = [rows_a, rows_b].map(values);
    let bias = epilogue.bias.clone().map(values);
    let residual = epilogue.residual.clone().map(values);
    let results = (0..m * n).map(|at| {
        let (i, j) = (at / n, at % n);
        let pairs = rows_a[i * k..][..k].iter().zip(&rows_b[j * k..][..k]);
        let sum: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let bias = bias.as_ref().map_or(0.0, |bias| bias[j]);
        let residual = residual.as_ref().map_or(0.0, |residual| residual[at]);
        sum as f32 + bias + residual
    });
    let results = burn::tensor::TensorData::new(results.collect::<Vec<f32>>(), [m, n]);
    Tensor::from_data(results, (&a.first.device(), epilogue.dtype))
}

/// Of prompts, by the same kernels.
#[test]
fn layers_of_many_rows_equal_their_twins() {
    use crate::{AdapterSelection, ComputeDtype, Linear};
    let device = first_gpu();
    let dtype = dtype_of(&device);
    let (rows, k, n) = (600, 192, 328);
    let layer = |n: usize| {
        let bias = random([1, n], DType::F32, &device).reshape([n]);
        let mut layer = Linear::new(Weight::Dense(random([n, k], dtype, &device)), Some(bias));
        layer.compute = ComputeDtype::Bf16;
        layer
    };
    let x = random([rows, k], DType::F32, &device);
    let residual = random([rows, n], DType::F32, &device);
    let product = |x: &Tensor<2>, layer: &Linear, bias: bool| {
        let x = x.clone().cast(dtype).cast(DType::F32);
        let y = x.matmul(layer.weight.dequantize().transpose());
        match &layer.bias {
            Some(bias_of) if bias => y + bias_of.clone().unsqueeze::<2>(),
            _ => y,
        }
    };
    let first = layer(n);
    let found =
        crate::linear_residual(residual.clone(), x.clone(), &first, &AdapterSelection::Base);
    check("linear", found, product(&x, &first, true) + residual, 0.02);
    let layers = [layer(n), layer(64), layer(8)];
    let weight = random([1, k], DType::F32, &device).reshape([k]);
    let norm = || Norm {
        weight: &weight,
        eps: 1e-3,
    };
    let normed = naive::rms_norm(x.clone(), norm());
    let found = crate::norm_qkv(&x, norm(), layers.each_ref(), &AdapterSelection::Base);
    for (found, layer) in found.into_iter().zip(&layers) {
        check("qkv", found, product(&normed, layer, true), 0.02);
    }
    let mut gates = [layer(n), layer(n)];
    gates.iter_mut().for_each(|layer| layer.bias = None);
    let found = crate::norm_swiglu(&x, norm(), gates.each_ref(), &AdapterSelection::Base);
    let [gate, up] = gates.each_ref().map(|layer| product(&normed, layer, false));
    let expected = burn::tensor::activation::silu(gate) * up;
    let expected = expected.cast(found.dtype());
    check("swiglu", found, expected, 0.04);
}

#[test]
fn weights_are_stacked_as_by_the_twin() {
    let device = first_gpu();
    let dtype = dtype_of(&device);
    // A device may pad rows of other lengths than multiples of 512 bytes.
    for k in [128, 192, 1536] {
        let nf4 = |rows: usize| {
            let values = values(random([rows, k], DType::F32, &device));
            let data = crate::nf4::Nf4Data::quantize(&values, [rows, k], DType::F32, true);
            Weight::Nf4(crate::Nf4Weight::from_data(&data, &device))
        };
        let weights = [
            Weight::Dense(random([24, k], DType::F32, &device)),
            Weight::Dense(random([8, k], dtype, &device)),
            nf4(16),
            nf4(8),
        ];
        let operands = || weights.iter().map(Weight::operand).collect();
        let found = stack_weights(operands(), dtype);
        check(
            "weights",
            found,
            naive::stack_weights(operands(), dtype),
            0.0,
        );
    }
}

/// With dropout the sums of A have fewer columns than those of B.
#[test]
fn gradients_of_adapters_equal_their_twin() {
    let device = first_gpu();
    let part = Part {
        id: 3,
        row: 10,
        rows: 20,
        rank: 4,
        ranks: 5,
        scaling: 1.5,
    };
    for columns in [64, 9] {
        let da = random([33, columns], DType::F32, &device);
        let db = random([40, 64], DType::F32, &device);
        let found = adapter_gradients(&da, &db, part);
        let expected = naive::adapter_gradients(&da, &db, part);
        let sums = found.clone().map(|gradient| gradient * 2.0);
        let held = sums.clone();
        add_adapter_gradients([&da, &db], [&sums[0], &sums[1]], part);
        for (name, (found, expected)) in ["A", "B"]
            .into_iter()
            .zip(found.into_iter().zip(expected.clone()))
        {
            check(name, found, expected, 1e-6);
        }
        // Who holds them sees the sum, too.
        for (sum, expected) in sums.into_iter().chain(held).zip(expected.iter().cycle()) {
            check("sum", sum, expected.clone() * 3.0, 1e-6);
        }
    }
}

#[test]
fn norms_and_gates_equal_their_twins() {
    let device = first_gpu();
    for dtype in [DType::F32, dtype_of(&device)] {
        let error = if dtype == DType::F32 { 1e-5 } else { 0.02 };
        for (rows, dim) in [(1, 8), (7, 1536), (65, 896), (3, 1030)] {
            let [x, dy, residual] = [(); 3].map(|()| random([rows, dim], dtype, &device));
            let weight = random([1, dim], DType::F32, &device).reshape([dim]);
            let norm = || Norm {
                weight: &weight,
                eps: 1e-3,
            };
            let found = rms_norm(x.clone(), norm());
            check("norm", found, naive::rms_norm(x.clone(), norm()), error);
            for residual in [None, Some(residual)] {
                let found = rms_norm_backward(x.clone(), norm(), dy.clone(), residual.clone());
                let expected = naive::rms_norm_backward(x.clone(), norm(), dy.clone(), residual);
                check("gradient of norm", found, expected, error);
            }
            let offset = random([1, dim], DType::F32, &device).reshape([dim]);
            for (offset, residual) in [(None, None), (Some(offset), Some(dy.clone()))] {
                let found = rescale(x.clone(), &weight, offset.clone(), residual.clone());
                let expected = naive::rescale(x.clone(), &weight, offset, residual);
                check("rescale", found, expected, error);
            }
            let gate_up = random([rows, 2 * dim], dtype, &device);
            let found = swiglu(gate_up.clone());
            check("swiglu", found, naive::swiglu(gate_up.clone()), error);
            let expected = naive::swiglu_backward(gate_up.clone(), dy.clone());
            let result = naive::swiglu(gate_up.clone());
            let (found, again) = swiglu_backward(gate_up, dy);
            check("gradient of swiglu", found, expected, error);
            check("swiglu once more", again, result, error);
        }
    }
}

#[test]
fn gated_products_equal_their_twin() {
    let device = first_gpu();
    let dtype = dtype_of(&device);
    for (m, n, k) in [
        (128, 128, 64),
        (200, 328, 192),
        (2048, 520, 1536),
        (8, 8, 64),
    ] {
        for second in [0, 64] {
            let operand = |outer: usize| ProductOperand {
                first: random([outer, k], dtype, &device),
                second: (second > 0).then(|| random([outer, second], dtype, &device)),
                major: Major::Inner,
            };
            let (a, b) = (operand(m), operand(2 * n));
            let found = gated_product(a.clone(), b.clone());
            let both = naive::product(a, b, Epilogue::plain(DType::F32));
            let name = format!("{m} x {n} x {k} + {second}");
            check(&name, found, naive::swiglu(both).cast(dtype), 0.02);
        }
    }
}

#[test]
fn dropped_values_are_those_of_the_host() {
    let device = first_gpu();
    let draw = Draw {
        keys: [0x9e37_79b9, 7],
        threshold: u32::MAX / 10,
        keep: 1.0 / 0.9,
    };
    for dtype in [DType::F32, dtype_of(&device)] {
        let x = random([65, 130], dtype, &device);
        let mask = draw.mask([65, 130], &Device::flex());
        let on_host: Tensor<2> = Tensor::from_data(x.to_data(), (&Device::flex(), dtype));
        let expected = (on_host.cast(DType::F32) * mask).cast(dtype);
        let found = drop_values(x, draw);
        assert_eq!(values(found), values(expected), "{dtype:?}");
    }
}
