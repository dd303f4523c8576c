//! Products with weights in NF4, and what is fused with them.

use burn::tensor::{DType, Device, Tensor};
use lora_4bit::nf4::Nf4Data;
use lora_4bit::{
    AdapterSelection, ComputeDtype, Linear, Nf4Weight, Weight, linear_residual, norm_qkv,
    norm_swiglu,
};

use crate::{assert_close, gated_by_cpu, gpu, norm, normalised, random, to};

/// A weight in NF4 on the CPU and the same on a GPU.
fn nf4([n, k]: [usize; 2], double_quant: bool, gpu: &Device) -> [Weight; 2] {
    let values = random([n, k]) * 0.5; // [n, k]
    let values: Vec<f32> = values.into_data().iter().collect();
    let data = Nf4Data::quantize(&values, [n, k], DType::F32, double_quant);
    [&Device::flex(), gpu].map(|device| Weight::Nf4(Nf4Weight::from_data(&data, device)))
}

#[test]
fn nf4_weights_come_back_as_they_were() {
    let gpu = gpu();
    for [n, k] in [[16, 64], [3, 7], [130, 128]] {
        for double_quant in [false, true] {
            let [Weight::Nf4(cpu), Weight::Nf4(on_gpu)] = nf4([n, k], double_quant, &gpu) else {
                unreachable!("both are NF4");
            };
            assert_eq!(cpu.to_data(), on_gpu.to_data());
            assert_close(on_gpu.dequantize(), cpu.dequantize(), 1e-6);
        }
    }
}

#[test]
fn nf4_products_equal_those_of_the_cpu() {
    let gpu = gpu();
    for [n, k] in [[16, 64], [5, 96], [40, 1600]] {
        for double_quant in [false, true] {
            let tolerance = 2e-5 * (k as f32).sqrt();
            let [cpu, on_gpu] = nf4([n, k], double_quant, &gpu);
            for m in [1, 4, 5] {
                let x = random([m, k]); // [m, k]
                let compute = ComputeDtype::F32;
                let expected = cpu.forward(x.clone(), compute);
                assert_close(on_gpu.forward(to(&x, &gpu), compute), expected, tolerance);
                let dy = random([m, n]); // [m, n]
                let expected = cpu.forward_t(dy.clone(), compute);
                // Burn multiplies with 10 bits on tensor cores.
                let tolerance = 2e-3 * (n as f32).sqrt();
                assert_close(
                    on_gpu.forward_t(to(&dy, &gpu), compute),
                    expected,
                    tolerance,
                );
            }
        }
    }
}

/// A layer in NF4 on the CPU and the same on a GPU.
pub(crate) fn nf4_layer(
    shape: [usize; 2],
    has_bias: bool,
    double_quant: bool,
    compute: ComputeDtype,
    gpu: &Device,
) -> [Linear; 2] {
    let bias = has_bias.then(|| random([1, shape[0]]).reshape([shape[0]])); // [n]
    let on_gpu = bias.as_ref().map(|bias: &Tensor<1>| to(bias, gpu));
    let [a, b] = nf4(shape, double_quant, gpu);
    let [cpu, mut on_gpu] = [Linear::new(a, bias), Linear::new(b, on_gpu)];
    on_gpu.compute = compute;
    [cpu, on_gpu]
}

/// Compares layers in NF4 and what is fused with them with single operations on the CPU.
fn check_fused_nf4(double_quant: bool, k: usize, m: usize, compute: ComputeDtype, gpu: &Device) {
    let adapters = AdapterSelection::Base;
    let layer = |n, has_bias| nf4_layer([n, k], has_bias, double_quant, compute, gpu);
    // The CPU is given what the GPU makes of `x`. Rounded weights have 8 bits; a product is off by up to a part in 200.
    let is_rounded = compute == ComputeDtype::Bf16;
    let (dtype, part) = match is_rounded {
        true => (DType::BF16, 6e-3),
        false => (DType::F32, 3e-5),
    };
    let tolerance = part * (k as f32).sqrt();
    let x = random([m, k]).cast(dtype); // [m, k]
    let (on_gpu, x) = (to(&x, gpu), x.cast(DType::F32));

    let residual = random([m, 70]);
    let [cpu, fused] = layer(70, true);
    let expected = residual.clone() + cpu.forward(x.clone(), &adapters);
    for on_gpu in [on_gpu.clone(), to(&x, gpu)] {
        let found = linear_residual(to(&residual, gpu), on_gpu, &fused, &adapters);
        assert_close(found, expected.clone(), tolerance);
    }

    let weight = random([1, k]).reshape([k]); // [k]
    let normed = normalised(&x, &weight); // [m, k]
    let (on_gpu, weight) = (to(&x, gpu), to(&weight, gpu));
    let layers = [129, 33, 64].map(|n| layer(n, true));
    let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
    let found = norm_qkv(&on_gpu, norm(&weight), fused, &adapters);
    for ([cpu, _], found) in layers.iter().zip(found) {
        let expected = cpu.forward(normed.clone(), &adapters);
        assert_close(found, expected, 3.0 * tolerance);
    }
    let [gate, up] = [0, 1].map(|_| layer(77, false));
    let found = norm_swiglu(&on_gpu, norm(&weight), [&gate[1], &up[1]], &adapters);
    // What a factor is off by is multiplied with the other one, and a rounded result has 8 bits.
    let [g, u] = [&gate, &up].map(|[cpu, _]| cpu.forward(normed.clone(), &adapters).abs());
    let expected = gated_by_cpu(&gate, &up, &normed); // [m, 77]
    let scale = expected.clone().abs() + (g + u + 1.0) * (k as f32).sqrt();
    let found = to(&found.cast(DType::F32), &expected.device());
    // The normalised input is rounded, too: twice the squared error.
    assert_close(found / scale.clone(), expected / scale, 1.5 * part);
}

#[test]
fn fused_nf4_layers_equal_single_operations() {
    let gpu = gpu();
    for (double_quant, k, rows) in [
        (false, 192, [1, 5]),
        (true, 192, [3, 4]),
        (true, 2624, [1, 2]),
    ] {
        for m in rows {
            check_fused_nf4(double_quant, k, m, ComputeDtype::F32, &gpu);
        }
    }
}

/// The same with factors that are rounded, where tensor cores multiply them.
#[test]
fn fused_nf4_layers_of_rounded_factors_equal_single_operations() {
    let gpu = gpu();
    if !gpu.supports_dtype(DType::BF16) {
        return;
    }
    for (double_quant, k) in [(false, 192), (true, 192), (true, 1536), (true, 2624)] {
        for m in [1, 2, 3, 8, 9, 32, 33] {
            check_fused_nf4(double_quant, k, m, ComputeDtype::Bf16, &gpu);
        }
    }
}
