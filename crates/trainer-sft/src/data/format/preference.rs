//! Records of preference training, by TRL's names: two answers to a prompt, or one answer with a label.

use serde_json::Value;

use super::super::error::DataError;
use super::super::example::Source;
use super::hints::flag;
use super::question::has_answers;
use super::reader::{Reader, describe, is_filled};
use super::refused::{named, verdict_of};
use super::turns::{is_call, is_of_assistant, plain, start_of_answer, text_of};
use super::whole::{Whole, are_same, is_same};
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
        let is_kto = fields.contains_key("completion") && fields.contains_key("label");
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

    /// `chosen` and `rejected`, with a question or with the same beginning; `own` has the fields by the record's own names.
    fn pair(&self, own: &Reader<'_>) -> Result<Vec<Answer>, DataError> {
        let is_blank = |value: &&Value| value.as_str().is_some_and(|text| text.trim().is_empty());
        let prompt = self.value("prompt").filter(|prompt| !is_blank(prompt));
        let [chosen, rejected] = ["chosen", "rejected"].map(|key| self.side(key));
        let (chosen, rejected) = (chosen?, rejected?);
        let (contents, is_plain) = match (&chosen, &rejected) {
            (Value::Array(one), Value::Array(other)) if begin_alike(one, other, prompt) => {
                let common = common_turns(one, other);
                self.check_shared(own, &one[..common])?;
                let other = [&one[..common], &other[common..]].concat();
                let turns = |key, items: &[Value]| self.turns_after(key, items, common);
                ([turns("chosen", one), turns("rejected", &other)], false)
            }
            (Value::Array(one), Value::Array(other))
                if common_turns(one, other) > 0
                    && !is_of_assistant(&one[0])
                    && is_filled(own.fields.get("history")) =>
            {
                let expected = "none beside answers that are whole conversations";
                return Err(self.error("history", expected, own.value("history")));
            }
            (Value::String(one), Value::String(other)) if prompt.is_none() => {
                own.refuse_beside_texts()?;
                let end = common_text(one, other);
                let texts = |key, text: &str| self.texts(key, text, end);
                ([texts("chosen", one), texts("rejected", other)], true)
            }
            (Value::Array(one), Value::Array(_)) if prompt.is_none() => {
                let expected = "the turn that `rejected` begins with, since there is no `prompt`";
                return Err(self.error("chosen[0]", expected, one.first()));
            }
            _ => match self.whole_sides(own, [&chosen, &rejected])? {
                Some([one, other]) => {
                    let turns = |key, (turns, start): (Vec<Value>, usize)| {
                        self.turns_after(key, &turns, start)
                    };
                    ([turns("chosen", one), turns("rejected", other)], false)
                }
                None => {
                    self.refuse_second(own)?;
                    (
                        ["chosen", "rejected"].map(|key| self.own_prompt(key)),
                        false,
                    )
                }
            },
        };
        let [chosen, rejected] = contents;
        let (chosen, rejected) = (chosen?, rejected?);
        if chosen == rejected {
            let [chosen, rejected] = ["chosen", "rejected"].map(|key| self.own_name(key));
            return Err(self.teaches_nothing(format!("`{chosen}` and `{rejected}` say the same")));
        }
        let answer = |content, is_wanted| Answer {
            record: self.record(content, Format::Preference),
            is_wanted,
            is_plain,
        };
        Ok(vec![answer(chosen, true), answer(rejected, false)])
    }

    /// The turns of both sides, and where their answers begin, if one side at least is a whole conversation with the prompt in it.
    fn whole_sides(
        &self,
        own: &Reader<'_>,
        sides: [&Value; 2],
    ) -> Result<Option<[(Vec<Value>, usize); 2]>, DataError> {
        let Some(prompt) = self.value("prompt") else {
            return Ok(None);
        };
        let found = sides.map(|side| match side {
            Value::Array(turns) => Whole::find(prompt, turns),
            _ => Ok(None),
        });
        let [one, other] = found;
        let (Ok(one), Ok(other)) = (one, other) else {
            return Err(self.error("prompt", OF_BOTH, Some(prompt)));
        };
        let context = match (&one, &other) {
            (Some(one), Some(other)) if !are_same(&one.context, &other.context) => {
                let expected = format!(
                    "the turns that `{}` has before the answer",
                    self.own_name("chosen")
                );
                return Err(self.error("rejected", &expected, self.value("rejected")));
            }
            (Some(whole), _) | (None, Some(whole)) => whole.context.clone(),
            (None, None) => return Ok(None),
        };
        self.check_shared(own, &context)?;
        let after = |side: &Value, whole: Option<Whole>| match side {
            Value::Array(turns) => turns[whole.map_or(0, |whole| whole.start)..].to_vec(),
            text => vec![plain("assistant", text.as_str().unwrap_or_default()).0],
        };
        let joined = |answer: Vec<Value>| ([&context[..], &answer].concat(), context.len());
        Ok(Some([
            joined(after(sides[0], one)),
            joined(after(sides[1], other)),
        ]))
    }

    /// Refuses a text of the question that the turns with which both answers begin do not have.
    fn check_shared(&self, own: &Reader<'_>, shared: &[Value]) -> Result<(), DataError> {
        let messages = shared.iter().enumerate();
        let messages =
            messages.map(|(at, turn)| Ok(self.turn(&format!("chosen[{at}]"), turn)?.message));
        let messages = messages.collect::<Result<Vec<Value>, DataError>>()?;
        let texts = messages
            .iter()
            .filter_map(|message| message.get("content")?.as_str());
        let texts: Vec<&str> = texts.collect();
        let prompt = self.value("prompt").and_then(Value::as_str);
        if let Some(prompt) = prompt.map(str::trim).filter(|prompt| !prompt.is_empty())
            && !texts.iter().any(|text| text.trim() == prompt)
        {
            return Err(self.error("prompt", OF_BOTH, self.value("prompt")));
        }
        own.refuse_second_question(&texts)
    }

    /// Refuses a question beside `prompt`, and a list of turns that has the answer already.
    fn refuse_second(&self, own: &Reader<'_>) -> Result<(), DataError> {
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

    fn record(&self, content: Content, format: Format) -> Record {
        Record {
            source: self.source.clone(),
            format,
            content,
        }
    }

    /// An answer of a pair: a text, or messages.
    fn side(&self, key: &str) -> Result<Value, DataError> {
        match self.fields.get(key) {
            Some(side @ (Value::String(_) | Value::Array(_))) => Ok(side.clone()),
            // LLaMA-Factory's single message.
            Some(message @ Value::Object(_)) => Ok(Value::Array(vec![message.clone()])),
            Some(Value::Null) => Ok(Value::String(String::new())),
            other => Err(self.error(key, "text or messages", other)),
        }
    }

    /// The answer under `key` to `prompt`.
    fn own_prompt(&self, key: &str) -> Result<Content, DataError> {
        let mut fields = self.fields.clone();
        let answer = self.side(key)?;
        fields.retain(|name, _| !ANSWERS.contains(&name.as_str()));
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
    fn turns_after(&self, key: &str, items: &[Value], start: usize) -> Result<Content, DataError> {
        let turns = self.turns(key, items, start)?;
        Ok(Content::Chat(self.chat(key, turns)?))
    }

    /// The text under `key`, which is the answer from byte `start` on.
    fn texts(&self, key: &str, text: &str, start: usize) -> Result<Content, DataError> {
        let (prompt, completion) = text.split_at(start);
        if completion.trim().is_empty() {
            return Err(self.teaches_nothing(format!("`{}` is empty", self.own_name(key))));
        }
        Ok(Content::Completion {
            prompt: prompt.to_owned(),
            completion: completion.to_owned(),
            with: self.extras()?,
        })
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

/// What a prompt beside whole conversations has to be.
const OF_BOTH: &str = "the text of a turn with which both answers begin; to leave it out, give \
                       --columns chosen=chosen,rejected=rejected";

/// The keys of answers.
const ANSWERS: [&str; 4] = ["chosen", "rejected", "completion", "label"];

/// Whether two lists of turns are whole conversations that begin with the same prompt, and do not go on with `prompt`.
fn begin_alike(one: &[Value], other: &[Value], prompt: Option<&Value>) -> bool {
    let begins_with_answer = || one.first().is_some_and(is_of_assistant);
    let common = common_turns(one, other);
    match prompt {
        None => common > 0,
        // A list is the prompt, and TRL puts the answers after it; here it may be their beginning, too.
        Some(Value::Array(turns)) => {
            let is_side = turns == one || turns == other;
            common > 0 && (is_side || starts_with(&one[..common], turns))
        }
        Some(_) => common > 0 && !begins_with_answer(),
    }
}

fn starts_with(all: &[Value], first: &[Value]) -> bool {
    all.len() >= first.len() && are_same(&all[..first.len()], first)
}

/// With how many equal turns two lists begin, so that something is left of each.
fn common_turns(one: &[Value], other: &[Value]) -> usize {
    let most = one.len().min(other.len()).saturating_sub(1);
    let pairs = one.iter().zip(other).take(most);
    let mut common = pairs.take_while(|(one, other)| is_same(one, other)).count();
    // Calls are said in one turn with what the assistant says before them.
    while common > 1
        && (is_call(&one[common]) || is_call(&other[common]))
        && is_of_assistant(&one[common - 1])
    {
        common -= 1;
    }
    common
}

/// With how many equal bytes two texts begin, cut before the last word of these.
fn common_text(one: &str, other: &str) -> usize {
    let pairs = one.char_indices().zip(other.chars());
    let differ = pairs.into_iter().find(|((_, a), b)| a != b);
    let end = differ.map_or(one.len().min(other.len()), |((at, _), _)| at);
    let last_space = one[..end].rfind(char::is_whitespace);
    last_space.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_before_a_word() {
        for (one, other, prompt) in [
            ("The sky is blue.", "The sky is green.", "The sky is"),
            ("The sky is grey.", "The sky is green.", "The sky is"),
            ("The sky", "The sky is", "The"),
            ("A: yes", "B: no", ""),
            ("schön ist es", "schön war es", "schön"),
        ] {
            assert_eq!(&one[..common_text(one, other)], prompt, "{one}");
        }
    }
}
