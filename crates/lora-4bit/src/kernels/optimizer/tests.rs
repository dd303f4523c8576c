//! The kernels of a GPU against their twins.

use burn::tensor::Distribution;

use super::eight_bit::{self, BLOCK, ByteMoments, DeviceMoments, adamw_on_host};
use super::*;
use crate::kernels::cube::features::first_gpu;

const FACTORS: AdamWFactors = AdamWFactors {
    beta: [0.9, 0.99],
    rest: [0.1, 0.01],
    correction: 0.7,
    eps: 1e-3,
    rate: 0.3,
    decay: 0.9,
};

fn random(n: usize, device: &Device) -> Tensor<1> {
    let uniform = Distribution::Uniform(-1.0, 1.0);
    Tensor::random([n], uniform, (device, DType::F32))
}

fn values(x: &Tensor<1>) -> Vec<f32> {
    x.to_data().iter::<f32>().collect()
}

#[track_caller]
fn check(name: &str, found: &[f32], expected: &[f32], error: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= error * (1.0 + b.abs()),
            "{name}: {a}, not {b}, at {i}"
        );
    }
}

#[test]
fn adamw_and_sums_of_squares_equal_their_twins() {
    let device = first_gpu();
    for n in [1, 300, 70_000] {
        let vector = || random(n, &device);
        let state = [vector(), vector(), vector().abs()];
        let (gradient, clip) = (vector(), vector().narrow(0, 0, 1));
        let expected = naive_adamw(state.clone(), &gradient, &clip, FACTORS);
        let before = state[0].clone();
        let kept = values(&before);
        let found = adamw(state, &gradient, &clip, FACTORS);
        for (found, expected) in found.iter().zip(&expected) {
            check("adamw", &values(found), &values(expected), 1e-5);
        }
        assert_eq!(values(&before), kept, "a tensor that somebody holds stays");
        let other = vector();
        let found = sums_of_squares(&[&gradient, &other], &device).sum();
        let squares = gradient.clone() * gradient + other.clone() * other;
        check("squares", &values(&found), &values(&squares.sum()), 1e-4);
    }
}

/// Parts of a buffer see what is written to it, and what is written to a part is written to the buffer.
#[test]
fn buffers_are_written_whoever_holds_them() {
    let device = first_gpu();
    // A part begins and ends at 512 bytes.
    let (n, part) = (70_016, 128..1_280);
    let inside = |tensor: &Tensor<1>| tensor.clone().narrow(0, part.start, part.len());
    let state = [(); 3].map(|()| random(n, &device).abs());
    let copies = state.clone().map(|tensor| tensor + 0.0);
    let (gradient, clip) = (random(n, &device), random(1, &device));
    let view = inside(&state[0]);
    let expected = naive_adamw(copies, &gradient, &clip, FACTORS);
    adamw_in_place([&state[0], &state[1], &state[2]], &gradient, &clip, FACTORS);
    for (found, expected) in state.iter().zip(&expected) {
        check("adamw", &values(found), &values(expected), 1e-5);
    }
    check("part", &values(&view), &values(&inside(&expected[0])), 1e-5);

    let x = random(part.len(), &device);
    add_in_place(&view, x.clone());
    let sum = inside(&expected[0]) + x;
    check("sum", &values(&inside(&state[0])), &values(&sum), 1e-5);
    let rest = expected[0].clone().narrow(0, part.end, n - part.end);
    let found = state[0].clone().narrow(0, part.end, n - part.end);
    check("behind it", &values(&found), &values(&rest), 1e-5);
    clear(&view);
    assert!(values(&inside(&state[0])).iter().all(|value| *value == 0.0));
    let before = values(&state[0].clone().narrow(0, 0, part.start));
    check(
        "before it",
        &before,
        &values(&expected[0].clone().narrow(0, 0, part.start)),
        1e-5,
    );
}

/// Where a GPU divides less exactly, a moment in the middle between two levels may get the other one: some values then differ by a
/// part of a level.
#[test]
fn adamw_in_8_bits_equals_that_of_the_host() {
    let device = first_gpu();
    for n in [1, 300, 70_000] {
        let vector = || random(n, &device);
        let (mut value, clip) = (vector(), random(1, &device).abs());
        let mut moments = DeviceMoments::zeros(n, &device);
        let (mut values_on_host, mut on_host) = (values(&value), ByteMoments::zeros(n));
        let factor = values(&clip)[0];
        for step in 0..3 {
            let gradient = vector();
            let held = value.clone();
            let before = values(&held);
            (value, moments) = eight_bit::adamw(value, moments, &gradient, &clip, FACTORS);
            assert_eq!(values(&held), before, "a tensor that somebody holds stays");
            let gradient = values(&gradient);
            adamw_on_host(
                &mut values_on_host,
                &gradient,
                factor,
                &mut on_host,
                FACTORS,
            );
            check("value", &values(&value), &values_on_host, 0.02);
            let found = moments.to_host();
            for (found, expected) in [
                (&found.mean, &on_host.mean),
                (&found.variance, &on_host.variance),
            ] {
                assert_eq!(found.absmax.len(), n.div_ceil(BLOCK));
                let codes = found.codes.iter().zip(&expected.codes);
                let differences = codes.map(|(a, b)| a.abs_diff(*b));
                let num = differences.clone().filter(|&off| off > 0).count();
                assert!(
                    num * 500 <= n && differences.max() <= Some(1),
                    "step {step}: {num} of {n} codes differ"
                );
                check("absmax", &found.absmax, &expected.absmax, 0.01);
            }
            // What differs is not carried on.
            moments = DeviceMoments::from_host(&on_host, &device);
            let data = burn::tensor::TensorData::new(values_on_host.clone(), [n]);
            value = Tensor::from_data(data, (&device, DType::F32));
        }
    }
}
