//! Finds a model: a folder on this machine, or a repository on the Hugging Face Hub, which is
//! downloaded into the standard cache that the Python libraries use too.

pub(crate) mod describe;
#[cfg(feature = "hub")]
mod download;
mod error;
mod options;
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
use crate::modules::MODULES;
#[cfg(feature = "hub")]
use crate::pooling::Architecture;
#[cfg(feature = "hub")]
use download::{Download, module_configs, optional_files, shards};
pub use error::ResolveError;
pub use options::HubOptions;

/// How long a Hub may take to answer when it is asked whether it is there.
#[cfg(feature = "hub")]
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where most models have nothing to add.
#[cfg(feature = "hub")]
const LITTLE_PATIENCE: Duration = Duration::from_secs(3);
/// What `modules.json` and its neighbours are about.
#[cfg(feature = "hub")]
const POOLING: &str = "the pooling of embeddings";

impl HubOptions {
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
