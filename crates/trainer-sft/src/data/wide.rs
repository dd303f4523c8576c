//! Whole numbers of a record that do not fit into 64 bits: parsed, they would be other numbers.

use model_qwen::wide_integers;

pub(crate) use model_qwen::wide_integers::WIDE_EXPECTED as EXPECTED;
pub(super) use model_qwen::wide_integers::{behind_string, wide_integer};

/// Fields of which a chat template writes numbers.
const WRITTEN: [&str; 4] = ["arguments", "tools", "functions", "chat_template_kwargs"];

/// Fields of a record that formats read, with numbers of which a template writes some.
pub(super) const READ: [&str; 14] = [
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "input",
    "preferred_output",
    "non_preferred_output",
    "history",
    "tools",
    "functions",
    "chat_template_kwargs",
];

/// The first such number that a template writes, with its place: in a list of turns, or in the fields of an object that
/// `is_read` says.
pub(crate) fn written_wide_integer(
    json: &str,
    is_read: &dyn Fn(&str) -> bool,
) -> Option<(String, String)> {
    wide_integers::written_wide_integer(json, is_read, &WRITTEN)
}
