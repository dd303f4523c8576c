//! How much memory the run may take.

use model_qwen::flags::{bytes, fraction};
use serde::{Deserialize, Serialize};

use super::values::size;
use crate::config::MemoryOptions;

/// How much memory the run may take.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryArgs {
    /// Fraction of the device's memory that the run may take. A run that would take more is refused with the flags that would
    /// fit [default: 0.9 on a GPU]
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    pub gpu_memory_utilization: Option<f64>,

    /// Pretend that the device has this much memory (8GiB, 6000MB, bytes), to share it or to test a fit
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    #[serde(deserialize_with = "size")]
    pub device_memory: Option<u64>,

    /// Print what memory the run takes, before anything is loaded, and stop
    #[arg(long)]
    #[serde(skip)]
    pub dry_run: bool,
}

impl MemoryArgs {
    /// These settings where given, `file`'s otherwise.
    pub(super) fn over(self, file: Self) -> Self {
        Self {
            gpu_memory_utilization: self.gpu_memory_utilization.or(file.gpu_memory_utilization),
            device_memory: self.device_memory.or(file.device_memory),
            dry_run: self.dry_run,
        }
    }

    /// These settings.
    pub(in crate::config) fn to_config(&self) -> MemoryOptions {
        MemoryOptions {
            device_memory: self.device_memory,
            gpu_memory_utilization: self.gpu_memory_utilization,
            dry_run: self.dry_run,
        }
    }
}
