//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU), outside of autodiff graphs.

// For the launches of kernels, which index without checks.
#![allow(unsafe_code)]

pub(super) mod abilities;
mod change;
pub(super) mod choose;
mod cross_entropy;
mod draw;
pub(super) mod int8_lm_head;
mod mask;
pub(super) mod read;
mod units;

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::DType;
#[cfg(test)]
use burn::tensor::Device;
use burn_cubecl::kernel::into_contiguous;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::choice::GpuChoiceOps;
use super::gpu::{DeviceModelOps, LossOps};
use lora_4bit::kernels::launch::{UNITS, cubes, empty};
use read::PendingWords;

impl LossOps for Cube {
    fn gpu_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cross_entropy::cross_entropy(logits, targets, scale)
    }
}

impl DeviceModelOps for Cube {
    fn device_begin(
        weight: FloatTensor<Self>,
        step: IntTensor<Self>,
        chosen: IntTensor<Self>,
        inputs: IntTensor<Self>,
        inv_freq: FloatTensor<Self>,
        tokens_at: usize,
        positions_at: usize,
        rows: usize,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let weight = into_contiguous(weight);
        let ([_, hidden], [half]) = (weight.meta.shape().dims(), inv_freq.meta.shape().dims());
        let x = empty(&weight, [rows, hidden], DType::F32);
        let angles = || empty(&inv_freq, [rows, 1, half], DType::F32);
        let (cos, sin) = (angles(), angles());
        let dtype = dtype_to_elem_type(weight.dtype);
        // SAFETY: units stay below the numbers of elements; tokens are below the size of the vocabulary; `inputs` has as many
        // elements as there are rows.
        unsafe {
            begin::launch_unchecked(
                &weight.client.clone(),
                cubes(rows * hidden.max(half)),
                CubeDim::new_1d(UNITS as u32),
                weight.into_buffer_arg(),
                step.into_buffer_arg(),
                chosen.into_buffer_arg(),
                inputs.into_buffer_arg(),
                inv_freq.into_buffer_arg(),
                x.clone().into_buffer_arg(),
                cos.clone().into_buffer_arg(),
                sin.clone().into_buffer_arg(),
                rows,
                hidden,
                half,
                tokens_at,
                positions_at,
                scale,
                dtype,
            );
        }
        (x, cos, sin)
    }

    fn device_angles(
        positions: IntTensor<Self>,
        inv_freq: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let ([rows], [half]) = (positions.meta.shape().dims(), inv_freq.meta.shape().dims());
        let angles = || empty(&inv_freq, [rows, 1, half], DType::F32);
        let (cos, sin) = (angles(), angles());
        if rows * half > 0 {
            // SAFETY: units stay below the number of elements.
            unsafe {
                angles_of_positions::launch_unchecked(
                    &inv_freq.client.clone(),
                    cubes(rows * half),
                    CubeDim::new_1d(UNITS as u32),
                    positions.into_buffer_arg(),
                    inv_freq.into_buffer_arg(),
                    cos.clone().into_buffer_arg(),
                    sin.clone().into_buffer_arg(),
                    rows * half,
                    half,
                    scale,
                );
            }
        }
        (cos, sin)
    }
}

impl GpuChoiceOps for Cube {
    fn gpu_argmax(logits: FloatTensor<Self>) -> IntTensor<Self> {
        let rows = logits.meta.shape()[0];
        let chosen = empty(&logits, [rows], DType::I32);
        Self::gpu_choose(logits, chosen)
    }

    fn gpu_read_ids(ids: IntTensor<Self>) -> PendingWords {
        PendingWords::new(into_contiguous(ids))
    }

    fn gpu_read_logits(logits: FloatTensor<Self>) -> PendingWords {
        PendingWords::new(into_contiguous(logits))
    }

    fn gpu_choose(logits: FloatTensor<Self>, chosen: IntTensor<Self>) -> IntTensor<Self> {
        choose::argmax(logits, chosen)
    }

    fn gpu_copy_lm_head(weight: FloatTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>) {
        int8_lm_head::copy(weight)
    }

    fn gpu_choose_by_int8(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        eps: f64,
        head: FloatTensor<Self>,
        codes: IntTensor<Self>,
        factors: FloatTensor<Self>,
        chosen: IntTensor<Self>,
    ) -> IntTensor<Self> {
        int8_lm_head::argmax(x, (norm, eps as f32), head, (codes, factors), chosen)
    }

    fn gpu_top_logits(logits: FloatTensor<Self>, scales: IntTensor<Self>) -> PendingWords {
        let top = choose::top_logits(logits, into_contiguous(scales), 0);
        PendingWords::new(top.words)
    }

    fn gpu_mask(
        logits: FloatTensor<Self>,
        masks: IntTensor<Self>,
        entries: IntTensor<Self>,
        num: usize,
    ) -> FloatTensor<Self> {
        mask::mask(
            logits,
            into_contiguous(masks),
            into_contiguous(entries),
            num,
        )
    }

    fn gpu_store_masks(
        table: IntTensor<Self>,
        masks: IntTensor<Self>,
        num: usize,
        len: usize,
    ) -> IntTensor<Self> {
        mask::store_masks(table, into_contiguous(masks), num, len)
    }

    fn gpu_change(
        logits: FloatTensor<Self>,
        changes: IntTensor<Self>,
        inputs: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        change::change(logits, changes, inputs)
    }

    fn gpu_changed(
        logits: FloatTensor<Self>,
        changes: IntTensor<Self>,
        inputs: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        change::change(logits.copy(), changes, inputs)
    }

    fn gpu_draw(
        logits: FloatTensor<Self>,
        draws: IntTensor<Self>,
        at: usize,
        num_draws: usize,
        chosen: IntTensor<Self>,
    ) -> IntTensor<Self> {
        draw::draw(logits, draws, (at, num_draws), chosen)
    }
}

#[cube(launch_unchecked)]
fn angles_of_positions(
    positions: &[i32],
    inv_freq: &[f32],
    cos: &mut [f32],
    sin: &mut [f32],
    len: usize,
    half: usize,
    scale: f32,
) {
    if ABSOLUTE_POS < len {
        let angle = positions[ABSOLUTE_POS / half] as f32 * inv_freq[ABSOLUTE_POS % half];
        cos[ABSOLUTE_POS] = angle.cos() * scale;
        sin[ABSOLUTE_POS] = angle.sin() * scale;
    }
}

#[cube(launch_unchecked)]
fn begin<E: Float>(
    weight: &[E],
    step: &[i32],
    chosen: &[i32],
    inputs: &mut [i32],
    inv_freq: &[f32],
    x: &mut [f32],
    cos: &mut [f32],
    sin: &mut [f32],
    rows: usize,
    hidden: usize,
    half: usize,
    tokens_at: usize,
    positions_at: usize,
    scale: f32,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < rows * hidden {
        let mut id = step[tokens_at + ABSOLUTE_POS / hidden];
        if id < 0i32 {
            id = chosen[(-1i32 - id) as usize];
        }
        if ABSOLUTE_POS % hidden == 0 {
            inputs[ABSOLUTE_POS / hidden] = id;
        }
        let id = id as usize;
        x[ABSOLUTE_POS] = f32::cast_from(weight[id * hidden + ABSOLUTE_POS % hidden]);
    }
    if ABSOLUTE_POS < rows * half {
        let position = step[positions_at + ABSOLUTE_POS / half] as f32;
        let angle = position * inv_freq[ABSOLUTE_POS % half];
        cos[ABSOLUTE_POS] = angle.cos() * scale;
        sin[ABSOLUTE_POS] = angle.sin() * scale;
    }
}

/// The first GPU that is compiled in.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) fn first_gpu() -> Device {
    let name = if cfg!(feature = "cuda") {
        "cuda"
    } else {
        "wgpu"
    };
    crate::parse_device(name).unwrap()
}
