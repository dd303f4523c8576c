//! Messages between the two sides of a job: whoever trains, and the server that keeps its state. They may be two processes,
//! which write them as lines of JSON.

use std::path::Path;

use serde::{Deserialize, Serialize};
use trainer_sft::TrainError;
use trainer_sft::config::ConfigError;
use trainer_sft::data::DataError;

use super::events::Event;
use super::settings::{in_settings, setting_name};

/// What a run tells the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JobMessage {
    /// Everything is loaded.
    Start,
    /// Something to keep.
    Event(Event),
    /// Something that may be wrong.
    Warning(String),
    /// A step is done.
    Step {
        /// Its numbers.
        event: Event,
        /// Which it was.
        step: usize,
        /// Of how many.
        total_steps: usize,
        /// Tokens of all steps so far.
        num_tokens: Option<u64>,
    },
    /// The run waits until [`JobCommand::Go`].
    Waits,
    /// The run has ended.
    Ended(Result<End, Failure>),
}

/// What the server asks of a run in another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JobCommand {
    /// To go on.
    Go {
        /// Whether requests run, too.
        is_busy: bool,
    },
    /// To end after its step, with a checkpoint.
    Stop,
}

/// How a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// The adapter is there.
    Complete,
    /// There is a checkpoint to go on from.
    Stopped,
}

/// Why a run has failed, in the names of the API but for those of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// For programs.
    pub(super) code: String,
    /// For people.
    pub(super) message: String,
    /// The field that is at fault.
    pub(super) param: Option<String>,
}

impl Failure {
    /// One that is no client's fault.
    pub(super) fn of_server(message: impl Into<String>) -> Self {
        Self::new("server_error", None, message.into())
    }

    pub(super) fn new(code: &str, param: Option<&str>, message: String) -> Self {
        Self {
            code: code.to_owned(),
            message,
            param: param.map(str::to_owned),
        }
    }

    /// Of a run whose output folder is `output`.
    pub(super) fn of(error: &TrainError, output: &Path) -> Self {
        let text = || in_settings(&model_qwen::with_causes(error));
        let settings = "invalid_hyperparameters";
        let failure = match error {
            TrainError::Data(DataError::Split { .. }) => {
                Self::new(settings, Some("eval_split"), text())
            }
            TrainError::Data(_) => {
                Self::new("invalid_training_file", Some("training_file"), text())
            }
            TrainError::Memory { instead, .. } => {
                let flag = instead.strip_prefix("--").unwrap_or_default();
                let flag = flag.split(' ').next().filter(|flag| !flag.is_empty());
                let param = flag.map(setting_name);
                // What the program shows of it is no part of the API.
                let text = text().replace(" (`dry_run` shows what takes it)", "");
                Self::new(settings, param.as_deref(), text)
            }
            TrainError::Space { needed, free, .. } => Self::of_server(format!(
                "--finetuning-dir: expected at least {needed} MiB of room for the result, found {free} MiB"
            )),
            TrainError::Config(ConfigError::Value {
                flag: "output",
                expected,
                found,
            }) => Self::of_server(format!(
                "--finetuning-dir: expected {expected}, found {found}"
            )),
            TrainError::DeviceFailed { what, reason, .. } => Self::of_server(format!(
                "{what}: the device has failed: {reason}; if its memory is full, give a smaller `batch_size` (and a larger \
                 `gradient_accumulation` for the same steps) or a smaller `max_length`"
            )),
            TrainError::Device { .. } => Self::of_server(model_qwen::with_causes(error)),
            error if error.is_of_settings() => Self::new(settings, None, text()),
            TrainError::Diverged { .. } => Self::new("training_diverged", None, text()),
            _ => Self::of_server(text()),
        };
        let message = without_folder(failure.message, output);
        Self { message, ..failure }
    }
}

/// What is said about a run whose output folder is `output`, without where that lies on the server.
pub(super) fn without_folder(message: String, output: &Path) -> String {
    // Files are whole before they get their place: until then they lie beside it.
    let folder = output.parent().unwrap_or(output);
    let paths = [output, folder].into_iter();
    paths.fold(message, |message, path| {
        message.replace(&path.display().to_string(), "the job's folder")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_is_read_again() {
        let event = Event::metrics("a".into(), json!({ "step": 1 }));
        let step = JobMessage::Step {
            event: event.clone(),
            step: 1,
            total_steps: 2,
            num_tokens: None,
        };
        let failed = JobMessage::Ended(Err(Failure::of_server("b\nc")));
        let ended = JobMessage::Ended(Ok(End::Stopped));
        for message in [
            JobMessage::Start,
            JobMessage::Event(event),
            step,
            failed,
            ended,
        ] {
            let line = serde_json::to_string(&message).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<JobMessage>(&line).unwrap(), message);
        }
    }

    #[test]
    fn a_failure_speaks_of_what_clients_know() {
        let output = Path::new("/srv/jobs/ftjob-1/run");
        let space = TrainError::Space {
            folder: output.into(),
            needed: 9,
            free: 1,
        };
        let failure = Failure::of(&space, output);
        assert!(
            failure
                .message
                .starts_with("--finetuning-dir: expected at least 9 MiB")
        );
        assert_eq!(failure.code, "server_error");
        let full = TrainError::Output {
            path: output.join("adapter_model.safetensors"),
            error: std::io::ErrorKind::StorageFull.into(),
        };
        let failure = Failure::of(&full, output);
        let expected = "the job's folder/adapter_model.safetensors: ";
        assert!(failure.message.starts_with(expected), "{failure:?}");
        let warning = "/srv/jobs/ftjob-1/run/a.json: not kept".to_owned();
        let expected = "the job's folder/a.json: not kept";
        assert_eq!(without_folder(warning, output), expected);
        let split = DataError::Split {
            part: 0.5,
            records: 1,
        };
        let failure = Failure::of(&TrainError::Data(split), output);
        assert_eq!(failure.param.as_deref(), Some("eval_split"));
        assert!(failure.message.starts_with("`eval_split`: "), "{failure:?}");
        let memory = TrainError::Memory {
            needed: 3 << 30,
            budget: 1 << 30,
            by: "--device-memory 1024 MiB".to_owned(),
            instead: "--batch-size 1 --gradient-accumulation 4 would fit".to_owned(),
        };
        let failure = Failure::of(&memory, output);
        assert_eq!(failure.param.as_deref(), Some("batch_size"));
        let expected = "the run would take 3072 MiB, and --finetuning-memory 1024 MiB allows 1024 MiB; `batch_size` 1 \
                        `gradient_accumulation` 4 would fit";
        assert_eq!(failure.message, expected);
    }
}
