//! Gradients of a whole step on the CPU: by autodiff graphs, and by the step of a GPU with the plain twins of its kernels.

use burn::tensor::Device;
use trainer_sft::step;

use super::steps::{CASES, Kind, OVER_NF4, check, check_bf16};

/// Of the norm of a gradient.
const TOLERANCE: f64 = 1e-4;

#[test]
fn those_of_graphs_are_pytorchs() {
    for (case, kind) in all() {
        check(
            case,
            kind,
            step::forward_backward,
            &Device::flex(),
            TOLERANCE,
        );
    }
}

#[test]
fn those_that_are_written_down_are_pytorchs() {
    for (case, kind) in all() {
        let written_down = step::explicit::forward_backward;
        check(case, kind, written_down, &Device::flex(), TOLERANCE);
    }
}

#[test]
fn those_in_bf16_are_as_close_as_those_of_bitsandbytes() {
    for case in OVER_NF4 {
        for step in [step::forward_backward, step::explicit::forward_backward] {
            check_bf16(case, step, &Device::flex());
        }
    }
}

fn all() -> impl Iterator<Item = (&'static str, Kind)> {
    let cases = CASES.into_iter();
    cases.flat_map(|case| Kind::of(case).iter().map(move |&kind| (case, kind)))
}
