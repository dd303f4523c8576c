//! One launch for a parameter: AdamW, and sums of squares.

// `#[cube]` makes a module without a comment for each public function.
#![allow(missing_docs)]

use burn::backend::Cube;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::elementwise::sum_of_cube;
use super::launch::{UNITS, cubes};
use crate::kernels::optimizer::eight_bit::{BLOCK, LEVELS};
use crate::kernels::optimizer::{AdamWFactors, OptimizerOps, square_parts};

/// Codes in a word.
const WORD: usize = 4;
/// Words of a block, and units of a cube that computes one.
const WORDS: usize = BLOCK / WORD;

impl OptimizerOps for Cube {
    fn sum_of_squares(to: FloatTensor<Self>, x: FloatTensor<Self>, at: usize) -> FloatTensor<Self> {
        let x = into_contiguous(x);
        let len = x.meta.num_elements();
        // SAFETY: units stay below the number of values; the caller has made room for the parts.
        unsafe {
            squares_kernel::launch_unchecked(
                &x.client.clone(),
                CubeCount::Static(square_parts(len) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                x.into_buffer_arg(),
                to.clone().into_buffer_arg(),
                len,
                at,
            );
        }
        to
    }

    fn adamw(
        value: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        clip: FloatTensor<Self>,
        factors: AdamWFactors,
        is_shared: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let gradient = into_contiguous(gradient);
        let [value, mean, variance] = [value, mean, variance].map(|tensor| match is_shared {
            true => as_it_is(tensor),
            false => own(tensor),
        });
        let len = value.meta.num_elements();
        if len > 0 {
            // SAFETY: units stay below the number of values.
            unsafe {
                adamw_kernel::launch_unchecked(
                    &value.client.clone(),
                    cubes(len),
                    CubeDim::new_1d(UNITS as u32),
                    value.clone().into_buffer_arg(),
                    mean.clone().into_buffer_arg(),
                    variance.clone().into_buffer_arg(),
                    gradient.into_buffer_arg(),
                    clip.into_buffer_arg(),
                    len,
                    launched(factors),
                );
            }
        }
        (value, mean, variance)
    }

    fn add_in_place(to: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (to, x) = (as_it_is(to), into_contiguous(x));
        let len = to.meta.num_elements();
        if len > 0 {
            // SAFETY: units stay below the number of values.
            unsafe {
                add_kernel::launch_unchecked(
                    &to.client.clone(),
                    cubes(len),
                    CubeDim::new_1d(UNITS as u32),
                    to.clone().into_buffer_arg(),
                    x.into_buffer_arg(),
                    len,
                );
            }
        }
        to
    }

    fn clear(to: FloatTensor<Self>) -> FloatTensor<Self> {
        let to = as_it_is(to);
        let len = to.meta.num_elements();
        if len > 0 {
            // SAFETY: units stay below the number of values.
            unsafe {
                clear_kernel::launch_unchecked(
                    &to.client.clone(),
                    cubes(len),
                    CubeDim::new_1d(UNITS as u32),
                    to.clone().into_buffer_arg(),
                    len,
                );
            }
        }
        to
    }

    fn adamw_8bit(
        value: FloatTensor<Self>,
        codes: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        clip: FloatTensor<Self>,
        levels: FloatTensor<Self>,
        factors: AdamWFactors,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        let [value, codes, absmax] = [value, codes, absmax].map(own);
        let (gradient, levels) = (into_contiguous(gradient), into_contiguous(levels));
        let len = value.meta.num_elements();
        let blocks = len.div_ceil(BLOCK);
        if len > 0 {
            // SAFETY: a cube for each block; units stay below the number of values, and what a block has of codes and scales.
            unsafe {
                adamw_8bit_kernel::launch_unchecked(
                    &value.client.clone(),
                    cubes(blocks * UNITS),
                    CubeDim::new_1d(WORDS as u32),
                    value.clone().into_buffer_arg(),
                    codes.clone().into_buffer_arg(),
                    absmax.clone().into_buffer_arg(),
                    gradient.into_buffer_arg(),
                    clip.into_buffer_arg(),
                    levels.into_buffer_arg(),
                    len,
                    blocks,
                    launched(factors),
                );
            }
        }
        (value, codes, absmax)
    }
}

/// A tensor that is written whoever holds it, too.
fn as_it_is(tensor: CubeTensor) -> CubeTensor {
    // What is written to a copy would be lost.
    assert!(tensor.is_contiguous(), "a tensor without gaps");
    tensor
}

/// The tensor, or a copy of it where somebody else holds it, too.
fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() {
        tensor
    } else {
        tensor.copy()
    }
}

/// [`AdamWFactors`] in a kernel.
#[derive(CubeType, CubeLaunch)]
struct Factors {
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    correction: f32,
    eps: f32,
    rate: f32,
    decay: f32,
}

fn launched(factors: AdamWFactors) -> FactorsLaunch {
    let AdamWFactors {
        beta,
        rest,
        correction,
        eps,
        rate,
        decay,
    } = factors;
    FactorsLaunch::new(
        beta[0], beta[1], rest[0], rest[1], correction, eps, rate, decay,
    )
}

#[cube]
impl Factors {
    /// See [`AdamWFactors::step`]: the new mean and variance.
    fn moments(&self, mean: f32, variance: f32, gradient: f32) -> (f32, f32) {
        (
            mean * self.beta1 + gradient * self.rest1,
            variance * self.beta2 + gradient * gradient * self.rest2,
        )
    }

    /// The new value, from the new moments.
    fn value(&self, value: f32, mean: f32, variance: f32) -> f32 {
        value * self.decay - mean / (variance.sqrt() / self.correction + self.eps) * self.rate
    }
}

#[cube(launch_unchecked)]
fn squares_kernel(x: &[f32], y: &mut [f32], len: usize, first_part: usize) {
    let mut sum = 0.0f32;
    let mut at = ABSOLUTE_POS;
    while at < len {
        sum += x[at] * x[at];
        at += CUBE_COUNT * UNITS;
    }
    let sum = sum_of_cube(sum);
    if UNIT_POS == 0 {
        y[first_part + CUBE_POS] = sum;
    }
}

#[cube(launch_unchecked)]
fn add_kernel(to: &mut [f32], x: &[f32], len: usize) {
    let at = ABSOLUTE_POS;
    if at < len {
        to[at] += x[at];
    }
}

#[cube(launch_unchecked)]
fn clear_kernel(to: &mut [f32], len: usize) {
    let at = ABSOLUTE_POS;
    if at < len {
        to[at] = 0.0;
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn adamw_kernel(
    value: &mut [f32],
    mean: &mut [f32],
    variance: &mut [f32],
    gradient: &[f32],
    clip: &[f32],
    len: usize,
    factors: &Factors,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        let moments = factors.moments(mean[at], variance[at], gradient[at] * clip[0]);
        mean[at] = moments.0;
        variance[at] = moments.1;
        value[at] = factors.value(value[at], moments.0, moments.1);
    }
}

/// The largest of the units' values, of which none is negative.
#[cube]
fn max_of_units(value: f32) -> f32 {
    // A plane has at least four units.
    let mut parts = Shared::<[f32]>::new_slice(comptime!(WORDS / 4));
    let largest = plane_max(value);
    if UNIT_POS_PLANE == 0 {
        parts[(UNIT_POS / PLANE_DIM) as usize] = largest;
    }
    sync_cube();
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let mut largest = 0.0f32;
    for plane in 0..planes {
        largest = max(largest, parts[plane]);
    }
    largest
}

/// The code of the level nearest to `value`, of the lower one in the middle between two; `levels` from `first` on ascend.
#[cube]
fn nearest(levels: &[f32], first: usize, value: f32) -> u32 {
    let mut code = 0usize.runtime();
    let mut step = comptime!(LEVELS / 2).runtime();
    while step > 0 {
        let at = first + code + step;
        if 0.5f32 * (levels[at - 1] + levels[at]) < value {
            code += step;
        }
        step /= 2;
    }
    code as u32
}

/// A cube takes a block of [`BLOCK`] values, a unit [`WORD`] of them; `codes` and `absmax` have the means first, then the variances.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn adamw_8bit_kernel(
    value: &mut [f32],
    codes: &mut [u32],
    absmax: &mut [f32],
    gradient: &[f32],
    clip: &[f32],
    levels: &[f32],
    len: usize,
    blocks: usize,
    factors: &Factors,
) {
    // A cube past the last block would compute that one again, from what it has overwritten.
    if CUBE_POS < blocks {
        let word = CUBE_POS * WORDS + UNIT_POS as usize;
        let (mean_codes, variance_codes) = (codes[word], codes[blocks * WORDS + word]);
        let (mean_scale, variance_scale) = (absmax[CUBE_POS], absmax[blocks + CUBE_POS]);
        let mut means = Array::<f32>::new(WORD);
        let mut variances = Array::<f32>::new(WORD);
        let mut largest_mean = 0.0f32;
        let mut largest_variance = 0.0f32;
        #[unroll]
        for i in 0..WORD {
            let at = word * WORD + i;
            let shift = (8 * i) as u32;
            let mean_code = ((mean_codes >> shift) & 255) as usize;
            let variance_code = ((variance_codes >> shift) & 255) as usize;
            means[i] = 0.0;
            variances[i] = 0.0;
            if at < len {
                let mean = levels[mean_code] * mean_scale;
                let variance = levels[LEVELS + variance_code] * variance_scale;
                let moments = factors.moments(mean, variance, gradient[at] * clip[0]);
                means[i] = moments.0;
                variances[i] = moments.1;
                value[at] = factors.value(value[at], moments.0, moments.1);
            }
            largest_mean = max(largest_mean, means[i].abs());
            largest_variance = max(largest_variance, variances[i]);
        }
        let mut largest_mean = max_of_units(largest_mean);
        // All have read the first maximum before the second one's parts may take its memory.
        sync_cube();
        let mut largest_variance = max_of_units(largest_variance);
        if largest_mean == 0.0 {
            largest_mean = 1.0;
        }
        if largest_variance == 0.0 {
            largest_variance = 1.0;
        }
        let mut mean_codes = 0u32;
        let mut variance_codes = 0u32;
        #[unroll]
        for i in 0..WORD {
            let shift = (8 * i) as u32;
            mean_codes |= nearest(levels, 0, means[i] / largest_mean) << shift;
            variance_codes |= nearest(levels, LEVELS, variances[i] / largest_variance) << shift;
        }
        codes[word] = mean_codes;
        codes[blocks * WORDS + word] = variance_codes;
        if UNIT_POS == 0 {
            absmax[CUBE_POS] = largest_mean;
            absmax[blocks + CUBE_POS] = largest_variance;
        }
    }
}
