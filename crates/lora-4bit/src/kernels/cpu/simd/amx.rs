//! The tile registers of x86-64 CPUs with AMX.
//!
//! A tile has 16 rows of 64 bytes. The instructions are written as assembly wherever they are used, because the compiler has no
//! stable names for them.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Rows of a tile.
pub(in super::super) const TILE_ROWS: usize = 16;
/// Bytes of a tile.
pub(in super::super) const TILE_BYTES: usize = 1024;

/// Whether the CPU multiplies tiles of bf16 and of bytes, and the system lets this process use them.
pub(in super::super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && is_permitted())
}

fn has_instructions() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const ALL: u32 = AMX_BF16 | AMX_TILE | AMX_INT8;
    // Leaf 7 exists on every CPU with AVX-512, without which the tiles are not used either.
    is_x86_feature_detected!("avx512bf16") && __cpuid_count(7, 0).edx & ALL == ALL
}

/// Linux enlarges the saved state of a process by the tiles only if it asks.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const SYS_ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: the call changes nothing but this process's permission; the kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Shapes of the tile registers, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight registers of 16 rows and 64 bytes.
static WHOLE: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// This thread's tile registers, in use until this is dropped.
pub(in super::super) struct Tiles(());

impl Tiles {
    /// Makes all registers whole tiles. What they held is lost.
    ///
    /// # Safety
    ///
    /// [`is_available`], and this thread has no other of these.
    pub(in super::super) unsafe fn configure() -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly));
        }
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // A thread whose tiles are in use costs more to switch.
        // SAFETY: whoever configured them had them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// 16 vectors of 16 values, transposed.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transposed(mut rows: [__m512; TILE_ROWS]) -> [__m512; TILE_ROWS] {
    // Four rows at a time: in each quarter of a vector, four of their columns become rows.
    for rows in rows.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *rows;
        let low_ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
        let low_cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
        let high_ab = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
        let high_cd = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
        *rows = [
            _mm512_castpd_ps(_mm512_unpacklo_pd(low_ab, low_cd)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(low_ab, low_cd)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(high_ab, high_cd)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(high_ab, high_cd)),
        ];
    }
    // Then the quarters themselves.
    let mut columns = rows;
    for i in 0..4 {
        let [a, b, c, d] = [rows[i], rows[4 + i], rows[8 + i], rows[12 + i]];
        let even_ab = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        let even_cd = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
        let odd_ab = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        let odd_cd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
        columns[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even_ab, even_cd);
        columns[4 + i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd_ab, odd_cd);
        columns[8 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even_ab, even_cd);
        columns[12 + i] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd_ab, odd_cd);
    }
    columns
}
