//! Machine code of kernels on disk.
//!
//! A file has 16 bytes of hash, 8 with the size of shared memory, 8 with the number of buffers, a byte for each of these (what
//! the kernel does with it), then the code. A damaged file is as good as none. A file's name is a hash of all that the code
//! depends on.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use cubecl_core::hash::StableHasher;
use cubecl_server::kernel::BufferIOAttr;

/// Where kernels are kept; if it is empty, none are.
const VARIABLE: &str = "CUDA_KERNEL_CACHE";
const HASH_BYTES: usize = 16;
const EXTENSION: &str = "cubin";
/// What the extension of a file that is being written begins with.
const UNFINISHED: &str = "unfinished-";
/// Bytes of all kernels together, at most, when a process begins.
const MAX_BYTES: u64 = 256 << 20;
/// A kernel that was not loaded for so long is deleted.
const KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What a kernel's code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(u128);

impl Key {
    pub(crate) fn of(all: &impl Hash) -> Self {
        Self(StableHasher::hash_one(all))
    }
}

/// A kernel as the driver takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiled {
    /// Bytes of dynamic shared memory.
    pub(crate) shared_memory_size: usize,
    /// What it does with each buffer.
    pub(crate) io: Vec<BufferIOAttr>,
    /// Machine code or PTX.
    pub(crate) code: Vec<u8>,
}

/// In the order of their bytes.
const IO: [BufferIOAttr; 4] = [
    BufferIOAttr::ReadOnly,
    BufferIOAttr::WriteOnly,
    BufferIOAttr::ReadWrite,
    BufferIOAttr::Dead,
];

impl Compiled {
    fn to_bytes(&self) -> Vec<u8> {
        let io = self
            .io
            .iter()
            .map(|io| IO.iter().position(|known| known == io).unwrap_or(2) as u8);
        let sizes = [self.shared_memory_size as u64, self.io.len() as u64];
        let head = sizes.into_iter().flat_map(u64::to_le_bytes);
        let body: Vec<u8> = head.chain(io).chain(self.code.iter().copied()).collect();
        [&hash_of(&body)[..], &body].concat()
    }

    /// `None` if the bytes are damaged.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (hash, body) = bytes.split_at_checked(HASH_BYTES)?;
        let (shared_memory_size, rest) = body.split_at_checked(8)?;
        let (num_buffers, rest) = rest.split_at_checked(8)?;
        let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
        let num_buffers = usize::try_from(number(num_buffers)?).ok()?;
        let (io, code) = rest.split_at_checked(num_buffers)?;
        let io: Option<Vec<_>> = io
            .iter()
            .map(|&io| IO.get(usize::from(io)).copied())
            .collect();
        (hash == hash_of(body)).then_some(Self {
            shared_memory_size: usize::try_from(number(shared_memory_size)?).ok()?,
            io: io?,
            code: code.to_vec(),
        })
    }
}

/// A folder of kernels.
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The user's; none without a home, or if the user wants none.
    pub(crate) fn of_user() -> Option<&'static Self> {
        static CACHE: LazyLock<Option<Cache>> = LazyLock::new(|| {
            let cache = Cache::new(user_folder(
                |name| std::env::var_os(name),
                std::env::home_dir(),
            )?);
            cache.forget_old(SystemTime::now());
            Some(cache)
        });
        CACHE.as_ref()
    }

    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{:032x}.{EXTENSION}", key.0))
    }

    pub(crate) fn load(&self, key: &Key) -> Option<Compiled> {
        let path = self.path(key);
        let bytes = fs::read(&path).ok()?;
        let compiled = Compiled::from_bytes(&bytes);
        if compiled.is_none() {
            log::warn!(
                "{} is damaged: its kernel is compiled again",
                path.display()
            );
            return None;
        }
        // Without the right to write, the kernel is used all the same.
        let _ = File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        compiled
    }

    /// Keeps the code, and says whether it could. Without room or rights, the next process compiles the kernel again.
    pub(crate) fn store(&self, key: &Key, compiled: &Compiled) -> bool {
        let written = self.write(&self.path(key), &compiled.to_bytes());
        if let Err(error) = &written {
            log::debug!("{}: a kernel is not kept: {error}", self.folder.display());
        }
        written.is_ok()
    }

    /// Two processes may write the same kernel: a file appears whole.
    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        // Processes of containers that share a folder may have one id.
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let time = time.map_or(0, |time| time.as_nanos());
        let unfinished = format!("{UNFINISHED}{}-{time}", std::process::id());
        let unfinished = path.with_extension(unfinished);
        let written = fs::write(&unfinished, bytes);
        let kept = written.and_then(|()| fs::rename(&unfinished, path));
        if kept.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        kept
    }

    /// Deletes kernels that have not been used, of older versions for example, what a killed process left, and beyond
    /// [`MAX_BYTES`] the ones that were used longest ago. Other files of the folder stay.
    fn forget_old(&self, now: SystemTime) {
        let mut kept: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let (true, Ok(used)) = (metadata.is_file() && is_kernel(&path), metadata.modified())
            else {
                continue;
            };
            match now.duration_since(used) {
                Ok(age) if age > KEPT => drop(fs::remove_file(path)),
                _ => kept.push((used, metadata.len(), path)),
            }
        }
        kept.sort();
        let mut total: u64 = kept.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in kept {
            if total <= MAX_BYTES {
                break;
            }
            total -= len;
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether a file has the name of a kernel, or of one that is being written.
fn is_kernel(path: &Path) -> bool {
    let name = path.file_stem().and_then(|name| name.to_str());
    let extension = path.extension().and_then(|extension| extension.to_str());
    let is_hash = |name: &str| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let is_ours = |extension: &str| extension == EXTENSION || extension.starts_with(UNFINISHED);
    name.is_some_and(is_hash) && extension.is_some_and(is_ours)
}

fn hash_of(bytes: &[u8]) -> [u8; HASH_BYTES] {
    StableHasher::hash_one(&bytes).to_le_bytes()
}

/// Where the user's caches are, by the variables of the environment.
fn user_folder(
    variable: impl Fn(&str) -> Option<OsString>,
    home: Option<PathBuf>,
) -> Option<PathBuf> {
    if let Some(folder) = variable(VARIABLE) {
        return (!folder.is_empty()).then(|| folder.into());
    }
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let system = if cfg!(windows) {
        "LOCALAPPDATA"
    } else {
        "XDG_CACHE_HOME"
    };
    let caches = match set(system)
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
    {
        Some(folder) => folder,
        None => home?.join(".cache"),
    };
    Some(caches.join("qwen-burn").join("kernels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Cache {
        let name = format!(
            "kernels-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        Cache::new(std::env::temp_dir().join(name))
    }

    #[test]
    fn a_kernel_comes_back_unless_its_file_is_damaged() {
        let cache = empty();
        let (key, other) = (Key::of(&"a"), Key::of(&"b"));
        let kernel = |code: &[u8]| Compiled {
            shared_memory_size: 48 << 10,
            io: IO.to_vec(),
            code: code.to_vec(),
        };
        assert_eq!(cache.load(&key), None);
        cache.store(&key, &kernel(b"code"));
        assert_eq!(cache.load(&key), Some(kernel(b"code")));
        assert_eq!(cache.load(&other), None);
        let whole = fs::read(cache.path(&key)).unwrap();
        for len in 0..whole.len() {
            fs::write(cache.path(&key), &whole[..len]).unwrap();
            assert_eq!(cache.load(&key), None);
            let mut changed = whole.clone();
            changed[len] ^= 1;
            fs::write(cache.path(&key), changed).unwrap();
            assert_eq!(cache.load(&key), None);
        }
        cache.store(&key, &kernel(b""));
        assert_eq!(cache.load(&key), Some(kernel(b"")));
        assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), 1);

        cache.forget_old(SystemTime::now() + KEPT / 2);
        assert!(cache.load(&key).is_some());
        cache.forget_old(SystemTime::now() + KEPT * 2);
        assert!(cache.load(&key).is_none());
        fs::remove_dir(&cache.folder).unwrap();
    }

    #[test]
    fn other_files_of_the_folder_stay() {
        let cache = empty();
        fs::create_dir_all(cache.folder.join("0123456789abcdef0123456789abcdef.cubin")).unwrap();
        for name in [
            "model.safetensors",
            "a.cubin",
            "0123456789abcdef0123456789abcdef.txt",
        ] {
            fs::write(cache.folder.join(name), "x").unwrap();
        }
        let left = "fedcba9876543210fedcba9876543210.unfinished-7-1";
        fs::write(cache.folder.join(left), "x").unwrap();
        cache.forget_old(SystemTime::now() + KEPT * 2);
        assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), 4);
        fs::remove_dir_all(&cache.folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn the_folder_is_where_the_environment_says() {
        let with = |set: &[(&str, &str)], home: Option<&str>| {
            let variable = |name: &str| {
                let value = set.iter().find(|(set, _)| *set == name);
                value.map(|(_, value)| value.into())
            };
            user_folder(variable, home.map(PathBuf::from))
        };
        assert_eq!(with(&[], None), None);
        let own = Some("/h/.cache/qwen-burn/kernels".into());
        assert_eq!(with(&[], Some("/h")), own);
        assert_eq!(with(&[("XDG_CACHE_HOME", "c")], Some("/h")), own);
        let caches = [("XDG_CACHE_HOME", "/c")];
        assert_eq!(
            with(&caches, Some("/h")),
            Some("/c/qwen-burn/kernels".into())
        );
        assert_eq!(
            with(&[(VARIABLE, "/k"), caches[0]], None),
            Some("/k".into())
        );
        assert_eq!(with(&[(VARIABLE, ""), caches[0]], Some("/h")), None);
    }
}
