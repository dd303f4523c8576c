//! What `cubecl-cuda` 0.11.3 names of `cubecl-llvm`, with NVRTC in the place of LLVM.
//!
//! `cubecl-cuda` compiles kernels in one of two ways: through LLVM, or (feature `cpp`) by printing CUDA C++ for NVRTC. The
//! build script of `cubecl-llvm` downloads an LLVM bundle. In the second way NVRTC compiles every kernel anew in every process,
//! and the driver's compiler follows. This crate takes the place of the first way by
//! `[patch.crates-io]`. Its compiler prints CUDA C++, too; NVRTC makes machine code of it, which is kept in a folder for
//! the next process.

mod cache;
mod later;
mod nvrtc;

use std::time::Instant;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_cpp::shared::{CompilationOptions, CppCompiler, CppSupportedFeatures};
use cubecl_cpp::target::Cuda;
use cubecl_server::compiler::{CompilationError, Compiler, build_id_hash};
use cubecl_server::dry_run::dry_run;
use cubecl_server::kernel::BufferIOAttr;
use pliron::op::Op;
use pliron::printable::Printable;

use crate::cache::{Cache, Compiled, Key};
use crate::nvrtc::Target;

/// Changes with what this crate makes of a kernel.
const FORMAT: u32 = 1;

/// From a kernel to what the driver loads.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    pub target: LlvmTarget,
}

/// What is compiled for.
#[derive(Clone, Copy, Debug)]
pub enum LlvmTarget {
    Nvptx,
}

/// What the compiler is told.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    pub arch: Option<()>,
    /// The card's architecture.
    pub sm_arch: Option<SmArch>,
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether parameters of a kernel are constants of its grid.
    pub grid_constants: bool,
    /// So that callers' `..Default::default()` has a field left to fill.
    pub cpu_buffer_alignment: Option<u32>,
}

/// What the compiler returns.
pub enum PlironArtifact {
    NvptxCode(NvptxModule),
    Other,
}

/// A kernel that the driver loads.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Machine code; PTX, for a card that is newer than NVRTC.
    pub ptx: Vec<core::ffi::c_char>,
    pub entrypoint: String,
    /// CUDA C++; empty if the code was kept by another process.
    pub ir: String,
    /// Bytes of dynamic shared memory.
    pub shared_memory_size: usize,
    pub io: Vec<BufferIOAttr>,
}

impl PlironCompiler {
    pub fn compile(
        &mut self,
        kernel: KernelDefinition,
        options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        let Some(arch) = options.sm_arch else {
            return Err(nvrtc::error("no architecture to compile for"));
        };
        let nvrtc = nvrtc::version()?;
        let target = nvrtc::Target::of(arch.version())?;
        let entrypoint = kernel.settings.kernel_name.clone();
        // A dry run asks for the same kernel many times.
        if dry_run() && later::wait_while_busy(&entrypoint) {
            return Err(not_yet());
        }
        let cache = Cache::of_user();
        let key = cache.map(|_| {
            key(
                &kernel,
                target,
                (arch.version(), nvrtc),
                options.grid_constants,
            )
        });
        let unkept = match key {
            Some(key) if dry_run() && later::is_known(key) => return Err(not_yet()),
            Some(key) if !dry_run() => later::wait_for(key),
            _ => None,
        };
        let on_disk = || cache.zip(key).and_then(|(cache, key)| cache.load(&key));
        if let Some(kept) = unkept.or_else(on_disk) {
            return Ok(PlironArtifact::NvptxCode(module(
                entrypoint,
                String::new(),
                kept,
            )));
        }
        let begin = Instant::now();
        let version = arch.version();
        // As cubecl-cuda has it in its runtime.rs, but for NVRTC as it is found, not as the build knew it.
        let cpp = CompilationOptions {
            supports_features: CppSupportedFeatures {
                grid_constants: options.grid_constants,
                clusters: version >= 90,
                fast_math: true,
                fast_tanh: version >= 75 && nvrtc >= (12, 8),
                elect_sync: version >= 90,
                dp4a: version >= 61,
            },
            ..Default::default()
        };
        let kernel = CppCompiler::<Cuda>::default().compile(kernel, &cpp)?;
        let printed = begin.elapsed();
        let mut compiled = Compiled {
            shared_memory_size: kernel.shared_memory_size,
            io: kernel.io,
            code: Vec::new(),
        };
        if let (true, Some(cache), Some(key)) = (dry_run(), cache, key) {
            later::compile(later::Wanted {
                cache,
                key,
                name: entrypoint,
                source: kernel.source,
                target,
                compiled,
            });
            return Err(not_yet());
        }
        compiled.code = nvrtc::compile(&kernel.source, target)?;
        let (total, printed) = (begin.elapsed().as_millis(), printed.as_millis());
        log::debug!("compiled {entrypoint} in {total} ms, {printed} of them to CUDA C++");
        if let (Some(cache), Some(key)) = (cache, &key) {
            cache.store(key, &compiled);
        }
        Ok(PlironArtifact::NvptxCode(module(
            entrypoint,
            kernel.source,
            compiled,
        )))
    }

    pub fn lang_tag(&self) -> &'static str {
        "cpp"
    }
}

/// What a launch of a dry run is told, which does without its kernel. cubecl-cuda forgets it: the next launch asks again.
fn not_yet() -> CompilationError {
    nvrtc::error("compiled by another thread, since nothing runs in a dry run")
}

/// All that the code of a kernel depends on. The entry point's name has a hash of the kernel's type and of its parameters at
/// compile time; what the program makes of them is in the printed kernel, and otherwise in the program itself. Headers are
/// those of the toolkit's folder: a toolkit that is replaced in its place has another version of NVRTC.
fn key(
    kernel: &KernelDefinition,
    target: Target,
    versions: (u32, (i32, i32)),
    grid_constants: bool,
) -> Key {
    let module = kernel.body.state().module.get_operation();
    let printed = module.disp(kernel.body.ctx()).to_string();
    let (settings, info) = (&kernel.settings, &kernel.info);
    // Some linkers write no build id: then these two tell programs apart.
    let program = (build_id_hash(), env!("CARGO_PKG_VERSION"), FORMAT);
    let compiler = (target.options(), versions, grid_constants);
    Key::of(&(program, settings, info, printed, compiler))
}

fn module(entrypoint: String, ir: String, compiled: Compiled) -> NvptxModule {
    let code = compiled.code.into_iter();
    NvptxModule {
        ptx: code.map(|byte| byte as core::ffi::c_char).collect(),
        entrypoint,
        ir,
        shared_memory_size: compiled.shared_memory_size,
        io: compiled.io,
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

        /// Nothing to narrow: CUDA C++ has all features.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}
