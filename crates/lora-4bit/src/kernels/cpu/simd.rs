//! Inner loops for each instruction set, chosen once at run time.
//!
//! The loops are written once, in `dot` and `micro`, over the vector operations of [`Simd`]; `x86`, `neon` and `portable` supply
//! these. [`Kernels`] is the table of the loops compiled for one instruction set; `supported` says which ones this CPU can run.
//!
//! Every product is accumulated in f32. The order of additions of one output depends on the instruction set and on `k`
//! only: not on the number of rows `m`, on the number of threads or on their timing. A row of a batch therefore has
//! bit for bit the result that it has alone, among those that are multiplied with the same loops: `tiles_amx` and `pairs` take
//! many rows only.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
pub(crate) mod bytes;
#[cfg(target_arch = "x86_64")]
mod bytes_amx;
mod dot;
mod instruction_set;
pub(super) mod ints;
mod micro;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(super) mod pairs;
#[cfg(target_arch = "x86_64")]
mod pairs_amx;
#[cfg(target_arch = "x86_64")]
mod pairs_x86;
mod portable;
pub(crate) mod split_row;
mod supported;
#[cfg(target_arch = "x86_64")]
pub(super) mod tiles_amx;
#[cfg(target_arch = "x86_64")]
mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use burn::tensor::DType;

use half::{bf16, f16};

pub(super) use self::instruction_set::InstructionSet;
use crate::nf4::NESTED_BLOCK_SIZE;

/// Columns of a panel of [`Kernels::outer`], and values of an NF4 block.
pub(super) const PANEL: usize = 64;

/// Vector operations of one instruction set.
///
/// # Safety
///
/// Every function requires that the CPU has the instruction set, and that pointers are valid for `LANES` elements.
pub(super) trait Simd {
    /// A vector of `LANES` f32.
    type Vector: Copy;
    /// A table of 16 f32.
    type Table: Copy;
    /// Values in a vector: 4, 8 or 16.
    const LANES: usize;
    /// Rows of `x` that fit into registers beside four rows of `w`, at most 6.
    const DOT_ROWS: usize;
    /// The same for NF4 rows, which need registers for their tables.
    const NF4_ROWS: usize;

    unsafe fn zero() -> Self::Vector;
    unsafe fn splat(value: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn load_bf16(from: *const bf16) -> Self::Vector;
    unsafe fn load_f16(from: *const f16) -> Self::Vector;
    /// Asks for a cache line that will be needed soon; any address is allowed.
    unsafe fn prefetch(address: *const u8);
    unsafe fn store(to: *mut f32, value: Self::Vector);
    /// `a * b + c`, rounded once where the instruction set can.
    unsafe fn fma(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The sums of the lanes of four vectors.
    unsafe fn sum4(vectors: [Self::Vector; 4]) -> [f32; 4];
    unsafe fn table(values: &[f32; 16]) -> Self::Table;
    /// All values of a table times `factor`.
    unsafe fn scale(table: Self::Table, factor: f32) -> Self::Table;
    /// `table * (a * b) + offsets`, value by value.
    unsafe fn scale_add(table: Self::Table, a: f32, b: f32, offsets: Self::Table) -> Self::Table;
    /// The table entries of the high and of the low four bits of `LANES` bytes.
    unsafe fn lookup(table: Self::Table, bytes: *const u8) -> (Self::Vector, Self::Vector);
    /// `a0 b0 a1 b1 ...`
    unsafe fn interleave(a: Self::Vector, b: Self::Vector) -> (Self::Vector, Self::Vector);
}

/// A type of dense weights.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// The type's name.
    const DTYPE: DType;
    const ZERO: Self;
    /// # Safety
    ///
    /// As for [`Simd`].
    unsafe fn load<S: Simd>(from: *const Self) -> S::Vector;
    fn to_f32(self) -> f32;
    /// The loop of `kernels` for this type.
    fn dot(kernels: &Kernels) -> DotKernel<Self>;
    /// The values as bf16, if that is this type.
    fn as_bf16(_values: &[Self]) -> Option<&[bf16]> {
        None
    }
    /// The loop of `kernels` for this type.
    fn widen(kernels: &Kernels) -> unsafe fn(&[Self], &mut [f32]);
}

/// Where a tile of results goes: row `i` starts at `start + i * stride`.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
}

// SAFETY: jobs that share an `Output` write disjoint columns of it.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// The part of the output that starts at a row and a column.
    ///
    /// # Safety
    ///
    /// Both exist.
    #[inline(always)]
    pub(super) unsafe fn at(self, row: usize, column: usize) -> Self {
        Self {
            // SAFETY: inside the output.
            start: unsafe { self.start.add(row * self.stride + column) },
            stride: self.stride,
        }
    }
}

/// `y = x · wᵀ` for `x [m, k]`, `w [n, k]` (lengths of the slices give `m` and `n`); argument `k` and `y`.
pub(super) type DotKernel<E> = unsafe fn(x: &[f32], w: &[E], k: usize, y: Output);

/// Rows of NF4 weights that start and end at block boundaries.
#[derive(Clone, Copy)]
pub(super) struct Nf4Rows<'a> {
    /// 32 bytes a block.
    pub(super) packed: &'a [u8],
    /// One scale a block.
    pub(super) scales: Scales<'a>,
    pub(super) map: &'a [f32; 16],
}

/// The scales of the blocks of [`Nf4Rows`].
#[derive(Clone, Copy)]
pub(super) enum Scales<'a> {
    /// One value a block.
    Single(&'a [f32]),
    /// Quantized themselves.
    Double(DoubleScales<'a>),
}

/// Scales in 8 bits: that of block `i` is `map[codes[i]] * nested[(first + i) / 256] + offset`.
#[derive(Clone, Copy)]
pub(super) struct DoubleScales<'a> {
    /// One a block.
    pub(super) codes: &'a [u8],
    pub(super) map: &'a [f32; 256],
    /// Those of the whole matrix.
    pub(super) nested: &'a [f32],
    /// Number of the first block in the matrix.
    pub(super) first: usize,
    pub(super) offset: f32,
}

/// Scales the levels of a block. Implemented for both kinds of [`Scales`], so that a loop is compiled for each.
pub(super) trait BlockScales: Copy {
    /// Number of blocks.
    fn len(&self) -> usize;
    /// What [`BlockScales::scaled`] needs of the levels besides themselves.
    ///
    /// # Safety
    ///
    /// As for [`Simd`].
    unsafe fn prepare<S: Simd>(&self, levels: S::Table) -> S::Table;
    /// The levels times the scale of a block.
    ///
    /// # Safety
    ///
    /// As for [`Simd`]; the block exists.
    unsafe fn scaled<S: Simd>(
        &self,
        levels: S::Table,
        prepared: S::Table,
        block: usize,
    ) -> S::Table;
}

impl BlockScales for &[f32] {
    #[inline(always)]
    fn len(&self) -> usize {
        <[f32]>::len(self)
    }

    #[inline(always)]
    unsafe fn prepare<S: Simd>(&self, levels: S::Table) -> S::Table {
        levels
    }

    #[inline(always)]
    unsafe fn scaled<S: Simd>(&self, levels: S::Table, _: S::Table, block: usize) -> S::Table {
        // SAFETY: forwarded.
        unsafe { S::scale(levels, *self.get_unchecked(block)) }
    }
}

impl BlockScales for DoubleScales<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.codes.len()
    }

    #[inline(always)]
    unsafe fn prepare<S: Simd>(&self, levels: S::Table) -> S::Table {
        // SAFETY: forwarded.
        unsafe { S::scale(levels, self.offset) }
    }

    #[inline(always)]
    unsafe fn scaled<S: Simd>(
        &self,
        levels: S::Table,
        prepared: S::Table,
        block: usize,
    ) -> S::Table {
        // SAFETY: the block exists in `codes`, and with it its group in `nested`.
        unsafe {
            let code = *self.codes.get_unchecked(block);
            let level = *self.map.get_unchecked(usize::from(code));
            let nested = (self.first + block) / NESTED_BLOCK_SIZE;
            S::scale_add(levels, level, *self.nested.get_unchecked(nested), prepared)
        }
    }
}

/// The order in which [`Kernels::unpack`] writes the values of an NF4 weight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// As in the matrix.
    Natural,
    /// In groups of `2 * lanes`: the values at even positions, then those at odd positions. This is how they come out
    /// of the bytes, without shuffling.
    Split,
}

/// The inner loops compiled for one instruction set.
pub(super) struct Kernels {
    pub(super) instruction_set: InstructionSet,
    /// Values in a vector.
    pub(super) lanes: usize,
    pub(super) dot_f32: DotKernel<f32>,
    pub(super) dot_bf16: DotKernel<bf16>,
    pub(super) dot_f16: DotKernel<f16>,
    /// As [`DotKernel`] for NF4 rows, `k` a multiple of 64, `x` in [`Order::Split`].
    pub(super) dot_nf4: unsafe fn(x: &[f32], w: Nf4Rows<'_>, k: usize, y: Output),
    pub(super) widen_bf16: unsafe fn(&[bf16], &mut [f32]),
    pub(super) widen_f16: unsafe fn(&[f16], &mut [f32]),
    /// Whole NF4 blocks to f32.
    pub(super) unpack: unsafe fn(w: Nf4Rows<'_>, order: Order, to: &mut [f32]),
    /// `y += dy · panel`: `dy [m, n]`, `panel [n, PANEL]`, both with a row stride, `y [m, PANEL]`. The flag: `y` starts at 0.
    pub(super) outer: unsafe fn(dy: Rows<'_>, panel: Rows<'_>, y: Output, first: bool),
}

/// A block of rows inside a matrix: row `i` is `values[i * stride..]`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) num_rows: usize,
}

/// Whether the CPU has AVX2 and FMA, within [`InstructionSet::limit`].
#[cfg(target_arch = "x86_64")]
pub(in super::super) fn has_avx2() -> bool {
    static HAS_AVX2: OnceLock<bool> = OnceLock::new();
    *HAS_AVX2.get_or_init(|| {
        InstructionSet::limit() >= InstructionSet::Avx2
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
    })
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: Self = 0.0;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::Vector {
        // SAFETY: forwarded.
        unsafe { S::load(from) }
    }

    fn to_f32(self) -> f32 {
        self
    }

    fn dot(kernels: &Kernels) -> DotKernel<Self> {
        kernels.dot_f32
    }

    fn widen(_kernels: &Kernels) -> unsafe fn(&[Self], &mut [f32]) {
        |from, to| to.copy_from_slice(from)
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::Vector {
        // SAFETY: forwarded.
        unsafe { S::load_bf16(from) }
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
        Some(values)
    }

    fn dot(kernels: &Kernels) -> DotKernel<Self> {
        kernels.dot_bf16
    }

    fn widen(kernels: &Kernels) -> unsafe fn(&[Self], &mut [f32]) {
        kernels.widen_bf16
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    const ZERO: Self = f16::ZERO;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::Vector {
        // SAFETY: forwarded.
        unsafe { S::load_f16(from) }
    }

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn dot(kernels: &Kernels) -> DotKernel<Self> {
        kernels.dot_f16
    }

    fn widen(kernels: &Kernels) -> unsafe fn(&[Self], &mut [f32]) {
        kernels.widen_f16
    }
}
