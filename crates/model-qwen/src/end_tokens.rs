//! The tokens that end an answer: the one place that server and trainer ask.

use std::path::Path;

use serde_json::Value;

use crate::chat_template::ChatTemplate;
use crate::json_file::{JsonFile, JsonFileError};
use crate::special_tokens::special_tokens;
use crate::tokenizer::Tokenizer;

/// The tokens that end an answer, each one once: what `config.json`, `generation_config.json` and the tokenizer's files name as
/// `eos_token`, and the token that the chat template writes after an assistant's turn. A file that names none adds none; ids
/// below zero stand for none.
///
/// The first one is the token that ends a text: `config.json` comes first, then the files in the order above.
///
/// # Errors
/// When a file cannot be read, or names something that is no token.
pub fn end_tokens(
    dir: &Path,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Vec<u32>, JsonFileError> {
    let mut ids = Vec::new();
    for name in ["config.json", "generation_config.json"] {
        let file = JsonFile::read_optional(dir.join(name))?;
        ids.extend(file.top().token_ids("eos_token_id")?);
    }
    let special = special_tokens(dir)?;
    if let Some(token) = special.get("eos_token").and_then(Value::as_str) {
        match tokenizer.token_to_id(token) {
            Some(id) => ids.push(id),
            None => tracing::warn!(
                "{}: eos_token {token:?} of the tokenizer's files is not in the vocabulary",
                dir.display()
            ),
        }
    }
    ids.extend(template.and_then(|template| end_of_turn(template, tokenizer)));
    let mut seen = std::collections::BTreeSet::new();
    ids.retain(|id| seen.insert(*id));
    if ids.is_empty() {
        tracing::warn!(
            "{}: no file says which token ends a text, so that only max_tokens and stop strings end one",
            dir.display()
        );
    }
    Ok(ids)
}

/// The added token that `template` writes right after an assistant's turn, if it writes one.
fn end_of_turn(template: &ChatTemplate, tokenizer: &Tokenizer) -> Option<u32> {
    const ANSWER: &str = "an answer to be found again";
    let messages = [
        serde_json::json!({"role": "user", "content": "A question."}),
        serde_json::json!({"role": "assistant", "content": ANSWER}),
    ];
    // A template that refuses such a chat says nothing.
    let text = template.render(&messages, &Default::default()).ok()?;
    let (_, rest) = text.rsplit_once(ANSWER)?;
    let ids = tokenizer.encode(rest.trim_start(), false).ok()?;
    ids.first().copied().filter(|&id| tokenizer.is_added(id))
}
