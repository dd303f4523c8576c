//! Rotary position embedding.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{cubes, empty};
use super::operands::{Angles, AnglesLaunch};

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
    let half = head_dim / 2;
    // Pairs that a unit turns: their first elements are a vector.
    let vector = if half.is_multiple_of(4) { 4 } else { 1 };
    let vectors = tokens * (heads + kv_heads) * half / vector;
    if vectors > 0 {
        // SAFETY: units stay below the number of vectors.
        unsafe {
            turn_pairs::launch_unchecked(
                &q.client.clone(),
                cubes(vectors, UNITS),
                CubeDim::new_1d(UNITS as u32),
                vector,
                HeadsLaunch::new(q.into_buffer_arg(), k.into_buffer_arg()),
                AnglesLaunch::new(cos.into_buffer_arg(), sin.into_buffer_arg()),
                HeadsLaunch::new(
                    q_out.clone().into_buffer_arg(),
                    k_out.clone().into_buffer_arg(),
                ),
                PairsLaunch::new(vectors, heads, kv_heads, half / vector),
            );
        }
    }
    (q_out, k_out)
}

/// Queries and keys of a step's tokens.
#[derive(CubeType, CubeLaunch)]
struct Heads<N: Size> {
    /// `[tokens, heads, head_dim]` in vectors.
    q: Box<[Vector<f32, N>]>,
    /// `[tokens, kv_heads, head_dim]` in vectors.
    k: Box<[Vector<f32, N>]>,
}

/// The numbers of pairs, in vectors of them.
#[derive(CubeType, CubeLaunch)]
struct Pairs {
    /// In all heads of all tokens.
    num: usize,
    /// Query heads of a token.
    heads: usize,
    /// Key heads of a token.
    kv_heads: usize,
    /// Of a head.
    half: usize,
}

/// A unit for each vector of pairs: a token's query heads come first, then its key heads.
#[cube(launch_unchecked)]
fn turn_pairs<N: Size>(x: &Heads<N>, angles: &Angles<N>, out: &mut Heads<N>, pairs: &Pairs) {
    let (heads, kv_heads, half) = (pairs.heads, pairs.kv_heads, pairs.half);
    if ABSOLUTE_POS < pairs.num {
        let (row, i) = (ABSOLUTE_POS / half, ABSOLUTE_POS % half);
        let (token, head) = (row / (heads + kv_heads), row % (heads + kv_heads));
        let (cos, sin) = (angles.cos[token * half + i], angles.sin[token * half + i]);
        if head < heads {
            let at = (token * heads + head) * 2 * half + i;
            let (first, second) = turn(x.q[at], x.q[at + half], cos, sin);
            out.q[at] = first;
            out.q[at + half] = second;
        } else {
            let at = (token * kv_heads + head - heads) * 2 * half + i;
            let (first, second) = turn(x.k[at], x.k[at + half], cos, sin);
            out.k[at] = first;
            out.k[at + half] = second;
        }
    }
}

/// Turns pairs by their angles. Every kernel that rotates calls this function.
#[cube]
pub(super) fn turn<N: Size>(
    first: Vector<f32, N>,
    second: Vector<f32, N>,
    cos: Vector<f32, N>,
    sin: Vector<f32, N>,
) -> (Vector<f32, N>, Vector<f32, N>) {
    (first * cos - second * sin, second * cos + first * sin)
}
