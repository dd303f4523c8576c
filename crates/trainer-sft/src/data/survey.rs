//! All that can be said of data without training on it: the records that a run would leave out, shorten or refuse, and the
//! ones that say the same. The records are read and rendered as for a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::DataError;
use super::files;
pub use super::findings::{FileCounts, Places, Survey};
use super::format::Format;
use super::load::{Collector, Recipe};
use super::open::Progress;
use super::read::RecordReader;
use super::shown::Shown;
use super::{Dataset, recipe};
use crate::chat_format::ChatFormat;
use crate::config::Config;

/// The data of a run, looked at.
#[derive(Debug)]
pub struct Surveyed {
    /// What would be learnt.
    pub train: Dataset,
    /// What was found in it.
    pub survey: Survey,
    /// What would be measured on.
    pub eval: Option<Dataset>,
    /// What was found in its files; `None` for records that are drawn from those to learn.
    pub eval_survey: Option<Survey>,
    /// The length limit in force.
    pub max_length: usize,
}

/// Looks at the data of a run, also at that of `--streaming`. With `show`, a bar on standard error shows the progress.
///
/// # Errors
/// Files that are missing, cannot be read, or are of a kind that is not; a model without a chat template where one is needed.
pub fn survey(config: &Config, format: &ChatFormat, show: bool) -> Result<Surveyed, DataError> {
    let recipe = Recipe {
        compares: true,
        ..recipe(config, format)?
    };
    let look = |files: Vec<PathBuf>| look_at(&files, &recipe, show);
    let (mut train, found) = look(files::expand(&config.data.train)?)?;
    // Of records that are refused, more is said than that.
    if found.num_malformed == 0 {
        train.check_columns(&recipe.columns)?;
    }
    let (mut eval, mut eval_survey) = (None, None);
    match config.data.eval_split {
        // Data of which nothing is left is said to be that.
        Some(part) if !train.examples.is_empty() => {
            eval = Some(train.split(part, config.run.seed, None)?);
        }
        None if !config.data.eval.is_empty() => {
            let (data, found) = look(files::expand_to_measure(&config.data.eval)?)?;
            (eval, eval_survey) = (Some(data), Some(found));
        }
        _ => {}
    }
    Ok(Surveyed {
        train,
        survey: found,
        eval,
        eval_survey,
        max_length: recipe.renderer.settings().max_length,
    })
}

/// Bytes of all files; what is no file has none.
fn num_bytes(files: &[PathBuf]) -> u64 {
    let sizes = files.iter();
    let sizes = sizes.map(|file| std::fs::metadata(file).map_or(0, |file| file.len()));
    sizes.sum()
}

fn look_at(files: &[PathBuf], recipe: &Recipe, show: bool) -> Result<(Dataset, Survey), DataError> {
    let mut collector = Collector::new(None);
    collector.survey = Some(Survey::default());
    let progress = Progress::default();
    let mut shown = Shown::new(num_bytes(files), show);
    for file in files {
        let before = (
            collector.report.num_records,
            collector.report.formats.clone(),
        );
        let mut reader = RecordReader::open(file, &progress)?;
        let broken = loop {
            match reader.next_block() {
                Ok(block) if block.is_empty() => break None,
                Ok(block) => {
                    let unused = collector.add(block, recipe)?;
                    shown.update(progress.bytes(), &collector.report);
                    if let Some(survey) = &mut collector.survey {
                        survey.unused.extend(unused);
                    }
                }
                Err(error) if error.is_of_a_record() => break Some(error),
                Err(error) => return Err(error),
            }
        };
        let report = &collector.report;
        let counts = counts_since(file, before, report.num_records, &report.formats);
        let is_empty = counts.num_records == 0 && broken.is_none();
        let broken = broken.or(is_empty.then(|| DataError::Empty { path: file.clone() }));
        if let Some(survey) = &mut collector.survey {
            survey.files.push(counts);
            if let Some(error) = broken {
                survey.refuse(&error);
            }
        }
    }
    shown.bar.finish_and_clear();
    let survey = collector.survey.take().unwrap_or_default();
    let dataset = Dataset {
        examples: collector.examples,
        report: collector.report,
        hash: String::new(),
    };
    Ok((dataset, survey))
}

/// What a file has, given the counts before it and after it.
fn counts_since(
    file: &Path,
    before: (usize, BTreeMap<Format, usize>),
    num_records: usize,
    formats: &BTreeMap<Format, usize>,
) -> FileCounts {
    let since = |format: &Format, count: usize| count - before.1.get(format).copied().unwrap_or(0);
    let formats = formats.iter();
    let formats = formats.map(|(format, &count)| (*format, since(format, count)));
    FileCounts {
        path: file.to_path_buf(),
        num_records: num_records - before.0,
        formats: formats.filter(|(_, count)| *count > 0).collect(),
    }
}
