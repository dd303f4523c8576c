//! Values of the benchmarks' flags.

use clap::ValueEnum;
use lora_4bit::ComputeDtype;
use model_qwen::{LoadOptions, Quantization};

/// `--quantization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As in the file.
    None,
    /// NF4 with double quantization.
    Nf4,
}

impl Format {
    /// How to load a checkpoint in this format.
    #[must_use]
    pub fn load_options(self) -> LoadOptions {
        LoadOptions {
            quantization: match self {
                Self::None => Quantization::None,
                Self::Nf4 => Quantization::Nf4 { double_quant: true },
            },
            ..LoadOptions::default()
        }
    }
}

/// `--compute-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compute {
    /// Exact factors.
    F32,
    /// Exact factors, 16-bit integers for NF4.
    Bits16,
    /// Factors rounded to bf16, on CPUs with AVX-512-BF16 or AMX.
    Bf16,
}

impl From<Compute> for ComputeDtype {
    fn from(compute: Compute) -> Self {
        match compute {
            Compute::F32 => Self::F32,
            Compute::Bits16 => Self::Bits16,
            Compute::Bf16 => Self::Bf16,
        }
    }
}
