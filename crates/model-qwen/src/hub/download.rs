//! Downloads the files of one repository into the cache.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::error::ResolveError;
use super::options::HubOptions;
use super::patience::{Watch, is_busy, wait_for_turn};
use super::progress_writer::ProgressWriter;
use crate::model_folder::{
    INDEX, MODULE_FILES, QUANTIZATION_FILES, SINGLE, TEXT_FILES, TOOL_USE_TEMPLATE,
};
use crate::modules::{MODULES, module_folders};

/// How often it is said how far a transfer without ranges is, which has no bar.
const REPORT_EVERY: Duration = Duration::from_secs(3);
/// Times that a transfer without ranges is started.
const ATTEMPTS: usize = 3;

/// Files taken when the repository has them: all that the meaning of a folder depends on.
pub(super) fn optional_files() -> impl Iterator<Item = &'static str> {
    let text = TEXT_FILES.into_iter().chain([TOOL_USE_TEMPLATE]);
    text.chain(QUANTIZATION_FILES).chain(MODULE_FILES)
}

/// The files that `modules.json` of a snapshot names.
pub(super) fn module_configs(folder: &Path) -> impl Iterator<Item = String> {
    let folders = module_folders(folder).into_iter();
    folders.map(|path| format!("{path}/config.json"))
}

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

/// Whether a Hub answers within `patience`.
pub(super) fn reach(endpoint: &str, patience: Duration) -> Result<(), String> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(patience))
        .build();
    let answer = ureq::Agent::from(agent).head(endpoint).call();
    answer.map(|_| ()).map_err(|error| error.to_string())
}

/// Why a file is not there.
enum Transfer {
    Disk(io::Error),
    Network(String),
}

impl Transfer {
    fn of(error: io::Error) -> Self {
        match is_of_disk(&error) {
            true => Self::Disk(error),
            false => Self::Network(error.to_string()),
        }
    }
}

/// One repository to bring into the cache.
pub(super) struct Download<'a> {
    id: &'a str,
    options: &'a HubOptions,
    revision: &'a str,
    repo: ApiRepo,
}

impl<'a> Download<'a> {
    /// The files of a branch or a commit.
    pub(super) fn new(
        id: &'a str,
        revision: &'a str,
        options: &'a HubOptions,
    ) -> Result<Self, ResolveError> {
        if let Some(token) = &options.token {
            check_token(token)?;
        }
        let api = ApiBuilder::from_cache(Cache::new(options.cache_dir.clone()))
            .with_endpoint(options.endpoint.clone())
            .with_token(options.token.clone())
            .with_progress(options.progress)
            .with_retries(3)
            .build();
        match api {
            Ok(api) => {
                let (name, revision_) = (id.to_owned(), revision.to_owned());
                let repo = Repo::with_revision(name, RepoType::Model, revision_);
                Ok(Self {
                    id,
                    options,
                    revision,
                    repo: api.repo(repo),
                })
            }
            Err(e) => Err(ResolveError::Network {
                id: id.to_owned(),
                endpoint: options.endpoint.clone(),
                reason: e.to_string(),
            }),
        }
    }

    /// Downloads what is missing; returns the snapshot's folder.
    pub(super) fn run(&self) -> Result<PathBuf, ResolveError> {
        let info = self.info()?;
        let mut names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        names.sort_unstable();
        // The Hub puts this one into every repository.
        if names.iter().all(|name| *name == ".gitattributes") {
            return Err(ResolveError::Empty {
                id: self.id.to_owned(),
                endpoint: self.options.endpoint.clone(),
            });
        }
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
        if !has(SINGLE) && !has(INDEX) {
            return Err(missing(
                "model.safetensors (or model.safetensors.index.json)",
            ));
        }

        tracing::info!(
            "downloading {} from {} into {}",
            self.id,
            self.options.endpoint,
            self.options.cache_dir.display()
        );
        let commit = info.sha.as_str();
        let config = self.get("config.json", commit)?;
        self.get_optional(&names, commit)?;
        if has(SINGLE) {
            self.get(SINGLE, commit)?;
        } else {
            let index = self.get(INDEX, commit)?;
            let shards = shards(&index).map_err(|reason| ResolveError::MissingFile {
                id: self.id.to_owned(),
                expected: format!("a valid {INDEX}"),
                found: reason,
            })?;
            for shard in &shards {
                self.get(shard, commit)?;
            }
        }
        Ok(config.parent().map(Path::to_path_buf).unwrap_or(config))
    }

    /// What the Hub says of the repository.
    fn info(&self) -> Result<RepoInfo, ResolveError> {
        let repo = Repo::with_revision(
            self.id.to_owned(),
            RepoType::Model,
            self.revision.to_owned(),
        );
        let url = format!("{}/api/{}", self.options.endpoint, repo.api_url());
        let _watch = Watch::over(&self.options.endpoint);
        self.patiently(&url, None, || self.repo.info())
            .map_err(|error| *error)
    }

    /// Does `attempt`, and again after a pause where the Hub has too many requests.
    fn patiently<T>(
        &self,
        url: &str,
        file: Option<&str>,
        attempt: impl Fn() -> Result<T, ApiError>,
    ) -> Result<T, Box<ResolveError>> {
        for _ in 0..ATTEMPTS {
            let error = match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            match status(&error) {
                Some(status) if is_busy(status) => {
                    if let Err(asked) = wait_for_turn(self.options, url) {
                        return Err(Box::new(self.busy(status, asked)));
                    }
                }
                _ => return Err(Box::new(self.error(&error, file))),
            }
        }
        let last = attempt();
        last.map_err(|error| Box::new(self.error(&error, file)))
    }

    fn busy(&self, status: u16, asked: Option<u64>) -> ResolveError {
        let later = match asked {
            Some(seconds) => format!("try again in {seconds} seconds"),
            None => "try again later".to_owned(),
        };
        let hint = match self.options.token {
            None => ", or set HF_TOKEN: it takes more requests of those whom it knows",
            Some(_) => "",
        };
        ResolveError::Busy {
            id: self.id.to_owned(),
            endpoint: self.options.endpoint.clone(),
            reason: format!("HTTP {status}; {later}{hint}"),
        }
    }

    /// Downloads the small files that a snapshot in the cache lacks.
    pub(super) fn complete(&self) -> Result<(), ResolveError> {
        let info = self.info()?;
        let mut names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        names.sort_unstable();
        self.get_optional(&names, &info.sha)
    }

    /// Downloads the [`optional_files`] among `names`, which are sorted, and the files that one of them names, and notes in the
    /// cache which ones `commit` doesn't have.
    fn get_optional(&self, names: &[&str], commit: &str) -> Result<(), ResolveError> {
        let get = |name: &str| {
            if names.binary_search(&name).is_ok() {
                return self.get(name, commit).map(Some);
            }
            if is_plain_file_name(commit) {
                let marker = self.folder().join(".no_exist").join(commit).join(name);
                // Without it the next start asks again.
                let _ = marker.parent().map(fs::create_dir_all);
                let _ = fs::write(marker, "");
            }
            Ok(None)
        };
        for name in optional_files() {
            let path = get(name)?.filter(|_| name == MODULES);
            for config in path
                .as_deref()
                .and_then(Path::parent)
                .map(module_configs)
                .into_iter()
                .flatten()
            {
                get(&config)?;
            }
        }
        Ok(())
    }

    /// The repository's folder in the cache.
    fn folder(&self) -> PathBuf {
        let repo = Repo::model(self.id.to_owned());
        self.options.cache_dir.join(repo.folder_name())
    }

    fn get(&self, name: &str, commit: &str) -> Result<PathBuf, ResolveError> {
        // A mirror without ranges, or without the Hub's headers.
        let has_no_ranges = |error: &ApiError| {
            matches!(
                error,
                ApiError::MissingHeader(_)
                    | ApiError::InvalidHeader(_)
                    | ApiError::ParseIntError(_)
            )
        };
        let got = self.patiently(&self.repo.url(name), Some(name), || {
            match self.repo.get(name) {
                Err(error) if has_no_ranges(&error) && is_plain_file_name(commit) => Ok(None),
                got => got.map(Some),
            }
        });
        match got.map_err(|error| *error)? {
            Some(path) => Ok(path),
            None => self.get_whole(name, commit),
        }
    }

    /// Downloads a file in one plain request, into the snapshot of `commit`.
    fn get_whole(&self, name: &str, commit: &str) -> Result<PathBuf, ResolveError> {
        let folder = self.folder();
        let path = folder.join("snapshots").join(commit).join(name);
        let failed = |reason: String| ResolveError::Network {
            id: self.id.to_owned(),
            endpoint: self.options.endpoint.clone(),
            reason: format!("{name}: {reason}"),
        };
        let io_failed = |error: io::Error| self.disk(&error);
        if !path.exists() {
            let parent = path.parent().unwrap_or(&folder);
            fs::create_dir_all(parent).map_err(io_failed)?;
            let partial = path.with_extension(format!("{}.part", std::process::id()));
            tracing::info!("downloading {name} without ranges");
            let mut result = Ok(());
            for _ in 0..ATTEMPTS {
                result = self.transfer(name, &partial);
                if result.is_ok() {
                    break;
                }
            }
            let renamed = result.and_then(|()| fs::rename(&partial, &path).map_err(Transfer::of));
            if renamed.is_err() {
                // What is left of it is of no use.
                let _ = fs::remove_file(&partial);
            }
            renamed.map_err(|error| match error {
                Transfer::Disk(error) => self.disk(&error),
                Transfer::Network(reason) => failed(reason),
            })?;
        }
        let refs = folder.join("refs");
        fs::create_dir_all(&refs)
            .and_then(|()| fs::write(refs.join(self.revision), commit))
            .map_err(io_failed)?;
        Ok(path)
    }

    /// Writes the body of one request to `path`.
    fn transfer(&self, name: &str, path: &Path) -> Result<(), Transfer> {
        let agent = ureq::Agent::config_builder()
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .build();
        let mut request = ureq::Agent::from(agent).get(self.repo.url(name));
        if let Some(token) = &self.options.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request
            .call()
            .map_err(|e| Transfer::Network(e.to_string()))?;
        let (parts, body) = response.into_parts();
        let length = parts.headers.get("content-length");
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        // A compressed body has another length than its header says.
        let is_plain = !parts.headers.contains_key("content-encoding");
        let file = fs::File::create(path).map_err(Transfer::Disk)?;
        let report = |line: String| tracing::info!("{line}");
        let length_of_file = length.filter(|_| is_plain);
        let mut file = ProgressWriter::new((name, length_of_file), REPORT_EVERY, file, report);
        let written = io::copy(&mut body.into_reader(), &mut file).map_err(Transfer::of)?;
        match length_of_file.filter(|&length| length != written) {
            None => Ok(()),
            Some(length) => Err(Transfer::Network(format!(
                "expected {length} bytes, found {written}"
            ))),
        }
    }

    fn disk(&self, error: &io::Error) -> ResolveError {
        ResolveError::Disk {
            id: self.id.to_owned(),
            cache: self.options.cache_dir.clone(),
            reason: error.to_string(),
        }
    }

    fn error(&self, error: &ApiError, file: Option<&str>) -> ResolveError {
        if let Some(error) = disk_error(error) {
            return self.disk(error);
        }
        let (id, endpoint) = (self.id.to_owned(), self.options.endpoint.clone());
        match (status(error), file) {
            (Some(status), _) if is_busy(status) => self.busy(status, None),
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

/// The error of a disk behind an error. A connection that breaks is an `io::Error`, too.
fn disk_error(error: &ApiError) -> Option<&io::Error> {
    match error {
        ApiError::IoError(error) if is_of_disk(error) => Some(error),
        ApiError::TooManyRetries(last) => disk_error(last),
        _ => None,
    }
}

/// Whether an error is of a disk, not of a connection.
fn is_of_disk(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::FileTooLarge
            | Kind::ReadOnlyFilesystem
            | Kind::PermissionDenied
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::AlreadyExists
            | Kind::NotFound
    )
}

/// Refuses a token that no header can carry.
fn check_token(token: &str) -> Result<(), ResolveError> {
    let mut chars = token.chars().enumerate();
    match chars.find(|(_, c)| !c.is_ascii_graphic()) {
        None => Ok(()),
        Some((i, c)) => Err(ResolveError::Token {
            found: format!("{c:?}"),
            place: i + 1,
        }),
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
