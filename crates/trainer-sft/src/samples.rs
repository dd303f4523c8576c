//! `--sample-prompts`: what the model answers before, while and after it trains.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use model_qwen::SamplingParams;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::chat_format::ChatFormat;
use crate::config::{Config, ConfigError};
use crate::data::format::{ASKED, PROMPTS, has_other_history};
use crate::data::{Place, Source, WIDE_EXPECTED, no_number, speaker, written_wide_integer};
use crate::error::{TrainError, output_error};
use crate::gate::{self, WorkUnit};
use crate::generation::{Completion, GenerationError, Generator, Request};
use crate::prompts::{self, Prompt};
use crate::text_file;
use crate::trainer::Trainer;

/// The file of answers in the output folder.
const FILE: &str = "samples.jsonl";

/// One answer of a run to `--sample-prompts`: a line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Optimizer steps done; at the end of a run those of the weights that are kept (`--load-best`).
    pub step: usize,
    /// Which of the prompts, from 0.
    pub index: usize,
    /// The prompt: a text, or messages.
    pub prompt: Value,
    /// The answer.
    pub completion: String,
    /// Its tokens, with the one that ended it.
    pub num_tokens: usize,
    /// `stop` where the model ended it, `length` where `--sample-max-tokens` did.
    pub finish_reason: String,
}

/// The prompts, and all answers of the run so far.
#[derive(Debug)]
pub(crate) struct Samples {
    prompts: Vec<Prompt>,
    max_tokens: usize,
    format: ChatFormat,
    path: PathBuf,
    answers: Vec<Sample>,
}

impl Samples {
    /// Reads the prompts of a run; `None` where it has none.
    ///
    /// # Errors
    /// A file that cannot be read, without a prompt, or with one that the model cannot answer.
    pub(crate) fn load(config: &Config, format: &ChatFormat) -> Result<Option<Self>, TrainError> {
        let Some(file) = &config.samples.prompts else {
            return Ok(None);
        };
        let prompts = read(file, format)?;
        Ok(Some(Self {
            prompts,
            max_tokens: config.samples.max_tokens(),
            format: format.clone(),
            path: config.run.output.join(FILE),
            answers: Vec::new(),
        }))
    }

    /// Starts the file of answers; with `keep_until = Some(step)` the answers until that step stay.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub(crate) fn open(&mut self, keep_until: Option<usize>) -> Result<(), TrainError> {
        let failed = || output_error(&self.path);
        if let Some(last) = keep_until
            && self.path.exists()
        {
            let text = fs::read_to_string(&self.path).map_err(failed())?;
            let answers = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            // Answers of a result that was an earlier step's stand behind those of that step.
            let mut seen = HashSet::new();
            self.answers = answers
                .filter(|answer: &Sample| answer.step <= last)
                .filter(|answer| seen.insert((answer.step, answer.index)))
                .collect();
        }
        fs::write(&self.path, lines(&self.answers)).map_err(failed())
    }

    /// The most likely answers of the model as it is, with the weights of `step`; also in the file.
    ///
    /// # Errors
    /// A device that fails, and a file that cannot be written.
    pub(crate) fn answer(
        &mut self,
        trainer: &mut Trainer,
        step: usize,
    ) -> Result<&[Sample], TrainError> {
        let requests = self.prompts.iter().map(|prompt| Request {
            prompt: prompt.tokens.clone(),
            sampling: SamplingParams::greedy(),
            max_tokens: self.max_tokens,
        });
        let requests: Vec<Request> = requests.collect();
        let (completions, texts) = answers(trainer, &self.format, &requests)?;
        let first = self.answers.len();
        for (index, (completion, text)) in completions.iter().zip(texts).enumerate() {
            let answer = self.sample(step, index, (completion, text));
            self.answers.push(answer);
        }
        let new = &self.answers[first..];
        let mut file = OpenOptions::new();
        let file = file.append(true).create(true).open(&self.path);
        file.and_then(|mut file| file.write_all(lines(new).as_bytes()))
            .map_err(output_error(&self.path))?;
        Ok(new)
    }

    fn sample(
        &self,
        step: usize,
        index: usize,
        (completion, text): (&Completion, String),
    ) -> Sample {
        Sample {
            step,
            index,
            prompt: self.prompts[index].content.clone(),
            completion: text,
            num_tokens: completion.tokens.len(),
            finish_reason: match completion.has_ended {
                true => "stop".to_owned(),
                false => "length".to_owned(),
            },
        }
    }

    /// What is said last in each prompt.
    pub(crate) fn shown(&self) -> Vec<String> {
        self.prompts.iter().map(Prompt::shown).collect()
    }

    /// All answers so far.
    pub(crate) fn answers(&self) -> &[Sample] {
        &self.answers
    }
}

/// What the model in training answers as it is: tokens and text, in the order of `requests`.
///
/// # Errors
/// A device that fails.
pub(crate) fn answers(
    trainer: &mut Trainer,
    format: &ChatFormat,
    requests: &[Request],
) -> Result<(Vec<Completion>, Vec<String>), GenerationError> {
    let generator = Generator {
        slot: trainer.slot(),
        stop_token_ids: format.limits.eos_token_ids.clone(),
    };
    let listen = &mut |_, _| {
        gate::pass(WorkUnit::Batch);
        ControlFlow::Continue(())
    };
    let completions = generator.generate(&mut trainer.model, requests, listen)?;
    let texts = completions.iter();
    let texts = texts.map(|completion| format.text_of(completion.content()));
    let texts = texts.collect();
    Ok((completions, texts))
}

fn lines(answers: &[Sample]) -> String {
    let lines = answers.iter().filter_map(|answer| {
        let line = serde_json::to_string(answer).ok()?;
        Some(line + "\n")
    });
    lines.collect()
}

/// Prompts of a file: a text on each line, or a JSON object with `prompt` or `messages`.
fn read(file: &Path, format: &ChatFormat) -> Result<Vec<Prompt>, TrainError> {
    let failed = |reason: String| {
        TrainError::Config(ConfigError::Value {
            flag: "sample-prompts",
            expected: "a file with a prompt on each line: a text, or a JSON object with `prompt` or `messages`".into(),
            found: format!("{}{reason}", file.display()),
        })
    };
    let text = text_file::read(file).map_err(|error| failed(format!(": {error}")))?;
    let context = format.limits.context_length;
    let mut prompts = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |reason: String| failed(format!(":{number}: {reason}"));
        let prompt = match of_line(line) {
            Err(reason) => Err(reason),
            Ok(fields) => {
                let source = Source {
                    file: file.into(),
                    place: Place::Line(number),
                };
                match has_other_history(&source, &fields) {
                    true => {
                        Err("field `history`: expected pairs of texts, beside `prompt`".to_owned())
                    }
                    false => {
                        prompts::of_record(&source, &fields, format).map_err(|error| error.reason())
                    }
                }
            }
        };
        let prompt = prompt.map_err(wrong)?;
        if prompt.tokens.len() >= context {
            let found = prompt.tokens.len();
            return Err(wrong(format!(
                "a prompt of {found} tokens, and the model's context is {context}"
            )));
        }
        prompts.push(prompt);
    }
    match prompts.is_empty() {
        true => Err(failed(", which has no prompt".to_owned())),
        false => Ok(prompts),
    }
}

/// The fields of a prompt: of a JSON object, or of a text or a JSON list of messages.
fn of_line(line: &str) -> Result<Map<String, Value>, String> {
    let mut fields = Map::new();
    // With an unknown role it is one, too, which is named later.
    let list: Option<Vec<Map<String, Value>>> = serde_json::from_str(line).ok();
    let is_turn = |item: &Map<String, Value>| speaker(&Value::from(item.clone())).is_some();
    let list = list.filter(|list| !list.is_empty() && list.iter().all(is_turn));
    let is_json = line.starts_with('{') || list.is_some();
    if is_json
        && let Some((field, number)) = written_wide_integer(line, &|field| ASKED.contains(&field))
    {
        return Err(format!(
            "field `{field}`: expected {WIDE_EXPECTED}, found the number {number}"
        ));
    }
    if !line.starts_with('{') {
        fields.insert(
            "prompt".to_owned(),
            list.map_or_else(|| line.into(), Value::from_iter),
        );
        return Ok(fields);
    }
    fields = serde_json::from_str(line).map_err(|error| {
        let reason = no_number(line, &error).unwrap_or_else(|| error.to_string());
        format!("invalid JSON: {reason}")
    })?;
    let is_unknown = |key: &&String| !ASKED.contains(&key.as_str()) && !fields[*key].is_null();
    let has_prompt = PROMPTS.iter().any(|key| fields.contains_key(*key));
    match fields.keys().find(is_unknown).filter(|_| has_prompt) {
        Some(key) => Err(format!(
            "field `{key}`: expected none but {}: leave it out, since it would have no effect",
            ASKED.join(", ")
        )),
        None => Ok(fields),
    }
}
