//! Why a model could not be found.

use std::path::PathBuf;

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
