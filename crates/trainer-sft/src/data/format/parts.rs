//! The content of a message: a text, or a list of parts.

use serde_json::Value;

use super::super::error::DataError;
use super::marks::is_like_mark;
use super::reader::{Reader, describe, is_filled};

/// Types of parts that are read.
const TEXT_KINDS: [&str; 7] = [
    "text",
    "input_text",
    "output_text",
    "refusal",
    "reasoning",
    "thinking",
    "tool_call",
];
/// Pictures and sounds beside the text of a part.
const MEDIA_OF_PARTS: [&str; 9] = [
    "image",
    "images",
    "image_url",
    "video",
    "videos",
    "audio",
    "audios",
    "input_audio",
    "file",
];

/// What a content says.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) text: String,
    /// LLaMA-Factory's parts of reasoning.
    pub(super) reasoning: Option<String>,
    /// LLaMA-Factory's parts that are calls.
    pub(super) calls: Vec<Value>,
}

impl Reader<'_> {
    /// `[{"type": "text", "text": …}, …]`, its texts joined with line breaks as [`model_qwen::ChatTemplate`] does.
    pub(super) fn parts(&self, place: &str, parts: &[Value]) -> Result<Parts, DataError> {
        let mut texts = Vec::new();
        let mut read = Parts::default();
        for (index, part) in parts.iter().enumerate() {
            let place = format!("{place}[{index}]");
            if let Value::String(text) = part {
                texts.push(text.as_str());
                continue;
            }
            if !part.is_object() {
                return Err(self.error(place, "a part of type `text`", Some(part)));
            }
            let kind = match part.get("type") {
                None | Some(Value::Null) => "text",
                Some(Value::String(kind)) => kind.as_str(),
                other => return Err(self.error(format!("{place}.type"), "text", other)),
            };
            if TEXT_KINDS.contains(&kind) {
                self.check_part(&place, part)?;
            }
            match kind {
                "text" | "input_text" | "output_text" => {
                    texts.push(self.part_text(&place, part, &["text", "value"])?);
                }
                "refusal" => texts.push(self.part_text(&place, part, &["refusal", "text"])?),
                "reasoning" | "thinking" => {
                    let text =
                        self.part_text(&place, part, &["value", "thinking", "reasoning", "text"])?;
                    read.reasoning.get_or_insert_default().push_str(text);
                }
                "tool_call" => {
                    let text = self.part_text(&place, part, &["value", "text"])?;
                    read.calls.extend(self.calls_in_text(&place, text)?);
                }
                kind => {
                    let found = format!("a part of type `{kind}`");
                    return Err(self.error_found(place, "a part of type `text`", found));
                }
            }
        }
        read.text = texts.join("\n");
        Ok(read)
    }

    /// Refuses what a part of a turn cannot have.
    fn check_part(&self, place: &str, part: &Value) -> Result<(), DataError> {
        let fields = part.as_object().into_iter().flatten();
        for (key, value) in fields.filter(|(_, value)| is_filled(Some(value))) {
            let expected = if is_like_mark(key) {
                "no mark on a part of a turn: put it on the turn"
            } else if MEDIA_OF_PARTS.contains(&key.as_str()) {
                "no pictures or sounds: these models read text only"
            } else {
                continue;
            };
            return Err(self.error(format!("{place}.{key}"), expected, Some(value)));
        }
        Ok(())
    }

    /// The text of a part, under the first of `keys` that it has.
    fn part_text<'a>(
        &self,
        place: &str,
        part: &'a Value,
        keys: &[&str],
    ) -> Result<&'a str, DataError> {
        let found = keys.iter().find_map(|key| {
            part.get(*key)
                .map(|value| (key, value))
                .filter(|(_, value)| !value.is_null())
        });
        match found {
            Some((_, Value::String(text))) => Ok(text),
            Some((key, other)) => Err(self.error(format!("{place}.{key}"), "text", Some(other))),
            None => {
                let found = describe(None);
                Err(self.error_found(format!("{place}.{}", keys[0]), "text", found))
            }
        }
    }
}
