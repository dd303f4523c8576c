//! The names of dtypes, as configurations and flags have them.

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

/// In which dtype something is kept: dense weights, or the KV cache.
///
/// A file or a flag (cargo feature `clap`) may spell a dtype as PyTorch does, `bfloat16`, or in short, `bf16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// The dtype of the file.
    ///
    /// For what is in no file, [`Self::resolve`] takes the dtype that suits it.
    #[default]
    Auto,
    /// 32-bit floats.
    #[serde(alias = "float32", alias = "float")]
    #[cfg_attr(feature = "clap", value(name = "float32", aliases = ["f32", "float"]))]
    F32,
    /// 16-bit floats with 8 bits of exponent.
    #[serde(alias = "bfloat16")]
    #[cfg_attr(feature = "clap", value(name = "bfloat16", alias = "bf16"))]
    Bf16,
    /// 16-bit IEEE floats.
    #[serde(alias = "float16", alias = "half")]
    #[cfg_attr(feature = "clap", value(name = "float16", aliases = ["f16", "half"]))]
    F16,
}

impl Dtype {
    /// The dtype that `self` stands for on `device`. [`Self::Auto`] is `auto`, or f32 where the device doesn't have that;
    /// every other one is itself.
    #[must_use]
    pub fn resolve(self, auto: DType, device: &Device) -> DType {
        match self {
            Self::Auto if !device.supports_dtype(auto) => DType::F32,
            named => named.or(auto),
        }
    }

    /// The dtype that `self` names; [`Self::Auto`] is `auto`.
    #[must_use]
    pub fn or(self, auto: DType) -> DType {
        match self {
            Self::Auto => auto,
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_the_short_one_is_written() {
        for (text, expected) in [
            ("auto", Dtype::Auto),
            ("f32", Dtype::F32),
            ("float32", Dtype::F32),
            ("bfloat16", Dtype::Bf16),
            ("half", Dtype::F16),
        ] {
            let read = serde_json::from_value(text.into());
            assert_eq!(read.ok(), Some(expected), "{text}");
        }
        assert_eq!(serde_json::to_value(Dtype::F16).ok(), Some("f16".into()));
    }

    #[test]
    fn auto_is_what_the_file_or_the_caller_says() {
        let cpu = Device::flex();
        assert_eq!(Dtype::Auto.resolve(DType::BF16, &cpu), DType::BF16);
        assert_eq!(Dtype::F16.resolve(DType::BF16, &cpu), DType::F16);
    }
}
