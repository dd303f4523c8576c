//! Requests to Ollama's `/api/chat`, `/api/generate` and `/api/show`.
//!
//! A request becomes a conversation in OpenAI's form, which the chat template knows.

mod embed;
mod messages;
mod options;
#[cfg(test)]
mod tests;

use model_qwen::{Grammar, JsonStyle, json_type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub use embed::{EmbedFields, PromptFields, take_input, take_pooling_options};
pub use options::Options;

use super::body::Body;
use super::chat::TemplateFields;
use super::fields::{self, Endpoint};
use super::grammar::RequestedGrammar;
use super::logprobs::LogprobLimit;
use super::reasoning_effort::ReasoningEffort;
use crate::error::ApiError;

/// Fields of `/api/chat` and `/api/generate` besides the prompt.
#[derive(Clone, Debug, Deserialize)]
pub struct AnswerFields {
    /// Served name or adapter name, with `:latest` or without.
    pub model: String,
    /// Answer line by line; true by default.
    pub stream: Option<bool>,
    /// Whether the model thinks, or how much.
    pub think: Option<Think>,
    /// Constrained output.
    pub format: Option<Value>,
    /// Whether to send log-probabilities.
    pub logprobs: Option<bool>,
    /// How many alternatives per token.
    pub top_logprobs: Option<i64>,
}

/// Fields of `/api/generate` that say what to continue.
#[derive(Clone, Debug, Deserialize)]
pub struct GenerateFields {
    /// What the user says, or with `raw` all there is.
    pub prompt: Option<String>,
    /// What follows the answer.
    pub suffix: Option<String>,
    /// A message before the prompt.
    pub system: Option<String>,
    /// Without a template.
    pub raw: Option<bool>,
}

/// Body of `/api/show`.
#[derive(Clone, Debug, Deserialize)]
pub struct ShowFields {
    /// Served name or adapter name, with `:latest` or without.
    pub model: Option<String>,
    /// The older name of `model`.
    pub name: Option<String>,
}

/// `think`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a boolean, `low`, `medium`, `high` or `max`"
)]
pub enum Think {
    /// Whether.
    Switch(bool),
    /// How much.
    Level(ReasoningEffort),
}

/// A request to answer a conversation.
#[derive(Debug)]
pub struct Request {
    /// The model, and how the answer is sent.
    pub fields: AnswerFields,
    /// Sampling and stopping.
    pub options: Options,
    /// What the answer has to keep to.
    grammar: Option<Grammar>,
}

impl Request {
    /// Reads and checks what both endpoints have.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn take(body: &mut Body) -> Result<Self, ApiError> {
        let options = take_options(body)?;
        let fields: AnswerFields = body.read()?;
        Ok(Self {
            grammar: read_format(fields.format.as_ref())?,
            fields,
            options: read_options(options)?,
        })
    }

    /// What the answer has to keep to, with JSON in this style.
    pub fn grammar(&self, style: &JsonStyle) -> Option<RequestedGrammar> {
        let grammar = self.grammar.clone()?;
        Some(RequestedGrammar::new("format", grammar.styled(style)))
    }

    /// What the template is told of thinking.
    pub fn template(&self) -> TemplateFields {
        let (effort, switch) = match self.fields.think {
            None => (None, None),
            Some(Think::Switch(false)) => (Some(ReasoningEffort::None), None),
            Some(Think::Switch(true)) => (None, Some(true)),
            Some(Think::Level(effort)) => (Some(effort), None),
        };
        let kwargs = switch.map(|on| {
            let on = ("enable_thinking".to_owned(), Value::Bool(on));
            Map::from_iter([on])
        });
        TemplateFields {
            reasoning_effort: effort,
            chat_template_kwargs: kwargs,
            ..TemplateFields::default()
        }
    }

    /// Whether the answer shows what the model thinks.
    pub fn shows_thinking(&self) -> bool {
        let none = [
            Some(Think::Switch(false)),
            Some(Think::Level(ReasoningEffort::None)),
        ];
        !none.contains(&self.fields.think)
    }

    /// Alternatives per token, if log-probabilities are asked for.
    ///
    /// # Errors
    /// 400 if there are more than the server gives, or if no log-probabilities are asked for.
    pub fn num_logprobs(&self, limit: LogprobLimit) -> Result<Option<usize>, ApiError> {
        let logprobs = self.fields.logprobs.unwrap_or(false);
        let num = limit.num("top_logprobs", self.fields.top_logprobs.unwrap_or(0))?;
        if num > 0 && !logprobs {
            let message = "`top_logprobs` needs `logprobs`: true.";
            return Err(ApiError::bad_request("top_logprobs", message));
        }
        Ok(logprobs.then_some(num))
    }
}

/// Takes messages and tools out of the body of `/api/chat`; `None` if there are no messages.
///
/// # Errors
/// 400 with the field of a message that cannot be shown to the model.
pub fn take_messages(body: &mut Body) -> Result<Option<Vec<Map<String, Value>>>, ApiError> {
    match body.take("messages") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(messages)) if messages.is_empty() => Ok(None),
        Some(Value::Array(messages)) => messages::read(messages).map(Some),
        Some(other) => Err(ApiError::expected("messages", "a list", json_type(&other))),
    }
}

/// Takes the tools out of the body of `/api/chat`.
///
/// # Errors
/// 400 if they are no list.
pub fn take_tools(body: &mut Body) -> Result<Option<Vec<Value>>, ApiError> {
    match body.take("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) => Ok(Some(tools)),
        Some(other) => Err(ApiError::expected("tools", "a list", json_type(&other))),
    }
}

/// Takes the object `options` out of a body.
fn take_options(body: &mut Body) -> Result<Map<String, Value>, ApiError> {
    match body.take("options") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(options)) => Ok(options),
        Some(other) => Err(ApiError::expected(
            "options",
            "an object",
            json_type(&other),
        )),
    }
}

/// The prompt of `/api/generate` as a conversation.
pub fn conversation(system: Option<String>, prompt: String) -> Vec<Map<String, Value>> {
    let message = |role: &str, content: String| {
        let message = json!({ "role": role, "content": content });
        message.as_object().cloned().unwrap_or_default()
    };
    let system = system.map(|system| message("system", system));
    system
        .into_iter()
        .chain([message("user", prompt)])
        .collect()
}

fn read_options(mut options: Map<String, Value>) -> Result<Options, ApiError> {
    let in_options = |error: ApiError| {
        let param = error.param.unwrap_or_default();
        let message = error.message.replacen('`', "`options.", 1);
        ApiError::bad_request(format!("options.{param}"), message)
    };
    fields::check(Endpoint::OllamaOptions, &mut options).map_err(in_options)?;
    let options: Options = Body::read_value(&Value::Object(options)).map_err(in_options)?;
    options.check().map_err(in_options)?;
    Ok(options)
}

/// What the answer has to keep to, if there is a `format`.
fn read_format(format: Option<&Value>) -> Result<Option<Grammar>, ApiError> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(format)) if format == "json" => Ok(Some(Grammar::JsonObject)),
        Some(schema @ Value::Object(_)) => Ok(Some(Grammar::JsonSchema(schema.clone()))),
        Some(other) => {
            let expected = "`json` or an object, a JSON schema";
            let found = match other {
                Value::String(text) => format!("`{}`", text.chars().take(64).collect::<String>()),
                other => json_type(other).to_owned(),
            };
            Err(ApiError::expected("format", expected, &found))
        }
    }
}
