//! Names of the fields that have a question, an answer or its reasoning.

/// Fields that have the question itself.
pub(crate) const PROMPTS: [&str; 3] = ["prompt", "messages", "conversations"];
/// Lists of turns that may be the question, in the order in which they are looked for.
pub(super) const LISTS: [&str; 3] = ["messages", "conversations", "conversation"];
/// Texts that may be the question.
pub(super) const TEXTS: [&str; 3] = ["instruction", "question", "query"];
/// What the answers are called in OpenAI's files.
pub(super) const OPENAI: [(&str, &str); 2] = [
    ("chosen", "preferred_output"),
    ("rejected", "non_preferred_output"),
];
/// Texts that may be the answer that a label is about.
pub(super) const JUDGED: [&str; 2] = ["output", "response"];
/// Names of answers. An answer that is worked out comes before the bare one beside it.
pub(super) const ANSWERS: [&str; 15] = [
    "completion",
    "solution",
    "generated_solution",
    "answer",
    "response",
    "output",
    "generation",
    "assistant",
    "bot",
    "message_2",
    "summary",
    TARGET,
    "targets",
    "label_text",
    "reply",
];
pub(super) const TARGET: &str = "target";
/// Names of wanted answers beside rejected ones.
pub(super) const WANTED: [&str; 4] = [
    "chosen",
    "chosen_response",
    "chosen_messages",
    "preferred_output",
];
/// Names of the answers that are not wanted, in the same order.
pub(super) const REJECTED: [&str; 4] = [
    "rejected",
    "rejected_response",
    "rejected_messages",
    "non_preferred_output",
];
/// Names of the assistant's reasoning.
pub(super) const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];
/// The one that is a part of `--columns`.
pub(super) const REASONING_PART: &str = "reasoning";
/// Further names of reasoning in data sets of the Hub, which `--columns` reads.
pub(super) const OTHER_REASONING: [&str; 8] = [
    "complex_cot",
    "thinking_trajectories",
    "chain_of_thought",
    "cot",
    "thought",
    "thoughts",
    "think",
    "rationale",
];

/// Whether this key of a record is its question, where it has no `prompt`.
pub(super) fn is_question(key: &str) -> bool {
    LISTS.contains(&key) || TEXTS.contains(&key) || ["input", "history"].contains(&key)
}

/// Whether this key of a record is its answer, where it has a label and no `completion`.
pub(super) fn is_answer(key: &str) -> bool {
    JUDGED.contains(&key)
}

/// Whether this key of a record is an answer of OpenAI's.
pub(super) fn is_openai_answer(key: &str) -> bool {
    OPENAI.iter().any(|(_, theirs)| *theirs == key)
}
