//! The type in which the operands of a product are multiplied, as kernels, configurations and flags name it.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::device::is_cpu;

/// The type in which the operands of a product are multiplied. Sums are f32 whatever it is.
///
/// A file or a flag (cargo feature `clap`) may spell a type as PyTorch does, `bfloat16`, or in short, `bf16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// What suits the device.
    ///
    /// [`Self::resolve`] says which one that is; a layer that holds `Auto` computes as with [`Self::F32`].
    Auto,
    /// As they are. On a CPU each row has the same result whatever other rows are multiplied beside it.
    #[default]
    #[serde(alias = "float32", alias = "float")]
    #[cfg_attr(
        feature = "clap",
        value(
            name = "float32",
            aliases = ["f32", "float"]
        )
    )]
    F32,
    /// As fast as the CPU multiplies operands of 16 bits or more.
    ///
    /// NF4 weights: with AVX2, AVX-512-VNNI or AMX, their levels and the values they are multiplied with are rounded to integers of
    /// up to 16 bits, with a scale for each block of 64. A result is off by some 1e-4 of its size, a tenth of what bf16 loses, and
    /// stays the same whatever other rows are multiplied beside it.
    ///
    /// Weights in bf16: with AMX and five rows or more, each value is split into three bf16 whose sum it is, except near the limits
    /// of f32. Products are then as exact as with [`ComputeDtype::F32`]. Their sums are f32, in another order than with fewer rows.
    ///
    /// Otherwise as [`ComputeDtype::F32`].
    Bits16,
    /// Rounded to bf16 (or to the type of a weight in f16) where that is faster: on CPUs with AVX-512-BF16 or AMX from 32 rows on,
    /// of weights in bf16 with AMX from five rows on, on GPUs with tensor cores for NF4 always and for dense weights from three rows
    /// on. What `bnb_4bit_compute_dtype` and autocast do. Elsewhere as [`ComputeDtype::F32`].
    #[serde(alias = "bfloat16")]
    #[cfg_attr(feature = "clap", value(name = "bfloat16", alias = "bf16"))]
    Bf16,
}

impl ComputeDtype {
    /// The type that `self` stands for on `device`: [`Self::Auto`] is [`Self::Bits16`] on the CPU and [`Self::Bf16`] on a GPU,
    /// every other one is itself.
    #[must_use]
    pub fn resolve(self, device: &Device) -> Self {
        match self {
            Self::Auto if is_cpu(device) => Self::Bits16,
            Self::Auto => Self::Bf16,
            given => given,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_the_short_one_is_written() {
        for (text, expected) in [
            ("auto", ComputeDtype::Auto),
            ("f32", ComputeDtype::F32),
            ("float32", ComputeDtype::F32),
            ("bf16", ComputeDtype::Bf16),
            ("bfloat16", ComputeDtype::Bf16),
        ] {
            let read = serde_json::from_value(text.into());
            assert_eq!(read.ok(), Some(expected), "{text}");
        }
        let written = serde_json::to_value(ComputeDtype::Bf16);
        assert_eq!(written.ok(), Some("bf16".into()));
    }

    #[test]
    fn auto_is_what_suits_the_device() {
        let cpu = Device::flex();
        assert_eq!(ComputeDtype::Auto.resolve(&cpu), ComputeDtype::Bits16);
        assert_eq!(
            ComputeDtype::Auto.resolve(&cpu.clone().autodiff()),
            ComputeDtype::Bits16
        );
        assert_eq!(ComputeDtype::F32.resolve(&cpu), ComputeDtype::F32);
    }
}
