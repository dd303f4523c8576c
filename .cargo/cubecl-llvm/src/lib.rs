//! What `cubecl-cuda` 0.11.3 names of `cubecl-llvm`, without LLVM.
//!
//! `cubecl-cuda` can compile kernels in two ways: through LLVM, or by printing CUDA C++ for NVRTC.
//! This project uses the second (feature `cpp`), but the first is linked all the same, and its build
//! script downloads an LLVM bundle. This crate takes its place by `[patch.crates-io]`: it has the
//! types, and its compiler answers every kernel with an error that is never reached.

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_server::compiler::CompilationError;
use cubecl_server::kernel::BufferIOAttr;

/// The compiler that is not here.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    pub target: LlvmTarget,
}

/// What the compiler would compile for.
#[derive(Clone, Copy, Debug)]
pub enum LlvmTarget {
    Nvptx,
}

/// What the compiler would be told.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    pub arch: Option<()>,
    pub sm_arch: Option<SmArch>,
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    pub grid_constants: bool,
    /// So that callers' `..Default::default()` has a field left to fill.
    pub cpu_buffer_alignment: Option<u32>,
}

/// What the compiler would return.
pub enum PlironArtifact {
    NvptxCode(NvptxModule),
    Other,
}

/// A kernel in PTX.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    pub ptx: Vec<core::ffi::c_char>,
    pub entrypoint: String,
    pub ir: String,
    pub shared_memory_size: usize,
    pub io: Vec<BufferIOAttr>,
}

impl PlironCompiler {
    pub fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM: kernels are compiled from CUDA C++ by NVRTC \
                     (enable the feature `cpp` of cubecl-cuda)"
                .into(),
            backtrace: cubecl_environment::backtrace::BackTrace::capture(),
        })
    }

    pub fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

pub mod nvptx {
    pub mod ptx_version {
        /// A PTX ISA version; never known here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct PtxVersion(u32);

        impl PtxVersion {
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "ptx{}", self.0)
            }
        }
    }
}

pub mod shared {
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// What features would be narrowed for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            Nvptx,
        }

        /// Nothing to narrow: the CUDA C++ path has all features.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}
