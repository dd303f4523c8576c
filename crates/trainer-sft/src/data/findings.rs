//! What is found in records, and which of them say the same.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::error::DataError;
use super::example::Source;
use super::format::{Chat, Content, Format, TurnKind};
use super::render::Rendered;

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
