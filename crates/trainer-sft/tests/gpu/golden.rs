//! Gradients of a whole step on a GPU against PyTorch's.

use trainer_sft::step;

use super::gpus::gpu;
use super::steps::{CASES, Kind, OVER_NF4, check, check_bf16};

#[test]
fn those_of_the_step_are_pytorchs() {
    let device = gpu();
    // Tensor cores of NVIDIA keep 10 bits of the factors of a product in f32: gradients on an H200 are up to 1.3e-2 away.
    let tolerance = if cfg!(feature = "cuda") { 2e-2 } else { 1e-4 };
    for case in CASES {
        for &kind in Kind::of(case) {
            check(case, kind, step::forward_backward, &device, tolerance);
        }
    }
}

#[test]
fn those_in_bf16_are_as_close_as_those_of_bitsandbytes() {
    for case in OVER_NF4 {
        check_bf16(case, step::forward_backward, &gpu());
    }
}
