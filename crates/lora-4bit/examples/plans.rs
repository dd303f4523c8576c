//! Prints which kernel computes which product on this machine.
//!
//! ```sh
//! cargo run -p lora-4bit --example plans
//! ```
//!
//! The weight is `[4864, 896]`, the gate of a 0.5B Qwen2.5. `LORA_4BIT_SIMD=avx2` or `portable` limits the CPU. With
//! `--features cuda` or `--features wgpu` the first GPU follows.

#![allow(clippy::print_stdout)]

use burn::tensor::{DType, Device, DeviceType};
use lora_4bit::ComputeDtype;
use lora_4bit::kernels::plan::{Features, Operation, Plan, Product, WeightFormat};

/// Rows of the input, at most.
const MAX_ROWS: usize = 512;
const SHAPE: [usize; 2] = [4864, 896];

fn main() {
    let gpus: &[(&str, DeviceType)] = &[
        #[cfg(feature = "cuda")]
        ("CUDA", DeviceType::Cuda),
        #[cfg(feature = "wgpu")]
        ("WebGPU", DeviceType::Wgpu),
    ];
    let gpus = gpus.iter().filter_map(|(name, kind)| {
        let device = Device::enumerate(kind.clone()).into_iter().next()?;
        Some((*name, device))
    });
    for (name, device) in [("CPU", Device::flex())].into_iter().chain(gpus) {
        let features = Features::of(&device);
        println!("{name}: {features:?}\n");
        print_table(&features);
    }
}

fn print_table(features: &Features) {
    let [n, k] = SHAPE;
    let formats = [
        ("bf16", WeightFormat::dense(DType::BF16, k)),
        ("f32", WeightFormat::dense(DType::F32, k)),
        ("NF4", WeightFormat::Nf4),
    ];
    println!(
        "{:<11} {:<6} {:<7} kernels, each from a number of rows on",
        "operation", "weight", "compute"
    );
    for operation in [Operation::Forward, Operation::SwiGlu, Operation::Transposed] {
        for (name, weight) in formats {
            for compute in [ComputeDtype::F32, ComputeDtype::Bits16, ComputeDtype::Bf16] {
                let plan = |rows| {
                    let product = Product {
                        operation,
                        rows,
                        n,
                        k,
                        weight,
                        input: DType::F32,
                        compute,
                    };
                    Plan::choose(&product, features)
                };
                let mut parts: Vec<String> = Vec::new();
                let mut last = None;
                for rows in 1..=MAX_ROWS {
                    let plan = Some(plan(rows));
                    if let Some(plan) = plan.filter(|_| plan != last) {
                        parts.push(format!("{rows}: {plan:?}"));
                    }
                    last = plan;
                }
                let operation = format!("{operation:?}");
                let compute = format!("{compute:?}");
                println!(
                    "{operation:<11} {name:<6} {compute:<7} {}",
                    parts.join(", ")
                );
            }
        }
    }
}
