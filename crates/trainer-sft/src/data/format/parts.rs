//! The content of a message: a text, or a list of parts.

use serde_json::Value;

use super::super::error::DataError;
use super::reader::{Reader, describe};

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

    /// The text of a part, under the first of `keys` that it has.
    fn part_text<'a>(
        &self,
        place: &str,
        part: &'a Value,
        keys: &[&str],
    ) -> Result<&'a str, DataError> {
        let found = keys
            .iter()
            .find_map(|key| part.get(*key).map(|value| (key, value)));
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
