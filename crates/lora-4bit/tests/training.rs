//! The training step's operations against an autodiff graph of the layers that serving uses.
#![allow(clippy::unwrap_used)]

use burn::tensor::{DType, Device, Distribution, Tensor};
use lora_4bit::training::{Group, rms_norm, rms_norm_backward, swiglu, swiglu_backward};
use lora_4bit::{AdapterSelection, Dropout, Linear, LoraWeights, Norm, Weight};

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let uniform = Distribution::Uniform(-1.0, 1.0);
    Tensor::random(shape, uniform, (&Device::flex(), DType::F32))
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().unwrap()
}

#[track_caller]
fn check<const D: usize>(name: &str, found: Tensor<D>, expected: Tensor<D>) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    for (a, b) in values(found).into_iter().zip(values(expected)) {
        assert!(
            (a - b).abs() <= 1e-4 * (1.0 + b.abs()),
            "{name}: {a}, not {b}"
        );
    }
}

/// Three layers of 24 inputs, of which the second has no adapter and the third no bias.
fn layers() -> Vec<Linear> {
    [(40, Some(3)), (8, None), (16, Some(5))]
        .into_iter()
        .enumerate()
        .map(|(id, (out, rank))| {
            let bias = (id < 2).then(|| random([out]));
            let mut linear = Linear::new(Weight::Dense(random([out, 24])), bias);
            linear.id = id as u32;
            if let Some(r) = rank {
                let adapter = LoraWeights::new(random([r, 24]), random([out, r]), 0.5);
                linear.set_adapter(1, Some(adapter));
            }
            linear
        })
        .collect()
}

#[test]
fn a_group_equals_the_graph_of_its_layers() {
    let layers = layers();
    let (x, dy, residual) = (random([7, 24]), random([7, 64]), random([7, 64]));
    for slot in [None, Some(1)] {
        for p in [0.0, 0.3] {
            let dropout = (p > 0.0).then_some(Dropout { p, seed: 5 });
            let slots = slot.map(|slot| (slot, dropout));
            let group = Group::new(&layers.iter().collect::<Vec<_>>(), slots, DType::F32);
            let (y, h) = group.forward(&x, Some(residual.clone()));
            let (dx, gradients) = group.backward(x.clone(), h, &dy, &[]);

            let leaf = x.clone().autodiff().require_grad();
            let selection = match slot {
                Some(slot) => AdapterSelection::All { slot, dropout },
                None => AdapterSelection::Base,
            };
            let mut tracked = layers.clone();
            let results: Vec<Tensor<2>> = tracked
                .iter_mut()
                .map(|linear| {
                    if let Some(adapter) = linear.adapter_mut(1) {
                        adapter.a = adapter.a.clone().autodiff().require_grad();
                        adapter.b_t = adapter.b_t.clone().autodiff().require_grad();
                    }
                    linear.forward(leaf.clone(), &selection)
                })
                .collect();
            let expected = Tensor::cat(results, 1);
            check("y", y, expected.clone().inner() + residual.clone());
            let mut graph = (expected * dy.clone().autodiff()).sum().backward();
            check("dx", dx, leaf.grad_remove(&mut graph).unwrap());
            for (linear, gradients) in tracked.iter().zip(gradients) {
                let expected = linear.adapter(1).filter(|_| slot.is_some());
                assert_eq!(expected.is_some(), gradients.is_some());
                let (Some(adapter), Some(found)) = (expected, gradients) else {
                    continue;
                };
                check("da", found.a, adapter.a.grad_remove(&mut graph).unwrap());
                let expected = adapter.b_t.grad_remove(&mut graph).unwrap();
                check("db", found.b_t, expected);
            }
        }
    }
}

#[test]
fn norms_and_gates_equal_their_graphs() {
    let (x, dy, residual, weight) = (
        random([5, 12]),
        random([5, 12]),
        random([5, 12]),
        random([12]),
    );
    let norm = || Norm {
        weight: &weight,
        eps: 0.1,
    };
    let leaf = x.clone().autodiff().require_grad();
    let y = lora_4bit::rms_norm(leaf.clone(), norm());
    check("norm", rms_norm(x.clone(), norm()), y.clone().inner());
    let mut graph = (y * dy.clone().autodiff()).sum().backward();
    let expected = leaf.grad_remove(&mut graph).unwrap() + residual.clone();
    let found = rms_norm_backward(x, norm(), dy.clone(), Some(residual));
    check("gradient of norm", found, expected);

    let gate_up = random([5, 24]);
    let leaf = gate_up.clone().autodiff().require_grad();
    let [gate, up] = [0, 12].map(|at| leaf.clone().narrow(1, at, 12));
    let y = burn::tensor::activation::silu(gate) * up;
    check("swiglu", swiglu(gate_up.clone()), y.clone().inner());
    let mut graph = (y * dy.clone().autodiff()).sum().backward();
    let expected = leaf.grad_remove(&mut graph).unwrap();
    let result = swiglu(gate_up.clone());
    let (found, again) = swiglu_backward(gate_up, dy);
    check("gradient of swiglu", found, expected);
    check("swiglu once more", again, result);
}
