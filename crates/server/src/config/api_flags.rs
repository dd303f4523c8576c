//! Flags of the HTTP API: defaults, and values that are checked as they are read.

use super::units;

/// Most alternatives per token in log-probabilities, as in vLLM.
pub(super) const MAX_LOGPROBS: usize = 20;

/// Variables of the chat template that have a field of a request.
pub const TEMPLATE_FIELDS: [&str; 6] = [
    "messages",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
];

/// `--default-chat-template-kwargs`.
pub(super) fn template_kwargs(text: &str) -> Result<units::Object, String> {
    let object = units::object(text)?;
    match object
        .keys()
        .find(|name| TEMPLATE_FIELDS.contains(&name.as_str()))
    {
        None => Ok(object),
        Some(name) => Err(format!("`{name}` has no effect: each request has its own")),
    }
}
