//! An NF4 weight in host memory: scales and values of any range of blocks.

use std::borrow::Cow;
use std::ops::Range;

use burn::backend::flex::FlexTensor;

use super::simd::{Kernels, Nf4Rows, Order};
use crate::kernels::{AbsmaxOperand, Nf4Operand};
use crate::nf4::{BLOCK_SIZE, NESTED_BLOCK_SIZE};

/// Slices of the tensors of an NF4 weight.
pub(super) struct Nf4Matrix<'a> {
    packed: &'a [u8],
    map: &'a [f32; 16],
    scales: Scales<'a>,
    /// Number of values, `n * k`.
    len: usize,
}

enum Scales<'a> {
    Single(&'a [f32]),
    Double(DoubleScales<'a>),
}

/// Scales in 8 bits.
struct DoubleScales<'a> {
    codes: &'a [u8],
    map: &'a [f32; 256],
    nested: &'a [f32],
    offset: f32,
}

impl DoubleScales<'_> {
    #[inline(always)]
    fn get(&self, block: usize) -> f32 {
        let level = self.map[usize::from(self.codes[block])];
        level * self.nested[block / NESTED_BLOCK_SIZE] + self.offset
    }
}

impl<'a> Nf4Matrix<'a> {
    /// Views the tensors; `None` if one isn't contiguous or has another type than on upload.
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
                offset: *offset,
            }),
        };
        Some(Self {
            packed: w.packed.as_slice::<u8>()?,
            map: floats(&w.quant_map)?.try_into().ok()?,
            scales,
            len: w.shape[0] * w.shape[1],
        })
    }

    /// The scale of a block, in f32.
    fn scale(&self, block: usize) -> f32 {
        match self.scales {
            Scales::Single(scales) => scales[block],
            Scales::Double(ref scales) => scales.get(block),
        }
    }

    /// The scales of some blocks, in f32.
    pub(super) fn scales(&self, blocks: Range<usize>) -> Cow<'a, [f32]> {
        match self.scales {
            Scales::Single(scales) => Cow::Borrowed(&scales[blocks]),
            Scales::Double(ref scales) => blocks.map(|block| scales.get(block)).collect(),
        }
    }

    /// Codes of some whole blocks, with their scales.
    pub(super) fn rows<'s>(&'s self, blocks: Range<usize>, scales: &'s [f32]) -> Nf4Rows<'s> {
        Nf4Rows {
            packed: &self.packed[blocks.start * BLOCK_SIZE / 2..blocks.end * BLOCK_SIZE / 2],
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
        debug_assert!(range.end <= self.len && to.len() == range.len());
        let first = range.start.div_ceil(BLOCK_SIZE);
        let last = range.end / BLOCK_SIZE;
        if first >= last {
            return self.unpack_each(range.start, to);
        }
        let (head, to) = to.split_at_mut(first * BLOCK_SIZE - range.start);
        let (body, tail) = to.split_at_mut((last - first) * BLOCK_SIZE);
        self.unpack_each(range.start, head);
        self.unpack_each(last * BLOCK_SIZE, tail);
        let one;
        let many;
        let scales = if last - first == 1 {
            one = [self.scale(first)];
            &one[..]
        } else {
            many = self.scales(first..last);
            &many[..]
        };
        // SAFETY: `kernels` fits the CPU; the slices hold the same number of whole blocks.
        unsafe { (kernels.unpack)(self.rows(first..last, scales), order, body) }
    }

    fn unpack_each(&self, start: usize, to: &mut [f32]) {
        for (i, to) in (start..).zip(to) {
            let byte = self.packed[i / 2];
            let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
            *to = self.map[usize::from(code)] * self.scale(i / BLOCK_SIZE);
        }
    }
}
