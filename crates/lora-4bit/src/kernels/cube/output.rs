//! What becomes of the product with a weight, in kernels for up to three of them.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The bias and the result of a layer.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Output {
    /// `[rows]`, f32.
    pub(super) bias: Box<[f32]>,
    /// `[rows of x, rows]`, f32.
    pub(super) y: Box<[f32]>,
    /// Rows of the weight.
    pub(super) rows: usize,
}

/// The outputs of up to three layers, and what is added to the only one's result. Where a
/// kernel does not read an argument, another tensor stands in for it.
pub(super) struct Outputs {
    pub(super) launch: [OutputLaunch; 3],
    pub(super) residual: BufferArg,
    pub(super) has_bias: [bool; 3],
    pub(super) has_residual: bool,
}

impl Outputs {
    /// `results` `[rows of x, rows]`; one at least.
    pub(super) fn new(
        biases: &[Option<CubeTensor>],
        residual: Option<CubeTensor>,
        results: &[CubeTensor],
    ) -> Self {
        let other = || results[0].clone();
        let bias = |i: usize| biases.get(i).cloned().flatten();
        Self {
            has_bias: std::array::from_fn(|i| bias(i).is_some()),
            has_residual: residual.is_some(),
            launch: std::array::from_fn(|i| {
                let result = results.get(i);
                OutputLaunch::new(
                    bias(i)
                        .map_or_else(other, into_contiguous)
                        .into_buffer_arg(),
                    result.cloned().unwrap_or_else(other).into_buffer_arg(),
                    result.map_or(0, |y| y.meta.shape()[1]),
                )
            }),
            residual: residual
                .map_or_else(other, into_contiguous)
                .into_buffer_arg(),
        }
    }
}
