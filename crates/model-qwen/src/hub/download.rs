//! Downloads the files of one repository into the cache.

use std::path::{Path, PathBuf};

use hf_hub::Cache;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};

use super::{HubOptions, ResolveError};

/// Files taken when the repository has them.
const OPTIONAL_FILES: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];
pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The distinct files of `weight_map`, sorted. `Err` holds the reason.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let bytes = std::fs::read(index).map_err(|e| e.to_string())?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let mut files: Vec<String> = index.weight_map.into_values().collect();
    files.sort();
    files.dedup();
    match files.iter().find(|file| !is_plain_file_name(file)) {
        Some(bad) => Err(format!(
            "weight_map: expected plain file names, found {bad:?}"
        )),
        None => Ok(files),
    }
}

/// The index comes from the network: a name must not lead out of the folder.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '?', '#', '%'])
}

/// One repository to bring into the cache.
pub(super) struct Download<'a> {
    id: &'a str,
    options: &'a HubOptions,
    repo: ApiRepo,
}

impl<'a> Download<'a> {
    pub(super) fn new(id: &'a str, options: &'a HubOptions) -> Result<Self, ResolveError> {
        let api = ApiBuilder::from_cache(Cache::new(options.cache_dir.clone()))
            .with_endpoint(options.endpoint.clone())
            .with_token(options.token.clone())
            .with_progress(options.progress)
            .with_retries(3)
            .build();
        match api {
            Ok(api) => Ok(Self {
                id,
                options,
                repo: api.model(id.to_owned()),
            }),
            Err(e) => Err(ResolveError::Network {
                id: id.to_owned(),
                endpoint: options.endpoint.clone(),
                reason: e.to_string(),
            }),
        }
    }

    /// Downloads what is missing; returns the snapshot's folder.
    pub(super) fn run(&self) -> Result<PathBuf, ResolveError> {
        let info = self.repo.info().map_err(|e| self.error(&e, None))?;
        let mut names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        names.sort_unstable();
        let has = |name: &str| names.binary_search(&name).is_ok();
        let missing = |expected: &str| ResolveError::MissingFile {
            id: self.id.to_owned(),
            expected: expected.to_owned(),
            found: names.join(", "),
        };
        if !has("config.json") {
            return Err(missing("config.json"));
        }
        let has_parts = has("vocab.json") && has("merges.txt");
        if !has("tokenizer.json") && !has_parts {
            return Err(missing("tokenizer.json (or vocab.json and merges.txt)"));
        }
        if !has(SINGLE_FILE) && !has(INDEX) {
            return Err(missing(
                "model.safetensors (or model.safetensors.index.json)",
            ));
        }

        let config = self.get("config.json")?;
        for name in OPTIONAL_FILES.into_iter().filter(|name| has(name)) {
            self.get(name)?;
        }
        if has(SINGLE_FILE) {
            self.get(SINGLE_FILE)?;
        } else {
            let index = self.get(INDEX)?;
            let shards = shards(&index).map_err(|reason| ResolveError::MissingFile {
                id: self.id.to_owned(),
                expected: format!("a valid {INDEX}"),
                found: reason,
            })?;
            for shard in &shards {
                self.get(shard)?;
            }
        }
        Ok(config.parent().map(Path::to_path_buf).unwrap_or(config))
    }

    fn get(&self, name: &str) -> Result<PathBuf, ResolveError> {
        self.repo.get(name).map_err(|e| self.error(&e, Some(name)))
    }

    fn error(&self, error: &ApiError, file: Option<&str>) -> ResolveError {
        let (id, endpoint) = (self.id.to_owned(), self.options.endpoint.clone());
        match (status(error), file) {
            (Some(status @ (401 | 403)), _) => ResolveError::Refused {
                id,
                endpoint,
                status,
            },
            (Some(404), None) => ResolveError::NotFound { id, endpoint },
            (_, file) => ResolveError::Network {
                id,
                endpoint,
                reason: match file {
                    Some(file) => format!("{file}: {error}"),
                    None => error.to_string(),
                },
            },
        }
    }
}

/// The HTTP status behind an error.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(request) => match **request {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        ApiError::TooManyRetries(last) => status(last),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_stay_in_the_folder() {
        for bad in ["../x", "a/b", "/x", "c:\\x", "", ".."] {
            assert!(!is_plain_file_name(bad), "{bad}");
        }
        assert!(is_plain_file_name("model-00001-of-00002.safetensors"));
    }
}
