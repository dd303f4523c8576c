//! aarch64 with NEON.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::micro::kernel_table;
use super::{Kernels, Simd};

kernel_table!(
    /// 128-bit vectors.
    KERNELS, kernels, Neon, "neon", 6, 4
);

pub(super) struct Neon;

// SAFETY (all functions): the caller vouches for the instruction set and the pointers, see `Simd`.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Neon {
    type Vector = float32x4_t;
    type Table = [f32; 16];
    const LANES: usize = 4;
    const DOT_ROWS: usize = 6;
    const NF4_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> float32x4_t {
        unsafe {
            let values = from.cast::<[f16; 4]>().read_unaligned().map(f16::to_f32);
            vld1q_f32(values.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: float32x4_t) {
        unsafe { vst1q_f32(to, value) }
    }

    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [float32x4_t; 4]) -> [f32; 4] {
        unsafe {
            let sums = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
            std::mem::transmute::<float32x4_t, [f32; 4]>(sums)
        }
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
        std::array::from_fn(|i| table[i].mul_add(factor, offsets[i]))
    }

    #[inline(always)]
    unsafe fn lookup(table: [f32; 16], bytes: *const u8) -> (float32x4_t, float32x4_t) {
        unsafe {
            let bytes = bytes.cast::<[u8; 4]>().read_unaligned();
            let high = bytes.map(|byte| table[usize::from(byte >> 4)]);
            let low = bytes.map(|byte| table[usize::from(byte & 15)]);
            (vld1q_f32(high.as_ptr()), vld1q_f32(low.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn interleave(a: float32x4_t, b: float32x4_t) -> (float32x4_t, float32x4_t) {
        unsafe { (vzip1q_f32(a, b), vzip2q_f32(a, b)) }
    }
}
