//! Rotary position embedding.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::empty;

/// Units of a cube.
const UNITS: usize = 256;

/// Turns `q` `[tokens, heads, head_dim]` and `k` `[tokens, kv_heads, head_dim]` by the angles of `cos` and `sin`
/// `[tokens, 1, head_dim / 2]`.
pub(super) fn apply_rope(
    q: CubeTensor,
    k: CubeTensor,
    cos: CubeTensor,
    sin: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let [q, k, cos, sin] = [q, k, cos, sin].map(into_contiguous);
    let ([tokens, heads, head_dim], [_, kv_heads, _]) =
        (q.meta.shape().dims(), k.meta.shape().dims());
    let [q_out, k_out] = [&q, &k].map(|x| empty(x, x.meta.shape().clone(), x.dtype));
    let pairs = tokens * (heads + kv_heads) * head_dim / 2;
    if pairs > 0 {
        // SAFETY: units stay below the number of pairs.
        unsafe {
            turn_pairs::launch_unchecked(
                &q.client.clone(),
                cubes(pairs),
                CubeDim::new_1d(UNITS as u32),
                q.into_buffer_arg(),
                k.into_buffer_arg(),
                cos.into_buffer_arg(),
                sin.into_buffer_arg(),
                q_out.clone().into_buffer_arg(),
                k_out.clone().into_buffer_arg(),
                pairs,
                heads,
                kv_heads,
                head_dim / 2,
            );
        }
    }
    (q_out, k_out)
}

/// Enough cubes for a unit each; two dimensions, since one holds 65,535 on some devices.
fn cubes(units: usize) -> CubeCount {
    let cubes = units.div_ceil(UNITS);
    let rows = cubes.div_ceil(65_535);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}

/// A unit for each pair: the heads of a token's queries, then those of its keys.
#[cube(launch_unchecked)]
fn turn_pairs(
    q: &[Vector<f32, Const<1>>],
    k: &[Vector<f32, Const<1>>],
    cos: &[Vector<f32, Const<1>>],
    sin: &[Vector<f32, Const<1>>],
    q_out: &mut [Vector<f32, Const<1>>],
    k_out: &mut [Vector<f32, Const<1>>],
    pairs: usize,
    heads: usize,
    kv_heads: usize,
    half: usize,
) {
    if ABSOLUTE_POS < pairs {
        let (row, i) = (ABSOLUTE_POS / half, ABSOLUTE_POS % half);
        let (token, head) = (row / (heads + kv_heads), row % (heads + kv_heads));
        let (cos, sin) = (cos[token * half + i], sin[token * half + i]);
        if head < heads {
            let at = (token * heads + head) * 2 * half + i;
            let (first, second) = turn(q[at], q[at + half], cos, sin);
            q_out[at] = first;
            q_out[at + half] = second;
        } else {
            let at = (token * kv_heads + head - heads) * 2 * half + i;
            let (first, second) = turn(k[at], k[at + half], cos, sin);
            k_out[at] = first;
            k_out[at + half] = second;
        }
    }
}

/// Turns pairs by their angles: the one place of the kernels that knows how.
#[cube]
pub(super) fn turn<N: Size>(
    first: Vector<f32, N>,
    second: Vector<f32, N>,
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
) -> (Vector<f32, N>, Vector<f32, N>) {
    (first * cos - second * sin, second * cos + first * sin)
}
