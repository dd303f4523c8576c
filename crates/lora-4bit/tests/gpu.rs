//! Kernels of a GPU against those of the CPU, on random values.
//!
//! Needs a feature for a GPU and a device: `--features wgpu` finds Mesa's lavapipe on machines without one.
#![cfg(feature = "gpu")]

use burn::tensor::{DType, Device, DeviceType, Distribution, Tensor};
use lora_4bit::kernels::dense_linear;
use lora_4bit::nf4::Nf4Data;
use lora_4bit::{
    AdapterSelection, ComputeDtype, Linear, LoraWeights, Nf4Weight, Norm, StackedRows, Weight,
};

/// The first GPU there is.
fn gpu() -> Device {
    let types: &[DeviceType] = &[
        #[cfg(feature = "cuda")]
        DeviceType::Cuda,
        #[cfg(feature = "wgpu")]
        DeviceType::Wgpu,
    ];
    let mut devices = types.iter().cloned().flat_map(Device::enumerate);
    devices.next().expect("a CUDA or WebGPU device")
}

/// Whether the kernels for tensor cores run there.
fn has_cores(gpu: &Device) -> bool {
    #[cfg(feature = "cuda")]
    return Device::enumerate(DeviceType::Cuda).contains(gpu);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = gpu;
        false
    }
}

fn random(shape: [usize; 2]) -> Tensor<2> {
    let device = Device::flex();
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), (&device, DType::F32))
}

fn to<const D: usize>(x: &Tensor<D>, device: &Device) -> Tensor<D> {
    Tensor::from_data(x.clone().into_data(), (device, x.dtype()))
}

#[track_caller]
fn assert_close(found: Tensor<2>, expected: Tensor<2>, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims());
    let values = |x: Tensor<2>| x.into_data().iter::<f32>().collect::<Vec<f32>>();
    for (i, (a, b)) in values(found).into_iter().zip(values(expected)).enumerate() {
        assert!((a - b).abs() <= tolerance, "{i}: {a}, not {b}");
    }
}

#[test]
fn dense_products_equal_those_of_the_cpu() {
    let gpu = gpu();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        if !gpu.supports_dtype(dtype) {
            continue;
        }
        for [n, k] in [[1, 8], [7, 64], [130, 96], [33, 1003], [512, 896]] {
            let w = random([n, k]).cast(dtype); // [n, k]
            for m in [1, 2, 3, 8, 21] {
                let x = random([m, k]); // [m, k]
                let compute = ComputeDtype::F32;
                let expected = dense_linear(x.clone(), w.clone(), compute);
                let found = dense_linear(to(&x, &gpu), to(&w, &gpu), compute);
                assert_close(found, expected, 2e-5 * (k as f32).sqrt());
            }
        }
    }
}

#[test]
fn products_of_rounded_factors_equal_those_of_the_cpu() {
    let gpu = gpu();
    for dtype in [DType::BF16, DType::F16] {
        if !gpu.supports_dtype(dtype) {
            continue;
        }
        for [n, k] in [[16, 64], [130, 128], [512, 896], [896, 4864]] {
            let w = random([n, k]).cast(dtype); // [n, k]
            for m in [9, 32, 33, 100, 300] {
                // The CPU is given what the GPU makes of its factors.
                let x = random([m, k]).cast(dtype).cast(DType::F32); // [m, k]
                let expected = dense_linear(x.clone(), w.clone(), ComputeDtype::F32);
                let found = dense_linear(to(&x, &gpu), to(&w, &gpu), ComputeDtype::Bf16);
                // Room for a result in f16, where burn multiplies.
                assert_close(found, expected, 2e-3 * (k as f32).sqrt());
            }
        }
    }
}

/// A layer on the CPU and the same on a GPU.
fn layer([n, k]: [usize; 2], has_bias: bool, dtype: DType, gpu: &Device) -> [Linear; 2] {
    let w = random([n, k]).cast(dtype); // [n, k]
    let bias = has_bias.then(|| random([1, n]).reshape([n])); // [n]
    let on_gpu = bias.as_ref().map(|bias: &Tensor<1>| to(bias, gpu));
    let on_gpu = Linear::new(Weight::Dense(to(&w, gpu)), on_gpu);
    [Linear::new(Weight::Dense(w), bias), on_gpu]
}

/// The norm in front of a layer, with tensor operations.
fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, eps: f64) -> Tensor<2> {
    let mean_square = (x.clone() * x.clone()).mean_dim(1); // [m, 1]
    let weight: Tensor<2> = weight.clone().unsqueeze(); // [1, k]
    x.clone() / (mean_square + eps).sqrt() * weight // [m, k]
}

/// The gated product with the layers on the CPU, by single operations.
fn gated_by_cpu(gate: &[Linear; 2], up: &[Linear; 2], x: &Tensor<2>) -> Tensor<2> {
    let [g, u] = [gate, up].map(|[cpu, _]| cpu.forward(x.clone(), &AdapterSelection::Base));
    burn::tensor::activation::silu(g) * u
}

#[test]
fn fused_layers_equal_single_operations() {
    let gpu = gpu();
    for dtype in [DType::F32, DType::BF16] {
        if !gpu.supports_dtype(dtype) {
            continue;
        }
        for m in [1, 2, 3, 8, 40] {
            let (k, adapters) = (192, AdapterSelection::Base);
            let (x, tolerance) = (random([m, k]), 2e-5 * (k as f32).sqrt());
            let on_gpu = to(&x, &gpu);

            for has_bias in [false, true] {
                let residual = random([m, 70]);
                let [cpu, fused] = layer([70, k], has_bias, dtype, &gpu);
                let expected = residual.clone() + cpu.forward(x.clone(), &adapters);
                let found = fused.forward_onto(to(&residual, &gpu), on_gpu.clone(), &adapters);
                assert_close(found, expected, tolerance);
            }

            let layers = [[129, k], [33, k], [64, k]].map(|shape| layer(shape, true, dtype, &gpu));
            let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
            let found = Linear::forward_three(fused, &on_gpu, None, &adapters).expect("a GPU");
            for ([cpu, _], found) in layers.iter().zip(found) {
                assert_close(found, cpu.forward(x.clone(), &adapters), tolerance);
            }

            // With a norm in front.
            let (weight, eps) = (random([1, k]).reshape([k]), 1e-6);
            let normed = rms_norm(&x, &weight, eps); // [m, k]
            let weight = to(&weight, &gpu);
            let norm = Some(Norm {
                weight: &weight,
                eps,
            });
            let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
            let found = Linear::forward_three(fused, &on_gpu, norm, &adapters);
            assert_eq!(found.is_some(), m == 1, "{m} rows");
            for ([cpu, _], found) in layers.iter().zip(found.into_iter().flatten()) {
                let expected = cpu.forward(normed.clone(), &adapters);
                assert_close(found, expected, 3.0 * tolerance);
            }

            let [gate, up] = [0, 1].map(|_| layer([77, k], false, dtype, &gpu));
            let found = Linear::forward_gated(&gate[1], &up[1], &on_gpu, None, &adapters);
            // Values go up to some hundreds.
            let tolerance = 100.0 * tolerance;
            assert_close(
                found.expect("a GPU"),
                gated_by_cpu(&gate, &up, &x),
                tolerance,
            );
        }
    }
}

/// The same with factors that are rounded, where tensor cores multiply them.
#[test]
fn fused_layers_of_rounded_factors_equal_single_operations() {
    let gpu = gpu();
    if !gpu.supports_dtype(DType::BF16) {
        return;
    }
    let rounded = |shape, has_bias| {
        let [cpu, mut on_gpu] = layer(shape, has_bias, DType::BF16, &gpu);
        on_gpu.compute = ComputeDtype::Bf16;
        [cpu, on_gpu]
    };
    for m in [3, 17, 40, 100, 330] {
        for k in [192, 1536] {
            let (adapters, tolerance) = (AdapterSelection::Base, 2e-4 * (k as f32).sqrt());
            let x = random([m, k]).cast(DType::BF16); // [m, k]
            let (on_gpu, x) = (to(&x, &gpu), x.cast(DType::F32));

            let residual = random([m, 70]);
            let [cpu, fused] = rounded([70, k], true);
            let expected = residual.clone() + cpu.forward(x.clone(), &adapters);
            let found = fused.forward_onto(to(&residual, &gpu), on_gpu.clone(), &adapters);
            assert_close(found, expected, tolerance);

            let layers = [[130, k], [34, k], [64, k]].map(|shape| rounded(shape, true));
            let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
            let found = Linear::forward_three(fused, &on_gpu, None, &adapters);
            assert!(
                found.is_some() || !has_cores(&gpu),
                "{m} rows in one launch"
            );
            for ([cpu, _], found) in layers.iter().zip(found.into_iter().flatten()) {
                assert_close(found, cpu.forward(x.clone(), &adapters), tolerance);
            }

            let [gate, up] = [0, 1].map(|_| rounded([78, k], false));
            let found = Linear::forward_gated(&gate[1], &up[1], &on_gpu, None, &adapters);
            let [g, u] = [gate, up].map(|[cpu, _]| cpu.forward(x.clone(), &adapters));
            let expected = burn::tensor::activation::silu(g) * u; // [m, 78]
            // The result is rounded to 8 bits; the factor is compared, so that large values don't hide small ones.
            let scale = expected.clone().abs() + 1.0;
            assert!(
                found.is_some() || !has_cores(&gpu),
                "{m} rows in one launch"
            );
            let Some(found) = found else { continue };
            let found = to(&found.cast(DType::F32), &expected.device());
            assert_close(found / scale.clone(), expected / scale, 1e-2);
        }
    }
}

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
fn nf4_layer(
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
    let (dtype, part, most_rows, most_normed) = match is_rounded {
        true if has_cores(gpu) => (DType::BF16, 6e-3, 32, 8),
        true => (DType::BF16, 6e-3, 4, 4),
        false => (DType::F32, 3e-5, 4, 4),
    };
    let tolerance = part * (k as f32).sqrt();
    let x = random([m, k]).cast(dtype); // [m, k]
    let (on_gpu, x) = (to(&x, gpu), x.cast(DType::F32));

    let residual = random([m, 70]);
    let [cpu, fused] = layer(70, true);
    let expected = residual.clone() + cpu.forward(x.clone(), &adapters);
    for on_gpu in [on_gpu.clone(), to(&x, gpu)] {
        let found = fused.forward_onto(to(&residual, gpu), on_gpu, &adapters);
        assert_close(found, expected.clone(), tolerance);
    }

    let weight = random([1, k]).reshape([k]); // [k]
    let normed = rms_norm(&x, &weight, 1e-6); // [m, k]
    let norm_weight = to(&weight, gpu);
    let norm = Norm {
        weight: &norm_weight,
        eps: 1e-6,
    };
    let layers = [129, 33, 64].map(|n| layer(n, true));
    let [gate, up] = [0, 1].map(|_| layer(77, false));
    for (norm, x, most_rows) in [(None, &x, most_rows), (Some(norm), &normed, most_normed)] {
        let is_fused = m <= most_rows;
        let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
        let found = Linear::forward_three(fused, &on_gpu, norm, &adapters);
        assert!(found.is_some() || !is_fused, "{m} rows in one launch");
        for ([cpu, _], found) in layers.iter().zip(found.into_iter().flatten()) {
            assert_close(found, cpu.forward(x.clone(), &adapters), 3.0 * tolerance);
        }
        // What is normalised is rounded after that: twice the squared error.
        let part = if norm.is_some() { 1.5 * part } else { part };
        let found = Linear::forward_gated(&gate[1], &up[1], &on_gpu, norm, &adapters);
        assert!(found.is_some() || !is_fused, "{m} rows in one launch");
        let Some(found) = found else { continue };
        // What a factor is off by is multiplied with the other one, and a rounded result has 8 bits.
        let [g, u] = [&gate, &up].map(|[cpu, _]| cpu.forward(x.clone(), &adapters).abs());
        let expected = gated_by_cpu(&gate, &up, x); // [m, 77]
        let scale = expected.clone().abs() + (g + u + 1.0) * (k as f32).sqrt();
        let found = to(&found.cast(DType::F32), &expected.device());
        assert_close(found / scale.clone(), expected / scale, part);
    }
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

/// Adapters of several ranks in some slots, on the layer's both sides.
fn add_adapters([cpu, on_gpu]: &mut [Linear; 2], ranks: &[(usize, usize)], gpu: &Device) {
    // The CPU is given what the GPU makes of them.
    let rounded = |x: Tensor<2>| match on_gpu.compute {
        ComputeDtype::Bf16 => x.cast(DType::BF16).cast(DType::F32),
        _ => x,
    };
    let factors: Vec<_> = (ranks.iter())
        .map(|&(slot, rank)| {
            let a = rounded(random([rank, cpu.in_features()]));
            let b = rounded(random([cpu.out_features(), rank]));
            (slot, a, b)
        })
        .collect();
    for (slot, a, b) in factors {
        for (linear, device) in [(&mut *cpu, &Device::flex()), (&mut *on_gpu, gpu)] {
            // A power of two rounds nothing.
            let weights = LoraWeights::new(to(&a, device), to(&b, device), 0.25);
            linear.set_adapter(slot, Some(weights));
        }
    }
    on_gpu.stack_adapters();
}

/// Compares layers with stacked adapters with those on the CPU, for rows with all kinds of slots: of one, of none, of another
/// layer's.
fn check_stacked(k: usize, rows: usize, compute: ComputeDtype, gpu: &Device) {
    let kinds = [Some(2), None, Some(0), Some(1), Some(3), Some(2)];
    let slots: Vec<Option<usize>> = (0..rows).map(|row| kinds[row % kinds.len()]).collect();
    let adapters = AdapterSelection::per_row(&slots, &Device::flex());
    let stacked = AdapterSelection::Stacked(StackedRows::new(&slots, gpu).into());
    // The CPU is given what the GPU makes of `x` and the adapters; what lies between the adapters' factors is rounded too.
    let (dtype, tolerance) = match compute {
        ComputeDtype::Bf16 => (DType::BF16, 2e-2 * (k as f32).sqrt()),
        _ => (DType::F32, 2e-4 * k as f32),
    };
    let rounded = |shape, has_bias| {
        let [cpu, mut on_gpu] = layer(shape, has_bias, dtype, gpu);
        on_gpu.compute = compute;
        [cpu, on_gpu]
    };
    let x = random([rows, k]).cast(dtype); // [rows, k]
    let (on_gpu, x) = (to(&x, gpu), x.cast(DType::F32));

    let mut one = rounded([70, k], true);
    add_adapters(&mut one, &[(0, 4)], gpu);
    let expected = one[0].forward(x.clone(), &adapters);
    let found = one[1].forward(on_gpu.clone(), &stacked);
    assert_close(found, expected, tolerance);

    let residual = random([rows, 72]);
    let mut one = rounded([72, k], true);
    add_adapters(&mut one, &[(0, 4), (2, 17)], gpu);
    let expected = residual.clone() + one[0].forward(x.clone(), &adapters);
    let found = one[1].forward_onto(to(&residual, gpu), on_gpu.clone(), &stacked);
    assert_close(found, expected, tolerance);

    let mut layers = [128, 32, 64].map(|n| rounded([n, k], true));
    add_adapters(&mut layers[0], &[(2, 8), (1, 3)], gpu);
    add_adapters(&mut layers[2], &[(0, 16), (3, 40)], gpu);
    let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
    let found = Linear::forward_three(fused, &on_gpu, None, &stacked);
    assert!(
        found.is_some() || dtype == DType::BF16,
        "{rows} rows at once"
    );
    for ([cpu, _], found) in layers.iter().zip(found.into_iter().flatten()) {
        assert_close(found, cpu.forward(x.clone(), &adapters), tolerance);
    }

    // Of another three the first has none.
    let mut layers = [64, 32, 128].map(|n| rounded([n, k], false));
    add_adapters(&mut layers[1], &[(1, 8)], gpu);
    let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
    let found = Linear::forward_three(fused, &on_gpu, None, &stacked);
    for ([cpu, _], found) in layers.iter().zip(found.into_iter().flatten()) {
        assert_close(found, cpu.forward(x.clone(), &adapters), tolerance);
    }

    let all: &[(usize, usize)] = &[(1, 8), (2, 4)];
    for (gate_ranks, up_ranks) in [(all, all), (all, &[(0, 70)]), (&[], all), (all, &[])] {
        let [mut gate, mut up] = [0, 1].map(|_| rounded([600, k], false));
        add_adapters(&mut gate, gate_ranks, gpu);
        add_adapters(&mut up, up_ranks, gpu);
        let found = Linear::forward_gated(&gate[1], &up[1], &on_gpu, None, &stacked);
        let both = !gate_ranks.is_empty() && !up_ranks.is_empty();
        let is_fused = dtype == DType::F32 && k.is_multiple_of(8) && both;
        assert!(found.is_some() || !is_fused, "{rows} rows at once");
        let [g, u] = [gate, up].map(|[cpu, _]| cpu.forward(x.clone(), &adapters));
        let expected = burn::tensor::activation::silu(g) * u;
        let scale = expected.clone().abs() + k as f32;
        let Some(found) = found else { continue };
        let found = to(&found.cast(DType::F32), &Device::flex());
        let part = if dtype == DType::BF16 { 5e-2 } else { 1e-3 };
        assert_close(found / scale.clone(), expected / scale, part);
    }
}

#[test]
fn stacked_adapters_equal_those_of_the_cpu() {
    let gpu = gpu();
    for (k, rows) in [(192, 1), (192, 5), (4864, 3), (190, 5)] {
        check_stacked(k, rows, ComputeDtype::F32, &gpu);
    }
}

/// The same with factors that are rounded, where tensor cores multiply them.
#[test]
fn stacked_adapters_of_rounded_factors_equal_those_of_the_cpu() {
    let gpu = gpu();
    if !gpu.supports_dtype(DType::BF16) {
        return;
    }
    for (k, rows) in [
        (192, 2),
        (192, 5),
        // Few steps: the adapters' follow those of the weight without a gap.
        (448, 5),
        (448, 100),
        (448, 330),
        (1536, 32),
        (4864, 40),
        (1536, 100),
        (1536, 330),
    ] {
        // Twice: a launch leaves the counters as the next one needs them.
        for _ in 0..2 {
            check_stacked(k, rows, ComputeDtype::Bf16, &gpu);
        }
    }
}

/// A product for which there is no room takes its layer's weights not with it: they multiply again as before.
#[test]
fn a_failed_product_leaves_its_layer() {
    let gpu = gpu();
    for compute in [ComputeDtype::F32, ComputeDtype::Bf16] {
        let dtype = match compute {
            ComputeDtype::Bf16 => DType::BF16,
            _ => DType::F32,
        };
        if !gpu.supports_dtype(dtype) {
            continue;
        }
        let (m, n, k) = (32, 128, 1536);
        let [_, mut dense] = layer([n, k], true, dtype, &gpu);
        let [_, mut four_bits] = nf4_layer([n, k], true, true, compute, &gpu);
        for layer in [&mut dense, &mut four_bits] {
            layer.compute = compute;
            let x = to(&random([m, k]).cast(dtype), &gpu);
            let product = |x| layer.forward(x, &AdapterSelection::Base).cast(DType::F32);
            let expected = product(x.clone()).into_data();
            // More than any device has.
            let huge = Tensor::<2>::empty([1 << 32, k], (&gpu, dtype));
            assert!(product(huge.narrow(0, 0, m)).try_into_data().is_err());
            lora_4bit::kernels::forget_device_state();
            assert_eq!(product(x).into_data(), expected);
        }
    }
}
