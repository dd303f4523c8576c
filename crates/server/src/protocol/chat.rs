//! Requests to `/v1/chat/completions`; [`super::chat_answer`] has its answers.

use std::borrow::Cow;

use model_qwen::{ChatTemplate, RenderOptions, TemplateError};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::body::Body;
use super::messages;
pub use super::reasoning_effort::ReasoningEffort;
use crate::answer::{CLOSE_THINK, OPEN_FUNCTION, OPEN_THINK};
use crate::config::TEMPLATE_FIELDS;
use crate::error::ApiError;
use crate::state::AppState;

/// Fields of a chat request besides [`super::common::SamplingFields`] and [`TemplateFields`].
#[derive(Clone, Debug, Deserialize)]
pub struct ChatFields {
    /// Served name or adapter name.
    pub model: Option<String>,
    /// The conversation.
    pub messages: Vec<Map<String, Value>>,
    /// Older name of `max_completion_tokens`.
    pub max_tokens: Option<usize>,
    /// Most tokens to generate; the rest of the context by default.
    pub max_completion_tokens: Option<usize>,
    /// Whether to send log-probabilities.
    pub logprobs: Option<bool>,
    /// How many alternatives per token; -1 = the whole vocabulary.
    pub top_logprobs: Option<i64>,
    /// See [`super::tools::read_choice`].
    pub tool_choice: Option<Value>,
    /// Whether an answer may have several calls; true by default.
    pub parallel_tool_calls: Option<bool>,
    /// Whether to send the answer's reasoning; true by default.
    pub include_reasoning: Option<bool>,
    /// Most tokens of reasoning; -1 = any number.
    pub thinking_token_budget: Option<i64>,
    /// Begin the answer with the last message if both have the same role.
    pub echo: Option<bool>,
}

impl ChatFields {
    /// Reads the fields of a body, and takes the messages out of it.
    ///
    /// # Errors
    /// 400 with the field that is missing or has the wrong type.
    pub(crate) fn take(body: &mut Body) -> Result<Self, ApiError> {
        let messages = match body.take("messages") {
            Some(Value::Array(messages)) if messages.iter().all(Value::is_object) => messages,
            Some(other) => {
                body.put("messages", other);
                return body.read();
            }
            None => return body.read(),
        };
        body.put("messages", Value::Array(Vec::new()));
        let objects = messages.into_iter().filter_map(|message| match message {
            Value::Object(message) => Some(message),
            _ => None,
        });
        Ok(Self {
            messages: objects.collect(),
            ..body.read()?
        })
    }
}

/// How a conversation becomes a prompt; also read by `/tokenize`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TemplateFields {
    /// Tools that the template may show.
    pub tools: Option<Vec<Value>>,
    /// End with the start of an assistant turn; true by default unless the final message is continued.
    pub add_generation_prompt: Option<bool>,
    /// Leave the last message open.
    pub continue_final_message: Option<bool>,
    /// A template that replaces the model's, if the server trusts it.
    pub chat_template: Option<String>,
    /// More variables for the template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// A variable of the template.
    pub documents: Option<Vec<Map<String, Value>>>,
    /// A variable of the template; `none` turns thinking off.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Let the tokenizer add its own special tokens to what the template wrote; false by default.
    pub add_special_tokens: Option<bool>,
}

impl TemplateFields {
    /// Refuses what only a conversation has, beside the field `given` in its place.
    ///
    /// # Errors
    /// 400 with the first field that would have no effect.
    pub(crate) fn refuse_beside(&self, given: &str) -> Result<(), ApiError> {
        let set = [
            ("tools", self.tools.is_some()),
            (
                "add_generation_prompt",
                self.add_generation_prompt == Some(true),
            ),
            (
                "continue_final_message",
                self.continue_final_message == Some(true),
            ),
            ("chat_template", self.chat_template.is_some()),
            ("chat_template_kwargs", self.chat_template_kwargs.is_some()),
            ("documents", self.documents.is_some()),
            ("reasoning_effort", self.reasoning_effort.is_some()),
        ];
        match set.into_iter().find(|(_, is_set)| *is_set) {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!("`{name}` has no effect on `{given}`: it needs `messages`.");
                Err(ApiError::bad_request(name, message))
            }
        }
    }
}

/// A conversation as the model reads it.
#[derive(Debug)]
pub struct Rendered {
    /// The prompt.
    pub prompt: String,
    /// Role of the answer.
    pub role: String,
    /// Text of the last message, if the answer has its role.
    pub last: Option<String>,
    /// Whether the answer goes on with the last message.
    pub is_continued: bool,
    /// Whether the template names `<think>` or `</think>`.
    pub has_think_tags: bool,
    /// Whether the template names `<function=`.
    pub has_function_tags: bool,
    /// Whether the template names `tools`.
    pub shows_tools: bool,
    /// The template's variable `enable_thinking`.
    pub enable_thinking: Option<bool>,
}

#[cfg(test)]
impl Rendered {
    /// A prompt for a new answer, of a template with reasoning.
    pub(crate) fn of_prompt(prompt: &str) -> Self {
        Self {
            prompt: prompt.to_owned(),
            role: "assistant".to_owned(),
            last: None,
            is_continued: false,
            has_think_tags: true,
            has_function_tags: false,
            shows_tools: false,
            enable_thinking: None,
        }
    }
}

/// Renders a conversation.
///
/// # Errors
/// 400 if a message is malformed, the template refuses it, or there is no template.
pub fn render(
    state: &AppState,
    mut messages: Vec<Map<String, Value>>,
    fields: TemplateFields,
) -> Result<Rendered, ApiError> {
    let template = template(state, fields.chat_template.as_deref())?;
    if messages.is_empty() {
        return Err(ApiError::bad_request(
            "messages",
            "`messages` must not be empty.",
        ));
    }
    let continued = messages::continued(&mut messages)?;
    if let Some(field) = continued
        .as_ref()
        .filter(|_| fields.add_generation_prompt == Some(true))
    {
        let message = format!(
            "`{field}` cannot be combined with `add_generation_prompt`: the first goes on with the last message, the second starts \
             a new one."
        );
        return Err(ApiError::bad_request(field, message));
    }
    let source = template.source_for(fields.tools.is_some());
    let messages = messages::prepare(messages, source)?;
    let continue_final_message = continued.is_some() || fields.continue_final_message == Some(true);
    let add_generation_prompt = fields
        .add_generation_prompt
        .unwrap_or(!continue_final_message);
    let extra = variables(state, &fields)?;
    let enable_thinking = extra.get("enable_thinking").and_then(Value::as_bool);
    let options = RenderOptions {
        add_generation_prompt,
        continue_final_message,
        extra,
        tools: fields.tools.map(Value::Array),
    };
    let prompt = template
        .render(&messages, &options)
        .map_err(template_error)?;
    let role_of = |message: &Value| message["role"].as_str().unwrap_or_default().to_owned();
    let last = messages.last();
    let role = match last {
        Some(last) if !add_generation_prompt => role_of(last),
        _ => "assistant".to_owned(),
    };
    let last = last.filter(|last| role_of(last) == role);
    Ok(Rendered {
        prompt,
        last: last.map(messages::text),
        role,
        is_continued: continue_final_message,
        has_think_tags: has_think_tags(&template),
        has_function_tags: source.contains(OPEN_FUNCTION),
        shows_tools: shows_tools(&template),
        enable_thinking,
    })
}

/// Whether a template names `<think>` or `</think>`.
pub(crate) fn has_think_tags(template: &ChatTemplate) -> bool {
    let mut sources = [false, true]
        .map(|has_tools| template.source_for(has_tools))
        .into_iter();
    sources.any(|source| source.contains(OPEN_THINK) || source.contains(CLOSE_THINK))
}

/// Whether the model sees the tools of a request.
pub(crate) fn shows_tools(template: &ChatTemplate) -> bool {
    template.source_for(true).contains("tools")
}

/// Why there is no template: the model has none, or the cache lacks it.
fn no_template(model: &str) -> String {
    let mut unfetched = model_qwen::unfetched(model);
    // The files that a template may be in.
    unfetched.retain(|name| name.starts_with("chat_template") || name == "tokenizer_config.json");
    let why = match !unfetched.is_empty() {
        true => format!(
            "The cache of {model} lacks {}, and so perhaps the chat template; start the server once without HF_HUB_OFFLINE, \
             or",
            unfetched.join(", ")
        ),
        false => "This model has no chat template;".to_owned(),
    };
    format!("{why} start the server with --chat-template or use /v1/completions.")
}

/// The template in force: the request's, if it may have one, or else the server's.
fn template<'a>(
    state: &'a AppState,
    requested: Option<&str>,
) -> Result<Cow<'a, ChatTemplate>, ApiError> {
    let own = state.model().chat_template.as_ref();
    let Some(source) = requested else {
        return own.map(Cow::Borrowed).ok_or_else(|| {
            ApiError::bad_request("messages", no_template(&state.model().model_id))
        });
    };
    if !state.trust_request_chat_template() {
        return Err(ApiError::bad_request(
            "chat_template",
            "`chat_template` is refused: a template is a program, and the server runs without --trust-request-chat-template.",
        ));
    }
    let special_tokens = own.map(|own| own.special_tokens().clone());
    ChatTemplate::from_stranger(source, special_tokens.unwrap_or_default())
        .map(Cow::Owned)
        .map_err(|error| ApiError::bad_request("chat_template", error.to_string()))
}

/// Variables for the template: the server's, the request's, and those that have a field.
fn variables(state: &AppState, fields: &TemplateFields) -> Result<Map<String, Value>, ApiError> {
    let given = fields.chat_template_kwargs.iter().flatten();
    if let Some((name, _)) = given
        .clone()
        .find(|(name, _)| TEMPLATE_FIELDS.contains(&name.as_str()))
    {
        let param = format!("chat_template_kwargs.{name}");
        let message = format!("`{param}` has no effect: set the request's field `{name}`.");
        return Err(ApiError::bad_request(param, message));
    }
    let mut variables = state.default_chat_template_kwargs().clone();
    variables.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    if let Some(effort) = fields.reasoning_effort {
        let value = serde_json::to_value(effort).unwrap_or_default();
        variables.insert("reasoning_effort".to_owned(), value);
        let thinks = Value::Bool(effort != ReasoningEffort::None);
        variables
            .entry("enable_thinking".to_owned())
            .or_insert(thinks);
    }
    if let Some(documents) = &fields.documents {
        variables.insert("documents".to_owned(), documents.clone().into());
    }
    Ok(variables)
}

/// Names the field that the template stumbled over.
fn template_error(error: TemplateError) -> ApiError {
    let message = error.to_string();
    match error {
        TemplateError::Message { index, field, .. } => {
            ApiError::bad_request(format!("messages[{index}]{field}"), message)
        }
        TemplateError::ContinueFinalMessage(_) => {
            ApiError::bad_request("continue_final_message", message)
        }
        TemplateError::NoProcess(_) => ApiError::unavailable(message),
        TemplateError::Raised(_)
        | TemplateError::Render(_)
        | TemplateError::File { .. }
        | TemplateError::NoDefault { .. }
        | TemplateError::Syntax { .. }
        | TemplateError::TooMuchWork { .. }
        | TemplateError::TooSlow { .. }
        | TemplateError::TooLarge { .. } => ApiError::bad_request("messages", message),
    }
}
