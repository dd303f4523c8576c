//! Attention over block tables, one token at a time, by online softmax (FlashAttention-2, arXiv:2307.08691).
//!
//! A cube serves one token and one key/value head, that is, all query heads that share it: keys and values are read once
//! for the group. A long context is cut into parts, each with a cube of its own. Where the device lets cubes see each
//! other's writes, the one that ends last merges the parts; elsewhere a second kernel does.
//!
//! In a step of one token per sequence the same kernel first rotates queries and keys and writes keys and values to the
//! cache, which saves two launches.

pub(super) mod kernel;
pub(super) mod shape;

use burn::backend::Cube;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::shape::{Heads, LANES, MIN_PART, Merge, UNITS};
use super::super::device_ops::{Context, NewTokens};
use super::launch::{elem_type, empty};
use super::operands::{AnglesLaunch, KeysValuesLaunch, NewRowsLaunch, PartsLaunch, StepListLaunch};
use super::splits::{MAX_SPLITS, WANTED_CUBES, arrival_counters};

/// Attention of `q` `[tokens, heads, head_dim]`, which with `new` is rotated first: `[tokens, heads, head_dim]` of type
/// `dtype`.
pub(super) fn attend(
    q: CubeTensor,
    new: Option<NewTokens<Cube>>,
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
    let client = q.client.clone();
    let vector = client
        .io_optimized_vector_sizes(k.dtype.size())
        .filter(|size| head_dim.is_multiple_of(size * LANES as usize))
        .max()
        .unwrap_or(1);
    let splits = WANTED_CUBES
        .div_ceil(tokens * kv_heads)
        .min(context.max_len.div_ceil(MIN_PART))
        .clamp(1, MAX_SPLITS);
    let shape = Heads {
        kv_heads,
        group: heads / kv_heads,
        vectors: head_dim / vector,
        vector_bytes: vector * size_of::<f32>(),
        block_size: context.block_size,
        merge: match splits {
            1 => Merge::None,
            _ if client.features().device_memory_scope => Merge::InPlace,
            _ => Merge::Later,
        },
        is_step: new.is_some(),
    };
    // Where a kernel does not use an argument, `q` stands in for it.
    let (sums, stats) = match splits {
        1 => (q.clone(), q.clone()),
        _ => (
            empty(&q, [tokens, splits, heads, head_dim], DType::F32),
            empty(&q, [tokens, splits, heads, 2], DType::F32),
        ),
    };
    let [new_keys, new_values, cos, sin] = match new {
        Some(new) => [new.keys, new.values, new.cos, new.sin].map(into_contiguous),
        None => std::array::from_fn(|_| q.clone()),
    };
    let counters = match shape.merge {
        Merge::InPlace => arrival_counters(&q),
        _ => q.clone(),
    };
    let dtypes = [elem_type(&k), elem_type(&out)];
    let new_rows = NewRowsLaunch::new(
        KeysValuesLaunch::new(new_keys.into_buffer_arg(), new_values.into_buffer_arg()),
        AnglesLaunch::new(cos.into_buffer_arg(), sin.into_buffer_arg()),
    );
    let step = || StepListLaunch::new(context.indices.clone().into_buffer_arg(), tokens);
    let parts = [sums, stats, counters];
    // SAFETY: the wrapper has compared the shapes; a batch names only slots that exist and the tables of its tokens.
    unsafe {
        kernel::attend_token::launch_unchecked(
            &client,
            CubeCount::Static(tokens as u32, kv_heads as u32, splits as u32),
            CubeDim::new_1d(UNITS as u32),
            vector,
            q.into_buffer_arg(),
            KeysValuesLaunch::new(k.into_buffer_arg(), v.into_buffer_arg()),
            new_rows,
            step(),
            out.clone().into_buffer_arg(),
            parts_arg(&parts),
            1.0 / (head_dim as f32).sqrt(),
            shape,
            dtypes,
        );
        if shape.merge == Merge::Later {
            kernel::merge::launch_unchecked(
                &client,
                CubeCount::Static(tokens as u32, kv_heads as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                vector,
                parts_arg(&parts),
                step(),
                out.clone().into_buffer_arg(),
                splits,
                shape,
                dtypes[1],
            );
        }
    }
    out
}

/// Sums, statistics and counters of [`super::operands::Parts`], for a kernel whose vectors are `N`.
fn parts_arg<N: Size>(parts: &[CubeTensor; 3]) -> PartsLaunch<N> {
    let [sums, stats, arrived] = parts.each_ref().map(|part| part.clone().into_buffer_arg());
    PartsLaunch::new(sums, stats, arrived)
}
