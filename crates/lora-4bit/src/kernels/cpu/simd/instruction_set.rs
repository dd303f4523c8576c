//! Instruction sets, and the one that a user limits this process to.

use std::sync::OnceLock;

/// An instruction set. A CPU that has one has those of its family before it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum InstructionSet {
    Portable,
    Neon,
    Avx2,
    Avx512,
    /// With the integer products of 512 bits.
    Avx512Bf16,
    Amx,
}

impl InstructionSet {
    /// Names the best instruction set to use.
    const VARIABLE: &str = "LORA_4BIT_SIMD";

    const ALL: [(Self, &str); 6] = [
        (Self::Portable, "portable"),
        (Self::Neon, "neon"),
        (Self::Avx2, "avx2"),
        (Self::Avx512, "avx512"),
        (Self::Avx512Bf16, "avx512bf16"),
        (Self::Amx, "amx"),
    ];

    fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, other)| *other == name);
        found.map(|(set, _)| *set)
    }

    /// What `LORA_4BIT_SIMD` asks for: kernels use nothing that goes beyond it. Without it, anything.
    pub(in super::super) fn limit() -> Self {
        static LIMIT: OnceLock<InstructionSet> = OnceLock::new();
        *LIMIT.get_or_init(|| {
            let asked = std::env::var_os(Self::VARIABLE).unwrap_or_default();
            Self::limit_of(&asked.to_string_lossy())
        })
    }

    fn limit_of(asked: &str) -> Self {
        if asked.is_empty() {
            return Self::Amx;
        }
        Self::named(asked).unwrap_or_else(|| {
            let names = Self::ALL.map(|(_, name)| name).join(", ");
            tracing::warn!(
                "{}: expected one of {names}, found {asked:?}; the best instruction set is used",
                Self::VARIABLE
            );
            Self::Amx
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_limits_and_anything_else_does_not() {
        assert_eq!(InstructionSet::limit_of("avx2"), InstructionSet::Avx2);
        assert_eq!(
            InstructionSet::limit_of("portable"),
            InstructionSet::Portable
        );
        for other in ["", "AVX2", "sse"] {
            assert_eq!(InstructionSet::limit_of(other), InstructionSet::Amx);
        }
    }
}
