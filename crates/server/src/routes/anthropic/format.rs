//! Messages and their events.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::super::reasoning::WithoutSpace;
use crate::answer::{Part, arguments_object};
use crate::engine::FinishReason;
use crate::error::ApiError;
use crate::error::shape::ErrorShape;
use crate::postprocess::{Delta, Finish};
use crate::protocol::anthropic::ThinkingShown;
use crate::protocol::anthropic_answer::{ContentBlock, Message, MessageUsage};
use crate::stream::{EventFormat, TokenCounts};

/// The shape of messages.
pub(super) struct MessageFormat {
    id: String,
    model: String,
    counts: TokenCounts,
    /// What is shown of thoughts.
    thinking: ThinkingShown,
    /// Whether the context ends before `max_tokens`.
    is_cut: bool,
    space: WithoutSpace,
    /// The block that more is added to.
    open: Option<Kind>,
    num_blocks: usize,
    has_calls: bool,
    /// When the last `ping` was sent.
    pinged: Instant,
}

/// How often thoughts that are not shown give a sign.
const PING_EVERY: Duration = Duration::from_secs(10);

/// Of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    Call,
}

impl MessageFormat {
    pub(super) fn new(
        id: String,
        model: String,
        counts: TokenCounts,
        thinking: ThinkingShown,
        is_cut: bool,
    ) -> Self {
        Self {
            id,
            model,
            counts,
            thinking,
            is_cut,
            space: WithoutSpace::default(),
            open: None,
            num_blocks: 0,
            has_calls: false,
            pinged: Instant::now(),
        }
    }

    fn usage(&self) -> MessageUsage {
        self.counts.usage().into()
    }

    /// The whole answer.
    pub(super) fn response(mut self, delta: Delta) -> Message {
        self.counts.update(0, &delta);
        let content = self.blocks(delta.parts);
        let (stop_reason, stop_sequence) = self.stop(delta.finish);
        Message {
            usage: self.usage(),
            id: self.id,
            r#type: "message",
            role: "assistant",
            content,
            model: self.model,
            stop_reason: Some(stop_reason),
            stop_sequence,
        }
    }

    fn blocks(&mut self, parts: Vec<Part>) -> Vec<ContentBlock> {
        let mut blocks = Vec::new();
        let mut arguments = String::new();
        for part in parts {
            let Some(part) = self.space.take(part) else {
                continue;
            };
            match part {
                Part::Reasoning(_) if self.thinking == ThinkingShown::Nothing => {}
                Part::Reasoning(text) => {
                    let text = match self.thinking {
                        ThinkingShown::Text => text,
                        ThinkingShown::Blocks | ThinkingShown::Nothing => String::new(),
                    };
                    match blocks.last_mut() {
                        Some(ContentBlock::Thinking { thinking, .. }) => thinking.push_str(&text),
                        _ => blocks.push(thinking(text)),
                    }
                }
                Part::Content(more) => match blocks.last_mut() {
                    Some(ContentBlock::Text { text }) => text.push_str(&more),
                    _ => blocks.push(ContentBlock::Text { text: more }),
                },
                Part::Call { id, name, .. } => {
                    self.has_calls = true;
                    blocks.push(call(&id, name));
                }
                Part::Arguments { text, .. } => arguments.push_str(&text),
                Part::CallEnd { .. } => {
                    if let Some(ContentBlock::ToolUse { input, .. }) = blocks.last_mut() {
                        *input = arguments_object(&arguments);
                    }
                    arguments.clear();
                }
            }
        }
        if blocks.is_empty() {
            blocks.push(ContentBlock::Text {
                text: String::new(),
            });
        }
        blocks
    }

    /// Why an answer ended, in Anthropic's words.
    fn stop(&self, finish: Option<Finish>) -> (&'static str, Option<String>) {
        match finish {
            Some(Finish {
                reason: FinishReason::Length,
                ..
            }) if self.is_cut => ("model_context_window_exceeded", None),
            Some(Finish {
                reason: FinishReason::Length,
                ..
            }) => ("max_tokens", None),
            Some(Finish {
                stop_reason: Value::String(stop),
                ..
            }) => ("stop_sequence", Some(stop)),
            _ if self.has_calls => ("tool_use", None),
            _ => ("end_turn", None),
        }
    }

    /// Begins a block, after the one that is open.
    fn begin(&mut self, kind: Kind, block: ContentBlock, events: &mut Vec<Value>) {
        self.end(events);
        events.push(
            json!({ "type": "content_block_start", "index": self.num_blocks,
            "content_block": block }),
        );
        self.open = Some(kind);
    }

    fn more(&self, delta: Value) -> Value {
        json!({ "type": "content_block_delta", "index": self.num_blocks, "delta": delta })
    }

    fn end(&mut self, events: &mut Vec<Value>) {
        let Some(kind) = self.open.take() else { return };
        if kind == Kind::Thinking {
            events.push(self.more(json!({ "type": "signature_delta", "signature": "" })));
        }
        events.push(json!({ "type": "content_block_stop", "index": self.num_blocks }));
        self.num_blocks += 1;
    }

    /// Says now and then that thoughts go on which are not shown: proxies end a stream that says nothing.
    fn ping(&mut self, events: &mut Vec<Value>) {
        if self.pinged.elapsed() >= PING_EVERY {
            self.pinged = Instant::now();
            events.push(json!({ "type": "ping" }));
        }
    }

    fn part(&mut self, part: Part, events: &mut Vec<Value>) {
        match part {
            Part::Reasoning(_) if self.thinking == ThinkingShown::Nothing => self.ping(events),
            Part::Reasoning(text) => {
                if self.open != Some(Kind::Thinking) {
                    self.begin(Kind::Thinking, thinking(String::new()), events);
                }
                match self.thinking {
                    ThinkingShown::Text => {
                        let delta = json!({ "type": "thinking_delta", "thinking": text });
                        events.push(self.more(delta));
                    }
                    _ => self.ping(events),
                }
            }
            Part::Content(text) => {
                if self.open != Some(Kind::Text) {
                    let block = ContentBlock::Text {
                        text: String::new(),
                    };
                    self.begin(Kind::Text, block, events);
                }
                events.push(self.more(json!({ "type": "text_delta", "text": text })));
            }
            Part::Call { id, name, .. } => {
                self.has_calls = true;
                self.begin(Kind::Call, call(&id, name), events);
            }
            Part::Arguments { text, .. } => {
                let delta = json!({ "type": "input_json_delta", "partial_json": text });
                events.push(self.more(delta));
            }
            Part::CallEnd { .. } => self.end(events),
        }
    }
}

fn thinking(thinking: String) -> ContentBlock {
    ContentBlock::Thinking {
        thinking,
        signature: "",
    }
}

/// A call without arguments.
fn call(id: &str, name: String) -> ContentBlock {
    let id = id.strip_prefix("call_").unwrap_or(id);
    ContentBlock::ToolUse {
        id: format!("toolu_{id}"),
        name,
        input: Map::new(),
    }
}

impl EventFormat for MessageFormat {
    const END: Option<&'static str> = None;

    fn first(&mut self) -> Vec<Value> {
        let message = Message {
            id: self.id.clone(),
            r#type: "message",
            role: "assistant",
            content: Vec::new(),
            model: self.model.clone(),
            stop_reason: None,
            stop_sequence: None,
            usage: self.usage(),
        };
        let start = json!({ "type": "message_start", "message": message });
        vec![start, json!({ "type": "ping" })]
    }

    fn delta(&mut self, _: usize, delta: Delta) -> Vec<Value> {
        self.counts.update(0, &delta);
        let mut events = Vec::new();
        for part in delta.parts {
            if let Some(part) = self.space.take(part) {
                self.part(part, &mut events);
            }
        }
        if let Some(finish) = delta.finish {
            if self.num_blocks == 0 && self.open.is_none() {
                let block = ContentBlock::Text {
                    text: String::new(),
                };
                self.begin(Kind::Text, block, &mut events);
            }
            self.end(&mut events);
            let (stop_reason, stop_sequence) = self.stop(Some(finish));
            events.push(json!({ "type": "message_delta",
                "delta": { "stop_reason": stop_reason, "stop_sequence": stop_sequence },
                "usage": self.usage() }));
        }
        events
    }

    fn last(&mut self) -> Vec<Value> {
        vec![json!({ "type": "message_stop" })]
    }

    fn error(&mut self, error: &ApiError) -> Vec<Value> {
        vec![ErrorShape::Anthropic.body(error)]
    }

    fn name<'a>(&self, event: &'a Value) -> Option<&'a str> {
        event["type"].as_str()
    }

    fn keep_alive(&self) -> Option<Value> {
        Some(json!({ "type": "ping" }))
    }
}

#[cfg(test)]
mod tests;
