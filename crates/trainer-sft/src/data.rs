//! From files to tokenized [`Example`]s.
//!
//! [`read`] parses files, [`mod@format`] recognises and checks records, [`render`] turns them into tokens and a loss
//! mask, and [`Datasets::load`] does it all, reporting what was recognised, shortened and dropped.

mod error;
mod example;
pub mod format;
pub mod read;
pub mod render;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tracing::{info, warn};

pub use error::DataError;
pub use example::{Example, Place, Source};
pub use format::{Chat, Content, Format, Record};

use crate::chat_format::ChatFormat;
use crate::config::{Config, TrainOn};
use render::{RenderSettings, Renderer};

/// Examples of one or more files.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// In file order.
    pub examples: Vec<Example>,
    /// What was found.
    pub report: DataReport,
}

/// Counts of what was read, learnt, shortened and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataReport {
    /// Records read.
    pub num_records: usize,
    /// Records of each format.
    pub formats: BTreeMap<Format, usize>,
    /// Tokens of all examples.
    pub num_tokens: usize,
    /// Tokens that are learnt.
    pub num_targets: usize,
    /// Records that lost the left of their prompt, or earlier turns.
    pub num_truncated: usize,
    /// Tokens that would have been learnt, but are in earlier turns or dropped examples that do not fit.
    pub num_lost_targets: usize,
    /// Records that give no example at all.
    pub dropped: Vec<Source>,
}

/// Records that a program has in memory: JSON objects of any of the [formats](Format), instead of the files of a [`Config`].
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// What is learnt; `None` is the files of [`DataConfig::train`](crate::config::DataConfig::train).
    pub train: Option<Vec<Value>>,
    /// What is only measured; `None` is the files of [`DataConfig::eval`](crate::config::DataConfig::eval).
    pub eval: Option<Vec<Value>>,
}

/// The data of a run.
#[derive(Clone, Debug)]
pub struct Datasets {
    /// What is learnt.
    pub train: Dataset,
    /// What is only measured.
    pub eval: Option<Dataset>,
    /// The length limit in force: `--max-length`, or the model's context where that is shorter.
    pub max_length: usize,
}

impl Datasets {
    /// Reads, renders and tokenizes the data of a run: `records`, or the files of `config` where there are none.
    ///
    /// # Errors
    /// The first file, record or field that cannot be used, and data of which nothing is left to learn.
    pub fn load(config: &Config, format: &ChatFormat, records: Records) -> Result<Self, DataError> {
        let limits = &format.limits;
        let max_length = config.data.max_length.min(limits.context_length);
        if max_length < config.data.max_length {
            info!("examples are limited to the model's context of {max_length} tokens");
        }
        let settings = RenderSettings {
            train_on: config.data.train_on,
            thinking: config.data.thinking,
            max_length,
            eos_token_id: limits.eos_token_id,
        };
        let renderer = Renderer::new(&format.tokenizer, format.template.as_ref(), settings);
        let train = match records.train {
            Some(records) => Dataset::from_records("records", records, &renderer)?,
            None => Dataset::load(&config.data.train, &renderer)?,
        };
        let eval = match records.eval {
            Some(records) => Some(Dataset::from_records("eval_records", records, &renderer)?),
            None if config.data.eval.is_empty() => None,
            None => Some(Dataset::load(&config.data.eval, &renderer)?),
        };
        Ok(Self {
            train,
            eval,
            max_length,
        })
    }
}

impl Dataset {
    /// Reads and renders `files`, and logs what was recognised.
    ///
    /// # Errors
    /// As [`Datasets::load`].
    pub fn load(files: &[PathBuf], renderer: &Renderer<'_>) -> Result<Self, DataError> {
        let mut dataset = Self::default();
        for file in files {
            dataset.add(file, read::read_file(file)?, renderer)?;
        }
        let names = files.iter().map(|file| file.display().to_string());
        dataset.checked(|| names.collect::<Vec<_>>().join(", "), renderer)
    }

    /// Renders records of the same formats as those of files, and logs what was recognised. Of `records`, record 3 is named
    /// `records[3]`.
    ///
    /// # Errors
    /// The first record or field that cannot be used, and records of which nothing is left to learn.
    pub fn from_records(
        name: &str,
        records: impl IntoIterator<Item = Value>,
        renderer: &Renderer<'_>,
    ) -> Result<Self, DataError> {
        let file: Arc<Path> = Path::new(name).into();
        let records = records.into_iter().enumerate().map(|(index, value)| {
            let source = Source {
                file: file.clone(),
                place: Place::Element(index),
            };
            (source, value)
        });
        let records: Vec<_> = records.collect();
        if records.is_empty() {
            return Err(DataError::NoRecords(name.to_owned()));
        }
        let mut dataset = Self::default();
        dataset.add(&file, records, renderer)?;
        dataset.checked(|| name.to_owned(), renderer)
    }

    /// Refuses a dataset without examples, and warns of what was lost.
    fn checked(
        self,
        files: impl FnOnce() -> String,
        renderer: &Renderer<'_>,
    ) -> Result<Self, DataError> {
        let report = &self.report;
        if self.examples.is_empty() {
            let settings = renderer.settings();
            return Err(DataError::NothingToLearn {
                files: files(),
                num_records: report.num_records,
                max_length: settings.max_length,
                train_on: match settings.train_on {
                    TrainOn::Assistant => "assistant",
                    TrainOn::Prompt => "prompt",
                    TrainOn::All => "all",
                },
                first: report
                    .dropped
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            });
        }
        if report.num_truncated > 0 {
            warn!(
                "{} of {} records are longer than --max-length {} and lost the left of their prompt",
                report.num_truncated,
                report.num_records,
                renderer.settings().max_length
            );
        }
        if let Some(first) = report.dropped.first() {
            warn!(
                "{} of {} records are left out, the first is {first}: no answer fits into --max-length {} with a token of its prompt",
                report.dropped.len(),
                report.num_records,
                renderer.settings().max_length
            );
        }
        if report.num_lost_targets > 0 {
            warn!(
                "{} tokens of answers are not learnt because they do not fit",
                report.num_lost_targets
            );
        }
        Ok(self)
    }

    fn add(
        &mut self,
        file: &Path,
        records: Vec<(Source, Value)>,
        renderer: &Renderer<'_>,
    ) -> Result<(), DataError> {
        let mut formats: BTreeMap<Format, usize> = BTreeMap::new();
        let mut num_records = 0;
        let first_example = self.examples.len();
        for (source, value) in records {
            let record = Record::parse(source, value)?;
            *formats.entry(record.format).or_default() += 1;
            num_records += 1;
            let rendered = renderer.render(&record)?;
            self.report.num_truncated += usize::from(rendered.truncated);
            self.report.num_lost_targets += rendered.num_lost_targets;
            if rendered.examples.is_empty() {
                self.report.dropped.push(record.source);
            }
            self.examples.extend(rendered.examples);
        }
        let added = &self.examples[first_example..];
        let num_tokens: usize = added.iter().map(|example| example.tokens.len()).sum();
        let num_targets: usize = added.iter().map(Example::num_targets).sum();
        let found: Vec<String> = match formats.len() {
            1 => formats.keys().map(ToString::to_string).collect(),
            _ => formats
                .iter()
                .map(|(format, count)| format!("{count} × {format}"))
                .collect(),
        };
        let mixed = if formats.len() > 1 {
            " (mixed: each record is read by its own keys)"
        } else {
            ""
        };
        info!(
            "{}: {num_records} records of {}{mixed}; {} examples, {num_tokens} tokens, {num_targets} to learn",
            file.display(),
            found.join(", "),
            added.len()
        );
        self.report.num_records += num_records;
        self.report.num_tokens += num_tokens;
        self.report.num_targets += num_targets;
        for (format, count) in formats {
            *self.report.formats.entry(format).or_default() += count;
        }
        Ok(())
    }
}
