//! What a chat template does, found out by rendering probes.

use model_qwen::{ChatTemplate, RenderOptions, Tokenizer};
use serde_json::{Value, json};

/// Text that no template has of its own.
pub(crate) const PROBE: &str = "QWENBURNPROBE";
/// Tokens of content, which templates print too.
const OF_CONTENT: [&str; 6] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
];

/// Tokens that end texts or turns in the vocabularies of known models.
const ENDS: [&str; 9] = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "<eos>",
    "</s>",
];

/// What a template prints. Where a probe is refused, the answer is yes: a record gets the template's own error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateFacts {
    /// The tokens around turns, such as `<|im_start|>`.
    pub markers: Vec<String>,
    /// What stands before what the system and a user say, such as `<|im_start|>user`.
    pub headers: Vec<String>,
    /// What a prompt ends with, such as `<|im_start|>assistant`.
    pub answer_header: Option<String>,
    /// The token that ends an answer.
    pub end: Option<(u32, String)>,
    /// The tokens that end a text or a turn in this vocabulary, the template's own among them.
    pub ends: Vec<String>,
    /// Whether it writes the arguments of tool calls.
    pub writes_calls: bool,
    /// Whether it writes what an answer says beside its calls.
    pub writes_text_with_calls: bool,
    /// Whether it writes function schemas.
    pub writes_tools: bool,
    /// Whether it writes results of tools.
    pub writes_results: bool,
    /// Whether it writes results of tools between `<tool_response>` and `</tool_response>`.
    pub wraps_results: bool,
    /// Whether it writes what the system says.
    pub writes_system: bool,
    /// Whether its generation prompt opens a think block.
    pub opens_think: bool,
}

/// What results of tools stand between in Qwen's templates.
const RESULT: (&str, &str) = ("<tool_response>", "</tool_response>");

/// The token that opens a think block.
pub(crate) const THINK: &str = "<think>";
/// The token that closes a think block.
pub(crate) const END_THINK: &str = "</think>";

/// Whether an answer after this prompt begins in a think block.
pub(crate) fn opens_think(prompt: &str) -> bool {
    prompt.trim_end().ends_with(THINK)
}

/// Whether an answer after this prompt begins behind an empty think block.
pub(crate) fn closes_think(prompt: &str) -> bool {
    let inside = prompt.trim_end().strip_suffix(END_THINK);
    inside.is_some_and(opens_think)
}

/// The last header in what a template writes before a content: what follows the end of another turn, from its first marker on.
fn header(before: &str, markers: &[String], end: Option<&str>) -> Option<String> {
    let after_end = end.and_then(|end| Some(before.rsplit_once(end)?.1));
    let text = after_end.unwrap_or(before);
    let text = text.split(THINK).next().unwrap_or(text).trim();
    let starts = markers
        .iter()
        .filter_map(|marker| text.find(marker.as_str()));
    let start = starts.min()?;
    Some(text[start..].to_owned())
}

impl TemplateFacts {
    /// Renders probes with `template`.
    pub fn of(template: &ChatTemplate, tokenizer: &Tokenizer) -> Self {
        let user = json!({"role": "user", "content": "hi"});
        let call = json!({"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "id": "call12345", "function": {"name": "look", "arguments": {"at": PROBE}}}]});
        let answer = json!({"role": "assistant", "content": PROBE});
        let tool = json!({"type": "function", "function": {
            "name": PROBE, "description": "d", "parameters": {"type": "object", "properties": {}}}});
        let result =
            json!({"role": "tool", "name": "look", "tool_call_id": "call12345", "content": PROBE});
        let render = |messages: &[&Value], tools: Option<Value>| {
            let messages: Vec<Value> = messages.iter().map(|&message| message.clone()).collect();
            let options = RenderOptions {
                tools,
                ..RenderOptions::default()
            };
            template.render(&messages, &options).ok()
        };
        let writes = |text: Option<String>| text.is_none_or(|text| text.contains(PROBE));
        let writes_calls = writes(render(&[&user, &call], None));
        let mut both = call.clone();
        both["content"] = PROBE.into();
        both["tool_calls"][0]["function"]["arguments"] = json!({"at": "x"});
        let before = match writes_calls {
            true => json!({"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "id": "call12345", "function": {"name": "look", "arguments": {}}}]}),
            false => json!({"role": "assistant", "content": "look"}),
        };
        let turn = render(&[&user, &answer], None).unwrap_or_default();
        let (head, tail) = turn.split_once(PROBE).unwrap_or_default();
        let special = |text: &str| {
            let tokens = tokenizer.encode(text, false).unwrap_or_default();
            let tokens = tokens.into_iter().filter_map(|token| {
                let text = String::from_utf8(tokenizer.token_bytes(token)).ok()?;
                let is_tag = text.len() > 3 && text.starts_with('<') && text.ends_with('>');
                let is_marker = tokenizer.is_special(token) || is_tag;
                (is_marker && !OF_CONTENT.contains(&text.as_str())).then_some((token, text))
            });
            tokens.collect::<Vec<_>>()
        };
        let end = special(tail).into_iter().next();
        let mut markers: Vec<String> = special(head).into_iter().map(|(_, text)| text).collect();
        markers.extend(end.iter().map(|(_, text)| text.clone()));
        markers.sort();
        markers.dedup();
        let ends = ENDS.iter().filter(|end| {
            let token = tokenizer.token_to_id(end);
            token.is_some_and(|token| tokenizer.is_special(token))
        });
        let mut ends: Vec<String> = ends.map(|end| (*end).to_owned()).collect();
        ends.extend(end.iter().map(|(_, text)| text.clone()));
        ends.sort();
        ends.dedup();
        let results = render(&[&user, &before, &result], None);
        let system = json!({"role": "system", "content": PROBE});
        let options = RenderOptions {
            add_generation_prompt: true,
            ..RenderOptions::default()
        };
        let generation = template.render(std::slice::from_ref(&user), &options);
        let header = |text: &str| header(text, &markers, end.as_ref().map(|(_, end)| end.as_str()));
        let asked = json!({"role": "user", "content": PROBE});
        let heads = [render(&[&system, &user], None), render(&[&asked], None)];
        let heads = heads.into_iter().flatten().filter_map(|text| {
            let (head, _) = text.split_once(PROBE)?;
            header(head)
        });
        let mut headers: Vec<String> = heads.collect();
        // A text may lack the token that begins it.
        let bare: Vec<String> = headers
            .iter()
            .filter_map(|header| {
                let rest = markers
                    .iter()
                    .find_map(|marker| header.strip_prefix(marker))?;
                let rest = rest.trim_start();
                let begins = markers
                    .iter()
                    .any(|marker| rest.starts_with(marker.as_str()));
                begins.then(|| rest.to_owned())
            })
            .collect();
        headers.extend(bare);
        let answer_header = template.render(&[asked], &options).ok();
        let answer_header = answer_header.and_then(|text| header(text.rsplit_once(PROBE)?.1));
        Self {
            headers,
            answer_header,
            markers,
            end,
            ends,
            writes_calls,
            writes_text_with_calls: writes(render(&[&user, &both], None)),
            writes_tools: writes(render(&[&user], Some(json!([tool])))),
            wraps_results: results.as_deref().is_some_and(|text| {
                let around = text.split_once(PROBE);
                around.is_some_and(|(head, tail)| {
                    head.trim_end().ends_with(RESULT.0) && tail.trim_start().starts_with(RESULT.1)
                })
            }),
            writes_results: writes(results),
            writes_system: writes(render(&[&system, &user], None)),
            opens_think: generation.is_ok_and(|prompt| opens_think(&prompt)),
        }
    }

    /// Whether a prompt has been rendered already: it begins with a turn, or ends where the assistant's begins. A text that only
    /// mentions a token of the template's has not.
    pub fn is_rendered(&self, prompt: &str) -> bool {
        if !self.has_marker(prompt) {
            return false;
        }
        let begins = |text: &str| {
            let mut headers = self.headers.iter();
            headers.any(|header| text.starts_with(header.as_str()))
        };
        let text = prompt.trim();
        let unmarked = self.markers.iter();
        let unmarked = unmarked.filter_map(|marker| text.strip_prefix(marker.as_str()));
        let mut unmarked = unmarked.map(str::trim_start);
        let unopened = text.strip_suffix(END_THINK).unwrap_or(text).trim_end();
        let unopened = unopened.strip_suffix(THINK).unwrap_or(text).trim_end();
        let header = self.answer_header.as_ref();
        begins(text)
            || unmarked.any(begins)
            || header.is_some_and(|header| unopened.ends_with(header.as_str()))
    }

    /// Whether a text has tokens of the template's own.
    pub fn has_marker(&self, text: &str) -> bool {
        // Every marker known so far begins like this; most texts need no further look.
        text.contains('<')
            && self
                .markers
                .iter()
                .any(|marker| text.contains(marker.as_str()))
    }

    /// A result of a tool without what the template puts around it; `None` where it has none, or the template puts none.
    pub fn without_wrapper<'a>(&self, result: &'a str) -> Option<&'a str> {
        let inside = result.trim().strip_prefix(RESULT.0)?;
        let inside = inside.strip_suffix(RESULT.1)?;
        self.wraps_results.then(|| inside.trim_matches('\n'))
    }

    /// Whether a text has a token that ends a text or a turn.
    pub fn has_end(&self, text: &str) -> bool {
        text.contains('<') && self.ends.iter().any(|end| text.contains(end.as_str()))
    }

    /// An answer without the tokens that end it, of which the template adds its own; `None` where it has none.
    pub fn without_end<'a>(&self, answer: &'a str) -> Option<&'a str> {
        let shorter = |text: &'a str| {
            let text = text.trim_end();
            self.ends
                .iter()
                .find_map(|end| text.strip_suffix(end.as_str()))
        };
        let mut rest = shorter(answer)?;
        while let Some(next) = shorter(rest) {
            rest = next;
        }
        Some(rest)
    }
}
