//! Products with a bf16 weight in AMX tiles, the weight read as it is stored.
//!
//! A tile of the weight has 16 rows of 32 values, wherever they lie in memory. `x` is rearranged into tiles of 16 pairs of
//! values along the inner dimension, each of 16 rows; sums come out with a row for each row of the weight, and are transposed
//! when they are complete.
//!
//! With three parts a value of `x` is the sum of three bf16, exactly, and so is a product with a bf16 weight: sums in f32 of
//! what other CPUs add up, too. Every sum takes its products in the same order, whatever else is computed beside it.

use std::arch::asm;
use std::arch::x86_64::*;

use super::Output;
use super::amx::{TILE_BYTES, TILE_ROWS};
use super::transpose::{transposed, transposed_floats};

/// Values of a row of a tile.
pub(in super::super) const STEP: usize = 32;

/// Sums of a tile.
pub(in super::super) const SUMS: usize = TILE_ROWS * TILE_ROWS;

/// Rows of `x` in so many bf16 each, as [`pack`] writes them: `steps * parts` tiles.
#[derive(Clone, Copy)]
pub(in super::super) struct Strip(pub(in super::super) *const u8);

/// Writes up to 16 rows of `x` as tiles, `[columns / STEP, parts]`; rows that are missing are zeros.
///
/// # Safety
///
/// [`super::amx::is_available`]; rows `stride` values apart have `columns`, a multiple of [`STEP`], and there is room.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in super::super) unsafe fn pack(
    x: *const f32,
    [num_rows, stride, columns]: [usize; 3],
    parts: usize,
    to: *mut u8,
) {
    let mut to = to.cast::<__m512i>();
    for column in (0..columns).step_by(STEP) {
        let mut low = [_mm512_setzero_ps(); TILE_ROWS];
        let mut high = low;
        for (row, (low, high)) in low.iter_mut().zip(&mut high).enumerate().take(num_rows) {
            // SAFETY: the row exists.
            unsafe {
                let x = x.add(row * stride + column);
                *low = _mm512_loadu_ps(x);
                *high = _mm512_loadu_ps(x.add(STEP / 2));
            }
        }
        for _ in 0..parts {
            let mut pairs = [_mm512_setzero_si512(); TILE_ROWS];
            for (pairs, (low, high)) in pairs.iter_mut().zip(low.iter_mut().zip(&mut high)) {
                let rounded = _mm512_cvtne2ps_pbh(*high, *low);
                // SAFETY: both are 64 bytes.
                *pairs = unsafe { std::mem::transmute::<__m512bh, __m512i>(rounded) };
                // What the rounded values lack is the next part.
                *low = _mm512_sub_ps(*low, widened(_mm512_castsi512_si256(*pairs)));
                *high = _mm512_sub_ps(*high, widened(_mm512_extracti64x4_epi64::<1>(*pairs)));
            }
            for row in transposed(pairs) {
                // SAFETY: a tile has 16 vectors.
                unsafe {
                    to.write_unaligned(row);
                    to = to.add(1);
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn widened(bf16: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bf16)))
}

/// Bytes of a row of a tile.
const ROW_BYTES: usize = TILE_BYTES / TILE_ROWS;

/// Copies a tile of rows of the weight, `row_bytes` apart, so that its tiles of `steps * STEP` values follow each other. Rows
/// of tiles that lie across two cache lines take twice as long to load.
///
/// # Safety
///
/// [`super::amx::is_available`]; the rows exist, and there is room.
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn copy_tiles(
    w: *const u8,
    row_bytes: usize,
    steps: usize,
    to: *mut u8,
) {
    for row in 0..TILE_ROWS {
        for step in 0..steps {
            // SAFETY: the caller's promise.
            unsafe {
                let from = w.add(row * row_bytes + step * ROW_BYTES);
                let to = to.add(step * TILE_BYTES + row * ROW_BYTES);
                _mm512_storeu_si512(to.cast(), _mm512_loadu_si512(from.cast()));
            }
        }
    }
}

/// Asks for the cache lines of `num` bytes; any address is allowed.
pub(in super::super) fn fetch(start: *const u8, num: usize) {
    for at in (0..num).step_by(64) {
        // SAFETY: nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at).cast()) };
    }
}

/// How far the products of [`multiply_wide`] and [`multiply_tall`] go.
#[derive(Clone, Copy)]
pub(in super::super) struct Extent {
    /// Tiles along the inner dimension, at least one.
    pub(in super::super) steps: usize,
    /// Parts of each value of `x`: one or three.
    pub(in super::super) parts: usize,
    /// Whether sums start at zero.
    pub(in super::super) first: bool,
}

/// Where two tiles of rows of a weight lie.
#[derive(Clone, Copy)]
pub(in super::super) struct Places {
    /// Of each the first value.
    pub(in super::super) starts: [*const u8; 2],
    /// Bytes from a row to the next.
    pub(in super::super) row_bytes: usize,
    /// Bytes from a tile to the next along the inner dimension.
    pub(in super::super) step_bytes: usize,
}

/// Two tiles of rows of the weight times two strips; `sums[i]` are those of strip `i`, a tile for each of the weight.
/// With each step a tile of memory is fetched, from `fetch` on: any address is allowed.
///
/// # Safety
///
/// Tiles are configured; the steps, and both tiles of sums, exist.
pub(in super::super) unsafe fn multiply_wide(
    w: Places,
    x: [Strip; 2],
    sums: [*mut f32; 2],
    extent: Extent,
    fetch: *const u8,
) {
    debug_assert!(extent.steps > 0 && extent.parts > 0);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "test {count:e}, {count:e}",
            "jz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{s0} + {stride}*1]",
            "tileloadd tmm1, [{s1} + {stride}*1]",
            "tileloadd tmm2, [{s0} + {stride}*1 + 1024]",
            "tileloadd tmm3, [{s1} + {stride}*1 + 1024]",
            "3:",
            "tileloadd tmm4, [{w0} + {w_stride}*1]",
            "tileloadd tmm5, [{w1} + {w_stride}*1]",
            "mov {count:e}, {parts:e}",
            "4:",
            "tileloadd tmm6, [{x0} + {stride}*1]",
            "tileloadd tmm7, [{x1} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "dec {count:e}",
            "jnz 4b",
            "prefetcht1 [{fetch}]",
            "prefetcht1 [{fetch} + 64]",
            "prefetcht1 [{fetch} + 128]",
            "prefetcht1 [{fetch} + 192]",
            "prefetcht1 [{fetch} + 256]",
            "prefetcht1 [{fetch} + 320]",
            "prefetcht1 [{fetch} + 384]",
            "prefetcht1 [{fetch} + 448]",
            "prefetcht1 [{fetch} + 512]",
            "prefetcht1 [{fetch} + 576]",
            "prefetcht1 [{fetch} + 640]",
            "prefetcht1 [{fetch} + 704]",
            "prefetcht1 [{fetch} + 768]",
            "prefetcht1 [{fetch} + 832]",
            "prefetcht1 [{fetch} + 896]",
            "prefetcht1 [{fetch} + 960]",
            "add {fetch}, 1024",
            "add {w0}, {w_step}",
            "add {w1}, {w_step}",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{s0} + {stride}*1], tmm0",
            "tilestored [{s1} + {stride}*1], tmm1",
            "tilestored [{s0} + {stride}*1 + 1024], tmm2",
            "tilestored [{s1} + {stride}*1 + 1024], tmm3",
            // First whether there are no sums yet.
            count = inout(reg) u32::from(extent.first) => _,
            w0 = inout(reg) w.starts[0] => _,
            w1 = inout(reg) w.starts[1] => _,
            w_stride = in(reg) w.row_bytes,
            w_step = in(reg) w.step_bytes,
            x0 = inout(reg) x[0].0 => _,
            x1 = inout(reg) x[1].0 => _,
            s0 = in(reg) sums[0],
            s1 = in(reg) sums[1],
            stride = in(reg) ROW_BYTES,
            fetch = inout(reg) fetch => _,
            steps = inout(reg) extent.steps => _,
            parts = in(reg) extent.parts,
            options(nostack),
        );
    }
}

/// Two tiles of rows of the weight times a strip, with two tiles of sums.
///
/// # Safety
///
/// As for [`multiply_wide`].
pub(in super::super) unsafe fn multiply_tall(w: Places, x: Strip, sums: *mut f32, extent: Extent) {
    debug_assert!(extent.steps > 0 && matches!(extent.parts, 1 | 3));
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "test {first:e}, {first:e}",
            "jz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{sums} + {stride}*1]",
            "tileloadd tmm1, [{sums} + {stride}*1 + 1024]",
            "3:",
            "tileloadd tmm2, [{w0} + {w_stride}*1]",
            "tileloadd tmm3, [{w1} + {w_stride}*1]",
            "tileloadd tmm4, [{x} + {stride}*1]",
            "tdpbf16ps tmm0, tmm2, tmm4",
            "tdpbf16ps tmm1, tmm3, tmm4",
            "cmp {parts:e}, 1",
            "je 4f",
            "tileloadd tmm5, [{x} + {stride}*1 + 1024]",
            "tdpbf16ps tmm0, tmm2, tmm5",
            "tdpbf16ps tmm1, tmm3, tmm5",
            "tileloadd tmm6, [{x} + {stride}*1 + 2048]",
            "tdpbf16ps tmm0, tmm2, tmm6",
            "tdpbf16ps tmm1, tmm3, tmm6",
            "add {x}, 2048",
            "4:",
            "add {x}, 1024",
            "add {w0}, {w_step}",
            "add {w1}, {w_step}",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{sums} + {stride}*1], tmm0",
            "tilestored [{sums} + {stride}*1 + 1024], tmm1",
            first = in(reg) u32::from(extent.first),
            w0 = inout(reg) w.starts[0] => _,
            w1 = inout(reg) w.starts[1] => _,
            w_stride = in(reg) w.row_bytes,
            w_step = in(reg) w.step_bytes,
            x = inout(reg) x.0 => _,
            sums = in(reg) sums,
            stride = in(reg) ROW_BYTES,
            steps = inout(reg) extent.steps => _,
            parts = in(reg) extent.parts,
            options(nostack),
        );
    }
}

/// Writes a tile of sums: `rows` rows of `x`, `columns` rows of the weight.
///
/// # Safety
///
/// [`super::amx::is_available`]; rows and columns of `y` exist.
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn store(sums: *const f32, y: Output, shape: [usize; 2]) {
    // SAFETY: the caller's promise.
    unsafe { store_transposed(load(sums), y, shape) }
}

/// The same for `silu(gate) * up` of a tile of each, one after the other.
///
/// # Safety
///
/// As for [`store`].
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn store_gated(sums: *const f32, y: Output, shape: [usize; 2]) {
    // SAFETY: the caller's promise; the second tile follows the first.
    unsafe {
        let mut values = load(sums);
        for (value, up) in values.iter_mut().zip(load(sums.add(SUMS))) {
            let one = _mm512_set1_ps(1.0);
            let divisor = _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), *value)));
            *value = _mm512_mul_ps(_mm512_div_ps(*value, divisor), up);
        }
        store_transposed(values, y, shape);
    }
}

/// A tile of sums.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load(sums: *const f32) -> [__m512; TILE_ROWS] {
    let mut values = [_mm512_setzero_ps(); TILE_ROWS];
    for (row, values) in values.iter_mut().enumerate() {
        // SAFETY: a tile has 16 vectors.
        *values = unsafe { _mm512_loadu_ps(sums.add(row * TILE_ROWS)) };
    }
    values
}

#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store_transposed(values: [__m512; TILE_ROWS], y: Output, [rows, columns]: [usize; 2]) {
    let mask = (u32::MAX >> (32 - columns)) as u16;
    for (row, values) in transposed_floats(values).into_iter().enumerate().take(rows) {
        // SAFETY: so many columns of `y` exist.
        unsafe { _mm512_mask_storeu_ps(y.at(row, 0).start, mask, values) };
    }
}

/// `e^x` within some units in the last place; what is beyond `±128` counts as that.
#[target_feature(enable = "avx512f")]
#[inline]
fn exp(x: __m512) -> __m512 {
    // As 2^n e^r with |r| <= ln(2) / 2, and a series for e^r; 2^n is 0 or infinite where e^x is. What isn't a number stays so, as
    // the second argument.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    let x = _mm512_max_ps(_mm512_set1_ps(-128.0), x);
    let x = _mm512_min_ps(_mm512_set1_ps(128.0), x);
    let n = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
    let n = _mm512_roundscale_ps::<NEAREST>(n);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
    let mut sum = _mm512_set1_ps(1.0 / 5040.0);
    for factor in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(factor));
    }
    _mm512_scalef_ps(sum, n)
}
