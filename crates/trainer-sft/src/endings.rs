//! The token that ends an answer: learnt from the chat template, and looked for by other programs in the model's files.

use tracing::warn;

use crate::chat_format::ChatFormat;

/// The token that ends an answer in the chat template, where no file of the model names it. The server stops there all the same.
pub(crate) fn unknown_end(format: &ChatFormat) -> Option<(u32, String)> {
    let end = format.facts.end.clone();
    end.filter(|(token, _)| !format.named_ends.contains(token))
}

/// Warns of what makes chats go on after their end. `is_written` says that the result says where they end.
pub(crate) fn warn_of_endless_answers(format: &ChatFormat, is_written: bool) {
    if format.limits.eos_token_ids.is_empty() {
        warn!(
            "no file of the model names a token that ends a text (`eos_token_id`): texts and completions are learnt without \
             an end"
        );
    }
    if let Some((token, text)) = unknown_end(format) {
        let instead = match is_written {
            true => "it is added to generation_config.json of the result".to_owned(),
            false => format!(
                "add {token} to `eos_token_id` in generation_config.json of the base model, or give \
                 \"stop_token_ids\": [{token}] with every request"
            ),
        };
        warn!(
            "the chat template ends an answer with `{text}`, and no file of the model says that a text ends there: this \
             project's server stops there all the same, other programs go on; {instead}"
        );
    }
}
