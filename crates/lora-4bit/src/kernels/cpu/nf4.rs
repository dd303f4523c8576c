//! An NF4 weight in host memory: scales and values of any range of blocks.

use std::ops::Range;

use burn::backend::flex::FlexTensor;

use super::simd::{DoubleScales, Kernels, Nf4Rows, Order, Scales};
use crate::kernels::operand::{AbsmaxOperand, Nf4Operand};
use crate::nf4::{BLOCK_SIZE, NESTED_BLOCK_SIZE};

impl<'a> Nf4Rows<'a> {
    /// The whole weight; `None` if a tensor isn't contiguous or has another type than on upload.
    pub(super) fn new(w: &'a Nf4Operand<burn::backend::Flex>) -> Option<Self> {
        let floats = |tensor: &'a FlexTensor| tensor.as_slice::<f32>();
        let scales = match &w.absmax {
            AbsmaxOperand::Single(absmax) => Scales::Single(floats(absmax)?),
            AbsmaxOperand::Double {
                codes,
                map,
                nested_absmax,
                offset,
            } => Scales::Double(DoubleScales {
                codes: codes.as_slice::<u8>()?,
                map: floats(map)?.try_into().ok()?,
                nested: floats(nested_absmax)?,
                first: 0,
                offset: *offset,
            }),
        };
        Some(Self {
            packed: w.packed.as_slice::<u8>()?,
            map: floats(&w.quant_map)?.try_into().ok()?,
            scales,
        })
    }

    /// The scale of a block, in f32.
    fn scale(&self, block: usize) -> f32 {
        match self.scales {
            Scales::Single(scales) => scales[block],
            Scales::Double(double) => {
                let level = double.map[usize::from(double.codes[block])];
                level * double.nested[(double.first + block) / NESTED_BLOCK_SIZE] + double.offset
            }
        }
    }

    /// Some whole blocks.
    pub(super) fn blocks(&self, blocks: Range<usize>) -> Self {
        let packed = &self.packed[blocks.start * BLOCK_SIZE / 2..blocks.end * BLOCK_SIZE / 2];
        let scales = match self.scales {
            Scales::Single(scales) => Scales::Single(&scales[blocks]),
            Scales::Double(double) => {
                assert!(double.first + blocks.end <= double.nested.len() * NESTED_BLOCK_SIZE);
                Scales::Double(DoubleScales {
                    first: double.first + blocks.start,
                    codes: &double.codes[blocks],
                    ..double
                })
            }
        };
        Self {
            packed,
            scales,
            map: self.map,
        }
    }

    /// The values `range` of the flattened matrix, in f32.
    ///
    /// Whole blocks go through the kernel; the ends of the range are unpacked value by value.
    pub(super) fn unpack(
        &self,
        range: Range<usize>,
        order: Order,
        kernels: &Kernels,
        to: &mut [f32],
    ) {
        debug_assert!(to.len() == range.len());
        let first = range.start.div_ceil(BLOCK_SIZE);
        let last = range.end / BLOCK_SIZE;
        if first >= last {
            return self.unpack_each(range.start, to);
        }
        let (head, to) = to.split_at_mut(first * BLOCK_SIZE - range.start);
        let (body, tail) = to.split_at_mut((last - first) * BLOCK_SIZE);
        self.unpack_each(range.start, head);
        self.unpack_each(last * BLOCK_SIZE, tail);
        // SAFETY: `kernels` fits the CPU; the slices hold the same number of whole blocks.
        unsafe { (kernels.unpack)(self.blocks(first..last), order, body) }
    }

    fn unpack_each(&self, start: usize, to: &mut [f32]) {
        for (i, to) in (start..).zip(to) {
            let byte = self.packed[i / 2];
            let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
            *to = self.map[usize::from(code)] * self.scale(i / BLOCK_SIZE);
        }
    }
}
