//! A new job: what is asked for is checked before it waits for its turn.

use std::fs;
use std::io;
use std::path::PathBuf;

use model_qwen::json_type;
use serde_json::{Map, Value, json};
use trainer_sft::Training;
use trainer_sft::config::{Config, RunConfig};

use super::events::{Event, Level};
use super::files::{FINE_TUNE, no_file};
use super::job::{JOB_PREFIX, Job, JobObject, RECORD, Status, prompts_path, run_dir};
use super::jobs::JobEntry;
use super::messages::Failure;
use super::settings::{self, Paths, Refusal};
use super::spec::{JobRequest, MethodPart};
use super::{FineTuning, disk, disk_error, new_id, now};
use crate::error::ApiError;

/// Bytes of data that are read while the client waits.
const MAX_READ: u64 = 4 << 20;
/// Longest suffix, as at OpenAI.
const MAX_SUFFIX: usize = 64;

impl FineTuning {
    /// Queues a job, whose settings and files are there and fit. `adapter` is the name of the adapter to start from.
    ///
    /// # Errors
    /// 400 with the field that is at fault; 404 for a file.
    pub fn create(
        &self,
        request: JobRequest,
        part: &MethodPart,
        adapter: Option<&str>,
    ) -> Result<JobObject, ApiError> {
        let base = &self.0.base;
        self.check_base()?;
        if let Some(suffix) = &request.suffix {
            check_suffix(suffix)?;
        }
        if let Some(metadata) = &request.metadata {
            check_metadata(metadata)?;
        }
        let adapter = match adapter {
            None => None,
            Some(name) => {
                let mut all = self.0.engine.adapters().into_iter();
                let own = all.find(|own| own.name == name);
                let path = own.ok_or_else(|| ApiError::model_not_found(name))?.path;
                // The server may be started again elsewhere.
                Some(std::path::absolute(&path).unwrap_or(path))
            }
        };
        let data = self.path_of("training_file", &request.training_file)?;
        let eval = match &request.validation_file {
            Some(id) => vec![self.path_of("validation_file", id)?],
            None => Vec::new(),
        };
        let id = new_id(JOB_PREFIX);
        let mut paths = Paths {
            data: vec![data],
            eval,
            output: run_dir(&self.job_dir(&id)),
            adapter,
            ..Paths::default()
        };
        let refused = |refusal: Refusal| refused(refusal, &part.place);
        settings::check_length(&part.hyperparameters).map_err(refused)?;
        let prompts = settings::prompts(&part.hyperparameters).map_err(refused)?;
        if !prompts.is_empty() {
            paths.prompts = Some(prompts_path(&self.job_dir(&id)));
        }
        let seed = request.seed.unwrap_or(RunConfig::default().seed);
        let settings = &part.hyperparameters;
        let config = settings::config(&base.source, part.method, settings, Some(seed), &paths);
        let config = config.map_err(refused)?;
        let checked = config.check_device(self.trains_on_gpu());
        checked.map_err(|error| refused(error.into()))?;
        self.check_rank(&config, &part.place)?;
        self.check_memory(&config, &part.place)?;
        let job = Job {
            number: 0,
            created_at: now(),
            finished_at: None,
            model: request.model,
            adapter: paths.adapter,
            training_file: request.training_file,
            validation_file: request.validation_file,
            suffix: request.suffix.filter(|suffix| !suffix.is_empty()),
            seed,
            method: part.method,
            settings: part.hyperparameters.clone(),
            hyperparameters: in_force(&config, &part.hyperparameters),
            metadata: request.metadata,
            status: Status::Queued,
            error: None,
            fine_tuned_model: None,
            trained_tokens: None,
            result_files: Vec::new(),
            base: base.identity.clone(),
            held: None,
            is_deleted: false,
            id,
        };
        self.enqueue(job, &prompts)
    }

    /// Writes the folder of a job, which is there whole or not at all.
    fn enqueue(&self, mut job: Job, prompts: &[String]) -> Result<JobObject, ApiError> {
        let folder = self.job_dir(&job.id);
        let part = folder.with_file_name(format!(".part-{}", job.id));
        let mut state = self.state();
        // A file may have been deleted since it was looked up.
        for (param, id) in [
            ("training_file", Some(&job.training_file)),
            ("validation_file", job.validation_file.as_ref()),
        ] {
            if let Some(id) = id.filter(|id| state.files.get(id).is_none()) {
                return Err(no_file(param, id));
            }
        }
        job.number = state.jobs.last().map_or(0, |entry| entry.job.number + 1);
        let write = || {
            fs::create_dir(&part)?;
            disk::write_json(&part.join(RECORD), &job)?;
            if !prompts.is_empty() {
                let lines = prompts
                    .iter()
                    .map(|prompt| json!({ "prompt": prompt }).to_string() + "\n");
                disk::write(&prompts_path(&part), lines.collect::<String>().as_bytes())?;
            }
            fs::rename(&part, &folder)
        };
        write().map_err(|error: io::Error| disk_error(&error))?;
        let mut entry = JobEntry::new(job, folder);
        let text = format!("Created fine-tuning job: {}", entry.job.id);
        entry.events.push(Event::message(Level::Info, text));
        let object = entry.object();
        state.jobs.push(entry);
        drop(state);
        self.0.wake.notify_all();
        self.changed();
        Ok(object)
    }

    /// Refuses what could not be trained or served.
    fn check_base(&self) -> Result<(), ApiError> {
        let base = &self.0.base;
        let refused = |message: &str| Err(ApiError::bad_request("model", message));
        if base.weights.is_none() {
            return refused(
                "The served model computes vectors or scores, and jobs train models that generate text.",
            );
        }
        if base.max_lora_rank.is_none() {
            return refused(
                "The result could not be served: start the server with --enable-lora, too.",
            );
        }
        if base.has_own_template {
            return refused(
                "Jobs learn with the chat template of the model's folder, and the server shows the model another one: start it \
                 without --chat-template.",
            );
        }
        Ok(())
    }

    /// Refuses an adapter that the server could not load.
    fn check_rank(&self, config: &Config, place: &str) -> Result<(), ApiError> {
        let Some(limit) = self.0.base.max_lora_rank else {
            return Ok(());
        };
        // The other ways to begin are written as an adapter of twice the rank.
        let rank = match config.lora.init.changes_base() {
            true => 2 * config.lora.r,
            false => config.lora.r,
        };
        if config.run.adapter.is_some() || rank <= limit {
            return Ok(());
        }
        let param = format!("{place}.lora_r");
        let message = format!(
            "`{param}`: the adapter would have rank {rank}, and the server takes at most {limit}: start it with --max-lora-rank {rank}."
        );
        Err(ApiError::bad_request(param, message))
    }

    /// Refuses what would take more than `--finetuning-memory`, where the data are read in a moment. Otherwise the job fails when its
    /// data are read.
    fn check_memory(&self, config: &Config, place: &str) -> Result<(), ApiError> {
        let (own, base) = (&self.0.config, &self.0.base);
        // A card that the server does not use stays untouched.
        let is_known = own.device.is_none() || base.source.device == "cpu";
        let bytes = config.data.train.iter().map(|path| path.metadata());
        let bytes: u64 = bytes.flatten().map(|metadata| metadata.len()).sum();
        if own.memory.is_none() || !is_known || bytes > MAX_READ {
            return Ok(());
        }
        let mut training = Training::new(config);
        if own.device.is_none() {
            if let Some(device) = base.device() {
                training = training.device(&device);
            }
            let fits = config.quantization() == base.source.quantization;
            if let Some(weights) = base.weights.as_ref().filter(|_| fits) {
                training = training.base(weights);
            }
        }
        // The job tells of anything else that is wrong.
        let refusal = training.plan().ok().and_then(|planned| planned.refusal);
        let Some(refusal) = refusal else {
            return Ok(());
        };
        let Failure { message, param, .. } = Failure::of(&refusal, &config.run.output);
        let param = param.map_or_else(|| place.to_owned(), |name| format!("{place}.{name}"));
        Err(ApiError::bad_request(param, message))
    }

    /// The content of a file to learn from.
    fn path_of(&self, param: &str, id: &str) -> Result<PathBuf, ApiError> {
        let (file, path) = self.file(id).map_err(|_| no_file(param, id))?;
        if file.purpose != FINE_TUNE {
            let expected = format!("a file whose purpose is `{FINE_TUNE}`");
            return Err(ApiError::expected(
                param,
                &expected,
                &format!("`{}`", file.purpose),
            ));
        }
        Ok(path)
    }
}

/// OpenAI's three hyperparameters.
fn in_force(config: &Config, given: &Map<String, Value>) -> Map<String, Value> {
    // A whole number of epochs is written as one.
    let epochs = config.epochs();
    let epochs = match epochs.fract() == 0.0 && epochs < 1e9 {
        true => Value::from(epochs as u64),
        false => Value::from(epochs),
    };
    let multiplier = given.get("learning_rate_multiplier").cloned();
    let multiplier = multiplier.unwrap_or_else(|| Value::from(1.0));
    let mut all = Map::from_iter([
        ("n_epochs".to_owned(), epochs),
        ("batch_size".to_owned(), config.run.batch_size.into()),
        ("learning_rate_multiplier".to_owned(), multiplier),
    ]);
    // What another setting takes the place of.
    if config.run.max_steps.is_some() {
        all.shift_remove("n_epochs");
    }
    if given.contains_key("learning_rate") {
        all.shift_remove("learning_rate_multiplier");
    }
    all
}

/// A refusal as an error that names the whole place of the field.
pub(super) fn refused(Refusal { name, message }: Refusal, place: &str) -> ApiError {
    let Some(name) = name else {
        return ApiError::bad_request(place, message);
    };
    let param = match name.as_str() {
        "training_file" | "validation_file" | "seed" => name.clone(),
        _ => format!("{place}.{name}"),
    };
    ApiError::bad_request(
        &param,
        message.replacen(&format!("`{name}`"), &format!("`{param}`"), 1),
    )
}

/// Pairs of `metadata`, and characters of a key and of a value, at most, as at OpenAI.
const MAX_METADATA: [usize; 3] = [16, 64, 512];

fn check_metadata(metadata: &Map<String, Value>) -> Result<(), ApiError> {
    let [pairs, key, value] = MAX_METADATA;
    let refused =
        |expected: String, found: String| Err(ApiError::expected("metadata", &expected, &found));
    if metadata.len() > pairs {
        return refused(format!("at most {pairs} pairs"), metadata.len().to_string());
    }
    for (name, given) in metadata {
        let shown: String = name.chars().take(key).collect();
        if name.chars().count() > key {
            let found = format!("`{shown}…`");
            return refused(format!("keys of at most {key} characters"), found);
        }
        match given {
            Value::String(text) if text.chars().count() <= value => {}
            Value::String(text) => {
                let found = format!("{} characters at `{shown}`", text.chars().count());
                return refused(format!("values of at most {value} characters"), found);
            }
            other => {
                return refused(
                    "texts as values".to_owned(),
                    format!("{} at `{shown}`", json_type(other)),
                );
            }
        }
    }
    Ok(())
}

fn check_suffix(suffix: &str) -> Result<(), ApiError> {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if suffix.chars().count() <= MAX_SUFFIX && suffix.chars().all(is_plain) {
        return Ok(());
    }
    let expected = format!("at most {MAX_SUFFIX} letters, digits, `-`, `_` and `.`");
    let shown: String = suffix.chars().take(MAX_SUFFIX + 1).collect();
    Err(ApiError::expected(
        "suffix",
        &expected,
        &format!("{shown:?}"),
    ))
}
