//! The compiler of CUDA kernels from NVIDIA's Python packages, where a package manager of Python has installed this program: then
//! no toolkit is needed.

// For the environment, and to load a library.
#![cfg_attr(feature = "cuda", allow(unsafe_code))]

use std::path::{Path, PathBuf};

/// What a toolkit's folder is called in these packages, below `site-packages`.
const FOLDER: &str = "nvidia/cu13";

/// Lets CUDA find the packages `nvidia-cuda-nvrtc`, `-runtime`, `-crt` and `-cccl` of the Python environment that this program is
/// in, unless `CUDA_PATH` names a toolkit. To be called before there is another thread. Without CUDA in the build it does nothing.
pub fn use_packaged_cuda() {
    #[cfg(feature = "cuda")]
    if std::env::var_os("CUDA_PATH").is_none()
        && let Ok(program) = std::env::current_exe()
        && let Some(folder) = packaged(&program)
    {
        // SAFETY: no other thread reads the environment yet.
        unsafe { std::env::set_var("CUDA_PATH", &folder) };
        load(&folder);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = packaged;
}

/// The folder of the packages beside a program: `bin` of the environment is beside `lib/pythonX.Y/site-packages`, `Scripts`
/// beside `Lib/site-packages`.
fn packaged(program: &Path) -> Option<PathBuf> {
    let environment = program.parent()?.parent()?;
    let libraries = std::fs::read_dir(environment.join("lib"));
    let pythons = libraries.into_iter().flatten().flatten();
    let pythons = pythons
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(is_python));
    let folders = pythons.chain([environment.join("Lib")]);
    let mut folders = folders.map(|folder| folder.join("site-packages").join(FOLDER));
    folders.find(|folder| folder.join("include/cuda_fp16.h").is_file())
}

fn is_python(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with("python3")
}

/// Loads the library by its path: who asks for its name later gets this one.
#[cfg(all(feature = "cuda", target_os = "linux", target_env = "gnu"))]
fn load(folder: &Path) {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt as _;

    let path = folder.join("lib/libnvrtc.so.13");
    if let Ok(path) = CString::new(path.as_os_str().as_bytes()) {
        // SAFETY: the path ends with a zero; the library's initialisers are NVIDIA's. If it can't be loaded, the check of the
        // device says so.
        let _ = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    }
}

/// Libraries are looked for in the folders of `PATH`.
#[cfg(all(feature = "cuda", windows))]
fn load(folder: &Path) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = [folder.join("bin/x86_64"), folder.join("bin")];
    if let Ok(path) = std::env::join_paths(first.into_iter().chain(std::env::split_paths(&path))) {
        // SAFETY: no other thread reads the environment yet.
        unsafe { std::env::set_var("PATH", path) };
    }
}

#[cfg(all(
    feature = "cuda",
    not(windows),
    not(all(target_os = "linux", target_env = "gnu"))
))]
fn load(_folder: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_found_beside_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("bin/qwen-burn");
        assert_eq!(packaged(&program), None);
        let folder = dir.path().join("lib/python3.12/site-packages/nvidia/cu13");
        std::fs::create_dir_all(folder.join("include")).unwrap();
        assert_eq!(packaged(&program), None);
        std::fs::write(folder.join("include/cuda_fp16.h"), "").unwrap();
        assert_eq!(packaged(&program), Some(folder));
    }
}
