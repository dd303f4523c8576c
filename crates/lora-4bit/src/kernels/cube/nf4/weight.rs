//! Weights in NF4 in kernels: their scales, their levels, and the kernel that dequantizes them.

use burn::backend::Cube;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::planes::UNITS;
use super::shape::{LANES, LANES_BITS, LOADS_PER_BLOCK};
use crate::kernels::operand::{AbsmaxOperand, Nf4Operand};
use crate::kernels::plan::CODES;
use crate::nf4::NESTED_BLOCK_SIZE;

/// The tensors of a weight.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Weight {
    /// 16 codes each.
    pub(super) packed: Box<[Vector<u32, Const<2>>]>,
    pub(super) levels: Box<[f32]>,
    /// Four codes of scales each.
    pub(super) codes: Box<[u32]>,
    pub(super) map: Box<[f32]>,
    pub(super) absmax: Box<[f32]>,
    pub(super) offset: f32,
}

/// Whether scales are double-quantized.
pub(super) fn is_double(weight: &Nf4Operand<Cube>) -> bool {
    matches!(weight.absmax, AbsmaxOperand::Double { .. })
}

/// The arguments of a weight, whose bytes [`Nf4Weight::from_data`](crate::Nf4Weight::from_data) uploads in words of four. What a weight lacks is another of its tensors, which the kernel doesn't read.
pub(super) fn launch(weight: &Nf4Operand<Cube>) -> WeightLaunch {
    let (codes, map, absmax, offset) = match &weight.absmax {
        AbsmaxOperand::Single(absmax) => (&weight.packed, &weight.quant_map, absmax, 0.0),
        AbsmaxOperand::Double {
            codes,
            map,
            nested_absmax,
            offset,
        } => (codes, map, nested_absmax, *offset),
    };
    let argument = |tensor: &CubeTensor| tensor.clone().into_buffer_arg();
    WeightLaunch::new(
        argument(&weight.packed),
        argument(&weight.quant_map),
        argument(codes),
        argument(map),
        argument(absmax),
        offset,
    )
}

/// The arguments of three weights; the first one stands for a missing one.
pub(super) fn launch_three(weights: &[Nf4Operand<Cube>]) -> [WeightLaunch; 3] {
    std::array::from_fn(|i| launch(weights.get(i).unwrap_or(&weights[0])))
}

#[cube(launch_unchecked)]
pub(super) fn dequantize<W: Float>(
    weight: &Weight,
    w: &mut [Vector<W, Const<4>>],
    loads: usize,
    at: usize,
    #[comptime] is_double: bool,
    #[define(W)] _dtype: ElemType,
) {
    let mut table = Shared::<[f32]>::new_slice(comptime!(16 * LANES));
    fill(&mut table, &weight.levels);
    sync_cube();
    if ABSOLUTE_POS < loads {
        let scale = weight.scale(ABSOLUTE_POS / LOADS_PER_BLOCK, is_double);
        #[unroll]
        for i in 0..comptime!(CODES / 4) {
            let values = decode(weight.packed[ABSOLUTE_POS], &table, i);
            w[at + ABSOLUTE_POS * comptime!(CODES / 4) + i] =
                Vector::cast_from(values * Vector::new(scale));
        }
    }
}

#[cube]
impl Weight {
    /// The scale of a block.
    pub(super) fn scale(&self, block: usize, #[comptime] is_double: bool) -> f32 {
        if comptime!(is_double) {
            let code = (self.codes[block / 4] >> ((block % 4) as u32 * 8u32)) & 255u32;
            self.map[code as usize] * self.absmax[block / NESTED_BLOCK_SIZE] + self.offset
        } else {
            self.absmax[block]
        }
    }
}

/// Writes the level of each code, once for each unit of a plane.
#[cube]
pub(super) fn fill(table: &mut Shared<[f32]>, levels: &[f32]) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(16 * LANES) {
        table[i] = levels[i / LANES];
        i += UNITS as usize;
    }
}

/// The levels of four codes of 16. In a byte, the first code is in the high bits.
#[cube]
pub(super) fn decode(
    packed: Vector<u32, Const<2>>,
    table: &Shared<[f32]>,
    #[comptime] four: usize,
) -> Vector<f32, Const<4>> {
    let lane = UNIT_POS % comptime!(LANES as u32);
    let word = packed.extract(comptime!(four / 2));
    let mut values = Vector::<f32, Const<4>>::new(0.0);
    #[unroll]
    for j in 0..4usize {
        let shift = comptime!((8 * (four % 2 * 2 + j / 2) + 4 * (1 - j % 2)) as u32);
        // `code * LANES + lane`: the code is moved to where it is multiplied already.
        let code = if comptime!(shift >= LANES_BITS) {
            word >> comptime!(shift - LANES_BITS)
        } else {
            word << comptime!(LANES_BITS - shift)
        };
        values.insert(
            j,
            table[((code & comptime!(15u32 << LANES_BITS)) | lane) as usize],
        );
    }
    values
}

/// 16 codes, so turned that those of the vector of `x` that is `turn` further come first.
#[cube]
pub(super) fn turned(packed: Vector<u32, Const<2>>, turn: usize) -> Vector<u32, Const<2>> {
    let is_far = turn >= 2;
    let low = select(is_far, packed.extract(1usize), packed.extract(0usize));
    let high = select(is_far, packed.extract(0usize), packed.extract(1usize));
    let is_odd = turn % 2 == 1;
    let mut result = Vector::<u32, Const<2>>::new(0u32);
    result.insert(
        0usize,
        select(is_odd, (low >> 16u32) | (high << 16u32), low),
    );
    result.insert(
        1usize,
        select(is_odd, (high >> 16u32) | (low << 16u32), high),
    );
    result
}
