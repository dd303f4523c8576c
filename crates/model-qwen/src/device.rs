//! The one place that turns `--device` into a [`Device`].

use burn::tensor::Device;
use lora_4bit::device::is_cpu;

/// Every name `--device` takes.
const NAMES: [&str; 7] = ["auto", "cpu", "cuda", "wgpu", "vulkan", "metal", "rocm"];

/// Why a `--device` value cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// The name is none of the known ones.
    #[error("unknown device {found:?}: expected auto, cpu, cuda, cuda:N, wgpu, vulkan, metal, rocm or rocm:N{}",
        match nearest { Some(name) => format!("; did you mean {name:?}?"), None => String::new() })]
    Unknown {
        /// What was given.
        found: String,
        /// The known name closest to it.
        nearest: Option<&'static str>,
    },
    /// What follows the colon is not a device number.
    #[error("device {found:?}: expected {expected}")]
    Index {
        /// What was given.
        found: String,
        /// What the device takes.
        expected: &'static str,
    },
    /// The program was built without the backend.
    #[error(
        "device {name:?} is not in this build: build again with `--features {name}`, or choose one of: {compiled}"
    )]
    NotCompiledIn {
        /// The device asked for; also the name of its cargo feature.
        name: &'static str,
        /// The devices this build has.
        compiled: String,
    },
    /// The backend is there, but not that many devices.
    #[error(
        "device {found:?}: this machine has {count} {name} device(s); check the driver (nvidia-smi or rocm-smi), or use --device cpu"
    )]
    NotPresent {
        /// What was given.
        found: String,
        /// The backend.
        name: &'static str,
        /// How many devices it sees.
        count: usize,
    },
    /// Something that CUDA needs is missing.
    #[cfg(feature = "cuda")]
    #[error("device {found:?}: {reason}")]
    Cuda {
        /// What was given.
        found: String,
        /// What is missing, and how to get it.
        reason: crate::sys::cuda::CudaError,
    },
}

/// The device that `auto`, `cpu`, `cuda`, `cuda:N`, `wgpu`, `vulkan`, `metal`, `rocm` or `rocm:N`
/// stands for. `auto` is the first CUDA device if CUDA is compiled in and a card is found,
/// otherwise the CPU.
///
/// # Errors
/// When the name is unknown, the backend is not compiled in, or the machine lacks the device or, with a card of NVIDIA, what
/// compiles kernels for it.
pub fn parse_device(spec: &str) -> Result<Device, DeviceError> {
    let spec = spec.trim();
    let (name, index) = match spec.split_once(':') {
        Some((name, index)) => (name, Some(index)),
        None => (spec, None),
    };
    let lower = name.to_ascii_lowercase();
    let Some(name) = NAMES.into_iter().find(|known| *known == lower) else {
        return Err(DeviceError::Unknown {
            found: spec.to_owned(),
            nearest: nearest_name(&lower),
        });
    };
    let index = match index {
        None => None,
        Some(_) if !matches!(name, "cuda" | "rocm") => {
            return Err(DeviceError::Index {
                found: spec.to_owned(),
                expected: "no device number (only cuda:N and rocm:N take one)",
            });
        }
        Some(text) => Some(text.parse::<usize>().map_err(|_| DeviceError::Index {
            found: spec.to_owned(),
            expected: "a device number after the colon, as in cuda:0",
        })?),
    };
    use_one_queue();
    match name {
        "auto" => auto(spec),
        "cpu" => Ok(Device::flex()),
        _ => gpu(name, index.unwrap_or(0), spec),
    }
}

/// The part of a GPU's memory that a program takes unless `--gpu-memory-utilization` says otherwise, as in vLLM.
pub const GPU_MEMORY_UTILIZATION: f64 = 0.9;

/// One queue of a device for all threads: memory then passes between them without waiting, and steps can be captured. It must be
/// set before the first tensor of a model is made, whoever chose the device.
pub(crate) fn use_one_queue() {
    cubecl_environment::stream::set_policy(cubecl_environment::stream::StreamPolicy::Single);
}

#[cfg(feature = "cuda")]
fn auto(spec: &str) -> Result<Device, DeviceError> {
    use crate::sys::cuda::CudaError;
    match cuda(0, spec) {
        Err(DeviceError::Cuda {
            reason: CudaError::NoDriver,
            ..
        }) => Ok(Device::flex()),
        Err(DeviceError::Cuda {
            reason: reason @ CudaError::Driver(_),
            ..
        }) => {
            tracing::warn!("using the CPU: {reason}");
            Ok(Device::flex())
        }
        result => result,
    }
}

#[cfg(not(feature = "cuda"))]
fn auto(_spec: &str) -> Result<Device, DeviceError> {
    Ok(Device::flex())
}

/// A CUDA device that is known to run kernels.
#[cfg(feature = "cuda")]
fn cuda(index: usize, spec: &str) -> Result<Device, DeviceError> {
    use crate::sys::cuda::{check_compiler, check_driver, check_kernel};
    let explain = |reason| DeviceError::Cuda {
        found: spec.to_owned(),
        reason,
    };
    check_driver().map_err(explain)?;
    let device = nth(burn::tensor::DeviceType::Cuda, "cuda", index, spec)?;
    check_compiler().map_err(explain)?;
    check_kernel(&device).map_err(explain)?;
    Ok(device)
}

fn gpu(name: &'static str, index: usize, spec: &str) -> Result<Device, DeviceError> {
    // Both are unused in a build without GPU backends.
    let _ = (index, spec);
    match name {
        #[cfg(feature = "cuda")]
        "cuda" => cuda(index, spec),
        #[cfg(feature = "rocm")]
        "rocm" => nth(burn::tensor::DeviceType::Rocm, name, index, spec),
        #[cfg(feature = "wgpu")]
        "wgpu" => {
            nth(burn::tensor::DeviceType::Wgpu, name, 0, spec)?;
            Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice))
        }
        #[cfg(feature = "vulkan")]
        "vulkan" => {
            nth(burn::tensor::DeviceType::Vulkan, name, 0, spec)?;
            Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice))
        }
        #[cfg(feature = "metal")]
        "metal" => {
            nth(burn::tensor::DeviceType::Metal, name, 0, spec)?;
            Ok(Device::metal(burn::tensor::DeviceKind::DefaultDevice))
        }
        _ => Err(DeviceError::NotCompiledIn {
            name,
            compiled: compiled_in().join(", "),
        }),
    }
}

#[cfg(any(
    feature = "cuda",
    feature = "rocm",
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal"
))]
fn nth(
    device_type: burn::tensor::DeviceType,
    name: &'static str,
    index: usize,
    spec: &str,
) -> Result<Device, DeviceError> {
    let devices = Device::enumerate(device_type);
    let count = devices.len();
    devices
        .into_iter()
        .nth(index)
        .ok_or_else(|| DeviceError::NotPresent {
            found: spec.to_owned(),
            name,
            count,
        })
}

/// Whether a device is none of the CPU's own.
pub fn is_gpu(device: &Device) -> bool {
    !is_cpu(device)
}

/// Bytes of memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What nobody uses.
    pub free: u64,
    /// All.
    pub total: u64,
}

/// Memory of a CUDA device as its driver reports it; nothing for other devices.
pub fn device_memory(device: &Device) -> Option<DeviceMemory> {
    #[cfg(feature = "cuda")]
    {
        let index = Device::enumerate(burn::tensor::DeviceType::Cuda)
            .iter()
            .position(|cuda| cuda == device)?;
        let context = cudarc::driver::CudaContext::new(index).ok()?;
        let (free, total) = context.mem_get_info().ok()?;
        Some(DeviceMemory {
            free: free as u64,
            total: total as u64,
        })
    }
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        None
    }
}

/// The name of a device, as `--device` takes it.
pub fn device_name(device: &Device) -> String {
    let device = device.clone().without_autodiff();
    if !is_gpu(&device) {
        return "cpu".to_owned();
    }
    #[cfg(feature = "cuda")]
    if let Some(index) = index_of(burn::tensor::DeviceType::Cuda, &device) {
        return format!("cuda:{index}");
    }
    #[cfg(feature = "rocm")]
    if let Some(index) = index_of(burn::tensor::DeviceType::Rocm, &device) {
        return format!("rocm:{index}");
    }
    format!("{:?}", device.as_dispatch())
}

#[cfg(any(feature = "cuda", feature = "rocm"))]
fn index_of(device_type: burn::tensor::DeviceType, device: &Device) -> Option<usize> {
    let devices = Device::enumerate(device_type);
    devices.iter().position(|other| other == device)
}

/// Whether a build with CUDA finds NCCL, which moves tensors from card to card.
pub fn has_nccl() -> bool {
    #[cfg(feature = "cuda")]
    {
        crate::sys::cuda::has_nccl()
    }
    #[cfg(not(feature = "cuda"))]
    false
}

/// The backends of this build, as `--device` names them.
pub fn compiled_backends() -> Vec<&'static str> {
    compiled_in()
        .into_iter()
        .filter(|name| *name != "auto")
        .collect()
}

/// Whether a build with CUDA finds what compiles its kernels, or what to do; nothing in a build without CUDA.
pub fn cuda_compiler() -> Option<Result<(), String>> {
    #[cfg(feature = "cuda")]
    {
        let checked = crate::sys::cuda::check_compiler();
        Some(checked.map_err(|error| error.to_string()))
    }
    #[cfg(not(feature = "cuda"))]
    None
}

/// The device names this build accepts.
fn compiled_in() -> Vec<&'static str> {
    let backends = [
        ("cuda", cfg!(feature = "cuda")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("metal", cfg!(feature = "metal")),
        ("rocm", cfg!(feature = "rocm")),
    ];
    let present = backends.into_iter().filter(|(_, present)| *present);
    let mut names = vec!["auto", "cpu"];
    names.extend(present.map(|(name, _)| name));
    names
}

fn nearest_name(found: &str) -> Option<&'static str> {
    match found {
        "gpu" | "nvidia" => return Some("cuda"),
        "flex" | "host" => return Some("cpu"),
        "hip" | "amd" => return Some("rocm"),
        "mps" => return Some("metal"),
        _ => {}
    }
    NAMES
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(found, name), name))
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_flex() {
        for spec in ["cpu", "CPU", " cpu "] {
            assert_eq!(parse_device(spec).unwrap(), Device::flex(), "{spec}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn auto_without_cuda_is_flex() {
        assert_eq!(parse_device("auto").unwrap(), Device::flex());
    }

    #[test]
    fn wrong_names_get_a_hint() {
        for (spec, hint) in [
            ("cdua", Some("cuda")),
            ("gpu", Some("cuda")),
            ("vulcan", Some("vulkan")),
            ("mps", Some("metal")),
            ("tpu", Some("cpu")),
            ("quantum", None),
            ("", None),
        ] {
            match parse_device(spec) {
                Err(DeviceError::Unknown { nearest, .. }) => assert_eq!(nearest, hint, "{spec}"),
                other => panic!("{spec}: {other:?}"),
            }
        }
    }

    #[test]
    fn indices_are_checked() {
        for spec in ["cuda:", "cuda:x", "cuda:-1", "cpu:0", "auto:1", "wgpu:1"] {
            assert!(
                matches!(parse_device(spec), Err(DeviceError::Index { .. })),
                "{spec}"
            );
        }
    }

    /// What is missing is named, whatever that is on this machine.
    #[cfg(feature = "cuda")]
    #[test]
    fn what_cuda_lacks_is_named() {
        match parse_device("cuda") {
            Ok(device) => assert!(is_gpu(&device)),
            Err(DeviceError::Cuda { found, reason }) => {
                assert_eq!(found, "cuda");
                assert!(reason.to_string().ends_with("use --device cpu"), "{reason}");
            }
            Err(other) => panic!("{other}"),
        }
        let no_header = crate::sys::cuda::CudaError::NoHeader {
            file: "mma.h",
            folder: Some("/opt/cuda/include".into()),
        };
        let text = no_header.to_string();
        assert!(
            text.contains("mma.h, looked in /opt/cuda/include"),
            "{text}"
        );
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_missing_feature_is_named() {
        let message = parse_device("cuda:0").unwrap_err().to_string();
        assert!(message.contains("--features cuda"), "{message}");
        assert!(message.contains("auto, cpu"), "{message}");
    }
}
