//! Kernels that go through rows element by element; they run on every device.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::operands::Angles;
use super::super::rope::turn;
use crate::kernels::training::heads::HeadShape;

/// Elements of a vector: half a head holds a multiple of them.
pub(super) const WIDTH: usize = 4;

impl HeadShape {
    /// Units of a head: each has a vector of its first half and one of its second.
    pub(super) const fn lanes(&self) -> usize {
        self.head_dim / 2 / WIDTH
    }

    /// Heads of a cube of some 128 units.
    pub(super) const fn cube_heads(&self) -> usize {
        let heads = 128 / self.lanes();
        if heads == 0 { 1 } else { heads }
    }

    /// Units of a cube.
    pub(super) const fn units(&self) -> usize {
        self.cube_heads() * self.lanes()
    }

    /// Heads of a row: queries, keys and values.
    pub(super) const fn all(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }
}

/// Weights of the norms `[head_dim]` in vectors, and what is added to the means of squares.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Norms {
    pub(super) q: Box<[Vector<f32, Const<4>>]>,
    pub(super) k: Box<[Vector<f32, Const<4>>]>,
    pub(super) eps: f32,
}

/// Turns queries and keys in place; there are no norms.
#[cube(launch_unchecked)]
pub(super) fn turn_in_place<E: Float>(
    x: &mut [Vector<E, Const<4>>],
    angles: &Angles<Const<4>>,
    tokens: usize,
    direction: f32,
    #[comptime] shape: HeadShape,
    #[define(E)] _dtype: ElemType,
) {
    let lanes = comptime!(shape.lanes());
    let heads = comptime!(shape.heads + shape.kv_heads);
    let (head, lane) = (ABSOLUTE_POS / lanes, ABSOLUTE_POS % lanes);
    let (token, head) = (head / heads, head % heads);
    if token < tokens {
        let at = (token * comptime!(shape.all()) + head) * comptime!(2 * shape.lanes()) + lane;
        let cos = angles.cos[token * lanes + lane];
        let sin = angles.sin[token * lanes + lane] * Vector::new(direction);
        let (first, second) = turn(
            Vector::cast_from(x[at]),
            Vector::cast_from(x[at + lanes]),
            cos,
            sin,
        );
        x[at] = Vector::cast_from(first);
        x[at + lanes] = Vector::cast_from(second);
    }
}

/// Turns queries and keys after their norms; values are copied.
#[cube(launch_unchecked)]
pub(super) fn turn_heads<E: Float>(
    x: &[Vector<E, Const<4>>],
    norms: &Norms,
    angles: &Angles<Const<4>>,
    y: &mut [Vector<E, Const<4>>],
    tokens: usize,
    #[comptime] shape: HeadShape,
    #[define(E)] _dtype: ElemType,
) {
    let lanes = comptime!(shape.lanes());
    let all = comptime!(shape.all());
    let (row, lane) = (ABSOLUTE_POS / lanes, ABSOLUTE_POS % lanes);
    let is_row = row < tokens * all;
    // All units take part in the sums of their cube.
    let row = min(row, tokens * all - 1);
    let (token, head) = (row / all, row % all);
    let at = row * comptime!(2 * shape.lanes()) + lane;
    let mut first = Vector::<f32, Const<4>>::cast_from(x[at]);
    let mut second = Vector::<f32, Const<4>>::cast_from(x[at + lanes]);
    let inverse = inverse_rms(first, second, norms.eps, shape);
    if head < comptime!(shape.heads) {
        first *= norms.q[lane] * Vector::new(inverse);
        second *= norms.q[lane + lanes] * Vector::new(inverse);
    } else if head < comptime!(shape.heads + shape.kv_heads) {
        first *= norms.k[lane] * Vector::new(inverse);
        second *= norms.k[lane + lanes] * Vector::new(inverse);
    }
    if head < comptime!(shape.heads + shape.kv_heads) {
        let cos = angles.cos[token * lanes + lane];
        let sin = angles.sin[token * lanes + lane];
        let (a, b) = turn(first, second, cos, sin);
        first = a;
        second = b;
    }
    if is_row {
        y[at] = Vector::cast_from(first);
        y[at + lanes] = Vector::cast_from(second);
    }
}

/// The gradient of [`turn_heads`] with respect to `x`, from that of its result.
#[cube(launch_unchecked)]
pub(super) fn turn_heads_back<E: Float>(
    dy: &[Vector<E, Const<4>>],
    x: &[Vector<E, Const<4>>],
    norms: &Norms,
    angles: &Angles<Const<4>>,
    dx: &mut [Vector<E, Const<4>>],
    tokens: usize,
    #[comptime] shape: HeadShape,
    #[define(E)] _dtype: ElemType,
) {
    let lanes = comptime!(shape.lanes());
    let all = comptime!(shape.all());
    let (row, lane) = (ABSOLUTE_POS / lanes, ABSOLUTE_POS % lanes);
    let is_row = row < tokens * all;
    // All units take part in the sums of their cube.
    let row = min(row, tokens * all - 1);
    let (token, head) = (row / all, row % all);
    let at = row * comptime!(2 * shape.lanes()) + lane;
    let mut first = Vector::<f32, Const<4>>::cast_from(dy[at]);
    let mut second = Vector::<f32, Const<4>>::cast_from(dy[at + lanes]);
    if head < comptime!(shape.heads + shape.kv_heads) {
        let cos = angles.cos[token * lanes + lane];
        let sin = angles.sin[token * lanes + lane] * Vector::new(-1.0);
        let (a, b) = turn(first, second, cos, sin);
        first = a;
        second = b;
    }
    let a = Vector::<f32, Const<4>>::cast_from(x[at]);
    let b = Vector::<f32, Const<4>>::cast_from(x[at + lanes]);
    let inverse = inverse_rms(a, b, norms.eps, shape);
    let is_query = head < comptime!(shape.heads);
    let is_turned = head < comptime!(shape.heads + shape.kv_heads);
    if is_query {
        first *= norms.q[lane];
        second *= norms.q[lane + lanes];
    } else if is_turned {
        first *= norms.k[lane];
        second *= norms.k[lane + lanes];
    }
    let along = sum_of_head(first * a + second * b, shape);
    if is_turned {
        let drop = along * inverse * inverse * inverse / comptime!(shape.head_dim as f32);
        first = first * Vector::new(inverse) - a * Vector::new(drop);
        second = second * Vector::new(inverse) - b * Vector::new(drop);
    }
    if is_row {
        dx[at] = Vector::cast_from(first);
        dx[at + lanes] = Vector::cast_from(second);
    }
}

/// The inverse of the root of the mean square of a head, of which each unit has two vectors.
#[cube]
fn inverse_rms(
    first: Vector<f32, Const<4>>,
    second: Vector<f32, Const<4>>,
    eps: f32,
    #[comptime] shape: HeadShape,
) -> f32 {
    let sum = sum_of_head(first * first + second * second, shape);
    1.0 / (sum / comptime!(shape.head_dim as f32) + eps).sqrt()
}

/// The sum of the values of all units of a head.
#[cube]
fn sum_of_head(values: Vector<f32, Const<4>>, #[comptime] shape: HeadShape) -> f32 {
    let lanes = comptime!(shape.lanes());
    let mut sums = Shared::<[f32]>::new_slice(comptime!(shape.units()));
    let unit = UNIT_POS as usize;
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..WIDTH {
        sum += values.extract(i);
    }
    sums[unit] = sum;
    sync_cube();
    let first = unit / lanes * lanes;
    let mut total = 0.0f32;
    for i in 0..lanes {
        total += sums[first + i];
    }
    // The next sum may be in the same place.
    sync_cube();
    total
}

/// Elements to set.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Range {
    pub(super) first: usize,
    pub(super) num: usize,
}

/// Sets elements to zero.
#[cube(launch_unchecked)]
pub(super) fn clear<E: Float>(x: &mut [E], range: &Range, #[define(E)] _dtype: ElemType) {
    if ABSOLUTE_POS < range.num {
        x[range.first + ABSOLUTE_POS] = E::new(0.0);
    }
}
