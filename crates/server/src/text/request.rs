//! What to generate.

use model_qwen::{Grammar, SamplingParams};
use serde_json::{Value, json};

/// What to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text, continued as it is.
    Text(String),
    /// Messages (objects with `role` and `content`, as in OpenAI's API) that the assistant answers.
    Messages(Vec<Value>),
}

/// One text to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How tokens are chosen; `None` is what the model's `generation_config.json` says.
    pub sampling: Option<SamplingParams>,
    /// Most tokens to generate; `None` is as many as the context has room for.
    pub max_tokens: Option<usize>,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Name of a loaded adapter; `None` is the base model.
    pub adapter: Option<String>,
    /// What the text has to keep to; `None` is free text.
    pub grammar: Option<Grammar>,
}

impl TextRequest {
    fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            sampling: None,
            max_tokens: None,
            stop: Vec::new(),
            adapter: None,
            grammar: None,
        }
    }

    /// The assistant's answer to one message of the user.
    pub fn chat(message: impl Into<String>) -> Self {
        let message: String = message.into();
        Self::messages(vec![json!({"role": "user", "content": message})])
    }

    /// The assistant's answer to a conversation.
    pub fn messages(messages: Vec<Value>) -> Self {
        Self::new(Prompt::Messages(messages))
    }

    /// What follows a text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Prompt::Text(text.into()))
    }

    /// With this adapter.
    #[must_use]
    pub fn adapter(mut self, name: impl Into<String>) -> Self {
        self.adapter = Some(name.into());
        self
    }

    /// With at most this many tokens.
    #[must_use]
    pub fn max_tokens(mut self, num: usize) -> Self {
        self.max_tokens = Some(num);
        self
    }

    /// With these sampling parameters, such as [`SamplingParams::greedy`].
    #[must_use]
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = Some(sampling);
        self
    }

    /// Keeping to this grammar, such as a JSON Schema, to its end unless `max_tokens` comes first.
    #[must_use]
    pub fn grammar(mut self, grammar: Grammar) -> Self {
        self.grammar = Some(grammar);
        self
    }

    /// Ending before this string.
    #[must_use]
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }
}
