//! The question of a record whose answers stand under keys of their own.

use serde_json::{Map, Value, json};

use super::super::error::DataError;
use super::columns_flag::flag;
use super::field_names::{JUDGED, LISTS, OPENAI, TEXTS};
use super::reader::{Reader, is_filled};
use super::speaker::Speaker;
use super::turn::plain;
use super::turns::{after_system, is_pair, text_of};
use super::values::{listed, verdict_of};
use crate::config::{Columns, Method};

/// What a text without a chat template has no place for.
const OF_TEMPLATE: [&str; 4] = ["system", "tools", "functions", "chat_template_kwargs"];

/// What a part of a record says, however it is written. A text is a turn of this role.
fn turns(value: &Value, role: &str) -> Vec<Value> {
    let turn = |item: Value| match (Speaker::of(&item), text_of(&item)) {
        (Some(speaker), Some(text))
            if speaker != Speaker::AssistantCall && item.get("tool_calls").is_none() =>
        {
            plain(speaker.role(), text)
        }
        _ => item,
    };
    match (listed(value), value) {
        (Some(items), _) => items.into_iter().map(turn).collect(),
        (None, Value::String(text)) => vec![plain(role, text)],
        (None, value) => vec![turn(value.clone())],
    }
}

/// Whether a record has its answers under the names of TRL.
pub(super) fn has_answers(fields: &Map<String, Value>) -> bool {
    let keys = ["completion", "chosen", "rejected"];
    keys.iter().any(|key| is_filled(fields.get(*key)))
}

impl Reader<'_> {
    /// The fields with the question under `prompt` and the answers under the names of TRL, and the record's own names of them.
    pub(super) fn by_names_of_trl(&self) -> Result<(Map<String, Value>, Columns), DataError> {
        let (mut fields, mut columns) = (self.fields.clone(), self.columns.clone());
        let mut name = |fields: &mut Map<String, Value>, ours: &str, theirs: &str, value: Value| {
            fields.insert(ours.to_owned(), value);
            columns = columns.with(ours, theirs);
        };
        for (ours, theirs) in OPENAI {
            let value = fields.shift_remove(theirs);
            if let Some(value) = value.filter(|value| is_filled(Some(value))) {
                self.refuse_two(ours, theirs, &value)?;
                name(&mut fields, ours, theirs, value);
            }
        }
        let has_both = is_filled(fields.get("chosen")) && is_filled(fields.get("rejected"));
        let tag = fields.shift_remove("kto_tag").filter(|_| !has_both);
        if let Some(value) = tag.filter(|value| is_filled(Some(value))) {
            let label = fields.get("label").filter(|label| is_filled(Some(label)));
            if label.is_some_and(|label| verdict_of(label) != verdict_of(&value)) {
                self.refuse_two("label", "kto_tag", &value)?;
            }
            name(&mut fields, "label", "kto_tag", value);
        }
        if is_filled(fields.get("label")) && !has_answers(&fields) {
            let mut judged = JUDGED
                .iter()
                .filter(|key| is_filled(self.fields.get(**key)));
            if let Some(key) = judged.next() {
                if let Some(other) = judged.next() {
                    self.refuse_two(key, other, &self.fields[*other])?;
                }
                name(
                    &mut fields,
                    "completion",
                    &self.own_name(key),
                    self.fields[*key].clone(),
                );
            }
        }
        if let Some(Value::Object(input)) = self.fields.get("input") {
            fields.shift_remove("input");
            for (key, value) in input.iter().filter(|(_, value)| is_filled(Some(value))) {
                let field = format!("input.{key}");
                let ours = match key.as_str() {
                    "messages" => "prompt",
                    "tools" => "tools",
                    "parallel_tool_calls" => continue,
                    _ => {
                        let expected = "nothing but `messages`, `tools` and `parallel_tool_calls`";
                        return Err(self.error(field, expected, Some(value)));
                    }
                };
                self.refuse_two(ours, &field, value)?;
                name(&mut fields, ours, &field, value.clone());
            }
        }
        if !is_filled(fields.get("prompt")) {
            let list = LISTS
                .into_iter()
                .find(|key| is_filled(self.fields.get(*key)));
            if let Some(key) = list {
                for other in LISTS.into_iter().filter(|other| *other != key) {
                    let value = self.fields.get(other);
                    if let Some(value) = value.filter(|value| listed(value).is_some()) {
                        self.refuse_two(key, other, value)?;
                    }
                }
                let turns = self.list(key, "messages")?;
                let turns = match turns.iter().all(is_pair) {
                    true => {
                        let turns = self.turns_of_pairs(key)?.into_iter();
                        turns.map(|turn| turn.message).collect()
                    }
                    false => turns,
                };
                name(&mut fields, "prompt", &self.own_name(key), turns.into());
            } else if let Some((key, text)) = self.question_in_texts()? {
                name(&mut fields, "prompt", &self.own_name(key), text.into());
            }
        }
        if is_filled(fields.get("history")) {
            let earlier = self.turns_of_history()?;
            let last = match fields.get("prompt") {
                Some(Value::Array(turns)) => turns.clone(),
                Some(Value::String(text)) => vec![json!({"role": "user", "content": text})],
                _ => Vec::new(),
            };
            if !earlier.is_empty() {
                let earlier = earlier.into_iter().map(|turn| turn.message);
                let turns = after_system(last, earlier, |turn| turn);
                fields.insert("prompt".to_owned(), turns.into());
            }
            fields.shift_remove("history");
        }
        Ok((fields, columns))
    }

    /// Refuses what says the same part of a record a second time, and otherwise.
    fn refuse_two(&self, first: &str, second: &str, value: &Value) -> Result<(), DataError> {
        let role = match first {
            "chosen" | "rejected" => "assistant",
            _ => "user",
        };
        match self.fields.get(first) {
            Some(said) if is_filled(Some(said)) && turns(said, role) != turns(value, role) => {
                let expected = format!(
                    "nothing else than `{}` says: leave one of them out, or say with --columns which one counts",
                    self.own_name(first)
                );
                Err(self.error(second, &expected, Some(value)))
            }
            _ => Ok(()),
        }
    }

    /// A question under one of [`TEXTS`], with what `input` adds to it.
    fn question_in_texts(&self) -> Result<Option<(&'static str, String)>, DataError> {
        let keys = TEXTS.into_iter().chain(["input"]);
        let filled = keys.filter(|key| is_filled(self.fields.get(*key)));
        let filled: Vec<&'static str> = filled.collect();
        let Some(first) = filled.first() else {
            return Ok(None);
        };
        let mut texts = vec![self.text(first)?];
        if filled.last() == Some(&"input") && *first != "input" {
            texts.push(self.text("input")?);
        }
        Ok(Some((first, texts.join("\n"))))
    }

    /// Refuses a second question that says something else than `said`, the texts of the one that is read.
    pub(super) fn refuse_second_question(&self, said: &[&str]) -> Result<(), DataError> {
        // The fields that `--columns` names are all that counts, and each of them is read.
        if !self.columns.is_empty() {
            return Ok(());
        }
        for key in TEXTS.into_iter().chain(["input"]) {
            let Some(Value::String(text)) = self.fields.get(key) else {
                continue;
            };
            let other = text.trim();
            let is_said = |said: &&str| {
                let said = said.trim();
                !said.is_empty() && (said.contains(other) || other.contains(said))
            };
            if !other.is_empty() && !said.iter().any(is_said) {
                return Err(self.error(key, &self.one_question(key), self.fields.get(key)));
            }
        }
        Ok(())
    }

    /// What is expected beside a question, where `second` says something else.
    fn one_question(&self, second: &'static str) -> String {
        let keys = LISTS
            .into_iter()
            .chain(["prompt"])
            .chain(TEXTS)
            .chain(["input"]);
        let first = keys
            .filter(|key| *key != second)
            .find(|key| is_filled(self.fields.get(*key)));
        let answers = self.compared().unwrap_or_default();
        let columns = |question: &[(&'static str, &'static str)]| {
            let pairs = question.iter().map(|(part, field)| (*part, *field));
            flag(&pairs.chain(answers.iter().copied()).collect())
        };
        let mut ways = Vec::new();
        if let Some(first) = first {
            ways.extend(columns(&[("prompt", first)]));
            let is_text = self.fields[first].is_string();
            let both = is_text.then(|| columns(&[("instruction", first), ("input", second)]));
            ways.extend(both.flatten());
        }
        let example = match ways.is_empty() {
            true => String::new(),
            false => format!(", for example {}", ways.join(" or ")),
        };
        format!("no second question: leave it out, or say with --columns which one counts{example}")
    }

    /// Refuses what stands beside two texts that begin with their own prompt, and would not be seen.
    pub(super) fn refuse_beside_texts(&self) -> Result<(), DataError> {
        for key in OF_TEMPLATE {
            if is_filled(self.fields.get(key)) {
                let expected = "none beside `chosen` and `rejected` without a `prompt`, which get no chat template";
                return Err(self.error(key, expected, self.fields.get(key)));
            }
        }
        let columns = self
            .columns_to_compare(Method::Dpo)
            .filter(|_| self.columns.is_empty());
        let question = columns
            .as_ref()
            .and_then(|columns| Some(columns.first()?.1))
            .filter(|name| is_filled(self.fields.get(*name)));
        match (question, columns.as_ref().and_then(flag)) {
            (Some(question), Some(flag)) => {
                let expected = format!("a question under `prompt`: give {flag}");
                Err(self.error_found("prompt", &expected, format!("`{question}`")))
            }
            _ => Ok(()),
        }
    }
}
