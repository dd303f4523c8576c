//! Which parts are looked for in answers.

use clap::ValueEnum;

/// `--reasoning-parser`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum ReasoningParser {
    /// If the chat template names `<think>` or `</think>`; the prompt's end and the answer's beginning decide
    #[default]
    Auto,
    /// All text is content
    None,
    /// All text up to `</think>` is reasoning, also without `<think>`, unless the prompt ends with `</think>`
    #[value(name = "deepseek_r1")]
    DeepseekR1,
    /// From `<think>`, in the prompt or at the beginning of the answer, to `</think>`
    Qwen3,
}

/// `--tool-call-parser`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum ToolCallParser {
    /// qwen3_coder if the chat template names `<function=`, else hermes
    #[default]
    Auto,
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, as Qwen2.5 and Qwen3 write calls, or the same JSON on a line of
    /// its own or in a block of code, as small models do
    Hermes,
    /// Also `<function=NAME><parameter=P>VALUE</parameter></function>`, as Qwen3-Coder writes calls
    #[value(name = "qwen3_coder")]
    Qwen3Coder,
    /// The same as qwen3_coder
    #[value(name = "qwen3_xml")]
    Qwen3Xml,
}
