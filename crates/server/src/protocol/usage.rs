//! Token counts in answers.

use schemars::JsonSchema;
use serde::Serialize;

/// The `usage` object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Prompt and output tokens.
    pub total_tokens: usize,
    /// Tokens of all outputs.
    pub completion_tokens: usize,
    /// How many prompt tokens came from the cache.
    pub prompt_tokens_details: PromptTokensDetails,
    /// What the output tokens were for, where answers are split into reasoning and content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// Part of [`Usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PromptTokensDetails {
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: usize,
}

/// Part of [`Usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CompletionTokensDetails {
    /// Output tokens of reasoning.
    pub reasoning_tokens: usize,
}

impl Usage {
    /// Usage from its three counts.
    pub fn new(prompt_tokens: usize, completion_tokens: usize, cached_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens_details: None,
        }
    }
}
