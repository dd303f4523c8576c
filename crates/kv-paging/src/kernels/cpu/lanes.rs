//! Vectors of f32 lanes at the widest width the processor has, chosen at run time.
//!
//! Kernels are generic over [`Lanes`] and inlined whole into one function per instruction set
//! ([`Level::run`](level::Level::run)), so that every lane operation becomes one instruction.

pub(super) mod level;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::bf16;

/// A vector of f32 lanes.
///
/// # Safety
///
/// Every method may only run where the type's instruction set exists, which
/// [`Level::run`](level::Level::run) guarantees; pointers must be valid for `N` elements and need no alignment.
pub(super) trait Lanes: Copy {
    /// Number of lanes.
    const N: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Widens `N` bf16 values: their bits are the upper half of the f32.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Asks for a cache line that will be needed soon; any address is allowed.
    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger lane; `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// Nearest integer.
    unsafe fn round(self) -> Self;
    /// `2^self` for integral lanes in `-126..=127`.
    unsafe fn pow2(self) -> Self;
    unsafe fn sum(self) -> f32;
    unsafe fn max_lane(self) -> f32;
    /// The sums of four vectors.
    unsafe fn sum4(vectors: [Self; 4]) -> [f32; 4];

    /// `e^self`, within 2 units in the last place; arguments are clamped to `-87..=88`, so that
    /// the score of a hidden key gives about 1e-38.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // Cephes' expf: e^x = 2^n * e^r with |r| <= ln(2)/2, and a degree-5 polynomial for e^r.
        const LN2_HI: f32 = 0.693_359_4;
        const LN2_LO: f32 = -2.121_944_4e-4;
        const POLYNOMIAL: [f32; 6] = [
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            0.166_666_65,
            0.5,
        ];
        let x = Self::splat(-87.0).max(self);
        // Clamped through the negation, since `max` keeps NaN only in its argument.
        let x = Self::splat(0.0).sub(Self::splat(-88.0).max(Self::splat(0.0).sub(x)));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        let r = n.mul_add(Self::splat(-LN2_HI), x);
        let r = n.mul_add(Self::splat(-LN2_LO), r);
        let mut p = Self::splat(POLYNOMIAL[0]);
        for coefficient in &POLYNOMIAL[1..] {
            p = p.mul_add(r, Self::splat(*coefficient));
        }
        let y = p.mul_add(r.mul(r), r.add(Self::splat(1.0)));
        y.mul(n.pow2())
    }
}

/// Element types the caches are stored in.
pub(super) trait Element: Copy + Sync {
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        L::load(from)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        L::load_bf16(from)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// A kernel written once for all instruction sets. `run` must be `#[inline(always)]`.
pub(super) trait Kernel {
    unsafe fn run<L: Lanes>(self);
}

/// Eight lanes in plain Rust; the compiler vectorizes them with what the target always has.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(super) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    const N: usize = 8;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(from.cast::<[f32; 8]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        Self(from.cast::<[bf16; 8]>().read_unaligned().map(bf16::widen))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        to.cast::<[f32; 8]>().write_unaligned(self.0);
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // Not `f32::mul_add`: without the instruction it is a library call per lane.
        self.mul(factor).add(addend)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding 1.5 * 2^23 pushes the fraction out of the mantissa.
        Self(self.0.map(|x| (x + 12_582_912.0) - 12_582_912.0))
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        Self(
            self.0
                .map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32)),
        )
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn sum4(vectors: [Self; 4]) -> [f32; 4] {
        [
            vectors[0].sum(),
            vectors[1].sum(),
            vectors[2].sum(),
            vectors[3].sum(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::level::Level;
    use super::*;

    struct Exp<'a>(&'a mut [f32]);
    impl Kernel for Exp<'_> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            for lanes in self.0.chunks_exact_mut(L::N) {
                L::load(lanes.as_ptr()).exp().store(lanes.as_mut_ptr());
            }
        }
    }

    #[test]
    fn exp_agrees_with_f64_on_every_level() {
        let inputs: Vec<f32> = (0..16_000).map(|i| -86.0 + i as f32 * 0.01).collect();
        for level in Level::available(16) {
            let mut values = inputs.clone();
            // SAFETY: the level is available and the kernel stays in its slice.
            unsafe { level.run(Exp(&mut values)) };
            for (x, y) in inputs.iter().zip(&values) {
                let expected = f64::from(*x).exp();
                let error = (f64::from(*y) - expected).abs() / expected;
                assert!(
                    error < 3e-7,
                    "{level:?}: exp({x}) = {y}, expected {expected}"
                );
            }
            let mut special = [f32::NEG_INFINITY; 16];
            special[1] = f32::NAN;
            // SAFETY: as above.
            unsafe { level.run(Exp(&mut special)) };
            assert!(special[0] < 2e-38 && special[1].is_nan(), "{special:?}");
        }
    }
}
