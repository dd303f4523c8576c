//! From a conversation to running choices: what all APIs of conversations share.

use std::sync::{Arc, Once};

use serde_json::{Map, Value};

use super::constraint::{Constrained, PlacedGrammar, Sequence, Uncompiled, sequence};
use super::prompt::{Length, encode};
use super::reasoning::{is_reasoning_open, reasoning_start, thinking_budget};
use super::tokenize::check_size;
use crate::answer::{
    AnswerOptions, CLOSE_CALL, CLOSE_THINK, CallOptions, OPEN_CALL, OPEN_THINK, ReasoningStart,
    Tool,
};
use crate::config::ToolCallParser;
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::protocol::call_grammar::{CallForms, after_reasoning, with_calls, with_reasoning};
use crate::protocol::chat::{Rendered, TemplateFields, render};
use crate::protocol::common::SamplingFields;
use crate::protocol::grammar::RequestedGrammar;
use crate::protocol::sampling::{MaxTokens, TextOptions};
use crate::protocol::tools::{self, ToolChoice, read_tools};
use crate::state::AppState;
use crate::stream::{RunningChoice, submit_choices};

/// A conversation to answer, whichever API it came by.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// Served name or adapter name.
    pub(super) model: Option<String>,
    /// OpenAI's messages.
    pub(super) messages: Vec<Map<String, Value>>,
    /// Tools, and what else the template takes.
    pub(super) template: TemplateFields,
    /// Sampling and stopping.
    pub(super) sampling: SamplingFields,
    /// Most tokens to generate.
    pub(super) max_tokens: MaxTokens,
    /// Log-probabilities with so many alternatives.
    pub(super) num_logprobs: Option<usize>,
    /// What the answer has to keep to.
    pub(super) grammar: Option<RequestedGrammar>,
    /// Which tools are called.
    pub(super) tool_choice: tools::AllowedTools,
    /// Whether an answer has at most one call.
    pub(super) only_one_call: bool,
    /// Most tokens of reasoning; -1 = any number.
    pub(super) thinking_token_budget: Option<i64>,
}

/// A checked conversation, ready to be submitted.
#[derive(Debug)]
pub(super) struct PreparedChat {
    /// The name for the answer.
    pub(super) model: String,
    /// Prompt and settings.
    pub(super) request: GenerateRequest,
    /// How the text ends.
    pub(super) text: TextOptions,
    /// Which parts it has.
    pub(super) parts: AnswerOptions,
    /// As they came.
    pub(super) sampling: SamplingFields,
    /// Role of the answers.
    pub(super) role: String,
    /// Text of the last message, if it has this role.
    pub(super) last: Option<String>,
    /// Still to be compiled.
    pub(super) grammar: Option<Uncompiled>,
}

impl Constrained for PreparedChat {
    fn take_grammar(&mut self) -> Option<Uncompiled> {
        self.grammar.take()
    }

    fn sequences(&mut self) -> &mut [GenerateRequest] {
        std::slice::from_mut(&mut self.request)
    }
}

impl Conversation {
    /// Checks, renders and tokenizes. Errors name fields as `/v1/chat/completions` has them.
    ///
    /// # Errors
    /// 400 with the field, 404 for an unknown model.
    pub(super) fn prepare(mut self, state: &AppState) -> Result<PreparedChat, ApiError> {
        let (model, adapter) = state.resolve_model(self.model.as_deref())?;
        if self.max_tokens == MaxTokens::Exactly(0) {
            let message = "`max_tokens` must be at least 1, found 0.";
            return Err(ApiError::bad_request("max_tokens", message));
        }
        let add_special_tokens = self.template.add_special_tokens.unwrap_or(false);
        let (rendered, tools) = self.render(state)?;
        let Self {
            sampling,
            max_tokens: requested,
            num_logprobs,
            grammar,
            tool_choice:
                tools::AllowedTools {
                    tool_choice,
                    allowed,
                },
            only_one_call,
            thinking_token_budget,
            ..
        } = self;
        let mut params = sampling.sampling_params(state, num_logprobs)?;
        let mut text = sampling.text_options(state)?;

        let grammar = match looks_for_calls(state, &tool_choice) {
            true => {
                let forms = CallForms {
                    only_one: only_one_call,
                    only_these: allowed.is_some(),
                    functions: writes_functions(state.api().tool_call_parser, &rendered),
                };
                with_calls(grammar, &tool_choice, &tools, forms)?
            }
            false => grammar,
        };
        let parts = AnswerOptions {
            reasoning: reasoning_start(state.api().reasoning_parser, &rendered),
            think_ids: [OPEN_THINK, CLOSE_THINK]
                .map(|tag| state.model().tokenizer.token_to_id(tag)),
            calls: looks_for_calls(state, &tool_choice)
                .then(|| {
                    let bare_functions = writes_functions(state.api().tool_call_parser, &rendered);
                    CallOptions {
                        tools: tools.into(),
                        bare_functions,
                        only_one: only_one_call,
                        only_these: allowed.is_some(),
                    }
                })
                .filter(|calls| !calls.tools.is_empty()),
        };
        text.kept_special = kept_special(state, &parts);
        let length = Length::of(state, &sampling, "messages", requested.exact())?;
        let parser = state.api().reasoning_parser;
        params.thinking_budget = thinking_budget(thinking_token_budget, parser, &rendered, &parts)?;
        let is_forced = matches!(tool_choice, ToolChoice::Required | ToolChoice::Named(_));
        let grammar = place_grammar(grammar, &rendered, &parts, is_forced)?;
        let prompt = encode(state, &rendered.prompt, add_special_tokens, &length)?;
        let max_tokens = sampling.max_tokens(state, prompt.len(), requested, "messages")?;
        let Sequence {
            request,
            text,
            grammar,
        } = sequence(state, grammar, &sampling, params, adapter, text);
        let request = GenerateRequest {
            prompt,
            max_tokens,
            ..request
        };
        Ok(PreparedChat {
            model,
            request,
            text,
            parts,
            sampling,
            role: rendered.role,
            last: rendered.last,
            grammar,
        })
    }

    /// The tokens of the prompt, which may have any length unless it is to be cut.
    ///
    /// # Errors
    /// 400 with the field, 404 for an unknown model.
    pub(super) fn count(mut self, state: &AppState) -> Result<usize, ApiError> {
        state.resolve_model(self.model.as_deref())?;
        let add_special_tokens = self.template.add_special_tokens.unwrap_or(false);
        let (rendered, _) = self.render(state)?;
        check_size("messages", &rendered.prompt)?;
        let length = match self.sampling.truncate_prompt_tokens {
            Some(_) => {
                let requested = self.max_tokens.exact();
                Length::of(state, &self.sampling, "messages", requested)?
            }
            None => Length::any("messages"),
        };
        let prompt = encode(state, &rendered.prompt, add_special_tokens, &length)?;
        Ok(prompt.len())
    }

    /// The messages as the model reads them, and the tools that it may call. It reads of all tools, so that a prompt stays the
    /// same whichever are allowed, and the prefix cache has it.
    fn render(&mut self, state: &AppState) -> Result<(Rendered, Vec<Tool>), ApiError> {
        let mut template = std::mem::take(&mut self.template);
        // All are checked, so that an error names a tool's place in the request.
        let mut tools = read_tools(template.tools.as_deref().unwrap_or_default())?;
        let choice = &self.tool_choice;
        tools.retain(|tool| choice.allows(&tool.name));
        let exclude = state.api().exclude_tools_when_tool_choice_none;
        if exclude && choice.tool_choice == ToolChoice::None {
            template.tools = None;
        }
        let gives_tools = template
            .tools
            .as_ref()
            .is_some_and(|tools| !tools.is_empty());
        let rendered = render(state, std::mem::take(&mut self.messages), template)?;
        if gives_tools && !rendered.shows_tools {
            warn_of_hidden_tools();
        }
        Ok((rendered, tools))
    }
}

impl PreparedChat {
    /// The same with errors of the grammar that name fields as an endpoint does.
    pub(super) fn renamed(
        self,
        rename: impl FnOnce(ApiError) -> ApiError + Send + 'static,
    ) -> Self {
        let grammar = self.grammar.map(|grammar| grammar.renamed(rename));
        Self { grammar, ..self }
    }

    /// Starts as many choices as were asked for.
    ///
    /// # Errors
    /// As [`crate::engine::EngineHandle::submit`].
    pub(super) fn submit(&self, state: &AppState) -> Result<Vec<RunningChoice>, ApiError> {
        let requests = std::slice::from_ref(&self.request);
        submit_choices(state, requests, self.sampling.n(), |i, mut request| {
            // The prompt is the same for all.
            request.prompt_logprobs = request.prompt_logprobs.filter(|_| i == 0);
            let choice = RunningChoice::submit(state, i, request, &self.text, false)?;
            Ok(choice.in_parts(self.parts.clone()))
        })
    }

    /// Lengths of the prompts, for the usage.
    pub(super) fn prompt_lens(&self) -> Arc<[usize]> {
        Arc::new([self.request.prompt.len()])
    }
}

/// Whether calls are parts of an answer.
fn looks_for_calls(state: &AppState, choice: &ToolChoice) -> bool {
    match choice {
        ToolChoice::None => false,
        ToolChoice::Auto => state.api().enable_auto_tool_choice,
        ToolChoice::Required | ToolChoice::Named(_) => true,
    }
}

/// Whether the model writes calls as `<function=…>`.
fn writes_functions(parser: ToolCallParser, rendered: &Rendered) -> bool {
    match parser {
        ToolCallParser::Auto => rendered.has_function_tags,
        ToolCallParser::Hermes => false,
        ToolCallParser::Qwen3Coder | ToolCallParser::Qwen3Xml => true,
    }
}

/// Says once in the log that the model can't know the tools.
fn warn_of_hidden_tools() {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| tracing::warn!("the chat template does not show `tools` to the model"));
}

/// What the answer has to keep to, and from where on.
///
/// # Errors
/// 400 if the prompt ends inside of reasoning, and nothing says where the grammar begins.
fn place_grammar(
    asked: Option<RequestedGrammar>,
    rendered: &Rendered,
    parts: &AnswerOptions,
    is_forced: bool,
) -> Result<Option<PlacedGrammar>, ApiError> {
    let Some(asked) = asked else {
        return Ok(None);
    };
    let is_open = match parts.reasoning {
        ReasoningStart::Tag => return Ok(Some(PlacedGrammar::at_start(with_reasoning(asked)))),
        ReasoningStart::Prompt => true,
        ReasoningStart::None => is_reasoning_open(rendered) == Some(true),
    };
    if !is_open {
        return Ok(Some(PlacedGrammar::at_start(asked)));
    }
    // Where a call must come, the answer can't end with its reasoning.
    match parts.think_ids[1].filter(|_| !is_forced) {
        Some(close) => Ok(Some(PlacedGrammar {
            grammar: asked,
            after_token: Some(close),
        })),
        None => Ok(Some(PlacedGrammar::at_start(after_reasoning(asked)?))),
    }
}

/// The tags of the parts that are special tokens, which the text would not show.
fn kept_special(state: &AppState, parts: &AnswerOptions) -> Vec<(u32, String)> {
    let think = [OPEN_THINK, CLOSE_THINK].map(|tag| (parts.reasoning != ReasoningStart::None, tag));
    let calls = [OPEN_CALL, CLOSE_CALL].map(|tag| (parts.calls.is_some(), tag));
    let tokenizer = &state.model().tokenizer;
    let tags = think.into_iter().chain(calls).filter_map(|(is_used, tag)| {
        let id = tokenizer
            .token_to_id(tag)
            .filter(|id| tokenizer.is_special(*id));
        id.filter(|_| is_used).map(|id| (id, tag.to_owned()))
    });
    tags.collect()
}

#[cfg(test)]
mod tests {
    use model_qwen::Grammar;

    use super::*;

    #[test]
    fn a_grammar_begins_after_the_token_that_ends_open_reasoning() {
        let place = |prompt: &str, reasoning: ReasoningStart, is_forced: bool| {
            let parts = AnswerOptions {
                reasoning,
                think_ids: [Some(7), Some(8)],
                calls: None,
            };
            let asked = RequestedGrammar::new("response_format", Grammar::JsonObject);
            let placed =
                place_grammar(Some(asked), &Rendered::of_prompt(prompt), &parts, is_forced);
            let placed = placed.unwrap().unwrap();
            let is_whole = placed.grammar.grammar == Grammar::JsonObject;
            (is_whole, placed.after_token)
        };
        let open = "assistant\n<think>\n";
        let (looked_for, ignored) = (ReasoningStart::Prompt, ReasoningStart::None);
        assert_eq!(place(open, looked_for, false), (true, Some(8)));
        assert_eq!(place(open, ignored, false), (true, Some(8)));
        // The grammar has the reasoning in it.
        assert_eq!(place(open, looked_for, true), (false, None));
        assert_eq!(place("assistant\n", ignored, false), (true, None));
    }
}
