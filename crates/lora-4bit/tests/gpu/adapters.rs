//! Products with stacked adapters.

use burn::tensor::{DType, Device, Tensor};
use lora_4bit::{
    AdapterSelection, ComputeDtype, Linear, LoraWeights, StackedRows, linear_residual, norm_qkv,
    norm_swiglu,
};

use crate::nf4::nf4_layer;
use crate::{assert_close, gpu, layer, norm, normalised, random, signs, to};

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
    let _ = on_gpu.stack_adapters();
}

/// Compares layers with stacked adapters with those on the CPU, for rows with all kinds of slots: of one, of none, of another
/// layer's.
fn check_stacked(is_nf4: bool, k: usize, rows: usize, compute: ComputeDtype, gpu: &Device) {
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
        if is_nf4 {
            return nf4_layer(shape, has_bias, true, compute, gpu);
        }
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
    let found = linear_residual(to(&residual, gpu), on_gpu.clone(), &one[1], &stacked);
    assert_close(found, expected, tolerance);

    let (x, weight) = signs([rows, k], dtype);
    let normed = normalised(&x, &weight); // [rows, k]
    let (on_gpu, weight) = (to(&x, gpu), to(&weight, gpu));
    let mut layers = [128, 32, 64].map(|n| rounded([n, k], true));
    add_adapters(&mut layers[0], &[(2, 8), (1, 3)], gpu);
    add_adapters(&mut layers[2], &[(0, 16), (3, 40)], gpu);
    let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
    let found = norm_qkv(&on_gpu, norm(&weight), fused, &stacked);
    for ([cpu, _], found) in layers.iter().zip(found) {
        assert_close(found, cpu.forward(normed.clone(), &adapters), tolerance);
    }

    // Of another three the first has none.
    let mut layers = [64, 32, 128].map(|n| rounded([n, k], false));
    add_adapters(&mut layers[1], &[(1, 8)], gpu);
    let fused = layers.each_ref().map(|[_, on_gpu]| on_gpu);
    let found = norm_qkv(&on_gpu, norm(&weight), fused, &stacked);
    for ([cpu, _], found) in layers.iter().zip(found) {
        assert_close(found, cpu.forward(normed.clone(), &adapters), tolerance);
    }

    let all: &[(usize, usize)] = &[(1, 8), (2, 4)];
    for (gate_ranks, up_ranks) in [(all, all), (all, &[(0, 70)]), (&[], all), (all, &[])] {
        let [mut gate, mut up] = [0, 1].map(|_| rounded([600, k], false));
        add_adapters(&mut gate, gate_ranks, gpu);
        add_adapters(&mut up, up_ranks, gpu);
        let found = norm_swiglu(&on_gpu, norm(&weight), [&gate[1], &up[1]], &stacked);
        let [g, u] = [gate, up].map(|[cpu, _]| cpu.forward(normed.clone(), &adapters));
        let expected = burn::tensor::activation::silu(g) * u;
        let scale = expected.clone().abs() + k as f32;
        let found = to(&found.cast(DType::F32), &Device::flex());
        let part = if dtype == DType::BF16 { 5e-2 } else { 1e-3 };
        assert_close(found / scale.clone(), expected / scale, part);
    }
}

#[test]
fn stacked_adapters_equal_those_of_the_cpu() {
    let gpu = gpu();
    for (k, rows) in [(192, 1), (192, 5), (4864, 3), (190, 5)] {
        check_stacked(false, k, rows, ComputeDtype::F32, &gpu);
    }
    // With the kernel for few rows, and unpacked.
    for rows in [3, 5] {
        check_stacked(true, 192, rows, ComputeDtype::F32, &gpu);
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
            check_stacked(false, k, rows, ComputeDtype::Bf16, &gpu);
        }
    }
    for rows in [5, 40] {
        check_stacked(true, 192, rows, ComputeDtype::Bf16, &gpu);
    }
}
