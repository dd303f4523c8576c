//! Finds a model: a folder on this machine, or a repository on the Hugging Face Hub, which is
//! downloaded into the standard cache that the Python libraries use too.

pub(crate) mod describe;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod patience;
#[cfg(feature = "hub")]
mod progress_writer;

use std::path::{Path, PathBuf};
#[cfg(feature = "hub")]
use std::time::Duration;

#[cfg(feature = "hub")]
use hf_hub::{Cache, CacheRepo};

#[cfg(feature = "hub")]
use crate::chat_template::ChatTemplate;
use crate::links;
#[cfg(feature = "hub")]
use crate::model_folder::{INDEX, SINGLE};
#[cfg(feature = "hub")]
use crate::modules::{MODULES, module_folders};
#[cfg(feature = "hub")]
use crate::pooling::Architecture;
#[cfg(feature = "hub")]
use download::{Download, optional_files, shards};

/// Where the Hub is when `HF_ENDPOINT` says nothing.
const HUB: &str = "https://huggingface.co";
/// How long a Hub may take to answer when it is asked whether it is there.
#[cfg(feature = "hub")]
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where most models have nothing to add.
#[cfg(feature = "hub")]
const LITTLE_PATIENCE: Duration = Duration::from_secs(3);
/// What `modules.json` and its neighbours are about.
#[cfg(feature = "hub")]
const POOLING: &str = "the pooling of embeddings";

/// Why a model could not be found.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The folder is there but holds no model.
    #[error("{}: expected a model folder with config.json, found {found}", path.display())]
    NotAModelFolder {
        /// The folder (or file).
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// Neither an existing folder nor the name of a repository.
    #[error(
        "{given:?} is neither an existing folder nor a model name such as Qwen/Qwen2.5-0.5B-Instruct{hint}"
    )]
    NotAModel {
        /// What was given.
        given: String,
        /// What may be meant.
        hint: String,
    },
    /// The name of a repository, in a build without the Hub.
    #[error(
        "{id} is the name of a model on the Hub, and this build reads folders only: turn on the cargo feature `hub` of \
         model-qwen, or download the model elsewhere and pass its folder"
    )]
    NoHub {
        /// The model.
        id: String,
    },
    /// `HF_HUB_OFFLINE` is set and the cache does not have the model.
    #[error("{id} is not (completely) in the cache {}{lacks} and HF_HUB_OFFLINE is set: unset it, or download the model elsewhere and pass its folder", cache.display())]
    Offline {
        /// The model.
        id: String,
        /// What the cache lacks of it, if it has a part.
        lacks: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// 401 or 403: a gated or private repository, or (401) one that does not exist.
    #[error(
        "{endpoint} refused access to {id} (HTTP {status}): the name may be misspelled, or the model is gated or private. Then accept its licence on its page and set HF_TOKEN to a token that may read it, or download it by hand and pass the folder"
    )]
    Refused {
        /// The model.
        id: String,
        /// The Hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
    },
    /// 404: no such repository.
    #[error(
        "{endpoint} has no model {id} (HTTP 404): check the spelling, or set HF_ENDPOINT to the mirror that has it"
    )]
    NotFound {
        /// The model.
        id: String,
        /// The Hub.
        endpoint: String,
    },
    /// The repository lacks a file that is needed.
    #[error("{id}: expected {expected}, found {found}")]
    MissingFile {
        /// The model.
        id: String,
        /// The file.
        expected: String,
        /// What is there instead.
        found: String,
    },
    /// The repository has no files.
    #[error("{id}: the repository at {endpoint} is empty")]
    Empty {
        /// The model.
        id: String,
        /// The Hub.
        endpoint: String,
    },
    /// The token is none that a header can carry.
    #[error(
        "HF_TOKEN (or the token that `hf auth login` has stored): expected visible characters of ASCII, found {found} at character {place}"
    )]
    Token {
        /// The character as it is escaped.
        found: String,
        /// Its place, from 1.
        place: usize,
    },
    /// The Hub has too many requests, or is down for a while.
    #[error("{endpoint} takes no request for {id} now ({reason})")]
    Busy {
        /// The model.
        id: String,
        /// The Hub.
        endpoint: String,
        /// The status, and what to do.
        reason: String,
    },
    /// The disk does not take the files.
    #[error(
        "{id} cannot be written to the cache {}: {reason}. Free some space or mend its permissions, or set HF_HUB_CACHE to another folder",
        cache.display()
    )]
    Disk {
        /// The model.
        id: String,
        /// The cache folder.
        cache: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The Hub cannot be reached, or the transfer broke.
    #[error(
        "{id} could not be downloaded from {endpoint}: {reason}. Set HF_ENDPOINT to a mirror (such as https://hf-mirror.com), or download the model by hand and pass the folder"
    )]
    Network {
        /// The model.
        id: String,
        /// The Hub.
        endpoint: String,
        /// What happened.
        reason: String,
    },
}

/// How to reach the Hub.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Address without a slash at the end.
    pub endpoint: String,
    /// Sent as bearer token.
    pub token: Option<String>,
    /// The folder that holds `models--org--name`.
    pub cache_dir: PathBuf,
    /// Never use the network.
    pub offline: bool,
    /// Show a progress bar per file on the terminal.
    pub progress: bool,
}

impl HubOptions {
    /// The environment's answer, as the Python library `huggingface_hub` reads it: `HF_ENDPOINT`,
    /// `HF_TOKEN`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`, and the token
    /// that `hf auth login` stored.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Whether the Hub answers, whatever it says; `Err` holds the reason.
    ///
    /// # Errors
    /// When it is out of reach, or this build reads folders only.
    pub fn reach(&self) -> Result<(), String> {
        #[cfg(feature = "hub")]
        {
            download::reach(&self.endpoint, PATIENCE)
        }
        #[cfg(not(feature = "hub"))]
        Err("this build reads folders only".to_owned())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| {
            lookup(name)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let cache_home = || match get("XDG_CACHE_HOME") {
            Some(dir) => PathBuf::from(dir),
            None => std::env::home_dir().unwrap_or_default().join(".cache"),
        };
        let home = get("HF_HOME").map_or_else(|| cache_home().join("huggingface"), PathBuf::from);
        let token = get("HF_TOKEN")
            .or_else(|| get("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(home.join("token")).ok())
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let cache_dir = get("HF_HUB_CACHE").or_else(|| get("HUGGINGFACE_HUB_CACHE"));
        let truthy = |value: String| {
            matches!(
                value.to_ascii_lowercase().as_str(),
                "1" | "on" | "yes" | "true"
            )
        };
        Self {
            endpoint: get("HF_ENDPOINT")
                .unwrap_or_else(|| HUB.to_owned())
                .trim_end_matches('/')
                .to_owned(),
            token,
            cache_dir: cache_dir.map_or_else(|| home.join("hub"), PathBuf::from),
            offline: get("HF_HUB_OFFLINE")
                .or_else(|| get("TRANSFORMERS_OFFLINE"))
                .is_some_and(truthy),
            progress: true,
        }
    }
}

/// The folder of a model given as a folder or as `org/name` on the Hub (cargo feature `hub`). What
/// the cache already has completely is used without the network; anything else is downloaded with a
/// progress bar.
///
/// # Errors
/// When there is no such folder or repository, access is refused, the network fails, or a repository is
/// named in a build without `hub`; the message says what to do.
pub fn resolve_model(id_or_path: &str) -> Result<PathBuf, ResolveError> {
    resolve_model_with(id_or_path, &HubOptions::from_env())
}

/// [`resolve_model`] with explicit options.
///
/// # Errors
/// As [`resolve_model`].
pub fn resolve_model_with(id_or_path: &str, options: &HubOptions) -> Result<PathBuf, ResolveError> {
    let path = Path::new(id_or_path);
    let is_link_to_nothing = links::dangling(path).is_some();
    if path.exists() || is_link_to_nothing {
        let is_whole = describe::dangling_in(path).is_none();
        if is_whole && path.join("config.json").is_file() {
            return Ok(path.to_path_buf());
        }
        return Err(ResolveError::NotAModelFolder {
            path: path.to_path_buf(),
            found: describe::folder(path),
        });
    }
    if !is_repository_name(id_or_path) {
        return Err(ResolveError::NotAModel {
            given: id_or_path.to_owned(),
            hint: describe::hint(id_or_path),
        });
    }
    on_the_hub(id_or_path, options)
}

/// The folder of the repository `id`: in the cache, or downloaded into it.
#[cfg(feature = "hub")]
fn on_the_hub(id: &str, options: &HubOptions) -> Result<PathBuf, ResolveError> {
    let cache = Cache::new(options.cache_dir.clone());
    let in_cache = in_cache(&cache.model(id.to_owned()));
    let lacks = match in_cache {
        Some((folder, lacks)) if lacks.is_empty() => {
            add_small_files(id, &folder, options);
            return Ok(folder);
        }
        Some((_, lacks)) => format!(", which lacks {}", lacks.join(", ")),
        None => String::new(),
    };
    if options.offline {
        return Err(ResolveError::Offline {
            id: id.to_owned(),
            lacks,
            cache: options.cache_dir.clone(),
        });
    }
    Download::new(id, "main", options)?.run()
}

/// What a snapshot in the cache lacks of the small files, if its meaning depends on it: another program may have fetched the
/// files that it needed, and no more. Nothing for a folder that is in no cache.
#[cfg(feature = "hub")]
fn lacking(folder: &Path) -> Vec<String> {
    let commit = folder.file_name().unwrap_or_default();
    let snapshots = folder.parent().unwrap_or(folder);
    let repository = snapshots.parent().unwrap_or(folder);
    if !snapshots.ends_with("snapshots") {
        return Vec::new();
    }
    let known_to_miss = repository.join(".no_exist").join(commit);
    let is_unknown = |name: &str| !folder.join(name).exists() && !known_to_miss.join(name).exists();
    let has_template = matches!(ChatTemplate::from_dir(folder), Ok(Some(_)) | Err(_));
    let depends = |name: &str| match name {
        "generation_config.json" | "tokenizer_config.json" | MODULES => true,
        "sentence_bert_config.json" => folder.join(MODULES).exists(),
        "chat_template.jinja" | "chat_template.json" => !has_template,
        _ => false,
    };
    let small = optional_files().filter(|name| depends(name));
    let small = small.map(str::to_owned).chain(module_configs(folder));
    small.filter(|name| is_unknown(name)).collect()
}

/// The files that `modules.json` of a snapshot names.
#[cfg(feature = "hub")]
fn module_configs(folder: &Path) -> impl Iterator<Item = String> {
    let folders = module_folders(folder).into_iter();
    folders.map(|path| format!("{path}/config.json"))
}

/// The small files of a model that the cache lacks and the repository may have, such as its chat template. Uses no network.
pub fn unfetched(id_or_path: &str) -> Vec<String> {
    #[cfg(feature = "hub")]
    {
        let path = Path::new(id_or_path);
        if path.exists() {
            return path
                .canonicalize()
                .map_or_else(|_| Vec::new(), |folder| lacking(&folder));
        }
        if is_repository_name(id_or_path) {
            let cache = Cache::new(HubOptions::from_env().cache_dir);
            let found = in_cache(&cache.model(id_or_path.to_owned()));
            return found.map_or_else(Vec::new, |(folder, _)| lacking(&folder));
        }
    }
    #[cfg(not(feature = "hub"))]
    let _ = id_or_path;
    Vec::new()
}

/// What a small file is about.
#[cfg(feature = "hub")]
fn subject_of(name: &str) -> &'static str {
    match name {
        "generation_config.json" => "defaults of sampling and tokens that end an answer",
        "tokenizer_config.json" => "special tokens",
        "chat_template.jinja" | "chat_template.json" => "the chat template",
        _ => POOLING,
    }
}

/// Downloads the small files that a snapshot lacks, or says what the model goes without.
#[cfg(feature = "hub")]
fn add_small_files(id: &str, folder: &Path, options: &HubOptions) {
    let missing = lacking(folder);
    if missing.is_empty() {
        return;
    }
    let commit = folder.file_name().unwrap_or_default().to_string_lossy();
    let patience = match missing.iter().all(|name| subject_of(name) == POOLING) {
        true => LITTLE_PATIENCE,
        false => PATIENCE,
    };
    let reason = match options.offline {
        true => "HF_HUB_OFFLINE is set: unset it once, and they are fetched".to_owned(),
        false => match complete(id, &commit, options, patience) {
            Ok(()) => return,
            Err(reason) => reason,
        },
    };
    let means: Vec<&str> = missing
        .iter()
        .map(|name| subject_of(name))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let text = format!(
        "the cache of {id} lacks {}, which the repository may have, so that the model goes without what they say of {} ({}): \
         {reason}",
        missing.join(", "),
        means.join(", "),
        folder.display()
    );
    // Most models that generate text have no file about embeddings, and lack nothing.
    let generates = matches!(Architecture::of(folder), Ok(Architecture::CausalLm));
    match means.as_slice() {
        [POOLING] if generates && !folder.join(MODULES).exists() => tracing::info!("{text}"),
        _ => tracing::warn!("{text}"),
    }
}

/// Downloads the small files of a commit. The model is there: a Hub that is out of reach holds up no start.
#[cfg(feature = "hub")]
fn complete(
    id: &str,
    commit: &str,
    options: &HubOptions,
    patience: Duration,
) -> Result<(), String> {
    download::reach(&options.endpoint, patience)
        .map_err(|reason| format!("{} does not answer: {reason}", options.endpoint))?;
    let download = Download::new(id, commit, options).map_err(|error| error.to_string())?;
    download.complete().map_err(|error| error.to_string())
}

#[cfg(not(feature = "hub"))]
fn on_the_hub(id: &str, _options: &HubOptions) -> Result<PathBuf, ResolveError> {
    Err(ResolveError::NoHub { id: id.to_owned() })
}

/// `org/name` of letters, digits, `-`, `_` and `.`.
fn is_repository_name(id: &str) -> bool {
    let valid = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    id.split_once('/')
        .is_some_and(|(org, name)| valid(org) && valid(name))
}

/// The cached snapshot, and what it lacks of configuration, tokenizer and weights.
#[cfg(feature = "hub")]
fn in_cache(cache: &CacheRepo) -> Option<(PathBuf, Vec<String>)> {
    let folder = cache.get("config.json")?.parent()?.to_path_buf();
    let has = |name: &str| folder.join(name).is_file();
    let mut lacks = Vec::new();
    let has_tokenizer = has("tokenizer.json") || (has("vocab.json") && has("merges.txt"));
    if !has_tokenizer {
        lacks.push("tokenizer.json".to_owned());
    }
    match shards(&folder.join(INDEX)) {
        _ if has(SINGLE) => {}
        Ok(shards) if !shards.is_empty() => {
            lacks.extend(shards.into_iter().filter(|shard| !has(shard)));
        }
        _ => lacks.push(SINGLE.to_owned()),
    }
    Some((folder, lacks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_as_in_python() {
        let options = |pairs: &[(&str, &str)]| {
            HubOptions::from_lookup(|name| {
                let pair = pairs.iter().find(|(key, _)| *key == name);
                pair.map(|(_, value)| (*value).to_owned())
            })
        };
        let set = options(&[
            ("HF_ENDPOINT", "https://hf-mirror.com/"),
            ("HF_TOKEN", " abc\n"),
            ("HF_HOME", "/x/hf"),
            ("HF_HUB_OFFLINE", "ON"),
        ]);
        assert_eq!(set.endpoint, "https://hf-mirror.com");
        assert_eq!(set.token.as_deref(), Some("abc"));
        assert_eq!(set.cache_dir, Path::new("/x/hf/hub"));
        assert!(set.offline);

        let xdg = options(&[("XDG_CACHE_HOME", "/c"), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(xdg.endpoint, HUB);
        assert_eq!(xdg.cache_dir, Path::new("/c/huggingface/hub"));
        assert!(!xdg.offline);
        let cache = options(&[("HF_HOME", "/x"), ("HF_HUB_CACHE", "/y")]);
        assert_eq!(cache.cache_dir, Path::new("/y"));
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn a_name_on_the_hub_is_refused_with_the_feature_that_it_needs() {
        let error = resolve_model("Qwen/Qwen2.5-0.5B").expect_err("no such folder");
        assert!(error.to_string().contains("feature `hub`"), "{error}");
    }

    #[test]
    fn names_are_checked() {
        for good in ["Qwen/Qwen2.5-0.5B", "a/b_c.d"] {
            assert!(is_repository_name(good), "{good}");
        }
        for bad in [
            "gpt2", "a/b/c", "./x", "../x", "/abs", "a/..", "a b/c", "a/b?x", "",
        ] {
            assert!(!is_repository_name(bad), "{bad}");
        }
    }
}
