//! RoPE against its twin. Attention has its tests in `tests/attention`.

use burn::tensor::{Device, Distribution};

use super::*;

/// Tokens: few, odd, and so many that the work is split over threads.
const TOKENS: [usize; 4] = [1, 3, 17, 700];

fn random(shape: [usize; 3]) -> Tensor<3> {
    let range = Distribution::Uniform(-3.0, 3.0);
    Tensor::random(shape, range, (&Device::flex(), DType::F32))
}

/// Angles of any length: the kernels do not ask whether a pair lies on a circle.
fn angles(tokens: usize, half: usize) -> Rotary {
    Rotary {
        cos: random([tokens, 1, half]),
        sin: random([tokens, 1, half]),
    }
}

#[track_caller]
fn check(got: Tensor<3>, expected: Tensor<3>) {
    assert_eq!(got.dims(), expected.dims());
    let values = |t: Tensor<3>| t.into_data().iter::<f32>().collect::<Vec<f32>>();
    for (i, (a, b)) in values(got).into_iter().zip(values(expected)).enumerate() {
        assert!(
            (a - b).abs() <= 1e-5 * b.abs().max(1.0),
            "element {i}: {a}, expected {b}"
        );
    }
}

#[test]
fn rope_equals_its_twin() {
    for tokens in TOKENS {
        for (heads, kv_heads, head_dim) in [(1, 1, 2), (5, 1, 16), (14, 2, 64)] {
            let q = random([tokens, heads, head_dim]);
            let k = random([tokens, kv_heads, head_dim]);
            let rotary = angles(tokens, head_dim / 2);
            let (turned_q, turned_k) = apply_rope(q.clone(), k.clone(), &rotary);
            check(turned_q, naive::apply_rope(q, &rotary));
            check(turned_k, naive::apply_rope(k, &rotary));
        }
    }
}

#[test]
fn rope_leaves_views_and_shared_tensors_alone() {
    let whole = random([40, 6, 64]);
    let before = whole.clone().into_data();
    let view = whole.clone().swap_dims(0, 2).narrow(0, 5, 20); // [20, 6, 40], neither contiguous nor at the start
    let rotary = angles(20, 20);
    let (turned, _) = apply_rope(view.clone(), view.clone(), &rotary);
    check(turned, naive::apply_rope(view, &rotary));
    let _ = apply_rope(whole.clone(), whole.clone(), &angles(40, 32));
    whole.into_data().assert_eq(&before, true);
}

#[test]
fn the_gradient_of_rope_equals_that_of_its_twin() {
    for tokens in TOKENS {
        let rotary = angles(tokens, 8);
        let x = random([tokens, 5, 16]);
        let run = |op: fn(Tensor<3>, &Rotary) -> Tensor<3>| {
            let x = x.clone().autodiff().require_grad();
            let y = op(x.clone(), &rotary);
            // The square, so that the gradient of every element is its own.
            let mut gradients = (y.clone() * y.clone()).sum().backward();
            let gradient = x.grad_remove(&mut gradients).expect("a gradient");
            (y.inner(), gradient)
        };
        let (y, gradient) = run(rope);
        let (expected, expected_gradient) = run(naive::apply_rope);
        check(y, expected);
        check(gradient, expected_gradient);
    }
}

#[test]
fn the_fused_rope_is_taken_on_the_cpu() {
    let x = random([2, 1, 8]);
    assert!(is_f32_on_cpu(&x) && is_f32_on_cpu(&x.clone().autodiff()));
    assert!(is_untracked_cpu(&x) && !is_untracked_cpu(&x.autodiff()));
}

/// The kernel of a GPU against the twin on the CPU.
#[cfg(feature = "gpu")]
#[test]
fn rope_on_a_gpu_equals_the_twin() {
    let gpu = cube::first_gpu();
    assert!(Gpu::of(&gpu).is_some());
    let to_gpu = |x: &Tensor<3>| Tensor::from_data(x.clone().into_data(), (&gpu, DType::F32));
    for tokens in TOKENS {
        let (q, k) = (random([tokens, 5, 16]), random([tokens, 2, 16]));
        let rotary = angles(tokens, 8);
        let on_gpu = Rotary {
            cos: to_gpu(&rotary.cos),
            sin: to_gpu(&rotary.sin),
        };
        let (turned_q, turned_k) = apply_rope(to_gpu(&q), to_gpu(&k), &on_gpu);
        check(turned_q, naive::apply_rope(q, &rotary));
        check(turned_k, naive::apply_rope(k, &rotary));
    }
}
