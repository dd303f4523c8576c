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
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Target {
    /// The card itself.
    Card(u32),
    /// PTX of the newest architecture before the card's that NVRTC knows: the driver compiles it for the card.
    Virtual(u32),
}

impl Target {
    pub(crate) fn of(arch: u32) -> Result<Self, CompilationError> {
        let known = known_archs()?;
        Self::among(&known, arch).ok_or_else(|| {
            error(format!(
                "this NVRTC does not compile for the card's architecture {arch}, but for {known:?}: install an older CUDA toolkit"
            ))
        })
    }

    fn among(known: &[u32], arch: u32) -> Option<Self> {
        match known.contains(&arch) {
            true => Some(Self::Card(arch)),
            false => known
                .iter()
                .copied()
                .filter(|known| *known < arch)
                .max()
                .map(Self::Virtual),
        }
    }

    pub(crate) fn options(self) -> Vec<String> {
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
    let toolkit = match std::env::var("CUDA_PATH").ok() {
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
            log::debug!("refused by NVRTC:\n{source}");
            return Err(error(format!("NVRTC refuses a kernel: {}", self.log())));
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

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn a_card_that_is_not_known_gets_code_of_an_earlier_one() {
        let known = [75, 80, 90, 100, 120];
        assert_eq!(Target::among(&known, 90), Some(Target::Card(90)));
        assert_eq!(Target::among(&known, 103), Some(Target::Virtual(100)));
        assert_eq!(Target::among(&known, 130), Some(Target::Virtual(120)));
        assert_eq!(Target::among(&known, 61), None);
        assert!(Target::Card(90).options()[0].ends_with("=sm_90a"));
        assert!(Target::Virtual(86).options()[0].ends_with("=compute_86"));
    }
}
