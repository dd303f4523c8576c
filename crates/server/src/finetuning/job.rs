//! One job: its record on the disk, and what clients see of it.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::spec::{Base, Method};

/// The record of a job, in its folder.
pub(super) const RECORD: &str = "job.json";
/// How ids begin.
pub(super) const JOB_PREFIX: &str = "ftjob-";
/// The trainer's output folder in it.
const RUN: &str = "run";
/// The prompts to answer while it learns.
const PROMPTS: &str = "prompts.jsonl";

/// How far a job is, by OpenAI's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its data are read.
    ValidatingFiles,
    /// It waits for its turn.
    Queued,
    /// It takes steps.
    Running,
    /// It was stopped, and may go on.
    Paused,
    /// Its adapter is served.
    Succeeded,
    /// See its `error`.
    Failed,
    /// It was given up.
    Cancelled,
}

impl Status {
    /// Whether it stays so.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether it is this job's turn.
    pub(super) fn is_active(self) -> bool {
        matches!(self, Self::ValidatingFiles | Self::Running)
    }

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::ValidatingFiles => "validating_files",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a job has failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobError {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The field that is at fault.
    pub param: Option<String>,
}

/// A job, as its record has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) id: String,
    /// Larger for each new job.
    pub(super) number: u64,
    pub(super) created_at: u64,
    pub(super) finished_at: Option<u64>,
    pub(super) model: String,
    /// The adapter that it starts from.
    pub(super) adapter: Option<PathBuf>,
    pub(super) training_file: String,
    pub(super) validation_file: Option<String>,
    pub(super) suffix: Option<String>,
    pub(super) seed: u64,
    pub(super) method: Method,
    /// Hyperparameters as they were given.
    pub(super) settings: Map<String, Value>,
    /// OpenAI's three, as they are in force.
    pub(super) hyperparameters: Map<String, Value>,
    pub(super) metadata: Option<Map<String, Value>>,
    pub(super) status: Status,
    pub(super) error: Option<JobError>,
    /// The name of the result.
    pub(super) fine_tuned_model: Option<String>,
    pub(super) trained_tokens: Option<u64>,
    pub(super) result_files: Vec<String>,
    /// What it starts from, see [`Base::identity`](super::spec::Base::identity); records of earlier versions do not say it.
    #[serde(default, rename = "base_files")]
    pub(super) base: Option<String>,
    /// How the weights are held that its checkpoints belong to, see [`Base::held_for`](super::spec::Base::held_for); of a job that has
    /// not begun, and in records of earlier versions, nothing.
    #[serde(default)]
    pub(super) held: Option<String>,
    /// Whether the result was deleted.
    #[serde(default)]
    pub(super) is_deleted: bool,
}

/// A job, as OpenAI's API has it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct JobObject {
    /// Its id, `ftjob-` and 24 hexadecimal digits.
    id: String,
    /// `fine_tuning.job`.
    object: &'static str,
    /// When it was made, in Unix seconds.
    created_at: u64,
    /// When it will end, about.
    estimated_finish: Option<u64>,
    /// When it succeeded, failed or was cancelled, in Unix seconds.
    finished_at: Option<u64>,
    /// What it starts from: a served name, or an adapter's.
    model: String,
    /// The adapter's name, once it is served.
    fine_tuned_model: Option<String>,
    /// `local`: there are no organizations here.
    organization_id: &'static str,
    /// How far it is.
    status: Status,
    /// Id of the file that it learns from.
    training_file: String,
    /// Id of the file that it is evaluated on.
    validation_file: Option<String>,
    /// Ids of the files that it has written: a table of its metrics.
    result_files: Vec<String>,
    /// Tokens of all steps.
    trained_tokens: Option<u64>,
    /// Why it has failed.
    error: Option<JobError>,
    /// The `suffix` of the request.
    user_provided_suffix: Option<String>,
    /// Seed of shuffling, initialization and dropout.
    seed: u64,
    /// `n_epochs`, `batch_size` and `learning_rate_multiplier` as they are in force.
    hyperparameters: Map<String, Value>,
    /// `type`, and under its name all `hyperparameters`.
    method: Value,
    /// The client's own.
    metadata: Option<Map<String, Value>>,
    /// Always empty.
    integrations: Vec<Value>,
}

impl JobObject {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The client's own text under a key.
    pub(crate) fn metadata_of(&self, key: &str) -> Option<&String> {
        match self.metadata.as_ref()?.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Whether the client has said something of its own.
    pub(crate) fn has_metadata(&self) -> bool {
        self.metadata
            .as_ref()
            .is_some_and(|metadata| !metadata.is_empty())
    }
}

impl Job {
    /// As clients see it.
    pub(super) fn object(&self, estimated_finish: Option<u64>) -> JobObject {
        let mut settings = self.hyperparameters.clone();
        settings.extend(self.settings.clone());
        let name = self.method.name();
        JobObject {
            id: self.id.clone(),
            object: "fine_tuning.job",
            created_at: self.created_at,
            estimated_finish,
            finished_at: self.finished_at,
            model: self.model.clone(),
            fine_tuned_model: self.fine_tuned_model.clone(),
            organization_id: "local",
            status: self.status,
            training_file: self.training_file.clone(),
            validation_file: self.validation_file.clone(),
            result_files: self.result_files.clone(),
            trained_tokens: self.trained_tokens,
            error: self.error.clone(),
            user_provided_suffix: self.suffix.clone(),
            seed: self.seed,
            hyperparameters: self.hyperparameters.clone(),
            method: json!({ "type": name, name: { "hyperparameters": settings } }),
            metadata: self.metadata.clone(),
            integrations: Vec::new(),
        }
    }

    /// The name that its result gets, as OpenAI makes names.
    pub(super) fn result_name(&self, base: &str) -> String {
        let suffix = self.suffix.as_deref().unwrap_or_default();
        let id = bare_id(&self.id);
        format!("ft:{base}:{suffix}:{}", &id[..id.len().min(8)])
    }

    /// Whether it was made for this base.
    pub(super) fn is_of(&self, base: &Base) -> bool {
        let (own, served) = (self.base.as_ref(), base.identity.as_ref());
        own.zip(served).is_none_or(|(own, served)| own == served)
    }

    /// The flags that its checkpoints belong to, if this base is held in another form.
    pub(super) fn held_otherwise(&self, base: &Base) -> Option<&str> {
        let held = self.held.as_deref();
        held.filter(|held| *held != base.held_for(&self.settings))
    }

    /// The ids of its files.
    pub(super) fn files(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.training_file).chain(&self.validation_file)
    }

    /// Whether it reads this file, now or later.
    pub(super) fn needs(&self, file: &str) -> bool {
        !self.status.is_final() && self.files().any(|own| own == file)
    }
}

/// A job's id without what all of them begin with.
pub(super) fn bare_id(id: &str) -> &str {
    id.strip_prefix(JOB_PREFIX).unwrap_or(id)
}

/// The trainer's folder of a job in `folder`.
pub(super) fn run_dir(folder: &Path) -> PathBuf {
    folder.join(RUN)
}

/// The file of prompts of a job in `folder`.
pub(super) fn prompts_path(folder: &Path) -> PathBuf {
    folder.join(PROMPTS)
}

/// A checkpoint, as OpenAI's API has it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Checkpoint {
    /// Its id.
    pub id: String,
    /// `fine_tuning.job.checkpoint`.
    pub object: &'static str,
    /// When it was written, in Unix seconds.
    pub created_at: u64,
    /// The name under which it is served once the job has ended.
    pub fine_tuned_model_checkpoint: String,
    /// Its job.
    pub fine_tuning_job_id: String,
    /// The numbers of its step.
    pub metrics: Map<String, Value>,
    /// Its step.
    pub step_number: u64,
}

/// The checkpoints in the trainer's folder, with their steps, the newest first.
pub(super) fn checkpoints(run: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let step = |path: &Path| {
        path.file_name()?
            .to_str()?
            .strip_prefix("checkpoint-")?
            .parse()
            .ok()
    };
    let found = entries.filter_map(|entry| Some((step(&entry.path())?, entry.path())));
    let mut found: Vec<(u64, PathBuf)> = found.collect();
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    found
}
