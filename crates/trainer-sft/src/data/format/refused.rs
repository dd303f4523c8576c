//! Data that this program does not learn from, by name; and keys that it has no use for.

use serde_json::{Map, Value};

use super::super::error::DataError;
use super::Format;
use super::columns_flag::flag;
use super::field_names::{
    ANSWERS, REASONING, REJECTED, WANTED, is_answer, is_openai_answer, is_question,
};
use super::marks::is_mark_of_record;
use super::reader::{Reader, is_filled, named};
use super::speaker::speaker_name;
use super::turns::is_pair;
use super::values::{is_reasoning, verdict_of};
use crate::commands::quoted;

/// The accepted keys.
const KEYS: [&str; 21] = [
    "messages",
    "conversations",
    "conversation",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "query",
    "response",
    "history",
    "segments",
    "text",
    "system",
    "tools",
    "functions",
    "chat_template_kwargs",
    "weight",
    "reasoning_content",
    "reasoning",
    "thinking",
];
/// Keys that only data of preference training has.
const PREFERENCE: [&str; 8] = [
    "rejected",
    "rejected_response",
    "rejected_messages",
    "non_preferred_output",
    "preferred_output",
    "chosen",
    "chosen_response",
    "chosen_messages",
];
/// Keys under which a file has all of its records, where it is one object.
const INSIDE: [&str; 10] = [
    "data",
    "rows",
    "records",
    "train",
    "validation",
    "test",
    "examples",
    "instances",
    "samples",
    "items",
];
/// Keys of pictures and sounds.
const MEDIA: [&str; 23] = [
    "images",
    "image",
    "videos",
    "video",
    "audios",
    "audio",
    "objects",
    "rejected_images",
    "image_url",
    "image_urls",
    "image_path",
    "image_paths",
    "image_file",
    "img",
    "img_path",
    "pixel_values",
    "video_url",
    "video_path",
    "audio_url",
    "audio_path",
    "input_audio",
    "input_features",
    FILE,
];
/// A picture or a sound by its ending, and else where a text is from.
const FILE: &str = "file";
/// The ending of such a file.
const MEDIA_ENDINGS: [&str; 14] = [
    ".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".wav", ".mp3", ".flac",
    ".ogg", ".mp4", ".webm",
];

/// Whether the value of a key of [`MEDIA`] is a picture or a sound.
fn is_medium(key: &str, value: &Value) -> bool {
    let is_named = |name: &str| {
        let name = name.to_lowercase();
        MEDIA_ENDINGS.iter().any(|ending| name.ends_with(ending))
    };
    match value {
        Value::String(name) if key == FILE => is_named(name),
        Value::Number(_) | Value::Bool(_) if key == FILE => false,
        value => is_filled(Some(value)),
    }
}

impl Reader<'_> {
    /// Refuses data of other training methods and of models that do more than text.
    pub(super) fn refuse_other_methods(&self) -> Result<(), DataError> {
        // The fields that `--columns` names are all that counts.
        if !self.columns.is_empty() {
            return Ok(());
        }
        let filled = |key: &str| is_filled(self.fields.get(key));
        if let Some(key) = PREFERENCE.iter().find(|key| filled(key)) {
            let alone = self.to_learn_alone("the wanted answers alone", &WANTED);
            return Err(self.method(
                format!("preference data (DPO, ORPO), recognised by `{key}`"),
                &format!("--method dpo or orpo learns from pairs; {alone}"),
            ));
        }
        // Numbers and texts beside `text` are classes, and true and false are not.
        let is_tagged = filled("kto_tag")
            || self.value("label").is_some_and(|label| {
                verdict_of(label).is_some() && (label.is_boolean() || !filled("text"))
            });
        if is_tagged {
            let key = if filled("kto_tag") {
                "kto_tag"
            } else {
                "label"
            };
            let every = self.to_learn_alone("every answer", &ANSWERS);
            return Err(self.method(
                format!("data with a verdict on each answer (KTO), recognised by `{key}`"),
                &format!("--method kto learns from `prompt`, `completion` and `label`; {every}"),
            ));
        }
        if filled("completions") && filled("labels") {
            return Err(self.method(
                "stepwise data of a reward model, recognised by `completions` and `labels`".into(),
                "this program learns from `prompt` and `completion`",
            ));
        }
        if filled("input_ids") {
            return Err(self.method(
                "tokenized data, recognised by `input_ids`".into(),
                "this program makes the tokens itself, with the model's tokenizer: give the text",
            ));
        }
        self.refuse_media()
    }

    /// What to do with one of `answers` alone, where another method learns from several or from verdicts.
    fn to_learn_alone(&self, whose: &str, answers: &[&str]) -> String {
        let texts = || {
            let (field, _) = self.filled_text("chosen")?;
            let is_alone = !REJECTED.iter().any(|key| is_filled(self.fields.get(*key)));
            is_alone.then(|| vec![("text", field)])
        };
        let columns = self.columns_to_learn(answers).or_else(texts);
        match columns.and_then(|columns| flag(&columns)) {
            Some(columns) => format!("to learn {whose}, give {columns}"),
            None => format!(
                "to learn {whose}, write each as the last turn of `messages`, or as the `completion` of a `prompt`"
            ),
        }
    }

    fn filled_text(&self, key: &str) -> Option<(&str, &Value)> {
        let (key, value) = self.fields.get_key_value(key)?;
        (value.is_string() && is_filled(Some(value))).then_some((key.as_str(), value))
    }

    /// Refuses a part of `--columns` that has a value and no use in a record of this format.
    pub(super) fn refuse_unread(&self, format: Format) -> Result<(), DataError> {
        if self.columns.is_empty() {
            return Ok(());
        }
        match unused_keys(self.fields, format).first() {
            None => Ok(()),
            Some(part) => Err(DataError::Render {
                source_place: self.source.clone(),
                reason: format!(
                    "--columns {part}={} would have no effect: the record is read as {format}; leave it out of --columns",
                    self.own_name(part)
                ),
            }),
        }
    }

    /// Refuses what is no text.
    pub(super) fn refuse_media(&self) -> Result<(), DataError> {
        let is_there = |key: &str| {
            let value = self.fields.get(key).filter(|_| self.columns.is_empty());
            value.is_some_and(|value| is_medium(key, value))
        };
        match MEDIA.iter().find(|key| is_there(key)) {
            Some(key) => Err(self.method(
                format!("pictures or sounds in `{key}`"),
                "these models read text only: leave the record or the key out",
            )),
            None => Ok(()),
        }
    }

    fn method(&self, kind: String, instead: &str) -> DataError {
        DataError::Method {
            source_place: self.source.clone(),
            kind,
            instead: instead.to_owned(),
        }
    }

    /// No format has these keys: what they are, and the flag that would read them.
    pub(super) fn unknown_format(&self) -> DataError {
        DataError::Format {
            source_place: self.source.clone(),
            found: self.found_keys(),
        }
    }

    /// Whether the fields are columns of a table, as pandas writes one: texts by their rows, in a list or an object.
    pub(super) fn is_table(&self) -> bool {
        let by_row = |value: &Value| value.get("0").is_some();
        let texts = |value: &Value| {
            let items = value.as_array();
            items.is_some_and(|items| !items.is_empty() && items.iter().all(Value::is_string))
        };
        let mut values = self.fields.values();
        !self.fields.is_empty() && values.clone().all(by_row)
            || self.fields.len() > 1 && values.all(texts)
    }

    /// What to do about a whole data set that is written as one record.
    pub(super) fn found_inside(&self) -> Option<String> {
        if self.is_table() {
            return Some("a table by its columns: write one record per line, with pandas by `to_json(path, orient=\"records\", lines=True)`".into());
        }
        let is_record = |item: &Value| {
            let fields = item.as_object();
            fields.is_some_and(|_| speaker_name(item).is_none() && !is_pair(item))
        };
        let inside = self.fields.iter().find(|(key, value)| {
            let items = value.as_array().filter(|_| INSIDE.contains(&key.as_str()));
            items.is_some_and(|items| !items.is_empty() && items.iter().all(is_record))
        });
        let (key, items) = inside?;
        // As the Hub's viewer gives them.
        let row = match items[0].get("row").is_some_and(Value::is_object) {
            true => ".row",
            false => "",
        };
        Some(format!(
            "the records are inside `{key}`: write each on a line of its own, for example with `jq -c {}`",
            quoted(&format!(".{key}[]{row}"))
        ))
    }

    /// What to do about two answers that are told apart by a number, and a field that says which one is better.
    pub(super) fn found_two_answers(&self) -> Option<String> {
        const PAIRS: [[&str; 2]; 6] = [
            ["response1", "response2"],
            ["response_1", "response_2"],
            ["response_0", "response_1"],
            ["response_a", "response_b"],
            ["answer_1", "answer_2"],
            ["answer_a", "answer_b"],
        ];
        let has = |key: &&str| is_filled(self.fields.get(*key));
        let pair = PAIRS.iter().find(|pair| pair.iter().all(has))?;
        Some(format!(
            "two answers, `{}` and `{}`: write the better one as `chosen` and the other one as `rejected`, for --method dpo",
            pair[0], pair[1]
        ))
    }

    pub(super) fn found_keys(&self) -> String {
        let fields = self.fields;
        if !self.columns.is_empty() {
            return format!("none with --columns {}", self.columns.to_text());
        }
        if fields.is_empty() {
            return "no keys at all".into();
        }
        if let (Some(only), 1) = (fields.keys().next(), fields.len())
            && only.contains('\t')
        {
            return "a table with tabs: name its file .tsv".into();
        }
        if let (Some(only), 1) = (fields.keys().next(), fields.len())
            && only.contains(';')
        {
            return format!(
                "`{only}`: a table with semicolons: separate its columns by commas, or by tabs in a .tsv file"
            );
        }
        let mut found = named(fields);
        if let Some(columns) = self.columns_flag().filter(|_| !self.is_table()) {
            found.push_str(&format!(" (read it with {columns})"));
            return found;
        }
        if let Some(told) = self.found_inside().or_else(|| self.found_two_answers()) {
            found.push_str(&format!(" ({told})"));
            return found;
        }
        let unknown = fields.keys().filter(|key| !KEYS.contains(&key.as_str()));
        let near = unknown.into_iter().find_map(|key| {
            let key = key.to_lowercase();
            let close = |known: &&&str| strsim::damerau_levenshtein(known, &key) <= 2;
            KEYS.iter().find(close)
        });
        if let Some(near) = near {
            found.push_str(&format!(" (did you mean `{near}`?)"));
        }
        found
    }
}

/// The keys of a record that have a value and no use.
pub(crate) fn unused_keys(fields: &Map<String, Value>, format: Format) -> Vec<String> {
    let of_format: &[&str] = match format {
        Format::Messages => &["messages"],
        Format::ShareGpt => &["conversations", "conversation"],
        Format::Alpaca => &["instruction", "input", "output", "history"],
        Format::PromptCompletion => &["prompt", "completion", "history"],
        Format::QueryResponse => &["query", "response", "history"],
        Format::Segments => &["segments"],
        Format::Text => &["text"],
        Format::Preference => &["prompt", "chosen", "rejected"],
        Format::Verdict => &["prompt", "completion", "label", "kto_tag"],
    };
    let with_chat = ["system", "tools", "functions", "chat_template_kwargs"];
    let is_plain = matches!(format, Format::Text | Format::Segments);
    let is_compared = matches!(format, Format::Preference | Format::Verdict);
    let is_verdict = format == Format::Verdict;
    let has_prompt = is_filled(fields.get("prompt"));
    let has_completion = is_filled(fields.get("completion"));
    let has_judged = has_completion
        || fields
            .iter()
            .any(|(key, value)| is_answer(key) && is_filled(Some(value)));
    let is_answered = match format {
        Format::Alpaca | Format::PromptCompletion | Format::QueryResponse => true,
        _ => is_verdict && has_judged,
    };
    let is_used = |key: &str| {
        of_format.contains(&key)
            || (is_compared && (key == "history" || is_openai_answer(key)))
            || (is_compared && !has_prompt && is_question(key))
            || (is_verdict && !has_completion && is_answer(key))
            || is_mark_of_record(key)
            || (is_answered && is_reasoning_or_blank(fields, key))
            || (!is_plain && with_chat.contains(&key))
    };
    let unused = fields
        .iter()
        .filter(|(key, value)| is_filled(Some(value)) && !is_used(key));
    unused.map(|(key, _)| key.clone()).collect()
}

/// Whether a field is reasoning, or would be if its text were not blank.
fn is_reasoning_or_blank(fields: &Map<String, Value>, key: &str) -> bool {
    let is_blank = |value: &Value| value.as_str().is_some_and(|text| text.trim().is_empty());
    let value = fields.get(key).filter(|_| REASONING.contains(&key));
    value.is_some_and(|value| is_blank(value) || is_reasoning(key, value))
}
