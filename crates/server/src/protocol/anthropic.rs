//! Requests to `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's, with vLLM's extra fields.
//!
//! A request becomes a conversation in OpenAI's form, which the chat template knows.

mod blocks;
pub mod output_config;
mod system;
#[cfg(test)]
mod tests;
mod tools;
mod turns;

use model_qwen::{Grammar, json_type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body::Body;
use super::chat::TemplateFields;
use super::common::{SamplingFields, Texts};
use super::grammar::RequestedGrammar;
use super::object::{object, switch};
use super::reasoning_effort::ReasoningEffort;
use crate::error::ApiError;
pub use output_config::OutputConfig;

/// Least `budget_tokens`, as Anthropic and vLLM have it.
const LEAST_BUDGET: usize = 1024;

/// Fields of both endpoints besides `messages`, `system` and `tools`.
#[derive(Clone, Debug, Deserialize)]
pub struct PromptFields {
    /// Served name or adapter name.
    pub model: String,
    /// Which tools are called.
    #[serde(default, deserialize_with = "object")]
    pub tool_choice: Option<ToolChoiceField>,
    /// Whether the model thinks.
    #[serde(default, deserialize_with = "object")]
    pub thinking: Option<Thinking>,
    /// How much it thinks, and what it writes.
    #[serde(default, deserialize_with = "object")]
    pub output_config: Option<OutputConfig>,
    /// The older name of `output_config.format`.
    pub output_format: Option<Value>,
    /// More variables for the template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// Fields of `/v1/messages` that say how to answer.
#[derive(Clone, Debug, Deserialize)]
pub struct AnswerFields {
    /// Most tokens to generate, as far as there is room.
    pub max_tokens: usize,
    /// Strings that end the text.
    pub stop_sequences: Option<Vec<String>>,
    /// Answer as server-sent events.
    pub stream: Option<bool>,
    /// Softmax temperature, 0 = greedy.
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// 0 or -1 = off.
    pub top_k: Option<i64>,
    /// Separates prefix-cache entries.
    pub cache_salt: Option<String>,
}

/// `tool_choice`.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToolChoiceField {
    /// As the model likes.
    Auto {
        /// At most one call.
        #[serde(default, deserialize_with = "switch")]
        disable_parallel_tool_use: Option<bool>,
    },
    /// At least one call.
    Any {
        /// Exactly one call.
        #[serde(default, deserialize_with = "switch")]
        disable_parallel_tool_use: Option<bool>,
    },
    /// A call of this tool.
    Tool {
        /// Its name.
        name: String,
        /// Exactly one call.
        #[serde(default, deserialize_with = "switch")]
        disable_parallel_tool_use: Option<bool>,
    },
    /// No calls.
    None,
}

/// `thinking`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Thinking {
    /// It thinks.
    Enabled {
        /// Most tokens.
        budget_tokens: usize,
        /// Whether the thinking is shown.
        display: Option<Display>,
    },
    /// It thinks as it likes.
    Adaptive {
        /// Whether the thinking is shown.
        display: Option<Display>,
    },
    /// It doesn't think.
    Disabled,
}

/// What an answer shows of the thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThinkingShown {
    /// Its text.
    Text,
    /// That there is some.
    Blocks,
    /// Nothing.
    Nothing,
}

/// `thinking.display`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Display {
    /// Shown; the server makes no summaries.
    Summarized,
    /// Shown.
    Updates,
    /// Left out.
    Omitted,
}

/// A conversation to answer, or whose tokens are counted.
#[derive(Debug)]
pub struct Prompt {
    /// Served name or adapter name.
    pub model: String,
    /// OpenAI's messages.
    pub messages: Vec<Map<String, Value>>,
    /// Tools, and what else the template takes.
    pub template: TemplateFields,
    /// What the answer has to keep to.
    pub grammar: Option<RequestedGrammar>,
    /// OpenAI's `tool_choice`.
    pub tool_choice: Option<Value>,
    /// Whether an answer has at most one call.
    pub only_one_call: bool,
    /// Most tokens of thinking.
    pub thinking_budget: Option<usize>,
    /// What is shown of the thinking.
    pub shown: ThinkingShown,
}

impl Prompt {
    /// Takes it out of a body that was checked.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn take(body: &mut Body) -> Result<Self, ApiError> {
        let messages = list(body, "messages")?.ok_or_else(|| {
            let message = "`messages`: missing field `messages`";
            ApiError::bad_request("messages", message)
        })?;
        let system = body.take("system");
        let tools = list(body, "tools")?.map(tools::read).transpose()?;
        let fields: PromptFields = body.read()?;
        let config = fields.output_config.as_ref();
        let grammar = format(config, fields.output_format.as_ref())?;
        let turns = turns::read(messages, system)?;
        let (tool_choice, only_one_call) = choice(fields.tool_choice);
        Ok(Self {
            model: fields.model,
            messages: turns.messages,
            thinking_budget: fields.thinking.and_then(Thinking::budget),
            // As from Anthropic's models, whose clients would find no text in the first block otherwise.
            shown: fields
                .thinking
                .map_or(ThinkingShown::Nothing, Thinking::shown),
            template: TemplateFields {
                tools,
                continue_final_message: turns.is_continued.then_some(true),
                ..thinking(
                    fields.thinking,
                    fields.output_config.and_then(|config| config.effort),
                    fields.chat_template_kwargs,
                )
            },
            grammar,
            tool_choice,
            only_one_call,
        })
    }
}

impl Thinking {
    fn budget(self) -> Option<usize> {
        match self {
            Self::Enabled { budget_tokens, .. } => Some(budget_tokens),
            Self::Adaptive { .. } | Self::Disabled => None,
        }
    }

    fn shown(self) -> ThinkingShown {
        match self {
            Self::Enabled { display, .. } | Self::Adaptive { display } => match display {
                Some(Display::Omitted) => ThinkingShown::Blocks,
                _ => ThinkingShown::Text,
            },
            // Not every model can be told not to think.
            Self::Disabled => ThinkingShown::Nothing,
        }
    }
}

impl AnswerFields {
    /// Reads and checks the fields of a body whose prompt was taken.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn read(body: &Body) -> Result<Self, ApiError> {
        let fields: Self = body.read()?;
        if fields.max_tokens == 0 {
            let message = "`max_tokens` must be at least 1, found 0.";
            return Err(ApiError::bad_request("max_tokens", message));
        }
        let stops = fields.stop_sequences.iter().flatten();
        if stops.clone().any(String::is_empty) {
            let message = "`stop_sequences` must not contain an empty string.";
            return Err(ApiError::bad_request("stop_sequences", message));
        }
        let thinking = body.read::<PromptFields>()?.thinking;
        if let Some(budget_tokens) = thinking.and_then(Thinking::budget)
            && !(LEAST_BUDGET..fields.max_tokens).contains(&budget_tokens)
        {
            let param = "thinking.budget_tokens";
            let expected = format!("at least {LEAST_BUDGET} and less than `max_tokens`");
            return Err(ApiError::expected(
                param,
                &expected,
                &budget_tokens.to_string(),
            ));
        }
        Ok(fields)
    }

    /// The same in OpenAI's form, but for `max_tokens`.
    pub fn sampling(self) -> SamplingFields {
        SamplingFields {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: self.stop_sequences.map(Texts::Many),
            stream: self.stream,
            cache_salt: self.cache_salt,
            ..SamplingFields::default()
        }
        .with_top_p_of_zero()
    }
}

/// Takes a list out of a body.
fn list(body: &mut Body, field: &str) -> Result<Option<Vec<Value>>, ApiError> {
    match body.take(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(other) => Err(ApiError::expected(field, "a list", json_type(&other))),
    }
}

/// What the answer has to keep to, if there is a format.
fn format(
    config: Option<&OutputConfig>,
    older: Option<&Value>,
) -> Result<Option<RequestedGrammar>, ApiError> {
    let format = config.and_then(|config| config.format.as_ref());
    let [format, older] = [format, older].map(|format| format.filter(|format| !format.is_null()));
    let (param, format) = match (format, older) {
        (Some(_), Some(_)) => {
            let message =
                "`output_format` is the older name of `output_config.format`: both are given.";
            return Err(ApiError::bad_request("output_format", message));
        }
        (Some(format), None) => ("output_config.format", format),
        (None, Some(format)) => ("output_format", format),
        (None, None) => return Ok(None),
    };
    let mut keys = format.as_object().into_iter().flat_map(Map::keys);
    if let Some(unknown) = keys.find(|key| !matches!(key.as_str(), "type" | "schema")) {
        let param = format!("{param}.{unknown}");
        let message = format!("`{param}`: there is no such field; expected type and schema.");
        return Err(ApiError::bad_request(param, message));
    }
    match (format["type"].as_str(), &format["schema"]) {
        (Some("json_schema"), schema @ Value::Object(_)) => Ok(Some(RequestedGrammar::new(
            format!("{param}.schema"),
            Grammar::JsonSchema(schema.clone()),
        ))),
        _ => {
            let expected = "{\"type\": \"json_schema\", \"schema\": {…}}";
            Err(ApiError::expected(param, expected, "something else"))
        }
    }
}

/// OpenAI's `tool_choice`, and whether an answer has at most one call.
fn choice(field: Option<ToolChoiceField>) -> (Option<Value>, bool) {
    let (choice, disable) = match field {
        None => return (None, false),
        Some(ToolChoiceField::None) => return (Some(json!("none")), false),
        Some(ToolChoiceField::Auto {
            disable_parallel_tool_use,
        }) => (json!("auto"), disable_parallel_tool_use),
        Some(ToolChoiceField::Any {
            disable_parallel_tool_use,
        }) => (json!("required"), disable_parallel_tool_use),
        Some(ToolChoiceField::Tool {
            name,
            disable_parallel_tool_use,
        }) => {
            let choice = json!({ "type": "function", "function": { "name": name } });
            (choice, disable_parallel_tool_use)
        }
    };
    (Some(choice), disable.unwrap_or(false))
}

/// What the template is told of thinking.
fn thinking(
    thinking: Option<Thinking>,
    effort: Option<ReasoningEffort>,
    kwargs: Option<Map<String, Value>>,
) -> TemplateFields {
    let mut kwargs = kwargs.unwrap_or_default();
    let effort = match thinking {
        Some(Thinking::Disabled) => Some(ReasoningEffort::None),
        _ => effort,
    };
    let switch = match (thinking, effort) {
        (Some(Thinking::Enabled { .. }), None) => Some(true),
        (Some(Thinking::Disabled), _) => Some(false),
        _ => None,
    };
    if let Some(on) = switch {
        kwargs.entry("enable_thinking").or_insert(Value::Bool(on));
    }
    TemplateFields {
        chat_template_kwargs: (!kwargs.is_empty()).then_some(kwargs),
        reasoning_effort: effort,
        ..TemplateFields::default()
    }
}
