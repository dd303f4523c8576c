//! CPU, memory and disk.

use std::path::Path;

use lora_4bit::kernels::plan::CpuFeatures;
use model_qwen::HubOptions;
use sysinfo::System;

use super::check::Check;

/// What the bundled model and a server of it need.
const LEAST_MEMORY: u64 = 1 << 30;
/// What a small model from the Hub takes.
const LEAST_DISK: u64 = 2 << 30;

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![cpu(), memory()];
    checks.extend(disk());
    checks
}

/// The instructions for which there are kernels.
fn instructions() -> Vec<&'static str> {
    let mut names = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            (
                "AVX2",
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            ),
            (
                "AVX-512",
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq"),
            ),
            ("AVX-512-VNNI", is_x86_feature_detected!("avx512vnni")),
            ("AVX-512-BF16", is_x86_feature_detected!("avx512bf16")),
        ];
        names.extend(found.iter().filter(|(_, has)| *has).map(|(name, _)| name));
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        names.push("NEON");
    }
    if CpuFeatures::get().amx {
        names.push("AMX");
    }
    names
}

fn cpu() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let instructions = instructions();
    let has_kernels = instructions.contains(&"AVX2") || instructions.contains(&"NEON");
    match has_kernels {
        true => Check::ok("CPU", format!("{cores} cores, {}", instructions.join(", "))),
        false => Check::note(
            "CPU",
            format!("{cores} cores, neither AVX2 nor NEON"),
            "it works, several times slower than on a CPU with AVX2 or NEON; a virtual machine may hide what the CPU has",
        ),
    }
}

fn memory() -> Check {
    let mut system = System::new();
    system.refresh_memory();
    let (mut total, mut free) = (system.total_memory(), system.available_memory());
    // Without `/proc` it is unknown.
    if total == 0 {
        return Check::note(
            "memory",
            "the system does not say",
            "nothing, if models load",
        );
    }
    // A container may have less. Its files in memory can be dropped.
    if let Some(limit) = system.cgroup_limits() {
        total = total.min(limit.total_memory);
        free = free.min(limit.total_memory.saturating_sub(limit.rss));
    }
    let found = format!("{} of {} free", gib(free), gib(total));
    match free < LEAST_MEMORY {
        false => Check::ok("memory", found),
        true => Check::missing(
            "memory",
            found,
            "end other programs; --quantization nf4 and a smaller --max-model-len need less",
        ),
    }
}

/// Room for models, where the system says it.
fn disk() -> Option<Check> {
    let cache = HubOptions::from_env().cache_dir;
    let folder = cache.ancestors().find(|folder| folder.is_dir());
    let folder = folder.unwrap_or(Path::new("."));
    let free = trainer_sft::free_bytes(folder)?;
    let found = format!("{} free in {}", gib(free), folder.display());
    Some(match free < LEAST_DISK {
        false => Check::ok("disk", found),
        true => Check::missing(
            "disk",
            found,
            "delete what is not needed, or set HF_HOME to a folder on another disk",
        ),
    })
}

/// Bytes as a person reads them.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1_u64 << 30) as f64)
}
