//! When it is looked at whether weights are numbers.

use burn::tensor::{DType, Device};
use lora_4bit::device::is_cpu;

use super::options::{LoadOptions, Quantization};
use crate::checkpoint::Checkpoint;
use crate::model::LINEARS;
use crate::sys::{Background, stand_back};

/// Whether a tensor that isn't converted may be looked at later: the matrix of a layer that stays in the mapped file. The
/// others are few, or are read while loading.
pub(super) fn may_wait(name: &str, device: &Device) -> bool {
    let is_mapped = is_cpu(device);
    let module = name.strip_suffix(".weight");
    let is_linear = |module: &str| LINEARS.iter().any(|linear| module.ends_with(linear));
    is_mapped && module.is_some_and(is_linear)
}

/// Looks beside what the process does at the tensors that have waited, and says in the log what is no number.
pub(super) fn check_later(checkpoint: Checkpoint, options: &LoadOptions, device: &Device) {
    let has_waited = |name: &str| {
        let view = checkpoint.view(name);
        let stored = view.and_then(|view| match view.dtype() {
            safetensors::Dtype::BF16 => Some(DType::BF16),
            safetensors::Dtype::F16 => Some(DType::F16),
            safetensors::Dtype::F32 => Some(DType::F32),
            _ => None,
        });
        let stays = stored.is_some_and(|stored| options.dtype.resolve(stored, device) == stored);
        stays && options.quantization == Quantization::None && may_wait(name, device)
    };
    let names = checkpoint.names().filter(|name| has_waited(name));
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.is_empty() {
        return;
    }
    let look = move || {
        for name in &names {
            if let Err(error) = checkpoint.check_finite(name) {
                tracing::error!("{error}; what this model computes is of no use");
                return;
            }
        }
    };
    // A thread of its own, which the first requests need not wait for.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .thread_name(|_| "check-weights".to_owned())
        .start_handler(|_| stand_back(Background::Low))
        .build();
    match pool {
        Ok(pool) => pool.spawn(look),
        Err(error) => tracing::warn!("the weights are not looked at: {error}"),
    }
}
