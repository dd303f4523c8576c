//! Messages without what the chat template writes around them itself.

use serde_json::Value;

use crate::data::format::role_of;
use crate::template_facts::TemplateFacts;

/// What became of the messages of one conversation.
#[derive(Debug, Default)]
pub(crate) struct Bare {
    /// The messages, where one of them is shorter.
    pub(crate) messages: Option<Vec<Value>>,
    /// The answers that were nothing but a token that ends them.
    pub(crate) emptied: Vec<usize>,
    /// Whether an answer ended with such a token.
    pub(crate) had_end: bool,
    /// Whether tokens of the template's own, or others that end a text, are left.
    pub(crate) has_own_tokens: bool,
}

impl Bare {
    /// Takes the ends off answers and the wrappers off results of tools: the template adds its own.
    pub(crate) fn of(facts: &TemplateFacts, messages: &[Value]) -> Self {
        let mut bare = Self::default();
        for (index, message) in messages.iter().enumerate() {
            let text = message.get("content").and_then(Value::as_str);
            let text = text.unwrap_or_default();
            let is_answer = role_of(message) == "assistant";
            let shorter = match role_of(message) {
                "assistant" => facts.without_end(text),
                "tool" => facts.without_wrapper(text),
                _ => None,
            };
            let left = shorter.unwrap_or(text);
            bare.has_own_tokens |= facts.has_marker(left) || facts.has_end(left);
            let Some(shorter) = shorter else { continue };
            let own = bare.messages.get_or_insert_with(|| messages.to_vec());
            own[index]["content"] = shorter.into();
            bare.had_end |= is_answer;
            let says_more = |key: &str| message.get(key).is_some();
            if is_answer
                && shorter.trim().is_empty()
                && !says_more("tool_calls")
                && !says_more("reasoning_content")
            {
                bare.emptied.push(index);
            }
        }
        bare
    }
}
