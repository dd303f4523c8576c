//! Blocks of records → examples, on all cores.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tracing::info;

use super::dataset::Dataset;
use super::error::{DataError, MAX_ERRORS};
use super::example::Source;
use super::files::STDIN;
use super::findings::{Print, Survey};
use super::format::{Answers, Format, Record, unused_keys};
use super::names::{Names, shown_key};
use super::open::Progress;
use super::read::{RawRecord, RecordReader};
use super::render::{Rendered, Renderer};
use super::report::DataReport;
use super::shown::Shown;
use super::store::Examples;
use crate::config::{Columns, Method};
use crate::digest;

/// How records become examples.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) renderer: Renderer,
    pub(crate) columns: Columns,
    /// A record that teaches nothing is an error.
    pub(crate) strict: bool,
    /// Whether records are also compared with each other, for [`survey`](super::survey).
    pub(super) compares: bool,
    /// What is learnt.
    pub(crate) method: Method,
}

/// What one record gave.
struct Outcome {
    source: Source,
    format: Format,
    rendered: Rendered,
    /// Whether a cell of it says that a value is missing.
    has_missing: bool,
    /// What the record is compared by.
    print: Option<Print>,
    /// Keys without a use; a run looks for them in the first record of a block only.
    unused: Vec<String>,
}

/// Examples and counts of several blocks.
#[derive(Debug, Default)]
pub(super) struct Collector {
    pub(super) examples: Examples,
    pub(super) report: DataReport,
    errors: Vec<DataError>,
    /// Where malformed records end no run.
    pub(super) survey: Option<Survey>,
}

impl Recipe {
    /// The fields of `--columns` that a record has, and what it gave.
    fn prepare(&self, record: RawRecord, is_first: bool) -> (u32, Result<Outcome, DataError>) {
        let names = Names::only(&self.columns);
        let has_missing = record.has_missing(&names);
        match record.parse(&names) {
            Ok((source, value)) => {
                let found = self.columns.found_in(&value);
                let outcome = self.prepare_value(source, value, is_first);
                let outcome = outcome.map(|outcome| Outcome {
                    has_missing,
                    ..outcome
                });
                (found, outcome)
            }
            Err(error) => (0, Err(error)),
        }
    }

    fn prepare_value(
        &self,
        source: Source,
        value: Value,
        is_first: bool,
    ) -> Result<Outcome, DataError> {
        let fields = match &value {
            Value::Object(fields) if (is_first || self.compares) && self.columns.is_empty() => {
                Some(fields.clone())
            }
            _ => None,
        };
        if self.method.is_preference() {
            return self.prepare_answers(source, value, fields);
        }
        let record = Record::parse(source, value, &self.columns)?;
        let rendered = self.renderer.render(&record)?;
        if rendered.examples.is_empty() {
            let max_length = self.renderer.settings().max_length;
            return Err(DataError::TeachesNothing {
                source_place: record.source,
                reason: match rendered.num_lost_targets {
                    0 => "it has no token to learn after its first one".into(),
                    _ => format!(
                        "no answer fits into --max-length {max_length} with a token of its prompt"
                    ),
                },
            });
        }
        Ok(Outcome {
            unused: fields.map_or_else(Vec::new, |fields| unused_keys(&fields, record.format)),
            print: self.compares.then(|| Print::of(&record.content, &rendered)),
            source: record.source,
            format: record.format,
            rendered,
            has_missing: false,
        })
    }

    /// A record whose answers are compared.
    fn prepare_answers(
        &self,
        source: Source,
        value: Value,
        fields: Option<Map<String, Value>>,
    ) -> Result<Outcome, DataError> {
        let answers = Answers::parse(source, value, &self.columns, self.method)?;
        let max_length = self.renderer.settings().max_length;
        let rendered = self.renderer.whole().answers(&answers, max_length)?;
        Ok(Outcome {
            unused: fields.map_or_else(Vec::new, |fields| unused_keys(&fields, answers.format)),
            print: self.compares.then(|| Print::of_answers(&rendered)),
            source: answers.source,
            format: answers.format,
            rendered,
            has_missing: false,
        })
    }
}

impl Collector {
    pub(super) fn new(folder: Option<&Path>) -> Self {
        Self {
            examples: folder.map_or_else(Examples::default, Examples::in_folder),
            ..Self::default()
        }
    }

    /// Adds a block. Gives the keys that its first record has and nobody uses.
    ///
    /// # Errors
    /// What is wrong with more than one record; ten malformed records.
    pub(super) fn add(
        &mut self,
        block: Vec<RawRecord>,
        recipe: &Recipe,
    ) -> Result<Vec<String>, DataError> {
        self.add_until(None, block, recipe)
    }

    /// As [`add`](Self::add), until `stop` becomes true: then with an error, after the records that are being looked at.
    fn add_until(
        &mut self,
        stop: Option<&AtomicBool>,
        block: Vec<RawRecord>,
        recipe: &Recipe,
    ) -> Result<Vec<String>, DataError> {
        self.examples.set_pairs(recipe.method.is_paired());
        let block = block.into_par_iter().enumerate();
        let outcomes: Vec<_> = block
            .map(|(index, record)| match is_set(stop) {
                true => (0, Err(DataError::Stopped)),
                false => recipe.prepare(record, index == 0),
            })
            .collect();
        let mut unused = Vec::new();
        for (columns, outcome) in outcomes {
            self.report.num_records += 1;
            self.report.columns |= columns;
            match outcome {
                Ok(outcome) => {
                    unused.extend(outcome.unused.iter().cloned());
                    self.keep(&outcome)?;
                }
                Err(error) => self.fail(error, recipe.strict)?,
            }
        }
        Ok(unused)
    }

    fn keep(&mut self, outcome: &Outcome) -> Result<(), DataError> {
        let (report, source, rendered) = (&mut self.report, &outcome.source, &outcome.rendered);
        *report.formats.entry(outcome.format).or_default() += 1;
        report.num_truncated += usize::from(rendered.truncated);
        report.num_lost_targets += rendered.num_lost_targets;
        if let Some(survey) = &mut self.survey {
            survey.add(source, rendered, outcome.print);
        }
        report.num_cut_answers += rendered.num_cut_answers;
        for (found, is_so) in [
            (&mut report.cut_turns, rendered.is_cut),
            (&mut report.rendered, rendered.was_rendered),
            (&mut report.own_tokens, rendered.has_own_tokens),
            (&mut report.ends, rendered.had_end),
            (&mut report.missing, outcome.has_missing),
        ] {
            if is_so {
                found.add(source);
            }
        }
        for example in &rendered.examples {
            report.num_tokens += example.tokens.len();
            report.num_targets += example.num_targets();
            self.examples.push(example)?;
        }
        Ok(())
    }

    fn fail(&mut self, error: DataError, strict: bool) -> Result<(), DataError> {
        let error = match (strict, error.teaches_nothing()) {
            (false, Ok((source, reason))) => {
                if let Some(survey) = &mut self.survey {
                    survey.leave_out(&source, &reason);
                }
                self.report.leave_out(&source, reason);
                return Ok(());
            }
            (true, Ok((source_place, reason))) => DataError::TeachesNothing {
                source_place,
                reason,
            },
            (_, Err(error)) => error,
        };
        if !error.is_of_a_record() {
            return Err(error);
        }
        if let Some(survey) = &mut self.survey {
            survey.refuse(&error);
            return Ok(());
        }
        self.errors.push(error);
        match self.errors.len() < MAX_ERRORS {
            true => Ok(()),
            false => Err(DataError::Malformed {
                errors: std::mem::take(&mut self.errors),
                all: false,
            }),
        }
    }

    /// `error`, after the malformed records before it.
    fn and(&mut self, error: DataError) -> DataError {
        if self.errors.is_empty() {
            return error;
        }
        self.errors.push(error);
        DataError::Malformed {
            errors: std::mem::take(&mut self.errors),
            all: false,
        }
    }

    /// Refuses malformed records.
    pub(super) fn check(&mut self) -> Result<(), DataError> {
        match self.errors.is_empty() {
            true => Ok(()),
            false => Err(DataError::Malformed {
                errors: std::mem::take(&mut self.errors),
                all: true,
            }),
        }
    }
}

fn is_set(stop: Option<&AtomicBool>) -> bool {
    stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
}

/// Reads and renders all of `files`, unless `stop` becomes true meanwhile.
pub(super) fn load_files(
    files: &[PathBuf],
    recipe: &Recipe,
    folder: Option<&Path>,
    show: bool,
    stop: Option<&AtomicBool>,
) -> Result<Dataset, DataError> {
    let mut collector = Collector::new(folder);
    let mut hash = Sha256::new();
    let sizes = files
        .iter()
        .map(|file| std::fs::metadata(file).map_or(0, |file| file.len()));
    let progress = Progress::default();
    let mut shown = Shown::new(sizes.sum(), show);
    for file in files {
        let before = Counts::of(&collector.report);
        let mut reader = RecordReader::open(file, &progress)?;
        let mut unused = Vec::new();
        loop {
            let block = reader.next_block().map_err(|error| collector.and(error))?;
            if block.is_empty() {
                break;
            }
            for record in &block {
                record.hash(&mut hash);
            }
            let found = collector.add_until(stop, block, recipe)?;
            unused.extend(found);
            shown.update(progress.bytes(), &collector.report);
        }
        if collector.report.num_records == before.records {
            return Err(DataError::Empty { path: file.clone() });
        }
        unused.sort();
        unused.dedup();
        let name = match file.as_os_str() == STDIN {
            true => "standard input".to_owned(),
            false => file.display().to_string(),
        };
        shown
            .bar
            .suspend(|| before.tell(&name, &collector.report, &unused));
    }
    shown.bar.finish_and_clear();
    collector.check()?;
    let names = files.iter().map(|file| file.display().to_string());
    finish(
        collector,
        hash,
        || names.collect::<Vec<_>>().join(", "),
        recipe,
    )
}

/// Renders records that a program has in memory.
pub(super) fn load_records(
    name: &str,
    records: impl Iterator<Item = RawRecord>,
    recipe: &Recipe,
    folder: Option<&Path>,
    stop: Option<&AtomicBool>,
) -> Result<Dataset, DataError> {
    let mut collector = Collector::new(folder);
    let mut hash = Sha256::new();
    let records = records.inspect(|record| record.hash(&mut hash));
    let unused = collector.add_until(stop, records.collect(), recipe)?;
    if collector.report.num_records == 0 {
        return Err(DataError::NoRecords(name.to_owned()));
    }
    collector.check()?;
    Counts::default().tell(name, &collector.report, &unused);
    finish(collector, hash, || name.to_owned(), recipe)
}

/// Refuses a dataset without examples, and warns of what was lost.
fn finish(
    collector: Collector,
    hash: Sha256,
    files: impl FnOnce() -> String,
    recipe: &Recipe,
) -> Result<Dataset, DataError> {
    let Collector {
        examples, report, ..
    } = collector;
    if examples.is_empty() {
        return Err(nothing_to_learn(files(), &report, &recipe.renderer));
    }
    report.warn(recipe.renderer.settings().max_length);
    Ok(Dataset {
        examples,
        report,
        hash: digest::short(hash),
    })
}

/// The error of data of which nothing is left.
pub(super) fn nothing_to_learn(
    files: String,
    report: &DataReport,
    renderer: &Renderer,
) -> DataError {
    use crate::config::TrainOn;
    let settings = renderer.settings();
    DataError::NothingToLearn {
        files,
        num_records: report.num_records,
        max_length: settings.max_length,
        train_on: match settings.train_on {
            TrainOn::Assistant => "assistant",
            TrainOn::Prompt => "prompt",
            TrainOn::All => "all",
        },
        commonest: report.commonest_left_out(),
    }
}

/// What had been counted before a file.
#[derive(Default)]
struct Counts {
    records: usize,
    left_out: usize,
    tokens: usize,
    targets: usize,
    formats: BTreeMap<Format, usize>,
}

impl Counts {
    fn of(report: &DataReport) -> Self {
        Self {
            records: report.num_records,
            left_out: report.num_left_out,
            tokens: report.num_tokens,
            targets: report.num_targets,
            formats: report.formats.clone(),
        }
    }

    /// Logs what a file had, counted since.
    fn tell(&self, name: &str, report: &DataReport, unused: &[String]) {
        let since = |format, count| count - self.formats.get(format).copied().unwrap_or(0);
        let formats = report.formats.iter();
        let formats = formats.map(|(format, &count)| (format, since(format, count)));
        let formats: Vec<_> = formats.filter(|(_, count)| *count > 0).collect();
        if formats.is_empty() {
            // An error or a warning says why.
            return;
        }
        let found: Vec<String> = match formats[..] {
            [(only, _)] => vec![only.to_string()],
            _ => formats
                .iter()
                .map(|(format, count)| format!("{count} × {format}"))
                .collect(),
        };
        let mixed = match formats.len() > 1 {
            true => " (mixed: each record is read by its own keys)",
            false => "",
        };
        let left_out = match report.num_left_out - self.left_out {
            0 => String::new(),
            count => format!(", {count} left out"),
        };
        info!(
            "{name}: {} records of {}{mixed}{left_out}; {} tokens, {} to learn",
            report.num_records - self.records,
            found.join(", "),
            report.num_tokens - self.tokens,
            report.num_targets - self.targets,
        );
        if !unused.is_empty() {
            let keys: Vec<&str> = unused.iter().map(|key| shown_key(key)).collect();
            info!("{name}: not used: {}", keys.join(", "));
        }
    }
}
