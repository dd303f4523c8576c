//! CUDA C++ to machine code, by NVRTC.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;

use cubecl_server::compiler::CompilationError;
use cudarc::nvrtc::{result, sys};

/// NVRTC's version: major and minor.
pub(crate) fn version() -> Result<(i32, i32), CompilationError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: NVRTC writes the two numbers that it is given.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }
        .result()
        .map_err(error)?;
    Ok((major, minor))
}

/// Machine code of a kernel, from CUDA C++.
pub(crate) fn compile(source: &str, target: Target) -> Result<Vec<u8>, CompilationError> {
    Program::new(source)?.compile(source, target)
}

/// What NVRTC compiles for.
#[derive(Clone, Copy, Hash)]
pub(crate) enum Target {
    /// The card itself.
    Card(u32),
    /// PTX of the newest architecture that NVRTC knows: the driver compiles it for a newer card.
    Virtual(u32),
}

impl Target {
    pub(crate) fn of(arch: u32) -> Result<Self, CompilationError> {
        let known = known_archs()?;
        match known.iter().copied().max() {
            Some(newest) if newest < arch => Ok(Self::Virtual(newest)),
            _ => Ok(Self::Card(arch)),
        }
    }

    fn options(self) -> Vec<String> {
        let arch = match self {
            // Instructions that later cards don't have, such as `wgmma`.
            Self::Card(arch @ 90..) => format!("sm_{arch}a"),
            Self::Card(arch) => format!("sm_{arch}"),
            Self::Virtual(arch) => format!("compute_{arch}"),
        };
        let mut options = vec![format!("--gpu-architecture={arch}")];
        if let Some(include) = include_folder() {
            // The second is where CUDA 13 has the headers of CCCL.
            for folder in [include.clone(), include.join("cccl")] {
                options.push(format!("--include-path={}", folder.display()));
            }
        }
        options
    }
}

/// Architectures that NVRTC compiles for.
fn known_archs() -> Result<Vec<u32>, CompilationError> {
    let mut len = 0;
    // SAFETY: NVRTC writes the number that it is given.
    unsafe { sys::nvrtcGetNumSupportedArchs(&mut len) }
        .result()
        .map_err(error)?;
    let mut archs = vec![0; usize::try_from(len).unwrap_or(0)];
    // SAFETY: NVRTC writes as many numbers as it said.
    unsafe { sys::nvrtcGetSupportedArchs(archs.as_mut_ptr()) }
        .result()
        .map_err(error)?;
    Ok(archs
        .into_iter()
        .filter_map(|arch| u32::try_from(arch).ok())
        .collect())
}

/// The folder of the toolkit's headers, where `cubecl-cuda` looks for it.
fn include_folder() -> Option<PathBuf> {
    let places = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
    let windows = PathBuf::from("C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA/");
    let toolkit = match std::env::var_os("CUDA_PATH") {
        Some(path) => Some(path.into()),
        None if cfg!(windows) => Some(windows),
        None => match places.into_iter().find(|path| path.exists()) {
            Some(path) => Some(path),
            None => std::path::Path::new("/usr/bin/nvcc")
                .exists()
                .then(|| "/usr".into()),
        },
    };
    toolkit.map(|toolkit| toolkit.join("include"))
}

/// A program of NVRTC, destroyed at the end.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(source: &str) -> Result<Self, CompilationError> {
        let source = CString::new(source).map_err(error)?;
        result::create_program(&source, None)
            .map(Self)
            .map_err(error)
    }

    fn compile(&self, source: &str, target: Target) -> Result<Vec<u8>, CompilationError> {
        // SAFETY: the program exists.
        if unsafe { result::compile_program(self.0, &target.options()) }.is_err() {
            return Err(error(format!(
                "NVRTC refuses a kernel: {}\n{source}",
                self.log()
            )));
        }
        match target {
            Target::Card(_) => self.machine_code(),
            // SAFETY: the program is compiled.
            Target::Virtual(_) => match unsafe { result::get_ptx(self.0) } {
                Ok(text) => Ok(text.into_iter().map(|byte| byte as u8).collect()),
                Err(refused) => Err(error(refused)),
            },
        }
    }

    fn machine_code(&self) -> Result<Vec<u8>, CompilationError> {
        let mut len = 0;
        // SAFETY: the program is compiled; NVRTC writes the number that it is given.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &mut len) }
            .result()
            .map_err(error)?;
        let mut code = vec![0_u8; len];
        // SAFETY: NVRTC writes as many bytes as it said.
        unsafe { sys::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast::<c_char>()) }
            .result()
            .map_err(error)?;
        Ok(code)
    }

    /// What the compiler says.
    fn log(&self) -> String {
        // SAFETY: the program exists.
        let Ok(log) = (unsafe { result::get_program_log(self.0) }) else {
            return "without a log".to_owned();
        };
        let bytes: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
        match CStr::from_bytes_until_nul(&bytes) {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nobody else has the program.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// A kernel can't be compiled.
pub(crate) fn error(reason: impl std::fmt::Display) -> CompilationError {
    CompilationError::Generic {
        reason: reason.to_string(),
        backtrace: cubecl_environment::backtrace::BackTrace::capture(),
    }
}
