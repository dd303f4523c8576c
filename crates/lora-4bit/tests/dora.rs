//! DoRA on a linear layer, against the weight written out: `m / ‖W + s·B·A‖ · (W + s·B·A)`.

#![allow(clippy::unwrap_used)]

use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::nf4::Nf4Data;
use lora_4bit::{AdapterSelection, Dropout, Linear, LoraWeights, Nf4Weight, StackedRows, Weight};

const N: usize = 33;
const K: usize = 64;
const R: usize = 3;
const SCALING: f32 = 1.5;

fn matrix(shape: [usize; 2], seed: u64, device: &Device) -> Tensor<2> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| next()).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn floats(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

fn assert_close(actual: Tensor<2>, expected: Tensor<2>, name: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{name}");
    for (i, (a, e)) in floats(actual).into_iter().zip(floats(expected)).enumerate() {
        let tolerance = 2e-5 * e.abs().max(4.0);
        assert!((a - e).abs() <= tolerance, "{name}: [{i}] is {a}, not {e}");
    }
}

/// The matrices of the adapter in a slot.
struct Matrices {
    a: Tensor<2>,
    b: Tensor<2>,
    magnitude: Tensor<1>,
}

fn matrices(slot: usize, device: &Device) -> Matrices {
    let seed = 10 * slot as u64;
    Matrices {
        a: matrix([R, K], seed + 20, device),
        b: matrix([N, R], seed + 21, device),
        magnitude: matrix([1, N], seed + 22, device).reshape([N]) + 3.0,
    }
}

fn weights(device: &Device) -> [Weight; 2] {
    let dense = matrix([N, K], 3, device);
    let values = floats(dense.clone());
    let nf4 = Nf4Data::quantize(&values, [N, K], DType::F32, true);
    [
        Weight::Dense(dense),
        Weight::Nf4(Nf4Weight::from_data(&nf4, device)),
    ]
}

fn bias(device: &Device) -> Tensor<1> {
    matrix([1, N], 4, device).reshape([N])
}

/// A layer with DoRA in slots 0 and 2, and a plain adapter in slot 1.
fn layer(weight: Weight, device: &Device) -> Linear {
    let mut linear = Linear::new(weight, Some(bias(device)));
    for slot in 0..3 {
        let Matrices { a, b, magnitude } = matrices(slot, device);
        let mut adapter = LoraWeights::new(a, b, SCALING);
        if slot != 1 {
            adapter = adapter.with_magnitude(&linear.weight, Some(magnitude));
        }
        linear.set_adapter(slot, Some(adapter));
    }
    linear
}

/// `W + s·B·A` and the norms of its rows `[out, 1]`.
fn sum_of(weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let sum = weight + b.matmul(a) * SCALING; // [out, in]
    let norm = (sum.clone() * sum.clone()).sum_dim(1).sqrt(); // [out, 1]
    (sum, norm)
}

#[test]
fn rows_of_the_weight_have_the_norms_of_the_magnitude() {
    let device = Device::flex();
    let x = matrix([5, K], 1, &device);
    for (weight, name) in weights(&device).into_iter().zip(["dense", "NF4"]) {
        let linear = layer(weight, &device);
        let Matrices { a, b, magnitude } = matrices(2, &device);
        let (sum, norm) = sum_of(linear.weight.dequantize(), a, b);
        let expected = sum * (magnitude.reshape([N, 1]) / norm);
        let expected = x.clone().matmul(expected.transpose()) + bias(&device).unsqueeze();
        let found = linear.forward(x.clone(), &AdapterSelection::all(2));
        assert_close(found, expected, name);
    }
}

#[test]
fn a_new_adapter_changes_no_bit() {
    let device = Device::flex();
    let x = matrix([5, K], 1, &device);
    for weight in weights(&device) {
        let mut linear = Linear::new(weight, Some(bias(&device)));
        let base = floats(linear.forward(x.clone(), &AdapterSelection::Base));
        let b = Tensor::zeros([N, R], (&device, DType::F32));
        let adapter = LoraWeights::new(matrix([R, K], 2, &device), b, SCALING);
        let adapter = adapter.with_magnitude(&linear.weight, None);
        linear.set_adapter(0, Some(adapter));
        let found = floats(linear.forward(x.clone(), &AdapterSelection::all(0)));
        assert_eq!(found, base);
    }
}

#[test]
fn rows_of_a_mixed_batch_equal_each_adapter_alone() {
    let device = Device::flex();
    let slots = [Some(2), None, Some(0), Some(1), Some(7), Some(2), Some(1)];
    let x = matrix([slots.len(), K], 1, &device);
    for weight in weights(&device) {
        let mut linear = layer(weight, &device);
        let mixed = linear.forward(x.clone(), &AdapterSelection::per_row(&slots, &device));
        for (i, slot) in slots.into_iter().enumerate() {
            let alone = slot.map_or(AdapterSelection::Base, AdapterSelection::all);
            let alone = linear.forward(x.clone().narrow(0, i, 1), &alone);
            let row = floats(mixed.clone().narrow(0, i, 1));
            assert_eq!(row, floats(alone), "row {i}");
        }
        assert!(linear.stack_adapters().is_some());
        let mut rows = StackedRows::new(&[&[Some(0); 3], &slots[..]].concat(), &device);
        rows.at = 3;
        let stacked = linear.forward(x.clone(), &AdapterSelection::Stacked(rows.into()));
        assert_close(stacked, mixed, "stacked");
    }
}

#[test]
fn gradients_take_the_norm_as_a_constant() {
    let (device, autodiff) = (Device::flex(), Device::flex().autodiff());
    let x = matrix([5, K], 1, &device).autodiff().require_grad();
    let dy = matrix([5, N], 9, &device).autodiff();
    for weight in weights(&device) {
        let leaves = || {
            let Matrices { a, b, magnitude } = matrices(0, &device);
            let leaf = |tensor: Tensor<2>| tensor.autodiff().require_grad();
            (leaf(a), leaf(b), magnitude.autodiff().require_grad())
        };
        let mut linear = Linear::new(weight, Some(bias(&device)));
        let (a, b, magnitude) = leaves();
        let Matrices {
            a: plain_a,
            b: plain_b,
            ..
        } = matrices(0, &device);
        let mut adapter = LoraWeights::new(plain_a.clone(), plain_b.clone(), SCALING)
            .with_magnitude(&linear.weight, None);
        (adapter.a, adapter.b_t) = (a.clone(), b.clone().transpose());
        adapter.dora.as_mut().unwrap().magnitude = magnitude.clone();
        linear.set_adapter(0, Some(adapter));
        let y = linear.forward(x.clone(), &AdapterSelection::all(0));
        let found = (y * dy.clone()).sum().backward();

        let (twin_a, twin_b, twin_magnitude) = leaves();
        let twin_x = x.clone().detach().require_grad();
        let base = linear.weight.dequantize();
        let (_, norm) = sum_of(base.clone(), plain_a, plain_b);
        let base = Tensor::from_inner(base).to_device(&autodiff);
        let sum = base + twin_b.clone().matmul(twin_a.clone()) * SCALING;
        let factor = twin_magnitude.clone().reshape([N, 1]) / norm.autodiff();
        let y = twin_x.clone().matmul((sum * factor).transpose());
        let expected = (y * dy.clone()).sum().backward();
        for (name, leaf, twin) in [("x", x.clone(), twin_x), ("a", a, twin_a), ("b", b, twin_b)] {
            let (leaf, twin) = (leaf.grad(&found).unwrap(), twin.grad(&expected).unwrap());
            assert_close(leaf, twin, name);
        }
        let leaf = magnitude.grad(&found).unwrap().unsqueeze();
        let twin = twin_magnitude.grad(&expected).unwrap().unsqueeze();
        assert_close(leaf, twin, "magnitude");
    }
}

#[test]
fn norms_follow_the_matrices() {
    let device = Device::flex();
    let x = matrix([2, K], 1, &device);
    for weight in weights(&device) {
        let mut linear = layer(weight, &device);
        let adapter = linear.adapter_mut(0).unwrap();
        adapter.a = adapter.a.clone() * 2.0;
        let before = floats(linear.forward(x.clone(), &AdapterSelection::all(0)));
        linear.update_norm(0);
        let found = linear.forward(x.clone(), &AdapterSelection::all(0));
        assert_ne!(before, floats(found.clone()));
        let Matrices { a, b, magnitude } = matrices(0, &device);
        let (sum, norm) = sum_of(linear.weight.dequantize(), a * 2.0, b);
        let expected = sum * (magnitude.reshape([N, 1]) / norm);
        let expected = x.clone().matmul(expected.transpose()) + bias(&device).unsqueeze();
        assert_close(found, expected, "after an update");
    }
}

/// As PEFT: `base(x) + (f - 1) · W · drop(x) + f · s·B·A · drop(x)`.
#[test]
fn dropout_takes_part_in_all_that_the_adapter_changes() {
    let device = Device::flex();
    let [dense, _] = weights(&device);
    let mut linear = layer(dense, &device);
    linear.id = 9;
    let dropout = Dropout { p: 0.3, seed: 1 };
    let x = matrix([4, K], 5, &device);
    let dropped = x.clone() * dropout.mask(9, [4, K], &device);
    let Matrices { a, b, magnitude } = matrices(0, &device);
    let base = linear.weight.dequantize();
    let (sum, norm) = sum_of(base.clone(), a, b);
    let factor = magnitude.reshape([N, 1]) / norm; // [out, 1]
    let change = sum * factor - base.clone();
    let expected = x.clone().matmul(base.transpose())
        + bias(&device).unsqueeze()
        + dropped.matmul(change.transpose());
    let selection = AdapterSelection::All {
        slot: 0,
        dropout: Some(dropout),
    };
    assert_close(linear.forward(x, &selection), expected, "dropout");
}
