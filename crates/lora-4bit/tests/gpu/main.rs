//! Kernels of a GPU against those of the CPU, on random values.
//!
//! Needs a feature for a GPU and a device: `--features wgpu` finds Mesa's lavapipe on machines without one.

use burn::tensor::{DType, Device, DeviceType, Distribution, Tensor};
use lora_4bit::{AdapterSelection, Linear, Norm, Weight};

mod adapters;
mod dense;
mod failures;
mod nf4;
mod waiting;

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

/// A layer on the CPU and the same on a GPU.
fn layer([n, k]: [usize; 2], has_bias: bool, dtype: DType, gpu: &Device) -> [Linear; 2] {
    let w = random([n, k]).cast(dtype); // [n, k]
    let bias = has_bias.then(|| random([1, n]).reshape([n])); // [n]
    let on_gpu = bias.as_ref().map(|bias: &Tensor<1>| to(bias, gpu));
    let on_gpu = Linear::new(Weight::Dense(to(&w, gpu)), on_gpu);
    [Linear::new(Weight::Dense(w), bias), on_gpu]
}

/// The norm in front of a layer, with tensor operations.
fn normalised(x: &Tensor<2>, weight: &Tensor<1>) -> Tensor<2> {
    let mean_square = (x.clone() * x.clone()).mean_dim(1); // [m, 1]
    let weight: Tensor<2> = weight.clone().unsqueeze(); // [1, k]
    x.clone() / (mean_square + EPS).sqrt() * weight // [m, k]
}

/// Epsilon of the norms. A row of signs has the mean square 1, so its norm is exactly half of the weight.
const EPS: f64 = 3.0;

fn norm(weight: &Tensor<1>) -> Norm<'_> {
    Norm { weight, eps: EPS }
}

/// An input of 1 and -1, whose norm is exact: half of the norm's weight, which `dtype` holds. A GPU then rounds it as the CPU
/// does.
fn signs([m, k]: [usize; 2], dtype: DType) -> (Tensor<2>, Tensor<1>) {
    let x = random([m, k]).sign(); // [m, k]
    // Zero has no sign.
    let x = x.clone() + (x.clone() * x - 1.0).abs();
    let weight = random([1, k]).cast(dtype).cast(DType::F32).reshape([k]); // [k]
    (x, weight)
}

/// The gated product with the layers on the CPU, by single operations.
fn gated_by_cpu(gate: &[Linear; 2], up: &[Linear; 2], x: &Tensor<2>) -> Tensor<2> {
    let [g, u] = [gate, up].map(|[cpu, _]| cpu.forward(x.clone(), &AdapterSelection::Base));
    burn::tensor::activation::silu(g) * u
}
