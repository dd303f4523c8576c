//! What a user types to go on, in what a program says at its end.

/// How the programs of this project are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commands {
    /// Before the flags of a server.
    pub serve: &'static str,
    /// Before the flags of a run.
    pub train: &'static str,
    /// Before the name of a command such as `merge`.
    pub tool: &'static str,
}

impl Commands {
    /// From the source tree.
    pub const OF_CARGO: Self = match cfg!(feature = "cuda") {
        true => Self {
            serve: "cargo run -p server --features cuda --",
            train: "cargo run -p trainer-sft --features cuda --",
            tool: "cargo run -p trainer-sft --features cuda --",
        },
        false => Self {
            serve: "cargo run -p server --",
            train: "cargo run -p trainer-sft --",
            tool: "cargo run -p trainer-sft --",
        },
    };
    /// The one program that is installed.
    pub const OF_QWEN_BURN: Self = Self {
        serve: "qwen-burn serve",
        train: "qwen-burn train",
        tool: "qwen-burn",
    };
}

/// A text as one word for a shell.
pub(crate) fn quoted(text: &str) -> String {
    let is_plain =
        |c: char| c.is_alphanumeric() || "-_./,=:@%+".contains(c) || (cfg!(windows) && c == '\\');
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
