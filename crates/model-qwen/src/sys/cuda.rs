//! What a program needs from a machine to use CUDA, looked for before the first kernel: without the compiler or its headers,
//! kernels would not run, and nobody would say so.

// For the questions whether libraries are there, which load them.
#![allow(unsafe_code)]

use std::path::PathBuf;

use burn::tensor::{DType, Device, Tensor};

use crate::device_causes;

/// What kernels include, below the toolkit's `include`.
const HEADERS: [&str; 5] = [
    "cuda_fp16.h",
    "cuda_bf16.h",
    "mma.h",
    "cooperative_groups.h",
    "cuComplex.h",
];

/// Why CUDA can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The driver's library is missing.
    #[error(
        "found no NVIDIA driver (libcuda.so): install the driver, check `nvidia-smi`; in WSL2 install only the one of \
         Windows, whose libraries are in /usr/lib/wsl/lib; or use --device cpu"
    )]
    NoDriver,
    /// The driver doesn't start, or has no card.
    #[error("the NVIDIA driver finds no card: {0}; check `nvidia-smi`, or use --device cpu")]
    Driver(String),
    /// The library that compiles kernels is missing.
    #[error(
        "found no NVRTC (libnvrtc.so), which compiles the kernels: install the CUDA toolkit (12 or later; of Ubuntu's \
         packages from NVIDIA, cuda-nvrtc, cuda-cudart-dev and cuda-cccl are enough, in WSL2 too) and add its lib64 to \
         LD_LIBRARY_PATH; or use --device cpu"
    )]
    NoCompiler,
    /// The toolkit's headers are missing.
    #[error(
        "found no CUDA header {file}, looked {}; install the CUDA toolkit (of Ubuntu's packages from NVIDIA, \
         cuda-cudart-dev, cuda-crt and cuda-cccl) and set CUDA_PATH to its folder; or use --device cpu",
        match .folder {
            Some(folder) => format!("in {}", folder.display()),
            None => "for CUDA_PATH, /usr/local/cuda and /opt/cuda".to_owned(),
        }
    )]
    NoHeader {
        /// The first missing one.
        file: &'static str,
        /// Where they should be.
        folder: Option<PathBuf>,
    },
    /// A first kernel doesn't give the right result.
    #[error(
        "a kernel does not run on the card: {0}; check that NVRTC is not newer than the driver, or use --device cpu"
    )]
    Kernel(String),
}

/// Whether there are a driver and a card.
///
/// # Errors
/// Which of both is missing.
pub(crate) fn check_driver() -> Result<(), CudaError> {
    // SAFETY: loads the library; its initialisers are NVIDIA's.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    match cudarc::driver::CudaContext::device_count() {
        Ok(0) => Err(CudaError::Driver("it counts 0".to_owned())),
        Ok(_) => Ok(()),
        Err(error) => Err(CudaError::Driver(error.to_string())),
    }
}

/// Whether NCCL is there.
pub(crate) fn has_nccl() -> bool {
    // SAFETY: loads the library; its initialisers are NVIDIA's.
    unsafe { cudarc::nccl::sys::is_culib_present() }
}

/// Whether kernels can be compiled.
///
/// # Errors
/// What is missing for that.
pub(crate) fn check_compiler() -> Result<(), CudaError> {
    // SAFETY: as above.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(CudaError::NoCompiler);
    }
    let folder = cubecl_cuda::install::cuda_path().map(|path| path.join("include"));
    let missing = |file: &&str| {
        let path = folder.as_ref().map(|folder| folder.join(file));
        !path.is_some_and(|path| path.is_file())
    };
    match HEADERS.into_iter().find(missing) {
        Some(file) => Err(CudaError::NoHeader { file, folder }),
        None => Ok(()),
    }
}

/// Whether a kernel runs.
///
/// # Errors
/// What the device says.
pub(crate) fn check_kernel(device: &Device) -> Result<(), CudaError> {
    let ones = Tensor::<1>::ones([2], (device, DType::F32));
    let data = (ones + 1.0).try_into_data();
    let data = data.map_err(|error| CudaError::Kernel(device_causes(&format!("{error:?}"))))?;
    let values: Vec<f32> = data.iter().collect();
    match values == [2.0, 2.0] {
        true => Ok(()),
        false => Err(CudaError::Kernel(format!("1 + 1 gives {values:?}"))),
    }
}
