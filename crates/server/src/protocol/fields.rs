//! What becomes of each field of a request: `fields.txt` is the list, and `fields/` has those of other APIs.
//!
//! A field either works, or is refused by name, or makes no difference here, which the log says. Values may have the forms that
//! vLLM takes: a whole number written as `16.0` or `"16"`, a switch written as `1` or `"true"`. The endpoints of vLLM also take
//! a whole number written as `true`. An empty value says what its absence says.

mod endpoint;
mod nested;
mod values;

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::error::ApiError;
pub use endpoint::Endpoint;
pub(super) use values::says_nothing;
use values::{Kind, is_empty, normalize};

/// One row of `fields.txt`.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Names of endpoints; `both` is `chat completions`.
    pub endpoints: &'static str,
    kind: Kind,
    /// Its kind as `fields.txt` has it.
    kind_name: &'static str,
    /// What becomes of it.
    pub verdict: Verdict,
    /// What a reader should know.
    pub note: &'static str,
}

/// What becomes of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is understood.
    Works,
    /// It is ignored, as it makes no difference here.
    Harmless,
    /// It is refused, unless its value is empty or one of these.
    Refused(Vec<Value>),
}

/// The lists.
const LISTS: [&str; 4] = [
    include_str!("fields.txt"),
    include_str!("fields/anthropic.txt"),
    include_str!("fields/finetuning.txt"),
    include_str!("fields/ollama.txt"),
];

/// The rows of all lists.
pub static FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| rows().filter_map(field).collect());

fn rows() -> impl Iterator<Item = &'static str> {
    let rows = LISTS.into_iter().flat_map(str::lines);
    rows.filter(|row| !row.starts_with('#'))
}

/// What the log shows of ignored fields: so many, and so much of each name.
const MAX_NAMES: usize = 20;
const MAX_NAME: usize = 64;
/// Fields whose empty value is an error of its own.
const REQUIRED: [&str; 11] = [
    "messages",
    "prompt",
    "input",
    "query",
    "documents",
    "text_1",
    "text_2",
    "queries",
    "items",
    "data_1",
    "data_2",
];

fn field(row: &'static str) -> Option<Field> {
    let mut cells = row.split('|').map(str::trim);
    let (name, endpoints) = (cells.next()?, cells.next()?);
    let kind_name = cells.next()?;
    let kind = match kind_name {
        "integer" => Kind::Integer,
        "number" => Kind::Number,
        "boolean" => Kind::Boolean,
        "integers" => Kind::Integers,
        "numbers" => Kind::Numbers,
        "booleans" => Kind::Booleans,
        "tokens" => Kind::Tokens,
        "text" | "any" => Kind::Other,
        _ => return None,
    };
    let verdict = match cells.next()?.split_once(" unless ") {
        Some(("refused", values)) => {
            let values = serde_json::Deserializer::from_str(values).into_iter();
            Verdict::Refused(values.collect::<Result<_, _>>().ok()?)
        }
        Some(_) => return None,
        None => match row.split('|').nth(3)?.trim() {
            "works" => Verdict::Works,
            "harmless" => Verdict::Harmless,
            "refused" => Verdict::Refused(Vec::new()),
            _ => return None,
        },
    };
    Some(Field {
        name,
        endpoints,
        kind,
        kind_name,
        verdict,
        note: cells.next()?,
    })
}

impl Field {
    /// Its kind as `fields.txt` has it.
    pub(crate) fn kind_name(&self) -> &'static str {
        self.kind_name
    }

    /// Whether a value is as good as none.
    fn is_unset(&self, value: &Value) -> bool {
        let is_unset = match self.kind {
            // A list is no number, empty or not.
            Kind::Integer | Kind::Number | Kind::Boolean => {
                !value.is_array() && !value.is_object() && is_empty(value)
            }
            _ => is_empty(value),
        };
        is_unset && !REQUIRED.contains(&self.name)
    }

    /// Whether the endpoint has it.
    pub fn is_of(&self, endpoint: Endpoint) -> bool {
        let is_both = matches!(endpoint, Endpoint::Chat | Endpoint::Completions);
        let mut endpoints = self.endpoints.split(' ');
        endpoints.any(|of| of == endpoint.name() || (is_both && of == "both"))
    }
}

/// Brings the fields of a request into one form, and takes out those that say nothing. Names in the log what is ignored.
///
/// # Errors
/// 400 with the field that is refused.
pub(crate) fn check(endpoint: Endpoint, fields: &mut Map<String, Value>) -> Result<(), ApiError> {
    let mut ignored = Vec::new();
    let mut refused = None;
    if endpoint.is_closed() {
        refuse_unknown(endpoint, fields)?;
    }
    fields.retain(|name, value| {
        let known = FIELDS.iter();
        let mut known = known.filter(|field| field.name == name && field.is_of(endpoint));
        let Some(field) = known.next() else {
            ignored.push(name.clone());
            return false;
        };
        if let (Kind::Integer, Value::Bool(on)) = (field.kind, &*value)
            && endpoint.is_of_vllm()
        {
            // The switch of chats, where 0 would be log-probabilities without alternatives.
            if name == "logprobs" && !on {
                return false;
            }
            *value = Value::from(u8::from(*on));
        }
        normalize(field.kind, value);
        match &field.verdict {
            Verdict::Works => !field.is_unset(value),
            Verdict::Harmless => {
                if !says_nothing(value) {
                    ignored.push(name.clone());
                }
                false
            }
            Verdict::Refused(neutral) => {
                // Off says something where on is what happens anyway.
                let is_silent = match neutral.contains(&Value::Bool(true)) {
                    true => value.is_null(),
                    false => says_nothing(value),
                };
                if !is_silent && !neutral.contains(value) {
                    refused.get_or_insert(field);
                }
                false
            }
        }
    });
    if let Some(Field { name, note, .. }) = refused {
        let message = format!("`{name}` is not supported: {note}.");
        return Err(ApiError {
            details: details_of(name),
            ..ApiError::bad_request(*name, message)
        });
    }
    ignored.extend(nested::unknown(endpoint, fields, MAX_NAMES));
    log_ignored(&ignored);
    Ok(())
}

/// What tells a client that it may send the request again without the field: Anthropic's tool runner asks for a thread, and goes on
/// without one.
fn details_of(field: &str) -> Option<Box<Value>> {
    let details = json!({ "error_code": "thread_unsupported_request", "unsupported": ["thread"] });
    (field == "thread").then(|| Box::new(details))
}

/// One line of the log, as short as it has to be.
pub(super) fn log_ignored(ignored: &[String]) {
    if !ignored.is_empty() {
        let short = |name: &String| name.chars().take(MAX_NAME).collect::<String>();
        let fields: Vec<String> = ignored.iter().take(MAX_NAMES).map(short).collect();
        tracing::warn!(?fields, num = ignored.len(), "ignored request fields");
    }
}

/// Refuses a field that no list has.
fn refuse_unknown(endpoint: Endpoint, fields: &Map<String, Value>) -> Result<(), ApiError> {
    let of_endpoint = || FIELDS.iter().filter(|field| field.is_of(endpoint));
    let is_known = |name: &str| of_endpoint().any(|field| field.name == name);
    let Some(unknown) = fields.keys().find(|name| !is_known(name)) else {
        return Ok(());
    };
    let name: String = unknown.chars().take(MAX_NAME).collect();
    let distance = |field: &&Field| strsim::damerau_levenshtein(&name, field.name);
    let nearest = of_endpoint()
        .min_by_key(distance)
        .filter(|field| distance(field) <= 2);
    let hint = nearest.map_or_else(String::new, |field| {
        format!(" Did you mean `{}`?", field.name)
    });
    let message = format!("`{name}`: there is no such field.{hint}");
    Err(ApiError::bad_request(name, message))
}

/// Brings the fields of an endpoint with fields of its own into one form, and takes out those that say nothing. Names in the log
/// what is not in `known`.
pub(super) fn normalize_all(fields: &mut Map<String, Value>, known: &[&[&str]]) {
    let is_known = |name: &str| known.iter().any(|names| names.contains(&name));
    let unknown = fields
        .iter()
        .filter(|(name, value)| !is_known(name) && !says_nothing(value));
    log_ignored(&unknown.map(|(name, _)| name.clone()).collect::<Vec<_>>());

    /// vLLM's, of `/tokenize`, `/detokenize` and `/v1/load_lora_adapter`.
    const OWN: [(&str, Kind); 3] = [
        ("tokens", Kind::Tokens),
        ("return_token_strs", Kind::Boolean),
        ("load_inplace", Kind::Boolean),
    ];
    fields.retain(|name, value| {
        let own = OWN.iter().find(|(own, _)| own == name);
        let shared = FIELDS.iter().find(|field| field.name == name);
        let kind = own
            .map(|(_, kind)| *kind)
            .or(shared.map(|field| field.kind));
        if let Some(kind) = kind {
            normalize(kind, value);
        }
        !shared.is_some_and(|field| field.is_unset(value))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::anthropic::{AnswerFields, PromptFields};
    use crate::protocol::chat::{ChatFields, TemplateFields};
    use crate::protocol::common::SamplingFields;
    use crate::protocol::completions::CompletionFields;
    use crate::protocol::field_names::field_names;
    use crate::protocol::grammar::GrammarFields;
    use crate::protocol::ollama;
    use crate::protocol::pooling::{EmbeddingFields, PoolingFields, TaskField};
    use crate::protocol::responses::ResponsesFields;
    use crate::protocol::scores::{RerankFields, ScoreFields};

    #[test]
    fn every_row_is_read() {
        let rows: Vec<&str> = rows().collect();
        assert_eq!(FIELDS.len(), rows.len());
        for (field, row) in FIELDS.iter().zip(rows) {
            assert!(row.starts_with(field.name), "{row}");
            let names = Endpoint::ALL.map(Endpoint::name);
            let mut endpoints = field.endpoints.split(' ');
            assert!(
                endpoints.all(|of| of == "both" || names.contains(&of)),
                "{row}"
            );
            assert!(field.verdict == Verdict::Works || !field.note.is_empty());
        }
    }

    #[test]
    fn what_works_is_what_is_read() {
        let works = |endpoint| {
            let fields = FIELDS.iter();
            let fields = fields.filter(|f| f.is_of(endpoint) && f.verdict == Verdict::Works);
            let mut names: Vec<&str> = fields.map(|field| field.name).collect();
            names.sort_unstable();
            names
        };
        let read = |structs: &[&[&'static str]]| {
            let mut names = structs.concat();
            names.sort_unstable();
            names.dedup();
            names
        };
        let shared = [
            field_names::<SamplingFields>(),
            field_names::<GrammarFields>(),
        ];
        let sampling = shared.concat().leak();
        let chat = [field_names::<ChatFields>(), sampling];
        assert_eq!(
            works(Endpoint::Chat),
            read(&[chat[0], chat[1], field_names::<TemplateFields>()])
        );
        assert_eq!(
            works(Endpoint::Completions),
            read(&[field_names::<CompletionFields>(), sampling])
        );
        let pooling = field_names::<PoolingFields>();
        let template: &[&str] = &[
            "add_generation_prompt",
            "add_special_tokens",
            "chat_template",
            "chat_template_kwargs",
            "continue_final_message",
        ];
        let embeddings = [field_names::<EmbeddingFields>(), pooling, template];
        assert_eq!(works(Endpoint::Embeddings), read(&embeddings));
        let task = field_names::<TaskField>();
        assert_eq!(
            works(Endpoint::Pooling),
            read(&[&embeddings[..], &[task]].concat())
        );
        let score = [field_names::<ScoreFields>(), pooling];
        assert_eq!(works(Endpoint::Score), read(&score));
        let rerank = [field_names::<RerankFields>(), pooling];
        assert_eq!(works(Endpoint::Rerank), read(&rerank));
        let prompt = [
            field_names::<PromptFields>(),
            &["messages", "system", "tools"],
        ];
        assert_eq!(works(Endpoint::CountTokens), read(&prompt));
        let answer = field_names::<AnswerFields>();
        assert_eq!(
            works(Endpoint::Messages),
            read(&[prompt[0], prompt[1], answer])
        );
        let shared = field_names::<ollama::AnswerFields>();
        let chat: &[&str] = &["messages", "tools", "options"];
        assert_eq!(works(Endpoint::OllamaChat), read(&[shared, chat]));
        let generate = [field_names::<ollama::GenerateFields>(), &["options"]];
        assert_eq!(
            works(Endpoint::OllamaGenerate),
            read(&[shared, generate[0], generate[1]])
        );
        assert_eq!(
            works(Endpoint::OllamaOptions),
            read(&[field_names::<ollama::Options>()])
        );
        assert_eq!(
            works(Endpoint::OllamaShow),
            read(&[field_names::<ollama::ShowFields>()])
        );
        // An answer is one text, which begins behind the prompt.
        let others = [
            "n",
            "prompt_logprobs",
            "response_format",
            "return_token_ids",
        ];
        let fields = sampling.iter().filter(|field| !others.contains(field));
        let fields: Vec<&str> = fields.copied().collect();
        assert_eq!(
            works(Endpoint::Responses),
            read(&[field_names::<ResponsesFields>(), &fields])
        );
    }

    fn checked(fields: Value) -> Result<Value, ApiError> {
        let Value::Object(mut fields) = fields else {
            panic!("not an object")
        };
        check(Endpoint::Chat, &mut fields)?;
        Ok(Value::Object(fields))
    }

    #[test]
    fn anthropics_endpoints_refuse_what_no_list_has() {
        let unknown = |name: &str| {
            let mut fields = Map::from_iter([(name.to_owned(), json!(1))]);
            check(Endpoint::Messages, &mut fields).unwrap_err()
        };
        let error = unknown("temperatures");
        assert_eq!(error.param.as_deref(), Some("temperatures"));
        assert!(error.message.contains("`temperature`"), "{error:?}");
        assert!(!unknown("best_of").message.contains("mean"));
    }

    #[test]
    fn forms_of_a_value_are_one() {
        let forms = json!({
            "max_tokens": 16.0, "n": "2", "seed": "-7", "top_k": "40.0", "temperature": "0.5", "stream": "yes",
            "logprobs": 1, "stop_token_ids": [5.0, "6"], "logit_bias": { "5": "1.5" },
            "stream_options": { "include_usage": 1 },
        });
        let one = json!({
            "max_tokens": 16, "n": 2, "seed": -7, "top_k": 40, "temperature": 0.5, "stream": true,
            "logprobs": true, "stop_token_ids": [5, 6], "logit_bias": { "5": 1.5 },
            "stream_options": { "include_usage": true },
        });
        assert_eq!(checked(forms).unwrap(), one);
        let others = json!({ "max_tokens": 8.5, "n": "two", "temperature": "nan", "stream": 2 });
        assert_eq!(checked(others.clone()).unwrap(), others);
    }

    #[test]
    fn what_says_nothing_is_taken_out() {
        let fields = json!({
            "use_beam_search": false, "guided_choice": [], "structured_outputs": {},
            "logits_processors": null, "priority": 0, "stop": "", "tools": [], "response_format": {}, "unknown": 1,
            "user": "me", "best_of": 1.0, "modalities": ["text"], "messages": [],
        });
        assert_eq!(checked(fields).unwrap(), json!({ "messages": [] }));
        for (field, value) in [
            ("use_beam_search", json!(true)),
            ("priority", json!(-1)),
            ("best_of", json!(2)),
            ("modalities", json!(["text", "audio"])),
        ] {
            let error = checked(json!({ field: value })).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(field), "{error:?}");
        }
    }
}
