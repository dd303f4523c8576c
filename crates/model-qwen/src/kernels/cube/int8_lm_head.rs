//! The most likely token of a few rows without reading all of lm_head, as [`lora_4bit::row_bounds`] does it on a CPU.
//!
//! An int8 copy of lm_head gives each logit up to an error that is known. Only the rows of lm_head that can have the
//! largest logit are then multiplied as they are: by Cauchy and Schwarz the difference between a row and its copy, times `x`,
//! is at most the product of both lengths.

mod kernels;

use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::abilities::has_plane_operations;
use super::choose::argmax_of_parts;
use kernels::{Kind, PART, ROWS};
use lora_4bit::kernels::launch::{UNITS, empty};

/// Rows of `x`, at most: with more, reading all of lm_head costs less.
pub(in crate::kernels) const MAX_ROWS: usize = 4;
/// Codes of a load.
const CODES: usize = 16;
/// Values of a row in the registers of a cube.
const MAX_HIDDEN: usize = 8192;
/// Loads of each of them that are in flight together, at most.
const MAX_UNROLL: usize = 3;

/// Whether lm_head of this shape and type can be copied.
pub(super) fn supports([vocab, hidden]: [usize; 2], dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
        && hidden.is_multiple_of(CODES)
        && (1..=MAX_HIDDEN).contains(&hidden)
        && vocab > 0
}

/// Whether lm_head `[vocab, hidden]` can be copied, and the copy used.
pub(in crate::kernels) fn can_copy(weight: &Tensor<2>) -> bool {
    supports(weight.dims(), weight.dtype()) && has_plane_operations(&weight.device())
}

/// The same matrix with each row in one piece.
fn in_rows(weight: CubeTensor) -> CubeTensor {
    match weight.meta.is_tiled() || weight.meta.strides()[1] != 1 {
        true => into_contiguous(weight),
        false => weight,
    }
}

/// A copy of `weight [vocab, hidden]` in signed bytes, four in a word, and for each row four numbers: what its bytes are
/// multiplied with, the length of the difference to its copy with what rounding may add, at most the length of its copy, and zero.
pub(super) fn copy(weight: CubeTensor) -> (CubeTensor, CubeTensor) {
    let weight = in_rows(weight);
    let [vocab, hidden] = weight.meta.shape().dims();
    let codes = empty(&weight, [vocab * hidden / 4], DType::I32);
    let factors = empty(&weight, [vocab * 4], DType::F32);
    let (stride, dtype) = (weight.meta.strides()[0], dtype_to_elem_type(weight.dtype));
    let columns = vocab.div_ceil(65_535);
    // SAFETY: a cube for each row, which has `hidden` values; further cubes end at once.
    unsafe {
        kernels::copy_rows::launch_unchecked(
            &weight.client.clone(),
            CubeCount::Static(vocab.div_ceil(columns) as u32, columns as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            weight.into_buffer_arg(),
            codes.clone().into_buffer_arg(),
            factors.clone().into_buffer_arg(),
            vocab,
            hidden,
            stride,
            dtype,
        );
    }
    (codes, factors)
}

/// The token with the largest logit of `norm(x) · weightᵀ` for each row of `x [rows, hidden]`, also written to `chosen`.
pub(super) fn argmax(
    x: CubeTensor,
    (norm, eps): (CubeTensor, f32),
    weight: CubeTensor,
    (codes, factors): (CubeTensor, CubeTensor),
    chosen: CubeTensor,
) -> CubeTensor {
    let (x, norm, weight) = (into_contiguous(x), into_contiguous(norm), in_rows(weight));
    let ([rows, hidden], vocab) = (x.meta.shape().dims(), weight.meta.shape()[0]);
    let stride = weight.meta.strides()[0];
    assert!((1..=MAX_ROWS).contains(&rows), "{rows} rows");
    let (client, dtype) = (x.client.clone(), dtype_to_elem_type(weight.dtype));
    let hardware = &client.properties().hardware;
    let lanes = hardware.plane_size_max as usize;
    let blocks = hidden / CODES;
    let loads = blocks.div_ceil(lanes);
    // As few rounds as the registers allow, all alike.
    let unroll = loads.div_ceil(loads.div_ceil(MAX_UNROLL));
    let kind = Kind {
        m: rows,
        unroll,
        is_ragged: !blocks.is_multiple_of(lanes * unroll),
    };
    let vector = client
        .io_optimized_vector_sizes(weight.dtype.size())
        .filter(|size| hidden.is_multiple_of(*size) && stride.is_multiple_of(*size))
        .max()
        .unwrap_or(1);
    let parts = vocab.div_ceil(PART);
    let normed = empty(&x, [rows, hidden], DType::F32);
    let ints = empty(&x, [rows * hidden / 2], DType::I32);
    let ranges = empty(&x, [rows * 4], DType::F32);
    let least = empty(&x, [rows], DType::U32);
    let uppers = empty(&x, [rows * vocab], DType::F32);
    let values = empty(&x, [rows, parts], DType::F32);
    let ids = empty(&x, [rows, parts], DType::I32);
    let cubes = vocab.div_ceil(UNITS / lanes * ROWS);
    // SAFETY: rows and loads past the last ones are clamped to them, and a list holds as many rows as a part.
    unsafe {
        kernels::split_rows::launch_unchecked(
            &client,
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            x.into_buffer_arg(),
            norm.into_buffer_arg(),
            normed.clone().into_buffer_arg(),
            ints.clone().into_buffer_arg(),
            ranges.clone().into_buffer_arg(),
            least.clone().into_buffer_arg(),
            hidden as f32,
            eps,
            hidden / 4,
        );
        kernels::bound_rows::launch_unchecked(
            &client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            codes.into_buffer_arg(),
            factors.into_buffer_arg(),
            ints.into_buffer_arg(),
            ranges.into_buffer_arg(),
            uppers.clone().into_buffer_arg(),
            least.clone().into_buffer_arg(),
            vocab,
            blocks,
            kind,
        );
        kernels::exact_rows::launch_unchecked(
            &client,
            CubeCount::Static(parts as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            vector,
            normed.into_buffer_arg(),
            weight.into_buffer_arg(),
            uppers.into_buffer_arg(),
            least.into_buffer_arg(),
            values.clone().into_buffer_arg(),
            ids.clone().into_buffer_arg(),
            vocab,
            hidden / vector,
            stride / vector,
            dtype,
        );
    }
    argmax_of_parts(values, ids, chosen)
}
