//! Products of rows of bytes with integers of 15 bits, on x86-64 with AMX.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::aligned::Aligned;
use super::amx::{TILE_BYTES, TILE_ROWS, Tiles};
use super::split_row::{STEP, SplitRow, W_ROWS};

const _: () = assert!(W_ROWS == 2 * TILE_ROWS);

/// Up to 16 rows of `x`.
pub(crate) struct TileRows {
    /// `[steps, 2]` tiles: the upper parts of 64 values, and the lower ones, four values of each row side by side.
    tiles: Aligned<u8>,
    /// What the products of each row with bytes are larger than those with bytes less 128, for the upper and the lower parts.
    surplus: [[i32; TILE_ROWS]; 2],
    steps: usize,
}

impl TileRows {
    /// Rows of `inner` values.
    pub(super) fn new(rows: &[SplitRow], inner: usize) -> Self {
        assert!(rows.len() <= TILE_ROWS, "{} rows", rows.len());
        let steps = inner / STEP;
        let mut tiles = Aligned::zeros(2 * steps * TILE_BYTES);
        let mut surplus = [[0; TILE_ROWS]; 2];
        for (row, split) in rows.iter().enumerate() {
            for (half, part) in [&split.high, &split.low].into_iter().enumerate() {
                surplus[half][row] = 128 * part.iter().map(|&x| i32::from(x)).sum::<i32>();
                for (four, values) in part.as_chunks::<4>().0.iter().enumerate() {
                    let (step, place) = (four / TILE_ROWS, four % TILE_ROWS);
                    let at = (2 * step + half) * TILE_BYTES + (place * TILE_ROWS + row) * 4;
                    tiles[at..at + 4].copy_from_slice(&values.map(|value| value as u8));
                }
            }
        }
        Self {
            tiles,
            surplus,
            steps,
        }
    }

    /// `Σ (w - 128) · x` for a multiple of [`W_ROWS`] rows, `[rows, width]`.
    ///
    /// # Safety
    ///
    /// [`super::amx::is_available`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn dot(&self, w: &[u8], width: usize, out: &mut [f32]) {
        #[repr(align(64))]
        struct Sums([[[i32; TILE_BYTES / 4]; 2]; 2]);
        let mut sums = Sums([[[0; TILE_BYTES / 4]; 2]; 2]);
        let inner = self.steps * STEP;
        let mask = (u32::MAX >> (32 - width)) as u16;
        // SAFETY: 16 values each.
        let [high, low] = unsafe {
            let [high, low] = &self.surplus;
            [
                _mm512_loadu_si512(high.as_ptr().cast()),
                _mm512_loadu_si512(low.as_ptr().cast()),
            ]
        };
        let factor = _mm512_set1_ps(128.0);
        // SAFETY: the rows are there, and a tile has 16 vectors; `out` has `width` values for each.
        unsafe {
            let _tiles = Tiles::configure();
            let outs = out.chunks_exact_mut(W_ROWS * width);
            for (w, out) in w.chunks_exact(W_ROWS * inner).zip(outs) {
                self.multiply(w, sums.0.as_mut_ptr().cast());
                let rows = sums.0.iter().flat_map(|[high, low]| {
                    high.as_chunks::<TILE_ROWS>()
                        .0
                        .iter()
                        .zip(low.as_chunks::<TILE_ROWS>().0)
                });
                for ((upper, lower), out) in rows.zip(out.chunks_exact_mut(width)) {
                    let upper = _mm512_sub_epi32(_mm512_loadu_si512(upper.as_ptr().cast()), high);
                    let lower = _mm512_sub_epi32(_mm512_loadu_si512(lower.as_ptr().cast()), low);
                    let lower = _mm512_cvtepi32_ps(lower);
                    let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(upper), factor, lower);
                    _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, sum);
                }
            }
        }
    }

    /// Writes a tile of products with the upper parts and one with the lower ones for 16 rows, then those for 16 more.
    ///
    /// # Safety
    ///
    /// Tiles are configured; there are [`W_ROWS`] rows.
    unsafe fn multiply(&self, w: &[u8], sums: *mut u8) {
        let inner = self.steps * STEP;
        // SAFETY: all steps exist.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{w0} + {w_stride}*1]",
                "tileloadd tmm5, [{w1} + {w_stride}*1]",
                "tileloadd tmm6, [{x} + {stride}*1]",
                "tileloadd tmm7, [{x} + {stride}*1 + 1024]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tdpbusd tmm1, tmm4, tmm7",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
                // The rows that come next: a CPU foresees rows of so few lines late.
                "mov {line:e}, 4",
                "3:",
                "prefetcht1 [{next}]",
                "prefetcht1 [{next} + 64]",
                "prefetcht1 [{next} + 128]",
                "prefetcht1 [{next} + 192]",
                "prefetcht1 [{next} + 256]",
                "prefetcht1 [{next} + 320]",
                "prefetcht1 [{next} + 384]",
                "prefetcht1 [{next} + 448]",
                "add {next}, 512",
                "dec {line:e}",
                "jnz 3b",
                "add {w0}, 64",
                "add {w1}, 64",
                "add {x}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {stride}*1], tmm0",
                "tilestored [{sums} + {stride}*1 + 1024], tmm1",
                "tilestored [{sums} + {stride}*1 + 2048], tmm2",
                "tilestored [{sums} + {stride}*1 + 3072], tmm3",
                w0 = inout(reg) w.as_ptr() => _,
                w1 = inout(reg) w.as_ptr().add(TILE_ROWS * inner) => _,
                w_stride = in(reg) inner,
                next = inout(reg) w.as_ptr().wrapping_add(W_ROWS * inner) => _,
                x = inout(reg) self.tiles.as_ptr() => _,
                stride = in(reg) TILE_BYTES / TILE_ROWS,
                steps = inout(reg) self.steps => _,
                sums = in(reg) sums,
                line = out(reg) _,
                options(nostack),
            );
        }
    }
}
