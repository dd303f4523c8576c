//! Plain Rust for every CPU; the compiler makes vector instructions of it where it can.

use half::{bf16, f16};

use super::{
    Element, InstructionSet, Kernels, Nf4Rows, Order, Output, Rows, Simd, dot as dot_loop, micro,
};

const LANES: usize = 8;

/// The loops without any special instruction.
pub(super) static KERNELS: Kernels = Kernels {
    instruction_set: InstructionSet::Portable,
    lanes: LANES,
    dot_f32: dot::<f32>,
    dot_bf16: dot::<bf16>,
    dot_f16: dot::<f16>,
    dot_nf4,
    widen_bf16: widen::<bf16>,
    widen_f16: widen::<f16>,
    unpack,
    outer,
};

// SAFETY (all functions): as in `micro`; no instruction set is needed.
unsafe fn dot<E: Element>(x: &[f32], w: &[E], k: usize, y: Output) {
    // SAFETY: forwarded.
    unsafe { dot_loop::dot::<Portable, E>(x, w, k, y) }
}

unsafe fn dot_nf4(x: &[f32], w: Nf4Rows<'_>, k: usize, y: Output) {
    // SAFETY: forwarded.
    unsafe { dot_loop::dot_nf4::<Portable>(x, w, k, y) }
}

unsafe fn widen<E: Element>(from: &[E], to: &mut [f32]) {
    // SAFETY: forwarded.
    unsafe { micro::widen::<Portable, E>(from, to) }
}

unsafe fn unpack(w: Nf4Rows<'_>, order: Order, to: &mut [f32]) {
    // SAFETY: forwarded.
    unsafe { micro::unpack::<Portable>(w, order, to) }
}

unsafe fn outer(dy: Rows<'_>, panel: Rows<'_>, y: Output, first: bool) {
    // SAFETY: forwarded.
    unsafe { micro::outer::<Portable, 3, 1>(dy, panel, y, first) }
}

struct Portable;

impl Simd for Portable {
    type Vector = [f32; LANES];
    type Table = [f32; 16];
    const LANES: usize = LANES;
    const DOT_ROWS: usize = 1;
    const NF4_ROWS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> [f32; LANES] {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; LANES] {
        // SAFETY: valid for `LANES` values.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> [f32; LANES] {
        // SAFETY: valid for `LANES` values.
        let values = unsafe { from.cast::<[bf16; LANES]>().read_unaligned() };
        values.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> [f32; LANES] {
        // SAFETY: valid for `LANES` values.
        let values = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        values.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: [f32; LANES]) {
        // SAFETY: valid for `LANES` values.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; LANES], b: [f32; LANES], mut c: [f32; LANES]) -> [f32; LANES] {
        for (c, (a, b)) in c.iter_mut().zip(a.into_iter().zip(b)) {
            *c += a * b;
        }
        c
    }

    #[inline(always)]
    unsafe fn sum4(vectors: [[f32; LANES]; 4]) -> [f32; 4] {
        vectors.map(|vector| vector.iter().sum())
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> [f32; 16] {
        *values
    }

    #[inline(always)]
    unsafe fn scale(table: [f32; 16], factor: f32) -> [f32; 16] {
        table.map(|value| value * factor)
    }

    #[inline(always)]
    unsafe fn scale_add(table: [f32; 16], a: f32, b: f32, offsets: [f32; 16]) -> [f32; 16] {
        let factor = a * b;
        std::array::from_fn(|i| table[i] * factor + offsets[i])
    }

    #[inline(always)]
    unsafe fn lookup(table: [f32; 16], bytes: *const u8) -> ([f32; LANES], [f32; LANES]) {
        // SAFETY: valid for `LANES` bytes.
        let bytes = unsafe { bytes.cast::<[u8; LANES]>().read_unaligned() };
        (
            bytes.map(|byte| table[usize::from(byte >> 4)]),
            bytes.map(|byte| table[usize::from(byte & 15)]),
        )
    }

    #[inline(always)]
    unsafe fn interleave(a: [f32; LANES], b: [f32; LANES]) -> ([f32; LANES], [f32; LANES]) {
        let at = |i: usize| [a, b][i % 2][i / 2];
        (
            std::array::from_fn(at),
            std::array::from_fn(|i| at(i + LANES)),
        )
    }
}
