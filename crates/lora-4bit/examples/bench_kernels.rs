//! Speed of the CPU kernels: memory bandwidth of mat-vec products, arithmetic of products with many rows.
//!
//! ```sh
//! cargo run --release -p lora-4bit --example bench_kernels
//! ```
//!
//! The shapes are those of a 0.5B Qwen2.5. "read" is the bandwidth that all threads together reach when they only add up
//! numbers from memory: the limit of a mat-vec product. `LORA_4BIT_SIMD=avx2` or `portable` chooses other kernels.

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::ComputeDtype::{Bf16, Bits16, F32};
use lora_4bit::kernels::{dense_linear, dense_linear_t};
use lora_4bit::nf4::Nf4Data;
use lora_4bit::weight::Nf4Weight;
use rayon::prelude::*;

fn main() {
    let device = Device::flex();
    println!("{} threads", rayon::current_num_threads());
    println!("read: {:.1} GB/s", read_bandwidth());

    println!("\nx [1, k] · wᵀ, GB of weights per second");
    for shape in [[4864, 896], [896, 4864], [896, 896], [151_936, 896]] {
        let values = random(shape[0] * shape[1], 1);
        let weights = Weights::new(&values, shape, &device);
        let x = matrix([1, shape[1]], 2, &device);
        let bf16 = seconds(&|| dense_linear(x.clone(), weights.bf16.clone(), F32));
        let single = seconds(&|| weights.single.forward(x.clone(), F32));
        let double = seconds(&|| weights.double.forward(x.clone(), F32));
        let ints = seconds(&|| weights.double.forward(x.clone(), Bits16));
        let rate = |bytes: usize, seconds: f64| bytes as f64 / seconds / 1e9;
        println!(
            "w {shape:?}: bf16 {:.1} GB/s ({:.0} µs)   nf4 {:.1} ({:.0} µs)   nf4 double {:.1} ({:.0} µs), in integers {:.1} ({:.0} µs)",
            rate(2 * values.len(), bf16),
            bf16 * 1e6,
            rate(weights.single.num_bytes(), single),
            single * 1e6,
            rate(weights.double.num_bytes(), double),
            double * 1e6,
            rate(weights.double.num_bytes(), ints),
            ints * 1e6,
        );
    }

    println!("\nx [m, k] · wᵀ and dy [m, n] · w, GFLOP/s");
    for shape in [[4864, 896], [896, 4864]] {
        let weights = Weights::new(&random(shape[0] * shape[1], 1), shape, &device);
        for m in [2, 4, 8, 16, 32, 128, 512] {
            let x = matrix([m, shape[1]], 2, &device);
            let dy = matrix([m, shape[0]], 3, &device);
            let flop = 2.0 * (m * shape[0] * shape[1]) as f64 / 1e9;
            println!(
                "w {shape:?}, m {m}: f32 {:.0}   bf16 {:.0}   nf4 {:.0}, in integers {:.0}   bf16 operands: bf16 {:.0}   nf4 {:.0}   burn f32 {:.0}   transposed: f32 {:.0}   bf16 {:.0}   nf4 {:.0}   bf16 operands: bf16 {:.0}   nf4 {:.0}   burn f32 {:.0}",
                flop / seconds(&|| dense_linear(x.clone(), weights.f32.clone(), F32)),
                flop / seconds(&|| dense_linear(x.clone(), weights.bf16.clone(), F32)),
                flop / seconds(&|| weights.double.forward(x.clone(), F32)),
                flop / seconds(&|| weights.double.forward(x.clone(), Bits16)),
                flop / seconds(&|| dense_linear(x.clone(), weights.bf16.clone(), Bf16)),
                flop / seconds(&|| weights.double.forward(x.clone(), Bf16)),
                flop / seconds(&|| x.clone().matmul(weights.f32.clone().transpose())),
                flop / seconds(&|| dense_linear_t(dy.clone(), weights.f32.clone(), F32)),
                flop / seconds(&|| dense_linear_t(dy.clone(), weights.bf16.clone(), F32)),
                flop / seconds(&|| weights.double.forward_t(dy.clone(), F32)),
                flop / seconds(&|| dense_linear_t(dy.clone(), weights.bf16.clone(), Bf16)),
                flop / seconds(&|| weights.double.forward_t(dy.clone(), Bf16)),
                flop / seconds(&|| dy.clone().matmul(weights.f32.clone())),
            );
        }
    }
}

/// The same matrix in every format.
struct Weights {
    f32: Tensor<2>,
    bf16: Tensor<2>,
    single: Nf4Weight,
    double: Nf4Weight,
}

impl Weights {
    fn new(values: &[f32], shape: [usize; 2], device: &Device) -> Self {
        let f32 = Tensor::<2>::from_data(
            TensorData::new(values.to_vec(), shape),
            (device, DType::F32),
        );
        let nf4 = |double| {
            let data = Nf4Data::quantize(values, shape, DType::BF16, double);
            Nf4Weight::from_data(&data, device)
        };
        Self {
            bf16: f32.clone().cast(DType::BF16),
            f32,
            single: nf4(false),
            double: nf4(true),
        }
    }
}

/// Seconds per call: the fastest of the calls that fit into half a second.
fn seconds(call: &dyn Fn() -> Tensor<2>) -> f64 {
    black_box(call());
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed() < Duration::from_millis(500) {
        let start = Instant::now();
        black_box(call());
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// GB per second that all threads together read from memory.
fn read_bandwidth() -> f64 {
    let values = vec![1u64; 64 << 20];
    let read = || {
        let sum: u64 = values
            .par_chunks(1 << 16)
            .map(|chunk| chunk.iter().fold(0, |sum: u64, value| sum ^ value))
            .reduce(|| 0, |a, b| a ^ b);
        black_box(sum);
    };
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            read();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    size_of_val(&values[..]) as f64 / best / 1e9
}

fn matrix(shape: [usize; 2], seed: u64, device: &Device) -> Tensor<2> {
    let data = TensorData::new(random(shape[0] * shape[1], seed), shape);
    Tensor::from_data(data, (device, DType::F32))
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
