//! `--columns` for a record whose fields have other names, of the fields that it has.

use serde_json::{Map, Value};

use super::super::error::DataError;
use super::super::example::{Place, Source};
use super::Record;
use super::columns_flag::{Pairs, flag, texts};
use super::field_names::{
    ANSWERS, LISTS, OTHER_REASONING, PROMPTS, REASONING, REASONING_PART, REJECTED, TARGET, WANTED,
};
use super::preference::Answers;
use super::reader::{Reader, is_filled};
use super::turns::{is_of_assistant, is_pair};
use super::values::{is_reasoning, listed};
use crate::commands::quoted;
use crate::config::{Columns, Method};

/// Names of questions in data sets of the Hub, in the order in which they are looked for.
const QUESTIONS: [&str; 13] = [
    "prompt",
    "question",
    "query",
    "instruction",
    "problem",
    "human",
    "user",
    "message_1",
    "article",
    "document",
    "input",
    "inputs",
    SOURCE,
];
/// A question beside a translation of it, and else where a record is from.
const SOURCE: &str = "source";
/// What may stand beside a question, under any of the names.
const BESIDE: [(&str, &[&str]); 3] = [
    ("system", &["system", "system_prompt"]),
    ("history", &["history"]),
    ("tools", &["tools", "functions"]),
];

/// The `--columns` that read a record for `method`, which is not read without.
pub(crate) fn columns_for(fields: &Map<String, Value>, method: Method) -> Option<Vec<String>> {
    let (columns, source) = (
        Columns::default(),
        Source {
            file: std::path::Path::new("data").into(),
            place: Place::Line(1),
        },
    );
    let reader = Reader {
        source: &source,
        fields,
        columns: &columns,
    };
    let value = Value::Object(fields.clone());
    let pairs = match method {
        Method::Grpo => reader.columns_to_ask(),
        Method::Sft => match Record::parse(source.clone(), value, &columns) {
            Err(DataError::Format { .. }) => reader.columns_to_learn(&ANSWERS),
            _ => None,
        },
        _ => match Answers::parse(source.clone(), value, &columns, method) {
            Err(DataError::Field { field, .. }) if field == "prompt" => {
                reader.columns_to_compare(method)
            }
            Err(DataError::Preference { .. }) => reader.columns_to_compare(method),
            _ => None,
        },
    };
    pairs
        .filter(|pairs| flag(pairs).is_some())
        .map(|pairs| texts(&pairs))
}

/// What reads the prompt of a record that has one under another name, to be put after what is wrong with the record.
pub(crate) fn hint_to_ask(fields: &Map<String, Value>) -> String {
    let columns = columns_for(fields, Method::Grpo).unwrap_or_default();
    match columns.is_empty() {
        true => String::new(),
        false => format!(" (read it with --columns {})", quoted(&columns.join(","))),
    }
}

impl<'a> Reader<'a> {
    /// The record's own name of the first of `names` that it has, in capitals, too; one with a value where there is one.
    fn field(&self, names: &[&str]) -> Option<(&'a str, &'a Value)> {
        let fields = self.fields;
        let find = |is_it: &dyn Fn(&Value) -> bool| {
            names.iter().find_map(|name| {
                let exact = fields.get_key_value(*name).into_iter();
                let others = fields
                    .iter()
                    .filter(|(key, _)| key.eq_ignore_ascii_case(name));
                exact.chain(others).find(|(_, value)| is_it(value))
            })
        };
        let found = find(&|value| is_filled(Some(value))).or_else(|| find(&|_| true));
        found.map(|(key, value)| (key.as_str(), value))
    }

    /// A field with the question as a text or messages, which is no answer.
    fn question(&self, answers: &[&str]) -> Option<(&'a str, &'a Value)> {
        let has_target = answers.contains(&TARGET) && self.field(&[TARGET]).is_some();
        let names = QUESTIONS
            .iter()
            .filter(|name| has_target || **name != SOURCE);
        let names: Vec<&str> = names.copied().collect();
        let found = self.field(&names);
        found.filter(|(_, value)| matches!(value, Value::String(_) | Value::Array(_) | Value::Null))
    }

    /// What the question is about, in a field of its own.
    fn context(&self, question: &str) -> Option<(&'a str, &'a Value)> {
        let found = self.field(&["input", "context"]);
        found.filter(|(key, value)| {
            *key != question && matches!(value, Value::String(_) | Value::Null)
        })
    }

    /// System text, earlier turns and functions, where there are fields for them.
    fn beside(&self, parts: &[&str]) -> Pairs<'a> {
        let known = BESIDE.iter().filter(|(part, _)| parts.contains(part));
        let found = known.filter_map(|(part, names)| {
            let (field, value) = self.field(names)?;
            let is_it = match (*part, value) {
                (_, Value::Null) => true,
                ("system", value) => value.is_string(),
                (_, Value::String(text)) => {
                    text.trim().is_empty() || text.trim_start().starts_with('[')
                }
                (_, value) => value.is_array(),
            };
            is_it.then_some((*part, field))
        });
        found.collect()
    }

    /// The fields of a question and of one of `answers`.
    pub(super) fn columns_to_learn(&self, answers: &[&str]) -> Option<Pairs<'a>> {
        let answer = self.field(answers);
        let has_whole_answer = answer.is_some_and(|(_, value)| is_whole(value));
        let turns = LISTS.iter().find_map(|name| {
            let (field, value) = self.field(&[name])?;
            Some((*name, field, listed(value)?))
        });
        let (mut pairs, parts) = match (turns, answer) {
            (Some((name, field, turns)), _)
                if turns.last().is_some_and(|last| {
                    is_of_assistant(last) || (is_pair(last) && !has_whole_answer)
                }) =>
            {
                let part = if name == "messages" {
                    name
                } else {
                    "conversations"
                };
                (vec![(part, field)], &["system", "tools"][..])
            }
            (_, Some((answer, value))) if is_whole(value) && !self.has_prompt_in_messages() => {
                (vec![("messages", answer)], &["system", "tools"][..])
            }
            (Some((_, field, _)), Some((answer, _))) => (
                vec![("prompt", field), ("completion", answer)],
                &["system", "history", "tools"][..],
            ),
            (None, Some((answer, value))) => (
                self.asked_and_answered(answers, answer, value)?,
                &["system", "history", "tools"][..],
            ),
            (_, None) => return None,
        };
        pairs.extend(self.beside(parts));
        // Whose reasoning it would be is not known of two answers.
        if let Some((reasoning, _)) = self.beside_answer()
            && answers.contains(&ANSWERS[0])
            && answer.is_some_and(|(field, value)| {
                value.is_string() && pairs.iter().any(|(_, used)| *used == field)
            })
            && pairs.iter().all(|(_, used)| *used != reasoning)
        {
            pairs.push(("reasoning", reasoning));
        }
        Some(pairs)
    }

    /// The field of the reasoning before an answer.
    fn beside_answer(&self) -> Option<(&'a str, &'a Value)> {
        let names = || REASONING.into_iter().chain(OTHER_REASONING);
        let mut filled = names().filter_map(|name| self.field(&[name]));
        // Whatever the name, its value is looked at as that of a field of ours.
        filled.find(|(_, value)| is_reasoning(REASONING_PART, value))
    }

    fn has_prompt_in_messages(&self) -> bool {
        let prompt = self.field(&["prompt"]);
        prompt.is_some_and(|(_, value)| listed(value).is_some())
    }

    fn asked_and_answered(
        &self,
        answers: &[&str],
        answer: &'a str,
        value: &Value,
    ) -> Option<Pairs<'a>> {
        let (question, asked) = self.question(answers)?;
        match self.context(question) {
            Some((context, _)) if asked.is_string() && !value.is_array() => Some(vec![
                ("instruction", question),
                ("input", context),
                ("output", answer),
            ]),
            // No flag reads both of them.
            Some((_, context)) if is_filled(Some(context)) => None,
            _ => Some(vec![("prompt", question), ("completion", answer)]),
        }
    }

    /// The fields of a question and of the two answers to it, or of one with its label.
    pub(super) fn columns_to_compare(&self, method: Method) -> Option<Pairs<'a>> {
        let (question, asked) = self.question(&[])?;
        let answers = self.compared();
        // A verdict is for one method alone.
        let answers = answers.filter(|pairs| method == Method::Kto || pairs[0].0 == "chosen")?;
        let mut pairs = match self.context(question) {
            Some((context, value)) if asked.is_string() && is_filled(Some(value)) => {
                vec![("instruction", question), ("input", context)]
            }
            _ => vec![("prompt", question)],
        };
        pairs.extend(answers);
        pairs.extend(self.beside(&["system", "history", "tools"]));
        Some(pairs)
    }

    /// The fields of the answers that are compared.
    pub(super) fn compared(&self) -> Option<Pairs<'a>> {
        let filled = |names: &[&str]| {
            self.field(names)
                .filter(|(_, value)| is_filled(Some(value)))
        };
        let pairs = WANTED.iter().zip(REJECTED).find_map(|(wanted, rejected)| {
            let (wanted, _) = filled(&[wanted])?;
            let (rejected, _) = filled(&[rejected])?;
            Some(vec![("chosen", wanted), ("rejected", rejected)])
        });
        pairs.or_else(|| {
            let (answer, _) = filled(&ANSWERS)?;
            let (label, _) = filled(&["label", "kto_tag"])?;
            Some(vec![("completion", answer), ("label", label)])
        })
    }

    /// The field of a question that is asked without an answer; the other fields stay what they are.
    pub(super) fn columns_to_ask(&self) -> Option<Pairs<'a>> {
        if PROMPTS.iter().any(|key| is_filled(self.fields.get(*key))) {
            return None;
        }
        let (question, value) = self
            .question(&[])
            .filter(|(_, value)| is_filled(Some(value)))?;
        let context = self.context(question);
        let is_whole = context.is_none_or(|(_, value)| !is_filled(Some(value)));
        (is_whole && !value.is_null()).then(|| vec![("prompt", question)])
    }

    /// A list of turns, or a text, whose name is written otherwise.
    fn columns_of_one(&self) -> Option<Pairs<'a>> {
        let parts = ["messages", "conversations", "text"];
        parts.into_iter().find_map(|part| {
            let (field, _) = self.field(&[part])?;
            Some(vec![(part, field)])
        })
    }

    /// `--columns` for a record of no known format.
    pub(super) fn columns_flag(&self) -> Option<String> {
        let pairs = self
            .columns_to_learn(&ANSWERS)
            .or_else(|| self.columns_of_one())?;
        flag(&pairs)
    }
}

/// Whether an answer is a whole conversation.
fn is_whole(value: &Value) -> bool {
    let turns = listed(value);
    turns.is_some_and(|turns| {
        turns
            .first()
            .is_some_and(|turn| turn.is_object() && !is_of_assistant(turn))
    })
}
