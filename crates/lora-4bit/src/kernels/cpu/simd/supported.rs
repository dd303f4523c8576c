//! Which loops this CPU can run.

use std::sync::OnceLock;

use super::ints::IntKernels;
#[cfg(target_arch = "x86_64")]
use super::ints::{amx, avx2, avx512};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::pairs::PairKernels;
use super::{InstructionSet, Kernels, portable};
#[cfg(target_arch = "x86_64")]
use super::{pairs_x86, x86};

impl Kernels {
    /// The best loops for this CPU, within [`InstructionSet::limit`].
    pub(in super::super) fn get() -> &'static Self {
        static KERNELS: OnceLock<&'static Kernels> = OnceLock::new();
        KERNELS.get_or_init(|| {
            let limit = InstructionSet::limit();
            let kernels = Self::supported()
                .into_iter()
                .find(|kernels| kernels.instruction_set <= limit)
                .unwrap_or(&portable::KERNELS);
            tracing::debug!(instruction_set = ?kernels.instruction_set, "CPU kernels");
            kernels
        })
    }

    /// All loops that this CPU can run, best first.
    pub(in super::super) fn supported() -> Vec<&'static Self> {
        let mut kernels: Vec<&'static Self> = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
            {
                kernels.push(&x86::AVX512);
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                kernels.push(&x86::AVX2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            kernels.push(&neon::KERNELS);
        }
        kernels.push(&portable::KERNELS);
        kernels
    }
}

impl IntKernels {
    /// The best loops for `m` rows of `x` on this CPU, within [`InstructionSet::limit`]; `None` if floats are faster.
    pub(in super::super) fn get(m: usize) -> Option<&'static Self> {
        static KERNELS: OnceLock<Vec<&'static IntKernels>> = OnceLock::new();
        let kernels = KERNELS.get_or_init(|| {
            let limit = InstructionSet::limit();
            let allows = |kernels: &&'static Self| kernels.instruction_set <= limit;
            Self::supported().into_iter().filter(allows).collect()
        });
        kernels
            .iter()
            .copied()
            .find(|kernels| kernels.min_rows <= m)
    }

    /// All loops that this CPU can run, best first.
    pub(in super::super) fn supported() -> Vec<&'static Self> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut kernels: Vec<&'static Self> = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if amx::are_supported() {
                kernels.push(&amx::KERNELS);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
            {
                kernels.push(&avx512::KERNELS);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                kernels.push(&avx2::KERNELS);
            }
        }
        kernels
    }
}

impl PairKernels {
    /// The best loops for this CPU, within [`InstructionSet::limit`]; none if it has no such instruction.
    pub(in super::super) fn get() -> Option<&'static Self> {
        static KERNELS: OnceLock<Option<&'static PairKernels>> = OnceLock::new();
        *KERNELS.get_or_init(|| {
            let limit = InstructionSet::limit();
            let kernels = Self::supported()
                .into_iter()
                .find(|kernels| kernels.instruction_set <= limit);
            if let Some(kernels) = kernels {
                tracing::debug!(
                    instruction_set = ?kernels.instruction_set,
                    "CPU kernels for bf16 operands"
                );
            }
            kernels
        })
    }

    /// All loops that this CPU can run, best first.
    pub(in super::super) fn supported() -> Vec<&'static Self> {
        #[cfg(target_arch = "x86_64")]
        return pairs_x86::supported();
        #[cfg(not(target_arch = "x86_64"))]
        return Vec::new();
    }
}
