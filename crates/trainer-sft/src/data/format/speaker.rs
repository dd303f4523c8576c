//! Who says a turn, under the names of all formats.

use serde_json::Value;

/// Whoever says a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaker {
    System,
    User,
    Assistant,
    /// The assistant in a turn that is one call or several.
    AssistantCall,
    Tool,
}

impl Speaker {
    /// Who has this name in some format.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "system" | "developer" => Self::System,
            "user" | "human" => Self::User,
            "assistant" | "gpt" | "model" | "chatgpt" | "bing" | "bard" => Self::Assistant,
            "function_call" | "tool_call" => Self::AssistantCall,
            "tool" | "observation" | "function_response" | "tool_response" | "function" => {
                Self::Tool
            }
            _ => return None,
        })
    }

    /// Who says a turn that has not been checked.
    pub(super) fn of(turn: &Value) -> Option<Self> {
        speaker_name(turn).and_then(Self::named)
    }

    /// The role that chat templates know.
    pub(super) fn role(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant | Self::AssistantCall => "assistant",
            Self::Tool => "tool",
        }
    }

    pub(super) fn is_assistant(self) -> bool {
        matches!(self, Self::Assistant | Self::AssistantCall)
    }
}

/// The name of whoever says a turn that has not been checked.
pub(crate) fn speaker_name(turn: &Value) -> Option<&str> {
    ["role", "from"]
        .iter()
        .find_map(|key| turn.get(*key)?.as_str())
}
