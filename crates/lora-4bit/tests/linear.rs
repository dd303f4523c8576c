//! The linear layer: kernels against their naive twins, gradients against burn's autodiff, adapters against each other.

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::ComputeDtype::F32;
use lora_4bit::kernels::{dense_linear, dense_linear_t, lora_add, naive};
use lora_4bit::nf4::Nf4Data;
use lora_4bit::{AdapterSelection, Dropout, Linear, LoraWeights, Nf4Weight, StackedRows, Weight};

/// Sizes that cut vectors, tiles and panels at their edges: `[m, n, k]`.
const SHAPES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [1, 5, 3],
    [1, 64, 64],
    [1, 130, 192],
    [1, 1024, 896],
    [2, 33, 64],
    [3, 7, 65],
    [6, 66, 128],
    [7, 31, 100],
    [12, 128, 320],
    [13, 129, 896],
    [40, 300, 66],
    [64, 127, 257],
    [300, 190, 448],
];

#[test]
fn dense_products_equal_their_naive_twins() {
    let device = Device::flex();
    for [m, n, k] in SHAPES {
        let x = matrix([m, k], 1, &device);
        let dy = matrix([m, n], 2, &device);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let w = matrix([n, k], 3, &device).cast(dtype);
            let name = format!("m {m}, n {n}, k {k}, {dtype:?}");
            let twin = naive::dense_linear::<Dispatch>(
                x.clone().into_dispatch(),
                w.clone().into_dispatch(),
            );
            assert_close(
                dense_linear(x.clone(), w.clone(), F32),
                Tensor::from_dispatch(twin),
                k,
                &name,
            );
            let twin = naive::dense_linear_t::<Dispatch>(
                dy.clone().into_dispatch(),
                w.clone().into_dispatch(),
            );
            assert_close(
                dense_linear_t(dy.clone(), w, F32),
                Tensor::from_dispatch(twin),
                n,
                &name,
            );
        }
    }
}

#[test]
fn nf4_products_equal_products_with_the_dequantized_weight() {
    let device = Device::flex();
    for [m, n, k] in SHAPES {
        let x = matrix([m, k], 1, &device);
        let dy = matrix([m, n], 2, &device);
        for double in [false, true] {
            let data = Nf4Data::quantize(&random(n * k, 3), [n, k], DType::F32, double);
            let weight = Nf4Weight::from_data(&data, &device);
            let dense = Tensor::<2>::from_data(
                TensorData::new(data.dequantize(), [n, k]),
                (&device, DType::F32),
            );
            let name = format!("m {m}, n {n}, k {k}, double quantization {double}");
            assert_eq!(floats(weight.dequantize()), data.dequantize(), "{name}");
            assert_close(
                weight.forward(x.clone(), F32),
                x.clone().matmul(dense.clone().transpose()),
                k,
                &name,
            );
            assert_close(
                weight.forward_t(dy.clone(), F32),
                dy.clone().matmul(dense),
                n,
                &name,
            );
        }
    }
}

#[test]
fn operands_may_be_views() {
    let device = Device::flex();
    let x = matrix([70, 9], 1, &device).transpose(); // [9, 70]
    let w = matrix([40, 90], 2, &device).cast(DType::BF16);
    let w = w.slice([5..25, 0..70]); // [20, 70]
    let expected = x.clone().matmul(w.clone().cast(DType::F32).transpose());
    assert_close(dense_linear(x, w, F32), expected, 70, "views");
}

#[test]
fn a_row_has_the_same_result_in_every_batch() {
    let device = Device::flex();
    for [n, k] in [[300, 896], [257, 640], [9, 100]] {
        let x = matrix([40, k], 1, &device);
        let values = random(n * k, 2);
        let data = Nf4Data::quantize(&values, [n, k], DType::BF16, true);
        let weights = [
            Weight::Dense(matrix([n, k], 2, &device).cast(DType::BF16)),
            Weight::Nf4(Nf4Weight::from_data(&data, &device)),
        ];
        for weight in weights {
            let batch = floats(weight.forward(x.clone(), F32));
            for rows in [1, 2, 5, 17] {
                let part = floats(weight.forward(x.clone().narrow(0, 3, rows), F32));
                assert_eq!(
                    part,
                    batch[3 * n..(3 + rows) * n],
                    "{rows} rows, [{n}, {k}]"
                );
            }
        }
    }
}

#[test]
fn nf4_weights_are_read_back_as_uploaded() {
    let device = Device::flex();
    for double in [false, true] {
        let data = Nf4Data::quantize(&random(70 * 50, 1), [70, 50], DType::BF16, double);
        let weight = Nf4Weight::from_data(&data, &device);
        assert_eq!(weight.to_data(), data);
        let blocks = (70 * 50usize).div_ceil(64);
        let scales = match double {
            false => 4 * blocks,
            true => blocks + 4 * 256 + 4 * blocks.div_ceil(256) + 4,
        };
        assert_eq!(weight.num_bytes(), 70 * 50 / 2 + 4 * 16 + scales);
    }
}

/// Frozen bases: bf16, and NF4 with each kind of scales.
fn frozen_weights(shape: [usize; 2], device: &Device) -> Vec<Weight> {
    let values = random(shape[0] * shape[1], 11);
    let dense =
        Tensor::<2>::from_data(TensorData::new(values.clone(), shape), (device, DType::F32));
    let nf4 = |double| {
        let data = Nf4Data::quantize(&values, shape, DType::BF16, double);
        Weight::Nf4(Nf4Weight::from_data(&data, device))
    };
    vec![
        Weight::Dense(dense.cast(DType::BF16)),
        nf4(false),
        nf4(true),
    ]
}

#[test]
fn gradients_equal_those_of_a_dense_layer_in_plain_tensor_operations() {
    let device = Device::flex();
    let autodiff = Device::flex().autodiff();
    let (m, n, k, r) = (19, 70, 128, 4);
    let bias = matrix([1, n], 5, &device).reshape([n]);
    let target = matrix([m, n], 6, &device);
    for weight in frozen_weights([n, k], &device) {
        let tracked = |shape, seed| matrix(shape, seed, &autodiff).require_grad();
        let (x, a, b) = (tracked([m, k], 7), tracked([r, k], 8), tracked([n, r], 9));
        let mut linear = Linear::new(weight.clone(), Some(bias.clone()));
        let adapter = LoraWeights::new(a.clone(), b.clone(), 0.5);
        linear.set_adapter(0, Some(adapter));
        let y = linear.forward(x.clone(), &AdapterSelection::all(0));
        let loss = (y.clone() * Tensor::from_inner(target.clone())).sum();
        let grads = loss.backward();

        let (x2, a2, b2) = (tracked([m, k], 7), tracked([r, k], 8), tracked([n, r], 9));
        let dense = Tensor::from_inner(weight.dequantize());
        let low = x2.clone().matmul(a2.clone().transpose());
        let y2 = x2.clone().matmul(dense.transpose())
            + Tensor::from_inner(bias.clone()).unsqueeze()
            + low.matmul(b2.clone().transpose()) * 0.5;
        let loss2 = (y2.clone() * Tensor::from_inner(target.clone())).sum();
        let grads2 = loss2.backward();

        assert_close(y.inner(), y2.inner(), k, "output");
        for (name, ours, theirs) in [("x", x, x2), ("a", a, a2), ("b", b, b2)] {
            let ours = ours.grad(&grads).unwrap();
            assert_close(ours, theirs.grad(&grads2).unwrap(), n * m, name);
        }
    }
}

#[test]
fn an_adapter_equals_its_twin_in_plain_tensor_operations() {
    let autodiff = Device::flex().autodiff();
    for [m, n, k, r] in [
        [1, 1, 1, 1],
        [1, 896, 64, 16],
        [3, 70, 50, 2],
        [40, 130, 64, 16],
        [33, 64, 257, 20],
    ] {
        let name = format!("m {m}, n {n}, k {k}, r {r}");
        let leaves = || {
            [([m, n], 1), ([m, k], 2), ([r, k], 3), ([r, n], 4)]
                .map(|(shape, seed)| matrix(shape, seed, &autodiff).require_grad())
        };
        let target = Tensor::from_inner(matrix([m, n], 5, &Device::flex()));
        let ([y, x, a, b], [y2, x2, a2, b2]) = (leaves(), leaves());
        let out = lora_add(y.clone(), x.clone(), a.clone(), b.clone(), 0.5);
        let twin = naive::lora_add(y2.clone(), x2.clone(), a2.clone(), b2.clone(), 0.5);
        assert_close(out.clone().inner(), twin.clone().inner(), k * r, &name);
        let grads = (out * target.clone()).sum().backward();
        let grads2 = (twin * target).sum().backward();
        for (leaf, twin) in [(y, y2), (x, x2), (a, a2), (b, b2)] {
            let expected = twin.grad(&grads2).unwrap();
            assert_close(leaf.grad(&grads).unwrap(), expected, m * n * r, &name);
        }
    }
}

#[test]
fn a_row_with_an_adapter_is_the_same_in_any_batch() {
    let device = Device::flex();
    let (m, n, k, r) = (50, 200, 64, 16);
    let adapter = LoraWeights::new(matrix([r, k], 1, &device), matrix([n, r], 2, &device), 2.0);
    let x = matrix([m, k], 3, &device);
    let y = matrix([m, n], 4, &device);
    let batch = floats(adapter.add_to(y.clone(), x.clone()));
    for i in [0, 7, 49] {
        let row = |tensor: &Tensor<2>| tensor.clone().narrow(0, i, 1);
        let row = floats(adapter.add_to(row(&y), row(&x)));
        assert_eq!(row, batch[i * n..(i + 1) * n], "row {i}");
    }
}

#[test]
fn a_plain_input_gives_gradients_to_the_adapter() {
    let device = Device::flex();
    let autodiff = Device::flex().autodiff();
    let a = matrix([2, 6], 1, &autodiff).require_grad();
    let b = matrix([3, 2], 2, &autodiff).require_grad();
    let mut linear = Linear::new(Weight::Dense(matrix([3, 6], 3, &device)), None);
    let adapter = LoraWeights::new(a.clone(), b.clone(), 1.0);
    linear.set_adapter(1, Some(adapter));
    let x = matrix([4, 6], 4, &device);
    let grads = linear
        .forward(x.clone(), &AdapterSelection::all(1))
        .sum()
        .backward();
    // d(sum)/dB = 1ᵀ · (x · Aᵀ)
    let low = x.matmul(a.clone().inner().transpose()).sum_dim(0); // [1, 2]
    assert_close(b.grad(&grads).unwrap(), low.repeat_dim(0, 3), 6, "b");
    assert!(a.grad(&grads).is_some());
}

#[test]
fn a_dense_weight_in_training_gets_a_gradient() {
    let autodiff = Device::flex().autodiff();
    let w = matrix([5, 8], 1, &autodiff).require_grad();
    let bias = matrix([1, 5], 2, &autodiff).reshape([5]).require_grad();
    let x = matrix([3, 8], 3, &Device::flex());
    let linear = Linear::new(Weight::Dense(w.clone()), Some(bias.clone()));
    let grads = linear
        .forward(x.clone(), &AdapterSelection::Base)
        .sum()
        .backward();
    let expected = x.sum_dim(0).repeat_dim(0, 5); // [5, 8]
    assert_close(w.grad(&grads).unwrap(), expected, 3, "weight");
    assert_eq!(floats(bias.grad(&grads).unwrap().unsqueeze()), vec![3.0; 5]);
}

#[test]
fn rows_of_a_mixed_batch_equal_each_adapter_alone() {
    let device = Device::flex();
    let (n, k, r) = (33, 64, 3);
    let slots = [
        Some(2),
        None,
        Some(0),
        Some(2),
        Some(1),
        None,
        Some(0),
        Some(7),
    ];
    let x = matrix([slots.len(), k], 1, &device);
    for weight in frozen_weights([n, k], &device) {
        let mut linear = Linear::new(weight, Some(matrix([1, n], 4, &device).reshape([n])));
        for slot in [0, 2] {
            let adapter = LoraWeights::new(
                matrix([r, k], 20 + slot as u64, &device),
                matrix([n, r], 30 + slot as u64, &device),
                2.0,
            );
            linear.set_adapter(slot, Some(adapter));
        }
        let selection = AdapterSelection::per_row(&slots, &device);
        assert!(matches!(selection, AdapterSelection::PerRow(_)));
        let mixed = linear.forward(x.clone(), &selection);
        for (i, slot) in slots.into_iter().enumerate() {
            let alone = match slot {
                Some(slot) => AdapterSelection::all(slot),
                None => AdapterSelection::Base,
            };
            let row = x.clone().narrow(0, i, 1);
            let expected = linear.forward(row, &alone);
            let name = format!("row {i}");
            assert_eq!(
                floats(mixed.clone().narrow(0, i, 1)),
                floats(expected),
                "{name}"
            );
        }
        let base = floats(linear.forward(x.clone(), &AdapterSelection::Base));
        let all = floats(linear.forward(x.clone(), &AdapterSelection::all(0)));
        assert_ne!(base, all);
    }
}

/// The twin of the GPU kernels for stacked adapters.
#[test]
fn stacked_adapters_equal_groups_of_rows() {
    let (device, [n, k]) = (Device::flex(), [12, 16]);
    let slots = [Some(2), None, Some(0), Some(1), Some(5), Some(2)];
    let x = matrix([slots.len(), k], 1, &device);
    let mut linear = Linear::new(Weight::Dense(matrix([n, k], 3, &device)), None);
    for (slot, r) in [(0, 2), (2, 9)] {
        let (a, b) = (
            matrix([r, k], 20 + r as u64, &device),
            matrix([n, r], 40, &device),
        );
        linear.set_adapter(slot, Some(LoraWeights::new(a, b, 0.5)));
    }
    assert!(linear.stack_adapters().is_some());
    // The rows' slots may start anywhere.
    let mut rows = StackedRows::new(&[&[Some(0); 3], &slots[..]].concat(), &device);
    rows.at = 3;
    let stacked = linear.forward(x.clone(), &AdapterSelection::Stacked(rows.into()));
    let grouped = linear.forward(x, &AdapterSelection::per_row(&slots, &device));
    for (a, b) in floats(stacked).into_iter().zip(floats(grouped)) {
        assert!((a - b).abs() < 1e-4, "{a}, not {b}");
    }
}

#[test]
#[should_panic(expected = "call stack_adapters first")]
fn a_stack_is_not_used_after_its_adapters_have_changed() {
    let device = Device::flex();
    let mut linear = Linear::new(Weight::Dense(matrix([8, 8], 1, &device)), None);
    let adapter = LoraWeights::new(matrix([4, 8], 2, &device), matrix([8, 4], 3, &device), 2.0);
    linear.set_adapter(0, Some(adapter));
    assert!(linear.stack_adapters().is_some());
    let rows = AdapterSelection::Stacked(StackedRows::new(&[Some(0); 2], &device).into());
    let x = matrix([2, 8], 4, &device);
    linear.forward(x.clone(), &rows);
    linear.adapter_mut(0).unwrap().scaling = 1.0;
    linear.forward(x, &rows);
}

#[test]
fn uniform_rows_collapse() {
    let device = Device::flex();
    let select = |slots: &[Option<usize>]| AdapterSelection::per_row(slots, &device);
    assert!(matches!(select(&[]), AdapterSelection::Base));
    assert!(matches!(select(&[None, None]), AdapterSelection::Base));
    assert!(matches!(
        select(&[Some(3), Some(3)]),
        AdapterSelection::All {
            slot: 3,
            dropout: None
        }
    ));
}

#[test]
fn adapters_come_and_go() {
    let device = Device::flex();
    let adapter = || LoraWeights::new(matrix([2, 6], 1, &device), matrix([4, 2], 2, &device), 1.0);
    let mut linear = Linear::new(Weight::Dense(matrix([4, 6], 3, &device)), None);
    linear.set_adapter(5, None);
    assert!(linear.adapter(5).is_none());
    linear.set_adapter(5, Some(adapter()));
    assert!(linear.adapter(5).is_some() && linear.adapter(4).is_none());
    linear.adapter_mut(5).unwrap().scaling = 0.0;
    let x = matrix([2, 6], 4, &device);
    let base = floats(linear.forward(x.clone(), &AdapterSelection::Base));
    assert_eq!(floats(linear.forward(x, &AdapterSelection::all(5))), base);
    linear.set_adapter(5, None);
    assert!(linear.adapter(5).is_none());
}

#[test]
fn dropout_masks_are_reproducible_and_have_the_right_rate() {
    let device = Device::flex();
    let dropout = Dropout { p: 0.1, seed: 7 };
    let mask = |dropout: Dropout, id| floats(dropout.mask(id, [300, 501], &device));
    let values = mask(dropout, 3);
    assert_eq!(values, mask(dropout, 3));
    assert_ne!(values, mask(dropout, 4));
    assert_ne!(values, mask(Dropout { seed: 8, ..dropout }, 3));
    let dropped = values.iter().filter(|&&value| value == 0.0).count() as f64;
    let rate = dropped / values.len() as f64;
    // Six standard deviations.
    let tolerance = 6.0 * (0.1f64 * 0.9 / values.len() as f64).sqrt();
    assert!((rate - 0.1).abs() < tolerance, "{rate}");
    assert!(values.iter().all(|&v| v == 0.0 || v == 1.0 / 0.9));
}

#[test]
fn dropout_acts_on_the_adapter_only() {
    let device = Device::flex();
    let (n, k, r) = (5, 64, 2);
    let mut linear = Linear::new(Weight::Dense(matrix([n, k], 1, &device)), None);
    linear.id = 9;
    let (a, b) = (matrix([r, k], 2, &device), matrix([n, r], 3, &device));
    let adapter = LoraWeights::new(a.clone(), b.clone(), 1.5);
    linear.set_adapter(0, Some(adapter));
    let dropout = Dropout { p: 0.3, seed: 1 };
    let x = matrix([4, k], 4, &device);
    let selection = AdapterSelection::All {
        slot: 0,
        dropout: Some(dropout),
    };
    let dropped = x.clone() * dropout.mask(9, [4, k], &device);
    let expected = linear.forward(x.clone(), &AdapterSelection::Base)
        + dropped.matmul(a.transpose()).matmul(b.transpose()) * 1.5;
    assert_close(linear.forward(x, &selection), expected, k, "dropout");
}

/// Sums of `terms` products of values up to 1 in another order differ by less than this.
fn assert_close(actual: Tensor<2>, expected: Tensor<2>, terms: usize, name: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{name}");
    let tolerance = 4.0 * f32::EPSILON * (terms as f32).max(16.0);
    for (i, (a, e)) in floats(actual).into_iter().zip(floats(expected)).enumerate() {
        assert!((a - e).abs() <= tolerance, "{name}: [{i}] is {a}, not {e}");
    }
}

fn floats(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32 values")
}

fn matrix(shape: [usize; 2], seed: u64, device: &Device) -> Tensor<2> {
    let data = TensorData::new(random(shape[0] * shape[1], seed), shape);
    Tensor::from_data(data, (device, DType::F32))
}

/// Values between -1 and 1, from a linear congruential generator.
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
