//! `--init-lora-weights`: how A and B start.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How A and B start, by the names of PEFT's `init_lora_weights`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitLora {
    /// `true`: A uniform within ±1/√in (Kaiming), B zero.
    #[default]
    Uniform,
    /// `gaussian`: A normal with the deviation 1/r, B zero.
    Gaussian,
    /// `pissa`: the largest singular values and vectors of the weight, which is left without them while the adapter is trained
    /// (<https://arxiv.org/abs/2404.02948>).
    Pissa {
        /// `pissa_niter_N`: N iterations of the randomized decomposition; `None` iterates until the values stand still.
        iterations: Option<usize>,
    },
    /// `olora`: the first columns of the weight's QR decomposition, which is left without them while the adapter is trained
    /// (<https://arxiv.org/abs/2406.01775>).
    Olora,
}

/// What `--init-lora-weights` may be.
const EXPECTED: &str =
    "true, gaussian, pissa, pissa_niter_N (such as pissa_niter_16, at most 1000) or olora";
/// Iterations of PiSSA, at most: the values have stood still long before.
const MAX_ITERATIONS: usize = 1000;

impl InitLora {
    /// Whether the base weights lose what the adapter starts with.
    #[must_use]
    pub fn changes_base(self) -> bool {
        matches!(self, Self::Pissa { .. } | Self::Olora)
    }
}

impl fmt::Display for InitLora {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => out.write_str("true"),
            Self::Gaussian => out.write_str("gaussian"),
            Self::Pissa { iterations: None } => out.write_str("pissa"),
            Self::Pissa {
                iterations: Some(number),
            } => write!(out, "pissa_niter_{number}"),
            Self::Olora => out.write_str("olora"),
        }
    }
}

impl FromStr for InitLora {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.trim().to_lowercase();
        let iterations = name.strip_prefix("pissa_niter_").map(str::parse::<usize>);
        match (name.as_str(), iterations) {
            ("true", _) => Ok(Self::Uniform),
            ("gaussian", _) => Ok(Self::Gaussian),
            ("pissa", _) => Ok(Self::Pissa { iterations: None }),
            ("olora", _) => Ok(Self::Olora),
            (_, Some(Ok(number))) if (1..=MAX_ITERATIONS).contains(&number) => Ok(Self::Pissa {
                iterations: Some(number),
            }),
            _ => Err(format!("expected {EXPECTED}, found `{text}`")),
        }
    }
}

impl Serialize for InitLora {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InitLora {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// How a file may say it: `true` without quotes is no string.
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected true, or the name of an initialization"
        )]
        enum BoolOrName {
            Bool(bool),
            Name(String),
        }
        let name = match BoolOrName::deserialize(deserializer)? {
            BoolOrName::Bool(value) => value.to_string(),
            BoolOrName::Name(name) => name,
        };
        name.parse().map_err(serde::de::Error::custom)
    }
}
