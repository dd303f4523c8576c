//! The instruction set that a kernel runs with, chosen at run time.

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{Kernel, Portable};

/// The instruction set a kernel runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Level {
    /// Every level this processor can run for rows of `head_dim`, a multiple of 8; the best first.
    pub(in super::super) fn available(head_dim: usize) -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let fast = [
            (head_dim.is_multiple_of(16) && is_x86_feature_detected!("avx512f"))
                .then_some(Self::Avx512),
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
                .then_some(Self::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let fast = {
            let _ = head_dim;
            [None; 0]
        };
        fast.into_iter().flatten().chain([Self::Portable])
    }

    /// The best level of this processor.
    pub(in super::super) fn detect(head_dim: usize) -> Self {
        Self::available(head_dim).next().unwrap_or(Self::Portable)
    }

    /// Runs `kernel` with this instruction set.
    ///
    /// # Safety
    ///
    /// `self` comes from [`available`](Self::available), and the kernel's own contract holds.
    pub(in super::super) unsafe fn run<K: Kernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::run_avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::run_avx2(kernel),
            Self::Portable => kernel.run::<Portable>(),
        }
    }
}
