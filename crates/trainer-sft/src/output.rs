//! The output folder, and what a run leaves in it: an adapter, or a model that can be served.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::DType;
use model_qwen::{QwenModel, SaveError, TEMPLATES, TEXT_FILES, copy_modules, stored_dtype};
use serde_json::{Value, json};
use tracing::warn;

use crate::config::{Config, ConfigError, SETTINGS};
use crate::error::{TrainError, output_error};
use crate::lora::{self, AdapterForm};

/// Folders that were made for runs that have not begun.
static UNUSED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unused() -> MutexGuard<'static, Vec<PathBuf>> {
    UNUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the output folders of runs that have not begun: for a program that ends at once.
pub fn discard_unused_output() {
    unused().drain(..).for_each(|folder| discard(&folder));
}

fn discard(folder: &Path) {
    // What else is in it stays.
    let _ = fs::remove_file(folder.join(SETTINGS));
    let _ = fs::remove_dir(folder);
}

/// The output folder of a run: its own from the start, removed again when the run does not begin.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    path: PathBuf,
    /// Keeps other runs out.
    _lock: Option<File>,
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        let mut unused = unused();
        let own = unused.iter().position(|folder| *folder == self.path);
        if let Some(own) = own {
            discard(&unused.swap_remove(own));
        }
    }
}

impl OutputFolder {
    /// Makes the folder, or takes that of the run that goes on.
    ///
    /// # Errors
    /// A folder that is not empty, cannot be written, or is another run's.
    pub(crate) fn claim(config: &Config) -> Result<Self, TrainError> {
        let goes_on = config.run.goes_on_in_its_folder();
        let path = match goes_on {
            true => config.run.output.clone(),
            false => make(config)?,
        };
        let lock = lock(&path)?;
        if goes_on {
            remove_leftovers(&path);
        }
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder of a run that has begun and has nothing to show.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.path);
    }

    /// Writes the settings. From now on the folder stays.
    pub(crate) fn begin(&self, config: &Config) -> Result<(), TrainError> {
        let settings = self.path.join(SETTINGS);
        fs::write(&settings, config.with_absolute_paths().to_toml())
            .map_err(output_error(&settings))?;
        unused().retain(|folder| *folder != self.path);
        Ok(())
    }
}

/// Makes a new folder, or takes an empty one, and writes the settings into it: of two runs, one gets it.
fn make(config: &Config) -> Result<PathBuf, TrainError> {
    let mut path = config.run.output.clone();
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        let file = parent
            .ancestors()
            .find(|above| above.exists() && !above.is_dir());
        if let Some(file) = file {
            return Err(TrainError::Config(ConfigError::Value {
                flag: "output",
                expected: "a path of folders".into(),
                found: format!("the file {} in it", file.display()),
            }));
        }
        fs::create_dir_all(parent).map_err(not_made(parent))?;
    }
    // A signal that comes now removes the folder after it has been noted.
    let mut made = unused();
    loop {
        match fs::create_dir(&path) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if config.run.numbered {
                    path = next_number(&path);
                    continue;
                }
                let entry = fs::read_dir(&path).map_err(output_error(&path))?.next();
                match entry {
                    None => break,
                    Some(_) => return Err(taken(&path)),
                }
            }
            Err(error) => return Err(not_made(&path)(error)),
        }
    }
    let settings = path.join(SETTINGS);
    match File::create_new(&settings) {
        Ok(mut file) => {
            let written = file.write_all(config.with_absolute_paths().to_toml().as_bytes());
            if let Err(error) = written {
                discard(&path);
                return Err(output_error(&settings)(error));
            }
            made.push(path.clone());
            Ok(path)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(taken(&path)),
        Err(error) => Err(output_error(&settings)(error)),
    }
}

/// Refuses a folder that cannot be made: of those that are missing the first is made, and removed again.
pub(crate) fn can_be_made(folder: &Path) -> Result<(), String> {
    let mut missing = folder
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && fs::symlink_metadata(path).is_err());
    let Some(first) = missing.by_ref().last() else {
        return Ok(());
    };
    let made = fs::create_dir(first);
    if made.is_ok() {
        // It stays empty until a run.
        let _ = fs::remove_dir(first);
    }
    made.map_err(|error| {
        let (folder, first) = (folder.display(), first.display());
        format!("{folder}: {first}: {error}")
    })
}

/// A folder that the system does not make.
fn not_made(path: &Path) -> impl FnOnce(io::Error) -> TrainError {
    let path = path.display().to_string();
    move |error| {
        TrainError::Config(ConfigError::Value {
            flag: "output",
            expected: "a folder that can be made".into(),
            found: format!("{path}: {error}"),
        })
    }
}

fn taken(path: &Path) -> TrainError {
    let found = format!("{}, which is another run's", path.display());
    TrainError::Config(ConfigError::Value {
        flag: "output",
        expected: "a new or empty folder".into(),
        found,
    })
}

/// `name-2` after `name-1`.
fn next_number(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (stem, number) = name.rsplit_once('-').unwrap_or((&name, "0"));
    let number: usize = number.parse().unwrap_or(0);
    path.with_file_name(format!("{stem}-{}", number + 1))
}

/// Locks a folder until this process ends; `None` where the file system has no locks.
fn lock(path: &Path) -> Result<Option<File>, TrainError> {
    let Ok(folder) = File::open(path) else {
        return Ok(None);
    };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(taken(path)),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Removes what a run that was killed has left half-written.
fn remove_leftovers(run: &Path) {
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".part") || (name.starts_with('.') && name.ends_with(".tmp")) {
            let path = entry.path();
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            if let Err(error) = removed {
                warn!("{}: cannot be removed: {error}", path.display());
            }
        }
    }
}

/// What the result is made of.
pub(crate) enum Weights {
    /// The form of the adapter.
    Adapter(Box<AdapterForm>),
    /// Folder of the tokenizer, which is copied.
    Model {
        /// The folder.
        tokenizer: Option<PathBuf>,
        /// The model's own folder, unless it was drawn at random.
        origin: Option<PathBuf>,
        /// The token that ends an answer, where no file of that folder says so.
        end: Option<u32>,
        /// The dtype that the result is written in.
        dtype: DType,
    },
}

/// The dtype that the whole model is written in: that of the weights which the run starts from.
pub(crate) fn result_dtype(config: &Config) -> Result<DType, TrainError> {
    Ok(match config.model.folder()? {
        Some(folder) => stored_dtype(&folder)?,
        None => config.model.architecture()?.dtype,
    })
}

impl Weights {
    /// The dtype that the result is written in; an adapter is f32.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::Adapter(_) => DType::F32,
            Self::Model { dtype, .. } => *dtype,
        }
    }

    /// Writes the result to `dir`, model weights in `dtype`, or in bf16 where one is too large for f16; every file appears whole
    /// or not at all.
    pub(crate) fn save(
        &self,
        model: &QwenModel,
        dir: &Path,
        dtype: DType,
    ) -> Result<(), TrainError> {
        match self {
            Self::Adapter(form) => {
                let adapter = form.read(model, lora::SLOT);
                adapter.save(dir).map_err(TrainError::of_adapter(dir))
            }
            Self::Model {
                tokenizer,
                origin,
                end,
                ..
            } => {
                fs::create_dir_all(dir).map_err(output_error(dir))?;
                if let Some(folder) = tokenizer {
                    copy_tokenizer(folder, dir)?;
                }
                if let Some(end) = end {
                    add_end(
                        &dir.join("generation_config.json"),
                        &model.config.eos_token_ids,
                        *end,
                    )?;
                }
                if let Some(folder) = origin {
                    let copied = copy_modules(folder, dir);
                    copied.map_err(|error| output_error(dir)(io::Error::other(error)))?;
                }
                match model.save_as(dir, dtype, origin.as_deref()) {
                    Err(error @ SaveError::TooLarge { .. }) => {
                        warn!("{error}: the model is written in bf16");
                        model.save_as(dir, DType::BF16, origin.as_deref())?;
                    }
                    saved => saved?,
                }
                follow_umask(dir)
            }
        }
    }

    /// Writes the result where it still can be, after `dir` has failed. Says where.
    pub(crate) fn save_elsewhere(
        &self,
        model: &QwenModel,
        dir: &Path,
        dtype: DType,
    ) -> Option<PathBuf> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("trainer-sft-{}-{name}", std::process::id());
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let places = [
            Some(std::env::temp_dir()),
            home,
            std::env::current_dir().ok(),
        ];
        places.into_iter().flatten().find_map(|place| {
            let folder = place.join(&name);
            fs::create_dir(&folder).ok()?;
            match self.save(model, &folder, dtype) {
                Ok(()) => Some(folder),
                Err(_) => {
                    // Half a result is none.
                    let _ = fs::remove_dir_all(&folder);
                    None
                }
            }
        })
    }
}

/// The library for tensors keeps its files to the user: gives them the permissions of a new file.
fn follow_umask(dir: &Path) -> Result<(), TrainError> {
    let config = dir.join("config.json");
    let like_new = fs::metadata(&config)
        .map_err(output_error(&config))?
        .permissions();
    for entry in fs::read_dir(dir).map_err(output_error(dir))?.flatten() {
        let path = entry.path();
        if path
            .extension()
            .is_some_and(|ending| ending == "safetensors")
        {
            fs::set_permissions(&path, like_new.clone()).map_err(output_error(&path))?;
        }
    }
    Ok(())
}

/// Copies the content of the tokenizer's files; they get the permissions of new ones.
fn copy_tokenizer(folder: &Path, dir: &Path) -> Result<(), TrainError> {
    let copy = |source: &Path, target: &Path| {
        let bytes = fs::read(source).map_err(output_error(source))?;
        fs::write(target, bytes).map_err(output_error(target))
    };
    for name in TEXT_FILES {
        let source = folder.join(name);
        if source.exists() {
            copy(&source, &dir.join(name))?;
        }
    }
    let templates = folder.join(TEMPLATES);
    if templates.is_dir() {
        let target = dir.join(TEMPLATES);
        fs::create_dir_all(&target).map_err(output_error(&target))?;
        let entries = fs::read_dir(&templates).map_err(output_error(&templates))?;
        for entry in entries.flatten() {
            copy(&entry.path(), &target.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Adds the token that ends an answer to those at which generation stops.
fn add_end(path: &Path, known: &[u32], end: u32) -> Result<(), TrainError> {
    let mut config: Value = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| output_error(path)(io::Error::other(error)))?,
        Err(_) => json!({}),
    };
    let mut tokens = match config.get("eos_token_id") {
        Some(Value::Array(tokens)) => tokens.clone(),
        Some(token) if token.is_u64() => vec![token.clone()],
        _ => known.iter().map(|&token| token.into()).collect(),
    };
    if !tokens.contains(&end.into()) {
        tokens.push(end.into());
    }
    config["eos_token_id"] = tokens.into();
    let text = serde_json::to_string_pretty(&config).unwrap_or_default();
    fs::write(path, text + "\n").map_err(output_error(path))
}
