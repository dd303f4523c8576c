//! `--columns`: which field of a record plays which part.

use serde_json::Value;

use super::error::ConfigError;
use super::method::Method;

/// The parts that a field can play.
const PARTS: [&str; 17] = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "label",
    "query",
    "response",
    "history",
    "text",
    "reasoning",
    "system",
    "tools",
];

/// Parts that answers are compared by, with or without a label.
const COMPARED: [&str; 11] = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "prompt",
    "chosen",
    "rejected",
    "query",
    "history",
    "system",
    "tools",
];
/// Parts of a labelled answer, besides.
const JUDGED: [&str; 5] = ["completion", "output", "response", "label", "reasoning"];

/// Parts of a prompt.
const ASKED: [&str; 6] = [
    "messages",
    "conversations",
    "prompt",
    "history",
    "system",
    "tools",
];

/// Whether records of `method` have this part. Rewards may be about any other one.
fn is_read(part: &str, method: Method) -> bool {
    match method {
        Method::Sft => !["chosen", "rejected", "label"].contains(&part),
        Method::Dpo | Method::Orpo => COMPARED.contains(&part),
        Method::Kto => COMPARED.contains(&part) || JUDGED.contains(&part),
        Method::Grpo => ASKED.contains(&part),
    }
}

/// Parts and the fields that play them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(Vec<(String, String)>);

impl Columns {
    /// Parses `OURS=THEIRS` pairs.
    ///
    /// # Errors
    /// A pair without `=`, a part that no format has, and a part that is given twice.
    pub fn parse(pairs: &[String]) -> Result<Self, ConfigError> {
        let mut columns: Vec<(String, String)> = Vec::new();
        for pair in pairs {
            let wrong = |expected: String| {
                Err(ConfigError::Value {
                    flag: "columns",
                    expected,
                    found: format!("`{pair}`"),
                })
            };
            let Some((ours, theirs)) = pair.split_once('=') else {
                return wrong("PART=FIELD, for example prompt=question".into());
            };
            let (ours, theirs) = (ours.trim(), theirs.trim());
            if !PARTS.contains(&ours) {
                return wrong(format!("one of {} before the `=`", PARTS.join(", ")));
            }
            if theirs.is_empty() {
                return wrong("the name of a field after the `=`".into());
            }
            if columns.iter().any(|(part, _)| part == ours) {
                return wrong(format!("one field for `{ours}`"));
            }
            columns.push((ours.to_owned(), theirs.to_owned()));
        }
        Ok(Self(columns))
    }

    /// Refuses a part that `method` does not read, and that no reward is about.
    ///
    /// # Errors
    /// The first one, and the methods that read it.
    pub(crate) fn check_parts(
        &self,
        method: Method,
        is_of_reward: impl Fn(&str) -> bool,
    ) -> Result<(), ConfigError> {
        let is_rewarded = |part: &str| method == Method::Grpo && is_of_reward(part);
        let unread = |(part, _): &(&str, &str)| !is_read(part, method) && !is_rewarded(part);
        let Some((part, field)) = self.iter().find(unread) else {
            return Ok(());
        };
        let all = [
            Method::Sft,
            Method::Dpo,
            Method::Orpo,
            Method::Kto,
            Method::Grpo,
        ];
        let others = all.into_iter().filter(|other| is_read(part, *other));
        let others: Vec<&str> = others.map(Method::name).collect();
        let read = PARTS.into_iter().filter(|part| is_read(part, method));
        let read: Vec<&str> = read.collect();
        let name = method.name();
        Err(ConfigError::Value {
            flag: "columns",
            expected: format!("parts that --method {name} reads ({})", read.join(", ")),
            found: format!(
                "`{part}={field}`, which would have no effect: leave it out, or give a --method that reads it ({})",
                others.join(", ")
            ),
        })
    }

    /// Without the parts that `method` does not read.
    pub(crate) fn read_by(pairs: Vec<String>, method: Method) -> Vec<String> {
        let is_read = |pair: &String| {
            let part = pair.split('=').next().unwrap_or_default();
            is_read(part.trim(), method)
        };
        pairs.into_iter().filter(is_read).collect()
    }

    /// Whether a part is named.
    pub(crate) fn has(&self, part: &str) -> bool {
        self.iter().any(|(ours, _)| ours == part)
    }

    /// Whether a field can play this part.
    pub(crate) fn is_part(name: &str) -> bool {
        PARTS.contains(&name)
    }

    /// As the flag has them.
    pub(crate) fn to_text(&self) -> String {
        let pairs = self.iter().map(|(part, field)| format!("{part}={field}"));
        pairs.collect::<Vec<_>>().join(",")
    }

    /// Whether records keep their own names.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Parts and fields.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(part, field)| (part.as_str(), field.as_str()))
    }

    /// These, with one more part, or another field for it.
    pub(crate) fn with(&self, part: &str, field: &str) -> Self {
        let mut columns = self.clone();
        columns.0.retain(|(ours, _)| ours != part);
        columns.0.push((part.to_owned(), field.to_owned()));
        columns
    }

    /// Which of these fields a record has: a bit for each, in the order of [`iter`](Self::iter).
    pub(crate) fn found_in(&self, record: &Value) -> u32 {
        let fields = self.iter().enumerate();
        let found = fields.filter(|(_, (_, field))| record.get(field).is_some());
        found.fold(0, |all, (index, _)| all | 1 << index)
    }

    /// The first pair whose field none of the records had that gave these bits.
    pub(crate) fn not_in(&self, found: u32) -> Option<(&str, &str)> {
        let mut pairs = self.iter().enumerate();
        pairs.find_map(|(index, pair)| (found & 1 << index == 0).then_some(pair))
    }

    /// The field that plays a part, for messages; the part itself where nothing else is said.
    pub fn field_of<'a>(&'a self, part: &'a str) -> &'a str {
        self.iter()
            .find(|(ours, _)| *ours == part)
            .map_or(part, |(_, field)| field)
    }
}
