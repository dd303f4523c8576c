//! Records of preference training, by TRL's names: two answers to a prompt, or one answer with a label.

use serde_json::Value;

use super::super::error::DataError;
use super::super::example::Source;
use super::columns_flag::flag;
use super::field_names::REASONING;
use super::question::has_answers;
use super::reader::{Reader, describe, is_filled, named};
use super::turns::{is_of_assistant, start_of_answer, text_of};
use super::values::verdict_of;
use super::{Content, Format, Record, fields_of, keys_of};
use crate::config::{Columns, Method};

/// One answer, and whether it is wanted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// The prompt, and the answer as what is learnt.
    pub(crate) record: Record,
    /// Chosen, or labelled true.
    pub(crate) is_wanted: bool,
    /// The answer goes on with the text of the prompt, without a template.
    pub(crate) is_plain: bool,
}

/// The answers of one record: two of a pair, the chosen one first, or one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answers {
    pub(crate) source: Source,
    pub(crate) format: Format,
    pub(crate) answers: Vec<Answer>,
}

impl Answers {
    /// Recognises and checks one record for `method`, as [`Record::parse`] does for supervised learning.
    ///
    /// # Errors
    /// Records of another method; fields that are missing or have the wrong content; records that teach nothing.
    pub(crate) fn parse(
        source: Source,
        value: Value,
        columns: &Columns,
        method: Method,
    ) -> Result<Self, DataError> {
        if !value.is_object() {
            return Err(DataError::Preference {
                found: describe(Some(&value)),
                expected: expected_of(method),
                method: method.name(),
                source_place: source,
            });
        }
        let keys = keys_of(&value, columns);
        Self::read(source, value, columns, method)
            .map_err(|error| error.with_missing_part(columns, &keys))
    }

    fn read(
        source: Source,
        value: Value,
        columns: &Columns,
        method: Method,
    ) -> Result<Self, DataError> {
        let fields = fields_of(&source, value, columns)?;
        let reader = Reader {
            source: &source,
            fields: &fields,
            columns,
        };
        reader.refuse_media()?;
        reader.check_marks()?;
        if columns.is_empty() && reader.is_table() {
            return Err(DataError::Preference {
                found: reader.found_preference(method),
                expected: expected_of(method),
                method: method.name(),
                source_place: source,
            });
        }
        let (named, names) = reader.by_names_of_trl()?;
        let own = reader;
        let reader = Reader {
            source: &source,
            fields: &named,
            columns: &names,
        };
        let is_kto = method == Method::Kto;
        // What has no value counts where nothing else says what the record is.
        let kind = |has: &dyn Fn(&str) -> bool| {
            let is_answered = || has("completion") || reader.start_of_judged().is_some();
            if is_kto && has("label") && is_answered() {
                Some(Format::Verdict)
            } else {
                (has("chosen") && has("rejected")).then_some(Format::Preference)
            }
        };
        let filled = |key: &str| is_filled(named.get(key));
        let known = |key: &str| named.contains_key(key);
        let Some(format) = kind(&filled).or_else(|| kind(&known)) else {
            return Err(reader.other_method(method, &own));
        };
        own.refuse_unread(format)?;
        let answers = match format {
            Format::Verdict => vec![reader.verdict(&own)?],
            _ => reader.pair(&own)?,
        };
        Ok(Self {
            format,
            answers,
            source,
        })
    }
}

impl Reader<'_> {
    /// A record of another method, or one that lacks a field.
    fn other_method(&self, method: Method, own: &Reader<'_>) -> DataError {
        let is_kto = method == Method::Kto;
        let keys: &[&str] = match is_kto {
            true => &["completion", "label", "chosen", "rejected"],
            false => &["chosen", "rejected"],
        };
        // Where one of the fields is there, the other one is what is wrong.
        let partner = |key: &str| match key {
            "chosen" => "rejected",
            "rejected" => "chosen",
            "completion" => "label",
            _ => "completion",
        };
        let filled = |key: &&&str| self.fields.contains_key(**key);
        let other = self.fields.contains_key("label") && !is_kto;
        let has_hint = own.columns.is_empty() && own.columns_to_compare(method).is_some();
        match keys.iter().find(filled) {
            Some(key) if !other && !has_hint => {
                let missing = partner(key);
                let expected = match missing {
                    "label" => "true or false",
                    _ => "text or messages",
                };
                match own.columns.is_empty() {
                    true => self.error_found(missing, expected, own.found_no(missing, method)),
                    // What `--columns` lacks is added to the message.
                    false => self.error(missing, expected, None),
                }
            }
            _ => DataError::Preference {
                source_place: self.source.clone(),
                method: method.name(),
                expected: expected_of(method),
                found: own.found_preference(method),
            },
        }
    }

    /// What is there in the place of a part that no field has by its own name.
    fn found_no(&self, missing: &str, method: Method) -> String {
        let parts: &[&str] = match (missing, method) {
            ("completion" | "label", Method::Kto) => &["prompt", "completion", "label"],
            _ => &["prompt", "chosen", "rejected"],
        };
        let pairs = parts.iter().map(|part| match self.fields.get(*part) {
            Some(_) => format!("{part}={part}"),
            None => format!("{part}=FIELD"),
        });
        let pairs: Vec<String> = pairs.collect();
        format!(
            "nothing among {}; if the fields have other names, give --columns {}",
            named(self.fields),
            pairs.join(",")
        )
    }

    /// The keys of a record of another method, and what reads them.
    fn found_preference(&self, method: Method) -> String {
        let fields = self.fields;
        let found = match fields.is_empty() {
            true => "no keys at all".to_owned(),
            false => named(fields),
        };
        let filled = |keys: &[&str]| keys.iter().any(|key| is_filled(fields.get(*key)));
        let is_kto = method != Method::Kto
            && filled(&["label", "kto_tag"])
            && filled(&[
                "completion",
                "output",
                "response",
                "messages",
                "conversations",
            ]);
        let is_swift = filled(&["rejected_response", "rejected_messages"])
            && filled(&["messages", "conversations"]);
        let columns = self
            .columns_to_compare(method)
            .and_then(|columns| flag(&columns));
        let parts = match method {
            Method::Kto => {
                "`prompt`, `completion` and `label`, or `prompt`, `chosen` and `rejected`"
            }
            _ => "`prompt`, `chosen` and `rejected`",
        };
        if let Some(inside) = self.found_inside() {
            return format!("{found} ({inside})");
        }
        let read = match (is_kto, columns) {
            _ if is_swift => {
                "ms-swift's form: write the turns before the answer as `prompt`, the last turn of `messages` as `chosen`, and the other \
                 answer as `rejected`"
                    .to_owned()
            }
            (true, _) => "these are judged answers, which --method kto learns from".to_owned(),
            (false, Some(flag)) => format!("read it with {flag}"),
            (false, None) => {
                let two = self
                    .found_two_answers()
                    .map_or_else(String::new, |two| format!("{two}; "));
                format!(
                    "{two}--columns says which field is {parts}; --method sft learns from single answers"
                )
            }
        };
        format!("{found} ({read})")
    }

    /// Where the answer begins that a label is about, in turns that end with it.
    fn start_of_judged(&self) -> Option<usize> {
        match self.value("prompt") {
            Some(Value::Array(turns)) if !has_answers(self.fields) => start_of_answer(turns),
            _ => None,
        }
    }

    /// `prompt`, `completion` and `label`; `own` has the fields by the record's own names.
    fn verdict(&self, own: &Reader<'_>) -> Result<Answer, DataError> {
        let label = self.fields.get("label");
        if label.is_some_and(Value::is_null) {
            return Err(self.teaches_nothing(format!("`{}` is empty", self.own_name("label"))));
        }
        let Some(is_wanted) = label.and_then(verdict_of) else {
            return Err(self.error("label", "true or false", label));
        };
        let content = match (self.value("prompt"), self.start_of_judged()) {
            (Some(Value::Array(turns)), Some(start)) => {
                let texts: Vec<&str> = turns.iter().filter_map(text_of).collect();
                own.refuse_second_question(&texts)?;
                self.turns_after("prompt", turns, start)?
            }
            _ => {
                self.refuse_second(own)?;
                self.own_prompt("completion")?
            }
        };
        Ok(Answer {
            record: self.record(content, Format::Verdict),
            is_wanted,
            is_plain: false,
        })
    }

    /// Refuses a question beside `prompt`, and a list of turns that has the answer already.
    pub(super) fn refuse_second(&self, own: &Reader<'_>) -> Result<(), DataError> {
        let prompt = self.value("prompt");
        let texts: Vec<&str> = match prompt {
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(turns)) => turns.iter().filter_map(text_of).collect(),
            _ => return Ok(()),
        };
        if !is_filled(own.fields.get("prompt"))
            && let Some(Value::Array(turns)) = prompt
            && turns.last().is_some_and(is_of_assistant)
        {
            let found = "an answer of the assistant at its end".to_owned();
            return Err(self.error_found("prompt", "turns that end before the answers", found));
        }
        own.refuse_second_question(&texts)
    }

    pub(super) fn record(&self, content: Content, format: Format) -> Record {
        Record {
            source: self.source.clone(),
            format,
            content,
        }
    }

    /// An answer of a pair: a text, or messages.
    pub(super) fn side(&self, key: &str) -> Result<Value, DataError> {
        match self.fields.get(key) {
            Some(side @ (Value::String(_) | Value::Array(_))) => Ok(side.clone()),
            // LLaMA-Factory's single message.
            Some(message @ Value::Object(_)) => Ok(Value::Array(vec![message.clone()])),
            Some(Value::Null) => Ok(Value::String(String::new())),
            other => Err(self.error(key, "text or messages", other)),
        }
    }

    /// The answer under `key` to `prompt`.
    pub(super) fn own_prompt(&self, key: &str) -> Result<Content, DataError> {
        let mut fields = self.fields.clone();
        let answer = self.side(key)?;
        // Whose reasoning it would be is not known of two answers.
        let is_shared = |name: &str| key != "completion" && REASONING.contains(&name);
        fields.retain(|name, _| !ANSWERS.contains(&name.as_str()) && !is_shared(name));
        fields.insert("completion".to_owned(), answer);
        let columns = self.columns.with("completion", &self.own_name(key));
        let reader = Reader {
            source: self.source,
            fields: &fields,
            columns: &columns,
        };
        reader.prompt_completion()
    }

    /// All turns under `key`, of which those from `start` on are the answer.
    pub(super) fn turns_after(
        &self,
        key: &str,
        items: &[Value],
        start: usize,
    ) -> Result<Content, DataError> {
        let turns = self.turns(key, items, start)?;
        Ok(Content::Chat(self.chat(key, turns)?))
    }
}

/// The keys that `method` takes.
fn expected_of(method: Method) -> &'static str {
    match method {
        Method::Kto => {
            "`prompt`, `completion` and `label`, `messages` and `label`, or `prompt`, `chosen` and `rejected`"
        }
        _ => "`prompt`, `chosen` and `rejected`",
    }
}

/// The keys of answers.
const ANSWERS: [&str; 4] = ["chosen", "rejected", "completion", "label"];
