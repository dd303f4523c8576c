//! A conversation → segments of text, some of them learnt.

use model_qwen::{ChatTemplate, RenderOptions};
use serde_json::{Value, json};

use super::Renderer;
use crate::config::{Thinking, TrainOn};
use crate::data::format::{TurnKind, role_of};
use crate::data::{Chat, DataError, Source};
use crate::template_facts::{END_THINK, PROBE, THINK, closes_think, opens_think};

/// Tokens of text that is encoded by itself.
pub(super) struct Segment {
    pub(super) tokens: Vec<u32>,
    pub(super) kind: TurnKind,
}

/// One turn of the assistant.
struct Answer {
    /// Its message.
    index: usize,
    /// What the template writes before it.
    prompt: String,
    /// What the assistant says; `None` where it is not learnt and the template does not say.
    target: Option<String>,
}

/// One conversation under one template.
pub(super) struct Turns<'a> {
    pub(super) renderer: &'a Renderer,
    pub(super) template: &'a ChatTemplate,
    pub(super) source: &'a Source,
    pub(super) chat: &'a Chat,
}

impl Turns<'_> {
    /// The conversation as one document, or as one per learnt turn where the template rewrites earlier turns.
    pub(super) fn documents(&self) -> Result<Vec<Vec<Segment>>, DataError> {
        let messages = &self.chat.messages;
        let full = self.text(messages, false)?;
        let mut answers = Vec::new();
        for index in (0..messages.len()).filter(|&index| role_of(&messages[index]) == "assistant") {
            let prompt = self.text(&messages[..index], true)?;
            let target = match index + 1 == messages.len() {
                true => self.target(index, &prompt, &full),
                false => self
                    .text(&messages[..=index], false)
                    .and_then(|rendered| self.target(index, &prompt, &rendered)),
            };
            let target = match target {
                Err(error) if self.chat.kinds[index] == TurnKind::Answer => return Err(error),
                target => target.ok(),
            };
            answers.push(Answer {
                index,
                prompt,
                target,
            });
        }
        let mut cursor = 0;
        let continues = |answer: &Answer| {
            let (prompt, Some(target)) = (&answer.prompt, &answer.target) else {
                return false;
            };
            let is_next = prompt.len() >= cursor
                && full.starts_with(prompt.as_str())
                && full[prompt.len()..].starts_with(target.as_str());
            cursor = prompt.len() + target.len();
            is_next
        };
        let mut documents = Vec::new();
        if answers.iter().all(continues) {
            let mut segments = Vec::new();
            let mut cursor = 0;
            for answer in &answers {
                let target = answer.target.as_deref().unwrap_or_default();
                let prompt = &full[cursor..answer.prompt.len()];
                self.push(&mut segments, prompt, TurnKind::Prompt)?;
                self.push_target(&mut segments, target, self.chat.kinds[answer.index])?;
                cursor = answer.prompt.len() + target.len();
            }
            documents.push(segments);
            return Ok(documents);
        }
        let train_on = self.renderer.settings.train_on;
        if train_on == TrainOn::Prompt && answers.len() > 1 {
            return Ok(vec![self.prompts(&full, &answers)?]);
        }
        if train_on == TrainOn::All && self.chat.kinds.contains(&TurnKind::Unlearnt) {
            return Err(self.rewritten(
                "--train-on all would learn turns that are marked as not to be learnt",
            ));
        }
        for answer in answers {
            if self.chat.kinds[answer.index] != TurnKind::Answer {
                continue;
            }
            let mut segments = Vec::new();
            self.push(&mut segments, &answer.prompt, TurnKind::Prompt)?;
            let target = answer.target.as_deref().unwrap_or_default();
            self.push_target(&mut segments, target, TurnKind::Answer)?;
            documents.push(segments);
        }
        Ok(documents)
    }

    /// The conversation as it is written in the end, in which an answer goes from its prompt to its end token.
    fn prompts(&self, full: &str, answers: &[Answer]) -> Result<Vec<Segment>, DataError> {
        let unknown =
            || self.rewritten("where the answers in the prompt begin and end would be a guess");
        let (_, end_token) = self.renderer.facts.end.as_ref().ok_or_else(unknown)?;
        let (mut segments, mut cursor) = (Vec::new(), 0);
        for answer in answers {
            let prompt = answer.prompt.as_str();
            // What opens a think block is taken out of earlier turns with the reasoning.
            let unopened = prompt.trim_end().strip_suffix(THINK).unwrap_or(prompt);
            let written = [prompt, unopened]
                .into_iter()
                .find(|prompt| full.starts_with(prompt));
            let start = written.ok_or_else(unknown)?.len();
            if start < cursor {
                return Err(unknown());
            }
            let length = full[start..].find(end_token).ok_or_else(unknown)?;
            let end = start + length + end_token.len();
            self.push(&mut segments, &full[cursor..start], TurnKind::Prompt)?;
            self.push(
                &mut segments,
                &full[start..end],
                self.chat.kinds[answer.index],
            )?;
            cursor = end;
        }
        self.push(&mut segments, &full[cursor..], TurnKind::Prompt)?;
        Ok(segments)
    }

    fn rewritten(&self, why: &str) -> DataError {
        DataError::Render {
            source_place: self.source.clone(),
            reason: format!(
                "the chat template rewrites earlier turns, so that {why}: take --train-on assistant"
            ),
        }
    }

    fn push(
        &self,
        segments: &mut Vec<Segment>,
        text: &str,
        kind: TurnKind,
    ) -> Result<(), DataError> {
        let tokens = self.renderer.encode(self.source, text, false)?;
        segments.push(Segment { tokens, kind });
        Ok(())
    }

    /// The answer and its end token are learnt; white space that the template prints after the end token is not.
    fn push_target(
        &self,
        segments: &mut Vec<Segment>,
        target: &str,
        kind: TurnKind,
    ) -> Result<(), DataError> {
        let (answer, rest) = target.split_at(target.trim_end().len());
        if !rest.is_empty() {
            let tokens = self.renderer.encode(self.source, answer, false)?;
            if tokens
                .last()
                .is_some_and(|&last| self.renderer.is_end(last))
            {
                segments.push(Segment { tokens, kind });
                return self.push(segments, rest, TurnKind::Prompt);
            }
        }
        self.push(segments, target, kind)
    }

    /// What the assistant says after `prompt` in message `index`.
    /// `rendered` is the conversation up to that message.
    fn target(&self, index: usize, prompt: &str, rendered: &str) -> Result<String, DataError> {
        let messages = &self.chat.messages;
        let (reasoning, answer) = split_reasoning(&messages[index]);
        let opens_think = opens_think(prompt);
        let wants_empty = self.renderer.settings.thinking == Thinking::Empty;
        let is_blank = reasoning
            .as_ref()
            .is_none_or(|reasoning| reasoning.trim().is_empty());
        let is_closed = closes_think(prompt);
        if is_closed && !is_blank {
            return Err(self.closed(index));
        }
        let lacks_reasoning = reasoning.is_none()
            && opens_think
            && !wants_empty
            && self.chat.kinds[index] == TurnKind::Answer;
        if lacks_reasoning && rendered.starts_with(prompt) {
            return Err(self.no_reasoning(index));
        }
        if let Some(target) = rendered.strip_prefix(prompt) {
            let is_complete = match &reasoning {
                // The prompt has the empty block.
                _ if is_closed => !target.contains(END_THINK),
                Some(reasoning) => {
                    target.contains(reasoning.as_str())
                        && (opens_think || target.contains(END_THINK))
                }
                None => {
                    let can_think = self.renderer.tokenizer.token_to_id(THINK).is_some();
                    opens_think || !wants_empty || !can_think || target.contains(END_THINK)
                }
            };
            if is_complete {
                return Ok(target.to_owned());
            }
        }
        let has_tools = messages[index].get("tool_calls").is_some();
        if let (true, Some(reasoning), true) = (has_tools, &reasoning, rendered.starts_with(prompt))
            && !rendered[prompt.len()..].contains(reasoning.as_str())
        {
            return Err(DataError::NotWritten {
                source_place: self.source.clone(),
                field: format!("messages[{index}]"),
                what: "reasoning before tool calls",
                instead: "leave the reasoning out, or write it into `content`",
            });
        }
        if has_tools || (reasoning.is_none() && !opens_think && !wants_empty) {
            return Err(DataError::Prefix {
                source_place: self.source.clone(),
                message: index,
                rendered: tail(rendered),
                prompt: tail(prompt),
            });
        }
        let reasoning = match reasoning {
            Some(reasoning) => reasoning,
            None if wants_empty => String::new(),
            None => return Err(self.no_reasoning(index)),
        };
        let end = self.text_after_answer(index)?;
        if is_closed {
            return Ok(format!("{answer}{end}"));
        }
        let open = match (opens_think, prompt.ends_with(THINK)) {
            (false, _) => "<think>\n",
            (true, true) => "\n",
            (true, false) => "",
        };
        Ok(format!("{open}{reasoning}\n{END_THINK}\n\n{answer}{end}"))
    }

    fn no_reasoning(&self, message: usize) -> DataError {
        DataError::NoReasoning {
            source_place: self.source.clone(),
            message,
        }
    }

    /// Reasoning after a prompt that says that there is none.
    fn closed(&self, message: usize) -> DataError {
        let flag = match self.chat.with.variables.contains_key("enable_thinking") {
            true => "`enable_thinking` of `chat_template_kwargs`",
            false => "what makes the template close the block",
        };
        DataError::Render {
            source_place: self.source.clone(),
            reason: format!(
                "message {message}: the chat template's prompt for this answer ends with a closed think block, and the answer has \
                 reasoning, which would follow it: leave out the reasoning, or {flag}"
            ),
        }
    }

    /// What the template prints after the answer of message `index`: its end token.
    fn text_after_answer(&self, index: usize) -> Result<String, DataError> {
        let mut messages = self.chat.messages[..index].to_vec();
        messages.push(json!({"role": "assistant", "content": PROBE}));
        let rendered = self.text(&messages, false)?;
        match rendered.rsplit_once(PROBE) {
            Some((_, end)) => Ok(end.to_owned()),
            None => Err(DataError::Render {
                source_place: self.source.clone(),
                reason: "the chat template does not print the assistant's content".into(),
            }),
        }
    }

    fn text(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String, DataError> {
        let options = RenderOptions {
            add_generation_prompt,
            tools: self.chat.with.tools.clone(),
            extra: self.chat.with.variables.clone(),
            ..RenderOptions::default()
        };
        self.template
            .render(messages, &options)
            .map_err(|error| DataError::Render {
                source_place: self.source.clone(),
                reason: error.to_string(),
            })
    }
}

/// Reasoning, from its own field or from before `</think>`, and the answer.
fn split_reasoning(message: &Value) -> (Option<String>, String) {
    let content = message
        .get("content")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if let Some(reasoning) = message.get("reasoning_content").and_then(Value::as_str)
        && !reasoning.is_empty()
    {
        return (
            Some(reasoning.trim_matches('\n').to_owned()),
            content.trim_start_matches('\n').to_owned(),
        );
    }
    match content.rsplit_once(END_THINK) {
        Some((reasoning, answer)) => {
            let reasoning = reasoning.trim_start();
            let reasoning = reasoning.strip_prefix(THINK).unwrap_or(reasoning);
            (
                Some(reasoning.trim_matches('\n').to_owned()),
                answer.trim_start_matches('\n').to_owned(),
            )
        }
        None => (None, content.to_owned()),
    }
}

/// The last 60 characters.
fn tail(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(60);
    text.chars().skip(skip).collect()
}
