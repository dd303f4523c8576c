//! All that can be said of data without training on it: the records that a run would leave out, shorten or refuse, and the
//! ones that say the same. The records are read and rendered as for a run.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::DataError;
use super::example::Source;
use super::files;
use super::format::{Chat, Content, Format, TurnKind};
use super::load::{Collector, Recipe};
use super::open::Progress;
use super::read::RecordReader;
use super::render::Rendered;
use super::shown::Shown;
use super::{Dataset, recipe};
use crate::chat_format::ChatFormat;
use crate::config::Config;

/// Places that are kept of each kind.
const MAX_PLACES: usize = 100;

/// Records of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// How many they are.
    pub count: usize,
    /// The first hundred.
    pub first: Vec<Source>,
}

impl Places {
    fn of(source: Source) -> Self {
        Self {
            count: 1,
            first: vec![source],
        }
    }

    fn add(&mut self, source: &Source) {
        self.count += 1;
        if self.first.len() < MAX_PLACES {
            self.first.push(source.clone());
        }
    }
}

/// What one file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCounts {
    /// The file.
    pub path: PathBuf,
    /// Records read.
    pub num_records: usize,
    /// Records of each format, without the malformed ones and those that are left out.
    pub formats: BTreeMap<Format, usize>,
}

/// What was found in the records of one data set.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// File by file.
    pub files: Vec<FileCounts>,
    /// Records for which a run would end.
    pub num_malformed: usize,
    /// What is wrong with the first hundred of them.
    pub malformed: Vec<String>,
    /// Records that are left out, by the reason.
    pub left_out: BTreeMap<String, Places>,
    /// Records that lose the left of their prompt or, where answers are compared, the end of one.
    pub truncated: Places,
    /// Tokens of the longest record before anything is cut off it.
    pub longest: usize,
    /// Keys that nobody uses.
    pub unused: BTreeSet<String>,
    /// Records that say the same as an earlier one, each group with that one.
    pub duplicates: Vec<Places>,
    /// Records with the same prompt and different answers; where answers are compared, records that judge the same ones otherwise.
    pub conflicts: Vec<Places>,
    records: HashMap<u64, Seen>,
    prompts: HashMap<u64, Seen>,
}

/// A record, or a prompt, that was there before.
#[derive(Clone, Debug)]
struct Seen {
    first: Source,
    /// Its index in the list of groups, where there is more than one.
    group: Option<usize>,
}

impl Seen {
    /// Adds a record to its group.
    fn add(&mut self, source: &Source, groups: &mut Vec<Places>) {
        let group = *self.group.get_or_insert_with(|| {
            groups.push(Places::of(self.first.clone()));
            groups.len() - 1
        });
        groups[group].add(source);
    }
}

/// What a record is compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Print {
    record: u64,
    /// What comes before the first answer; a text has nothing there. Of answers that are compared, the answers whatever is said
    /// of them.
    prompt: Option<u64>,
}

impl Print {
    /// Of a record with this content, and of what it is to the model: the same thing may be written in several forms.
    pub(super) fn of(content: &Content, rendered: &Rendered) -> Self {
        let examples = rendered.examples.iter();
        let examples: Vec<_> = examples.map(|own| (&own.tokens, &own.mask)).collect();
        Self {
            record: hash(&examples),
            prompt: prompt(content),
        }
    }

    /// Of a record whose answers are compared. Several answers to a prompt are no fault there; two verdicts on one answer are.
    pub(super) fn of_answers(rendered: &Rendered) -> Self {
        let examples = rendered.examples.iter();
        let mut answers: Vec<_> = examples.map(|own| (&own.tokens, &own.mask)).collect();
        let verdicts: Vec<bool> = rendered.examples.iter().map(|own| own.is_wanted).collect();
        let record = hash(&(&answers, verdicts));
        answers.sort();
        Self {
            record,
            prompt: Some(hash(&answers)),
        }
    }

    /// Of a prompt without an answer, and the fields that rewards are about.
    pub(crate) fn of_prompt(tokens: &[u32], fields: &Map<String, Value>) -> Self {
        let fields = canonical(&Value::Object(fields.clone()));
        Self {
            record: hash(&(tokens, fields)),
            prompt: Some(hash(tokens)),
        }
    }
}

/// What comes before the first answer, as a number.
fn prompt(content: &Content) -> Option<u64> {
    match content {
        Content::Chat(chat) => prompt_of_chat(chat),
        Content::Completion {
            prompt,
            completion,
            with,
        } => prompt_of_chat(&Chat::single_turn(prompt, completion, with.clone())),
        Content::Segments(segments) => {
            let start = segments.iter().take_while(|(_, learnt)| !learnt);
            let start: Vec<_> = start.collect();
            (!start.is_empty()).then(|| hash(&start))
        }
        Content::Text(_) => None,
    }
}

fn prompt_of_chat(chat: &Chat) -> Option<u64> {
    let variables = chat.with.variables.values().map(canonical);
    let variables: Vec<_> = chat.with.variables.keys().zip(variables).collect();
    let with = (chat.with.tools.as_ref().map(canonical), variables);
    let mut kinds = chat.kinds.iter();
    let first_answer = kinds.position(|kind| *kind == TurnKind::Answer)?;
    let start: Vec<String> = (chat.messages.iter().take(first_answer))
        .map(canonical)
        .collect();
    (!start.is_empty()).then(|| hash(&(start, with)))
}

/// A value as text, the keys of objects in their order.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (key, canonical(value)));
            format!("{:?}", fields.collect::<BTreeMap<_, _>>())
        }
        Value::Array(values) => format!("{:?}", values.iter().map(canonical).collect::<Vec<_>>()),
        other => other.to_string(),
    }
}

fn hash(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Survey {
    /// Counts a record that is learnt.
    pub(crate) fn add(&mut self, source: &Source, rendered: &Rendered, print: Option<Print>) {
        self.longest = self.longest.max(rendered.longest);
        if rendered.truncated || rendered.num_cut_answers > 0 {
            self.truncated.add(source);
        }
        let Some(print) = print else { return };
        let new = || Seen {
            first: source.clone(),
            group: None,
        };
        match self.records.entry(print.record) {
            Entry::Occupied(mut seen) => {
                seen.get_mut().add(source, &mut self.duplicates);
                return;
            }
            Entry::Vacant(place) => place.insert(new()),
        };
        let Some(prompt) = print.prompt else { return };
        match self.prompts.entry(prompt) {
            Entry::Occupied(mut seen) => seen.get_mut().add(source, &mut self.conflicts),
            Entry::Vacant(place) => {
                place.insert(new());
            }
        }
    }

    /// Counts a record that is left out.
    pub(crate) fn leave_out(&mut self, source: &Source, reason: &str) {
        if let Some(places) = self.left_out.get_mut(reason) {
            return places.add(source);
        }
        let places = Places::of(source.clone());
        self.left_out.insert(reason.to_owned(), places);
    }

    /// Counts what would end a run.
    pub(crate) fn refuse(&mut self, error: &DataError) {
        self.num_malformed += 1;
        if self.malformed.len() < MAX_PLACES {
            self.malformed.push(error.to_string());
        }
    }

    /// How many records of the other data set are in this one, too.
    pub fn num_shared(&self, other: &Self) -> usize {
        let known = |print: &&u64| self.records.contains_key(*print);
        other.records.keys().filter(known).count()
    }
}

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
