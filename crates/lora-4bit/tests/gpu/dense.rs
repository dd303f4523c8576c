//! Products with weights as they are, and what is fused with them.

use burn::tensor::DType;
use lora_4bit::kernels::{dense_linear, dense_linear_t};
use lora_4bit::{AdapterSelection, ComputeDtype, linear_residual, norm_qkv, norm_swiglu};

use crate::{assert_close, gated_by_cpu, gpu, layer, norm, normalised, random, signs, to};

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

#[test]
fn gradients_by_rounded_weights_equal_those_of_the_cpu() {
    let gpu = gpu();
    let dtypes = [DType::F32, DType::BF16].into_iter();
    for dtype in dtypes.filter(|dtype| gpu.supports_dtype(*dtype)) {
        // 192 x 130 and 130 x 64 are no sizes that tensor cores take.
        for [n, k] in [[64, 64], [192, 130], [256, 200], [1024, 896], [130, 64]] {
            let w = random([n, k]).cast(dtype); // [n, k]
            for m in [1, 9, 100, 300] {
                let dy = random([m, n]); // [m, n]
                // A card may round it.
                let rounded = dy.clone().cast(dtype).cast(DType::F32);
                let expected = dense_linear_t(rounded, w.clone(), ComputeDtype::F32);
                let found = dense_linear_t(to(&dy, &gpu), to(&w, &gpu), ComputeDtype::Bf16);
                // A card that rounds both factors of f32 to bf16 errs by 1.6e-3 times the root: eight times that for the largest error.
                assert_close(found, expected, 1.3e-2 * (n as f32).sqrt());
            }
        }
    }
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
                let found = linear_residual(to(&residual, &gpu), on_gpu.clone(), &fused, &adapters);
                assert_close(found, expected, tolerance);
            }

            let weight = random([1, k]).reshape([k]); // [k]
            let normed = normalised(&x, &weight); // [m, k]
            let weight = to(&weight, &gpu);
            let layers = [[129, k], [33, k], [64, k]].map(|shape| layer(shape, true, dtype, &gpu));
            let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
            let found = norm_qkv(&on_gpu, norm(&weight), fused, &adapters);
            for ([cpu, _], found) in layers.iter().zip(found) {
                let expected = cpu.forward(normed.clone(), &adapters);
                assert_close(found, expected, 3.0 * tolerance);
            }

            let [gate, up] = [0, 1].map(|_| layer([77, k], false, dtype, &gpu));
            let found = norm_swiglu(&on_gpu, norm(&weight), [&gate[1], &up[1]], &adapters);
            // Values go up to some hundreds.
            let tolerance = 100.0 * tolerance;
            assert_close(found, gated_by_cpu(&gate, &up, &normed), tolerance);
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
            let found = linear_residual(to(&residual, &gpu), on_gpu.clone(), &fused, &adapters);
            assert_close(found, expected, tolerance);

            let (x, weight) = signs([m, k], DType::BF16);
            let normed = normalised(&x, &weight); // [m, k]
            let (on_gpu, weight) = (to(&x, &gpu), to(&weight, &gpu));
            let layers = [[130, k], [34, k], [64, k]].map(|shape| rounded(shape, true));
            let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
            let found = norm_qkv(&on_gpu, norm(&weight), fused, &adapters);
            for ([cpu, _], found) in layers.iter().zip(found) {
                assert_close(found, cpu.forward(normed.clone(), &adapters), tolerance);
            }

            let [gate, up] = [0, 1].map(|_| rounded([78, k], false));
            let found = norm_swiglu(&on_gpu, norm(&weight), [&gate[1], &up[1]], &adapters);
            let expected = gated_by_cpu(&gate, &up, &normed); // [m, 78]
            // The result is rounded to 8 bits; the factor is compared, so that large values don't hide small ones.
            let scale = expected.clone().abs() + 1.0;
            let found = to(&found.cast(DType::F32), &expected.device());
            assert_close(found / scale.clone(), expected / scale, 1e-2);
        }
    }
}
