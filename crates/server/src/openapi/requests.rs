//! Schemas of requests. They are the forms that clients write; the server takes some more, such as `"16"` for 16.

use serde_json::{Map, Value, json};

use super::{anthropic, chat, ollama, responses};
use crate::protocol::fields::{Endpoint, FIELDS, Field, Verdict};

/// A request of an endpoint: its fields in `fields.txt`.
pub(super) fn request(endpoint: Endpoint) -> Value {
    let fields = FIELDS.iter().filter(|field| field.is_of(endpoint));
    let properties: Map<String, Value> = fields
        .map(|field| (field.name.to_owned(), property(endpoint, field)))
        .collect();
    let mut schema = json!({
        "type": "object",
        "required": required(endpoint),
        "properties": properties,
    });
    if endpoint.is_closed() {
        schema["additionalProperties"] = Value::Bool(false);
    }
    let forms = forms(endpoint);
    if !forms.is_empty() {
        schema["anyOf"] = forms.into();
    }
    schema
}

/// Fields that every request has.
fn required(endpoint: Endpoint) -> &'static [&'static str] {
    match endpoint {
        Endpoint::Chat => &["messages"],
        Endpoint::Completions => &["prompt"],
        Endpoint::Rerank => &["query", "documents"],
        Endpoint::Messages => &["model", "messages", "max_tokens"],
        Endpoint::CountTokens => &["model", "messages"],
        Endpoint::FineTuningJob => &["model", "training_file"],
        Endpoint::OllamaChat
        | Endpoint::OllamaGenerate
        | Endpoint::OllamaEmbed
        | Endpoint::OllamaEmbeddings => &["model"],
        Endpoint::Embeddings
        | Endpoint::Pooling
        | Endpoint::Classify
        | Endpoint::Score
        | Endpoint::Responses
        | Endpoint::FineTuningSettings
        | Endpoint::FineTuningPreview
        | Endpoint::OllamaShow
        | Endpoint::OllamaOptions => &[],
    }
}

/// Schemas of which a request fits one, if there are some.
fn forms(endpoint: Endpoint) -> Vec<Value> {
    let with = |names: &[&str]| json!({ "required": names });
    match endpoint {
        // A completion has no token only where it shows the prompt.
        Endpoint::Completions => vec![
            json!({ "properties": { "max_tokens": { "minimum": 1 } } }),
            json!({ "required": ["echo"], "properties": { "echo": { "const": true } } }),
        ],
        Endpoint::Embeddings | Endpoint::Pooling | Endpoint::Classify => {
            vec![with(&["input"]), with(&["messages"])]
        }
        Endpoint::OllamaShow => vec![with(&["model"]), with(&["name"])],
        Endpoint::Score => vec![
            with(&["text_1", "text_2"]),
            with(&["queries", "documents"]),
            with(&["queries", "items"]),
            with(&["data_1", "data_2"]),
        ],
        _ => Vec::new(),
    }
}

fn property(endpoint: Endpoint, field: &Field) -> Value {
    let mut schema = match &field.verdict {
        Verdict::Works => form_of_api(endpoint, field.name)
            .or_else(|| chat::form(endpoint, field.name))
            .unwrap_or_else(|| form(endpoint, field)),
        // Whatever it is.
        Verdict::Harmless => json!({}),
        Verdict::Refused(neutral) => {
            let mut values = [&[Value::Null], neutral.as_slice()].concat();
            // Off is as good as absent, unless on is what happens anyway.
            if field.kind_name() == "boolean" && !values.contains(&Value::Bool(true)) {
                values.push(Value::Bool(false));
            }
            // So is what is empty.
            match field.kind_name() {
                "text" => values.push(Value::from("")),
                "any" | "integers" | "tokens" => values.extend([json!(""), json!([])]),
                _ => {}
            }
            json!({ "enum": values })
        }
    };
    if endpoint == Endpoint::Chat && field.name == "max_tokens" {
        schema["minimum"] = json!(1);
    }
    let note = match &field.verdict {
        Verdict::Works => field.note.to_owned(),
        Verdict::Harmless => format!("Ignored: {}.", field.note),
        Verdict::Refused(_) => format!("Refused: {}.", field.note),
    };
    if !note.is_empty() {
        schema["description"] = Value::from(note);
    }
    schema
}

/// The form of a field that means something else in another API than in OpenAI's older requests.
fn form_of_api(endpoint: Endpoint, field: &str) -> Option<Value> {
    match (endpoint, field) {
        (Endpoint::Responses, _) => responses::form(field),
        (Endpoint::Messages | Endpoint::CountTokens, _) => anthropic::form(field),
        (
            Endpoint::OllamaChat
            | Endpoint::OllamaGenerate
            | Endpoint::OllamaEmbed
            | Endpoint::OllamaEmbeddings,
            "options",
        ) => Some(chat::or_null(request(Endpoint::OllamaOptions))),
        _ => ollama::form(endpoint, field),
    }
}

/// The values of a field that works.
fn form(endpoint: Endpoint, field: &Field) -> Value {
    let texts = |items: Value| json!({ "anyOf": [{ "type": ["string", "null"] }, { "type": "array", "items": items }] });
    match field.name {
        "prompt" | "input" => tokens(),
        "stop" | "bad_words" => texts(chat::name()),
        "text_1" | "text_2" | "queries" | "documents" | "items" | "data_1" | "data_2" => {
            texts(chat::text())
        }
        "query" => json!({ "type": "string" }),
        // An empty name is the base model.
        "model" if endpoint == Endpoint::FineTuningJob => json!({ "type": "string" }),
        "model" if required(endpoint).contains(&"model") => chat::name(),
        "reasoning_effort" => chat::efforts(),
        "truncation_side" => json!({ "enum": ["left", "right", null] }),
        "encoding_format" => json!({ "enum": ["float", "base64", null] }),
        "embed_dtype" => json!({ "enum": ["float32", "float16", "bfloat16", null] }),
        "endianness" => json!({ "enum": ["native", "little", "big", null] }),
        "task" => json!({ "enum": ["embed", "classify", null] }),
        _ => match field.kind_name() {
            "text" => json!({ "type": ["string", "null"] }),
            kind @ ("integer" | "number") => bounded(kind, endpoint, field),
            "boolean" => json!({ "type": ["boolean", "null"] }),
            "integers" => {
                json!({ "type": ["array", "null"], "items": { "type": "integer", "minimum": 0 } })
            }
            "numbers" => json!({
                "type": ["object", "null"],
                "propertyNames": { "pattern": "^[0-9]+$" },
                "additionalProperties": { "type": "number" },
            }),
            "booleans" => {
                json!({ "type": ["object", "null"], "additionalProperties": { "type": ["boolean", "null"] } })
            }
            "tokens" => tokens(),
            _ => json!({}),
        },
    }
}

/// The least and the largest value of a number.
fn bounds(endpoint: Endpoint, field: &Field) -> (Option<f64>, Option<f64>) {
    match field.name {
        // Below 1 it is off.
        "top_k" if endpoint == Endpoint::OllamaOptions => (None, None),
        "presence_penalty" | "frequency_penalty" => (Some(-2.0), Some(2.0)),
        "temperature" | "min_tokens" | "top_n" | "num_ctx" => (Some(0.0), None),
        "top_p" | "min_p" => (Some(0.0), Some(1.0)),
        "seed" => (None, Some(i64::MAX as f64)),
        "n" => (Some(1.0), Some(128.0)),
        "top_k"
        | "truncate_prompt_tokens"
        | "logprobs"
        | "top_logprobs"
        | "prompt_logprobs"
        | "repeat_last_n"
        | "thinking_token_budget" => (Some(-1.0), None),
        "max_tokens" | "max_completion_tokens" if field.is_of(Endpoint::Completions) => {
            (Some(0.0), None)
        }
        "max_completion_tokens" | "max_output_tokens" | "max_tool_calls" | "dimensions" => {
            (Some(1.0), None)
        }
        "repetition_penalty" | "repeat_penalty" => (Some(0.0), None),
        _ => (None, None),
    }
}

fn bounded(kind: &str, endpoint: Endpoint, field: &Field) -> Value {
    let mut schema = json!({ "type": [kind, "null"] });
    let (least, largest) = bounds(endpoint, field);
    // 0 itself is none of them, but Ollama's `top_p`.
    let of_least = match field.name {
        "top_p" if endpoint != Endpoint::OllamaOptions => "exclusiveMinimum",
        "repetition_penalty" | "repeat_penalty" => "exclusiveMinimum",
        _ => "minimum",
    };
    if field.name == "truncate_prompt_tokens" {
        schema["not"] = json!({ "const": 0 });
    }
    for (key, bound) in [(of_least, least), ("maximum", largest)] {
        if let Some(bound) = bound {
            schema[key] = json!(bound as i64);
        }
    }
    schema
}

/// A text, texts, token ids, or lists of these.
fn tokens() -> Value {
    let ids =
        json!({ "type": "array", "minItems": 1, "items": { "type": "integer", "minimum": 0 } });
    let text = json!({ "type": "string", "minLength": 1 });
    json!({ "anyOf": [
        text,
        { "type": "array", "minItems": 1, "items": text },
        ids,
        { "type": "array", "minItems": 1, "items": ids },
    ] })
}

pub(super) fn rendered() -> Value {
    json!({
        "type": "object",
        "required": ["request_id", "token_ids", "sampling_params"],
        "properties": {
            "request_id": { "type": "string" },
            "model": { "type": "string" },
            "token_ids": { "type": "array", "items": { "type": "integer" } },
            "sampling_params": { "type": "object" },
        },
    })
}

pub(super) fn tokenize() -> Value {
    let of_chat = [
        "model",
        "messages",
        "tools",
        "documents",
        "add_special_tokens",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "chat_template_kwargs",
        "reasoning_effort",
    ];
    let fields = FIELDS.iter().filter(|field| field.is_of(Endpoint::Chat));
    let fields = fields.filter(|field| of_chat.contains(&field.name));
    let mut properties: Map<String, Value> = fields
        .map(|field| (field.name.to_owned(), property(Endpoint::Chat, field)))
        .collect();
    properties.insert("prompt".to_owned(), json!({ "type": "string" }));
    let on = json!({ "type": ["boolean", "null"] });
    properties.insert("return_token_strs".to_owned(), on);
    json!({
        "type": "object",
        "oneOf": [{ "required": ["prompt"] }, { "required": ["messages"] }],
        "properties": properties,
    })
}

pub(super) fn detokenize() -> Value {
    json!({ "type": "object", "required": ["tokens"], "properties": {
        "model": { "type": ["string", "null"] },
        "tokens": { "type": "array", "items": { "type": "integer", "minimum": 0 } },
    } })
}

pub(super) fn load_lora() -> Value {
    json!({ "type": "object", "required": ["lora_name", "lora_path"], "properties": {
        "lora_name": { "type": "string" },
        "lora_path": { "type": "string" },
        "load_inplace": { "type": ["boolean", "null"] },
    } })
}

pub(super) fn unload_lora() -> Value {
    json!({ "type": "object", "required": ["lora_name"], "properties": {
        "lora_name": { "type": "string" },
    } })
}
