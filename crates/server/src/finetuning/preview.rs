//! Examples as a job would learn them, by the trainer's own reading and rendering.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use trainer_sft::chat_format::ChatFormat;
use trainer_sft::config::Thinking;
use trainer_sft::data::{DataError, Dataset, Datasets, Records, TrainData};
use trainer_sft::preview::spans;

use super::FineTuning;
use super::create::refused;
use super::files::{no_file, with_filename};
use super::settings::{self, Paths, in_settings};
use super::spec::MethodPart;
use crate::error::ApiError;

/// Examples that are shown unless the request says otherwise, and the most.
const LIMIT: usize = 5;
const MAX_LIMIT: usize = 100;

/// Body of `POST /v1/fine_tuning/preview`.
#[derive(Clone, Debug, Deserialize)]
pub struct PreviewRequest {
    /// Id of a file.
    pub training_file: Option<String>,
    /// Records, instead of a file.
    pub examples: Option<Vec<Value>>,
    /// As in a job, whose settings may need one. Nothing of it is shown.
    pub validation_file: Option<String>,
    /// As in a job.
    pub method: Option<Map<String, Value>>,
    /// As in a job.
    pub hyperparameters: Option<Map<String, Value>>,
    /// How many examples to show.
    pub limit: Option<usize>,
}

/// Ends a preview whose client has left: then its request is dropped, and this with it.
#[derive(Debug, Default)]
pub(crate) struct Asks(pub(crate) Arc<AtomicBool>);

impl Drop for Asks {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl FineTuning {
    /// Examples with what is learnt of them, and numbers of all. When `stop` becomes true, nobody waits for them.
    ///
    /// # Errors
    /// 400 with the setting, or the record and its field, that is wrong; 503 after `stop`.
    pub fn preview(
        &self,
        request: PreviewRequest,
        part: &MethodPart,
        stop: &AtomicBool,
    ) -> Result<Value, ApiError> {
        let limit = request.limit.unwrap_or(LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            let expected = format!("a number from 1 to {MAX_LIMIT}");
            return Err(ApiError::expected("limit", &expected, &limit.to_string()));
        }
        let file = match (&request.training_file, &request.examples) {
            (Some(id), None) => Some(self.file(id).map_err(|_| no_file("training_file", id))?),
            (None, Some(_)) => None,
            _ => {
                let message = "Expected either `training_file` or `examples`.";
                return Err(ApiError::bad_request("training_file", message));
            }
        };
        let eval = match &request.validation_file {
            Some(id) => {
                let found = self.file(id).map_err(|_| no_file("validation_file", id))?;
                vec![found.1]
            }
            None => Vec::new(),
        };
        let paths = Paths {
            eval,
            data: file.iter().map(|(_, path)| path.clone()).collect(),
            output: self.job_dir("preview"),
            ..Paths::default()
        };
        let base = &self.0.base;
        let length = settings::check_length(&part.hyperparameters);
        length.map_err(|refusal| refused(refusal, &part.place))?;
        let config = settings::config(
            &base.source,
            part.method,
            &part.hyperparameters,
            None,
            &paths,
        );
        let mut config = config.map_err(|refusal| refused(refusal, &part.place))?;
        config.data.eval.clear();
        let format = self.format(&config, &part.place)?;
        let records = Records {
            train: request.examples,
            eval: None,
        };
        let wrong = |error: DataError| {
            if matches!(error, DataError::Stopped) {
                return ApiError::unavailable("The client has left.");
            }
            let message = in_settings(&error.to_string());
            match &file {
                Some((file, path)) => {
                    let message = with_filename(&message, path, &file.filename);
                    ApiError::bad_request("training_file", message)
                }
                None => ApiError::bad_request("examples", message.replace("records[", "examples[")),
            }
        };
        let data = Datasets::load_until(&config, &format, records, None, false, Some(stop));
        let data = data.map_err(wrong)?;
        match data.train {
            TrainData::Loaded(data) => shown(&data, &format, limit).map_err(wrong),
            // There is no such setting.
            TrainData::Streamed(_) => Err(ApiError::internal("the data are streamed")),
        }
    }

    fn format(
        &self,
        config: &trainer_sft::config::Config,
        place: &str,
    ) -> Result<ChatFormat, ApiError> {
        // Whether the model has a think block at all is looked at when its files are read.
        let known = self.0.format.get();
        if let Some(format) = known.filter(|_| config.data.thinking != Thinking::Empty) {
            return Ok(format.clone());
        }
        let format = ChatFormat::load(config);
        let format = format.map_err(|error| match error.is_of_settings() {
            true => ApiError::bad_request(place, in_settings(&error.to_string())),
            false => ApiError::internal(error.to_string()),
        })?;
        Ok(self.0.format.get_or_init(|| format).clone())
    }
}

/// The first examples, and numbers of all.
fn shown(data: &Dataset, format: &ChatFormat, limit: usize) -> Result<Value, DataError> {
    let examples = &data.examples;
    let mut shown = Vec::new();
    for example in examples.iter().take(limit * examples.per_pair()) {
        let example = example?;
        let spans = spans(&example, &format.tokenizer);
        let spans = spans.iter().map(|span| {
            json!({ "text": span.text, "trained": span.is_learnt, "num_tokens": span.num_tokens })
        });
        shown.push(json!({
            "place": example.source.place_name(),
            "num_tokens": example.tokens.len(),
            "num_trained": example.num_targets(),
            "is_wanted": example.is_wanted,
            "spans": spans.collect::<Vec<_>>(),
        }));
    }
    Ok(json!({
        "object": "fine_tuning.preview",
        "data": shown,
        "num_examples": examples.len() / examples.per_pair(),
        "num_tokens": examples.num_tokens(),
        "num_trained": examples.num_targets(),
        "longest": examples.longest(),
    }))
}
