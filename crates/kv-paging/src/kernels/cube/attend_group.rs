//! Attention over block tables on the tensor cores of NVIDIA's GPUs, for steps of one token per sequence.
//!
//! A cube serves one token, one key/value head and a part of the context. The query heads that share the key/value head
//! are the rows of an instruction, so that one fragment of keys serves all of them. The four planes of a cube take
//! different keys of a block; their sums are merged in shared memory. The cube that ends last merges the sums of the parts.

mod kernel;
mod load;
mod shape;

use burn::backend::Cube;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::shape::{Heads, STAGES, UNITS};
use super::super::device_ops::{Context, NewTokens};
use super::blocks::{Blocks, KEYS};
use super::launch::{elem_type, empty};
use super::operands::{AnglesLaunch, KeysValuesLaunch, NewRowsLaunch, PartsLaunch, StepListLaunch};
use super::splits::{MAX_SPLITS, WANTED_CUBES, arrival_counters};

/// Whether the device has what the kernel uses, and the kernel takes this cache and these heads.
pub(super) fn supports(q: &CubeTensor, k: &CubeTensor) -> bool {
    q.client.features().device_memory_scope && super::attend_tiles::supports(q, k)
}

/// See [`super::attend::attend`].
pub(super) fn attend(
    q: CubeTensor,
    new: NewTokens<Cube>,
    context: Context<Cube>,
    dtype: DType,
) -> CubeTensor {
    let q = into_contiguous(q);
    let (k, v) = (context.keys, context.values);
    let ([tokens, heads, head_dim], [_, kv_heads, _]) =
        (q.meta.shape().dims(), k.meta.shape().dims());
    let out = empty(&q, [tokens, heads, head_dim], dtype);
    if tokens == 0 {
        return out;
    }
    let splits = WANTED_CUBES
        .div_ceil(tokens * kv_heads)
        .min(context.max_len.div_ceil(KEYS))
        .clamp(1, MAX_SPLITS);
    let shape = Heads {
        group: heads / kv_heads,
        blocks: Blocks {
            kv_heads,
            head_dim,
            block_size: context.block_size,
            stages: STAGES,
        },
        is_split: splits > 1,
    };
    // Where the kernel does not use an argument, `q` stands in for it.
    let (sums, stats) = match splits {
        1 => (q.clone(), q.clone()),
        _ => (
            empty(&q, [tokens, splits, heads, head_dim], DType::F32),
            empty(&q, [tokens, splits, heads, 2], DType::F32),
        ),
    };
    let [new_keys, new_values, cos, sin] =
        [new.keys, new.values, new.cos, new.sin].map(into_contiguous);
    let dtypes = [elem_type(&k), elem_type(&out)];
    // SAFETY: the wrapper has compared the shapes; a step names only slots that exist and the tables of its tokens.
    unsafe {
        kernel::attend_group::launch_unchecked(
            &q.client.clone(),
            CubeCount::Static(tokens as u32, kv_heads as u32, splits as u32),
            CubeDim::new_1d(UNITS as u32),
            q.clone().into_buffer_arg(),
            KeysValuesLaunch::new(k.into_buffer_arg(), v.into_buffer_arg()),
            NewRowsLaunch::new(
                KeysValuesLaunch::new(new_keys.into_buffer_arg(), new_values.into_buffer_arg()),
                AnglesLaunch::new(cos.into_buffer_arg(), sin.into_buffer_arg()),
            ),
            StepListLaunch::new(context.indices.into_buffer_arg(), tokens),
            out.clone().into_buffer_arg(),
            PartsLaunch::new(
                sums.into_buffer_arg(),
                stats.into_buffer_arg(),
                arrival_counters(&q).into_buffer_arg(),
            ),
            1.0 / (head_dim as f32).sqrt(),
            shape,
            dtypes,
        );
    }
    out
}
