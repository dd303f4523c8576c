//! Cubes that wait for other cubes of their launch.

use burn::tensor::{DType, Device, Tensor};
use lora_4bit::{AdapterSelection, ComputeDtype, LoraWeights, StackedRows};

use crate::{assert_close, gpu, layer, random, to};

const NUM_SLOTS: usize = 8;
const RANK: usize = 16;

/// A launch with many more cubes than a device holds at once ends: cubes of the result wait for cubes of the adapters, and these
/// have the lowest numbers, so that they start first. With the highest numbers they would wait for room on the device, and
/// the launch would never end.
#[test]
fn a_launch_larger_than_the_device_ends() {
    let gpu = gpu();
    if !gpu.supports_dtype(DType::BF16) {
        return;
    }
    // 2,240 cubes of the result.
    let (rows, n, k) = (4096, 8960, 1536);
    let [mut cpu, mut on_gpu] = layer([n, k], false, DType::BF16, &gpu);
    on_gpu.compute = ComputeDtype::Bf16;
    // The CPU is given what the GPU makes of its factors.
    let rounded = |shape| random(shape).cast(DType::BF16).cast(DType::F32);
    for slot in 0..NUM_SLOTS {
        let (a, b) = (rounded([RANK, k]), rounded([n, RANK]));
        for (linear, device) in [(&mut cpu, &Device::flex()), (&mut on_gpu, &gpu)] {
            // A power of two rounds nothing.
            let weights = LoraWeights::new(to(&a, device), to(&b, device), 0.25);
            linear.set_adapter(slot, Some(weights));
        }
    }
    let _ = on_gpu.stack_adapters();

    // One row of nine has no adapter.
    let slots: Vec<Option<usize>> = (0..rows)
        .map(|row| Some(row % (NUM_SLOTS + 1)).filter(|&slot| slot < NUM_SLOTS))
        .collect();
    let stacked = AdapterSelection::Stacked(StackedRows::new(&slots, &gpu).into());
    let x = rounded([rows, k]); // [rows, k]

    // The CPU computes rows of all slots.
    let compared: Vec<usize> = (0..rows).step_by(509).chain([rows - 1]).collect();
    let compared_rows = |x: &Tensor<2>| {
        let rows = compared.iter().map(|&row| x.clone().narrow(0, row, 1));
        Tensor::cat(rows.collect(), 0) // [compared, columns of x]
    };
    let compared_slots: Vec<Option<usize>> = compared.iter().map(|&row| slots[row]).collect();
    let adapters = AdapterSelection::per_row(&compared_slots, &Device::flex());
    let expected = cpu.forward(compared_rows(&x), &adapters);

    let x = to(&x.cast(DType::BF16), &gpu);
    for _ in 0..20 {
        let found = on_gpu.forward(x.clone(), &stacked);
        let tolerance = 2e-2 * (k as f32).sqrt();
        assert_close(compared_rows(&found), expected.clone(), tolerance);
    }
}
