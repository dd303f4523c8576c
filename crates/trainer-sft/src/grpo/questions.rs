//! The prompts of a run, with the fields that rewards are about.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde_json::{Map, Value};
use tracing::{info, warn};

use crate::chat_format::ChatFormat;
use crate::config::Config;
use crate::data::findings::Print;
use crate::data::format::{ASKED, has_other_history, hint_to_ask};
use crate::data::objects::{Object, all_objects, objects, refuse};
use crate::data::render::Rendered;
use crate::data::survey::{FileCounts, Survey, Surveyed};
use crate::data::{DataError, DataReport, Dataset, Datasets, Example, Records, Source, TrainData};
use crate::error::TrainError;
use crate::prompts::{self, Prompt};
use crate::rewards::{Lack, Rewards};

/// A prompt to be answered.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) prompt: Prompt,
    /// The other fields of its record.
    pub(crate) columns: Map<String, Value>,
}

/// The prompts of a run.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    of_source: HashMap<Source, Question>,
    held_out: Vec<Question>,
}

impl Questions {
    /// Reads the prompts of a run, those to learn from and those held out. Prompts that are empty, leave no room for an answer, or
    /// have the weight 0, are left out, or refused with `--strict`.
    ///
    /// # Errors
    /// Files that cannot be read, records without a prompt or without a field that a reward is about, and no prompt that fits.
    pub(crate) fn load(
        config: &Config,
        format: &ChatFormat,
        records: Records,
        rewards: &Rewards,
    ) -> Result<(Self, Datasets), TrainError> {
        let run = RunOfQuestions {
            config,
            format,
            rewards,
        };
        let paths = &config.data.train;
        let (questions, train) = read(paths, ("records", records.train), run)?;
        let paths = &config.data.eval;
        let (mut held_out, mut eval) = (Vec::new(), None);
        if !paths.is_empty() || records.eval.is_some() {
            let (found, dataset) = read(paths, ("eval_records", records.eval), run)?;
            (held_out, eval) = (found, Some(dataset));
        }
        let names: Vec<&str> = rewards.names().collect();
        let count = match held_out.len() {
            0 => String::new(),
            count => format!(", and {count} held out"),
        };
        info!(
            "{} prompts with {:.0} tokens on average{count}; rewards: {}",
            questions.len(),
            train.examples.num_tokens() as f64 / questions.len().max(1) as f64,
            names.join(", ")
        );
        let sources = (0..questions.len()).map(|index| train.examples.source(index));
        let questions = Self {
            of_source: sources.zip(questions).collect(),
            held_out,
        };
        let datasets = Datasets {
            train: TrainData::Loaded(Box::new(train)),
            eval,
            max_length: format.limits.context_length,
        };
        Ok((questions, datasets))
    }

    /// The prompt to learn from that was read there.
    pub(crate) fn get(&self, source: &Source) -> Option<&Question> {
        self.of_source.get(source)
    }

    /// The prompts that are not learnt from.
    pub(crate) fn held_out(&self) -> &[Question] {
        &self.held_out
    }
}

/// The settings of a run, with what reads and judges its prompts.
#[derive(Clone, Copy)]
struct RunOfQuestions<'a> {
    config: &'a Config,
    format: &'a ChatFormat,
    rewards: &'a Rewards,
}

/// The prompts of files or of a program's records, and what they are as data.
fn read(
    paths: &[PathBuf],
    records: (&'static str, Option<Vec<Value>>),
    run: RunOfQuestions<'_>,
) -> Result<(Vec<Question>, Dataset), TrainError> {
    let (objects, hash) = objects(run.config, paths, records)?;
    let (mut questions, mut order) = (Vec::new(), Vec::new());
    let (mut errors, mut left_out) = (Vec::new(), Vec::new());
    for (source, fields) in objects {
        match question(&source, fields, run) {
            Err(Unfit::Wrong(error)) => errors.push(error),
            Err(Unfit::LeftOut(error)) => left_out.push(error),
            Ok(question) => {
                order.push((source, question.prompt.tokens.clone()));
                questions.push(question);
            }
        }
    }
    refuse(errors)?;
    if run.config.data.strict || questions.is_empty() {
        refuse(left_out)?;
    } else if let Some(first) = left_out.first() {
        warn!(
            "{} prompts are left out; the first one: {first}",
            left_out.len()
        );
    }
    Ok((questions, Dataset::of_prompts(order, hash)))
}

/// Looks at the prompts of a run as the run reads them, without an end at what is wrong with one.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn survey(
    config: &Config,
    format: &ChatFormat,
    rewards: &Rewards,
) -> Result<Surveyed, DataError> {
    let run = RunOfQuestions {
        config,
        format,
        rewards,
    };
    let (train, found) = look_at(&config.data.train, run)?;
    let (mut eval, mut eval_survey) = (None, None);
    if !config.data.eval.is_empty() {
        let (data, found) = look_at(&config.data.eval, run)?;
        (eval, eval_survey) = (Some(data), Some(found));
    }
    Ok(Surveyed {
        train,
        survey: found,
        eval,
        eval_survey,
        max_length: most_tokens(config, format),
    })
}

/// Looks at the prompts of files.
fn look_at(paths: &[PathBuf], run: RunOfQuestions<'_>) -> Result<(Dataset, Survey), DataError> {
    let config = run.config;
    let (mut survey, mut report) = (Survey::default(), DataReport::default());
    let mut examples = Vec::new();
    for (path, found) in all_objects(config, paths)? {
        let num_records = found.iter().filter(|found| is_record(found)).count();
        for found in found {
            let (source, fields) = match found {
                Ok(object) => object,
                Err(error) => {
                    survey.refuse(&error);
                    continue;
                }
            };
            match question(&source, fields, run) {
                Ok(Question { prompt, columns }) => {
                    let print = Print::of_prompt(&prompt.tokens, &columns);
                    let rendered = Rendered {
                        longest: prompt.tokens.len(),
                        ..Rendered::default()
                    };
                    survey.add(&source, &rendered, Some(print));
                    examples.push(Example::prompt(source, prompt.tokens));
                }
                Err(Unfit::LeftOut(DataError::TeachesNothing { reason, .. }))
                    if !config.data.strict =>
                {
                    survey.leave_out(&source, &reason);
                }
                Err(Unfit::Wrong(error) | Unfit::LeftOut(error)) => survey.refuse(&error),
            }
        }
        report.num_records += num_records;
        survey.files.push(FileCounts {
            path,
            num_records,
            formats: BTreeMap::new(),
        });
    }
    report.num_tokens = examples.iter().map(|example| example.tokens.len()).sum();
    let data = Dataset {
        examples: examples.into(),
        report,
        hash: String::new(),
    };
    Ok((data, survey))
}

/// Whether it is a record, and no error of a whole file.
fn is_record(found: &Result<Object, DataError>) -> bool {
    !matches!(found, Err(DataError::Empty { .. }))
}

/// Tokens of a prompt that leave room for an answer.
fn most_tokens(config: &Config, format: &ChatFormat) -> usize {
    let answer = config.grpo.max_completion_length();
    format.limits.context_length.saturating_sub(answer)
}

/// Why a record is no question.
enum Unfit {
    Wrong(DataError),
    /// It has no prompt or no right answer, its prompt leaves no room for an answer, or it is marked as not to be learnt.
    LeftOut(DataError),
}

fn question(
    source: &Source,
    mut fields: Map<String, Value>,
    run: RunOfQuestions<'_>,
) -> Result<Question, Unfit> {
    let RunOfQuestions {
        config,
        format,
        rewards,
    } = run;
    let wrong = |reason: String| DataError::TeachesNothing {
        source_place: source.clone(),
        reason,
    };
    let checked = rewards.check(&fields);
    checked.map_err(|lack| match lack {
        Lack::Field(reason) => Unfit::Wrong(wrong(reason)),
        Lack::Value(field) => Unfit::LeftOut(wrong(format!(
            "`{field}` is empty, so that no answer could be right"
        ))),
    })?;
    let prompt = prompts::of_record(source, &fields, format);
    let prompt = prompt.map_err(|error| match error {
        error @ DataError::TeachesNothing { .. } => Unfit::LeftOut(error),
        DataError::Render {
            source_place,
            reason,
        } => Unfit::Wrong(DataError::Render {
            source_place,
            reason: reason + &hint_to_ask(&fields),
        }),
        error => Unfit::Wrong(error),
    })?;
    let found = prompt.tokens.len();
    if found > most_tokens(config, format) {
        return Err(Unfit::LeftOut(wrong(format!(
            "a prompt of {found} tokens leaves no room for --max-completion-length {} in the model's context of {}",
            config.grpo.max_completion_length(),
            format.limits.context_length
        ))));
    }
    let has_other_history = has_other_history(source, &fields);
    for own in ASKED {
        // A reward's own, otherwise.
        if own != "history" || !has_other_history {
            fields.remove(own);
        }
    }
    Ok(Question {
        prompt,
        columns: fields,
    })
}
