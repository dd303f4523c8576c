//! Bounds that depend on the server's model and flags.

use serde_json::{Value, json};

use crate::protocol::logprobs::LogprobLimit;
use crate::state::AppState;

/// Fields with token ids.
const TOKENS: [&str; 5] = [
    "prompt",
    "input",
    "tokens",
    "stop_token_ids",
    "allowed_token_ids",
];
/// APIs that refuse a length of the answer for which the context has no room.
const EXACT: [&str; 5] = [
    "/v1/chat/completions",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/responses",
];

/// What a server takes at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    logprobs: LogprobLimit,
    max_model_len: usize,
    trusts_templates: bool,
}

impl Limits {
    /// The server's.
    pub(super) fn of(state: &AppState) -> Self {
        Self {
            logprobs: LogprobLimit::of(state),
            max_model_len: state.model().max_model_len,
            trusts_templates: state.trust_request_chat_template(),
        }
    }

    /// The document with these bounds in its requests.
    pub(super) fn applied(self, document: &Value) -> Value {
        let mut document = document.clone();
        let paths = document.get_mut("paths").and_then(Value::as_object_mut);
        for (path, methods) in paths.into_iter().flatten() {
            let schema = methods
                .pointer_mut("/post/requestBody/content/application~1json/schema/properties");
            let fields = schema.and_then(Value::as_object_mut);
            for (name, field) in fields.into_iter().flatten() {
                self.bound(path, name, field);
            }
        }
        document
    }

    fn bound(self, path: &str, name: &str, field: &mut Value) {
        let Self {
            logprobs: LogprobLimit { max, vocab_size },
            max_model_len,
            trusts_templates,
        } = self;
        match name {
            name if TOKENS.contains(&name) => bound_ids(field, vocab_size.saturating_sub(1)),
            "logprobs" | "top_logprobs" | "prompt_logprobs" if is_integer(field) => {
                // -1 is the whole vocabulary.
                field["minimum"] = json!(if max < vocab_size { 0 } else { -1 });
                if max < usize::MAX {
                    field["maximum"] = json!(max);
                }
            }
            "truncate_prompt_tokens" => field["maximum"] = json!(max_model_len),
            "max_tokens" | "max_completion_tokens" | "max_output_tokens" | "min_tokens"
                if EXACT.contains(&path) =>
            {
                // The prompt has a token.
                field["maximum"] = json!(max_model_len.saturating_sub(1));
            }
            "options" => {
                if let Some(num_ctx) = field.pointer_mut("/anyOf/0/properties/num_ctx") {
                    num_ctx["maximum"] = json!(max_model_len);
                }
            }
            "chat_template" if !trusts_templates => field["enum"] = json!([null, ""]),
            _ => {}
        }
    }
}

fn is_integer(schema: &Value) -> bool {
    match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "integer"),
        kind => kind == "integer",
    }
}

/// Bounds the whole numbers in all lists of a schema.
fn bound_ids(schema: &mut Value, largest: usize) {
    match schema {
        Value::Object(keywords) => {
            for (keyword, inner) in keywords {
                match keyword == "items" && is_integer(inner) {
                    true => inner["maximum"] = json!(largest),
                    false => bound_ids(inner, largest),
                }
            }
        }
        Value::Array(schemas) => schemas
            .iter_mut()
            .for_each(|schema| bound_ids(schema, largest)),
        _ => {}
    }
}
