//! Prompts that a model answers while it trains: texts and chats as tokens, rendered as the server renders them.

use std::path::Path;

use model_qwen::RenderOptions;
use serde_json::{Map, Value, json};

use crate::chat_format::ChatFormat;
use crate::data::format::Asked;
use crate::data::render::{AddedTokens, Bare, check_no_template, check_written};
use crate::data::{DataError, Extras, Place, Source};

/// The prompt of a record, as its data has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// A text, or a list of messages as chat templates expect them.
    pub content: Value,
    /// Token ids.
    pub tokens: Vec<u32>,
}

impl Prompt {
    /// A prompt of `content`: a text, which is what a user says where the model has a chat template, or messages. `tools` are
    /// function schemas for the template.
    ///
    /// # Errors
    /// What is wrong with it, to be put after its place: no prompt at all, a list of messages for a model without a chat
    /// template, and messages that the template refuses or does not write.
    pub fn new(content: Value, tools: Option<Value>, format: &ChatFormat) -> Result<Self, String> {
        let source = Source {
            file: Path::new("prompt").into(),
            place: Place::Line(1),
        };
        let mut fields = Map::new();
        fields.insert("prompt".to_owned(), content);
        fields.insert("tools".to_owned(), tools.unwrap_or_default());
        of_record(&source, &fields, format).map_err(|error| error.reason())
    }

    /// What is said last, for people to read.
    #[must_use]
    pub fn shown(&self) -> String {
        let last = |messages: &Vec<Value>| messages.last()?.get("content").cloned();
        match &self.content {
            Value::String(text) => text.clone(),
            Value::Array(messages) => match last(messages) {
                Some(Value::String(text)) => text,
                other => other.unwrap_or_default().to_string(),
            },
            other => other.to_string(),
        }
    }
}

/// The prompt of a record's `prompt` or `messages`; an answer at the end of `messages` is left out.
///
/// # Errors
/// As [`Prompt::new`], and a record with neither.
pub(crate) fn of_record(
    source: &Source,
    fields: &Map<String, Value>,
    format: &ChatFormat,
) -> Result<Prompt, DataError> {
    let Asked { content, with } = Asked::parse(source, fields)?;
    let tokens = match &content {
        Value::String(text) => text_tokens(source, text, &with, format),
        Value::Array(messages) => chat_tokens(source, messages, &with, format),
        _ => Ok(Vec::new()),
    }?;
    match tokens.is_empty() {
        true => Err(wrong(
            source,
            "expected a prompt of at least one token, found none",
        )),
        false => Ok(Prompt { content, tokens }),
    }
}

fn wrong(source: &Source, reason: impl ToString) -> DataError {
    DataError::Render {
        source_place: source.clone(),
        reason: reason.to_string(),
    }
}

fn text_tokens(
    source: &Source,
    text: &str,
    with: &Extras,
    format: &ChatFormat,
) -> Result<Vec<u32>, DataError> {
    let encode = |with_special: bool| {
        let tokens = format.tokenizer.encode(text, with_special);
        tokens.map_err(|error| wrong(source, error))
    };
    match &format.template {
        None => {
            check_no_template(source, with, "the model has no chat template")?;
            Ok(AddedTokens::of(&format.tokenizer).before(encode(true)?))
        }
        Some(_) if format.facts.is_rendered(text) => {
            check_no_template(source, with, "the prompt has been rendered already")?;
            encode(false)
        }
        Some(_) => {
            let message = json!({"role": "user", "content": text});
            chat_tokens(source, &[message], with, format)
        }
    }
}

fn chat_tokens(
    source: &Source,
    messages: &[Value],
    with: &Extras,
    format: &ChatFormat,
) -> Result<Vec<u32>, DataError> {
    let Some(template) = &format.template else {
        let reason = "expected a text, found messages: the model has no chat template";
        return Err(wrong(source, reason));
    };
    check_written(&format.facts, source, messages, with)?;
    let options = RenderOptions {
        add_generation_prompt: true,
        tools: with.tools.clone(),
        extra: with.variables.clone(),
        ..RenderOptions::default()
    };
    let bare = Bare::of(&format.facts, messages).messages;
    let text = template.render(bare.as_deref().unwrap_or(messages), &options);
    let text = text.map_err(|error| wrong(source, error))?;
    let tokens = format.tokenizer.encode(&text, false);
    tokens.map_err(|error| wrong(source, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn forms_of_the_same_prompt_are_read_alike() {
        let format = ChatFormat::load(&Config::new("")).expect("the bundled model");
        let tokens = |record: Value| {
            let source = Source {
                file: Path::new("t.jsonl").into(),
                place: Place::Line(1),
            };
            let fields = record.as_object().cloned().unwrap_or_default();
            let prompt = of_record(&source, &fields, &format);
            prompt.map(|prompt| prompt.tokens).expect("a prompt")
        };
        let system = json!({"role": "system", "content": "A pirate."});
        let user = json!({"role": "user", "content": "Hi?"});
        let expected = tokens(json!({"prompt": [system, user]}));
        assert_ne!(expected, tokens(json!({"prompt": "Hi?"})));
        for same in [
            json!({"prompt": "Hi?", "system": "A pirate.", "tools": [], "answer": "x"}),
            json!({"prompt": [{"role": "developer", "content": "A pirate."}, user]}),
            json!({"prompt": [{"from": "human", "value": "Hi?"}], "system": "A pirate."}),
            json!({"messages": [system, user, {"role": "assistant", "content": "Yes."}]}),
            json!({"conversations": [system, user], "chat_template_kwargs": {}}),
            json!({"prompt": [system, {"role": "user", "content": [{"type": "text", "text": "Hi?"}]}]}),
        ] {
            assert_eq!(tokens(same.clone()), expected, "{same}");
        }
    }
}
