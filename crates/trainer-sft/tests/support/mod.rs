//! The program, run as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What the program said.
pub(crate) struct Said {
    /// Its exit status.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Said {
    /// What a program that has ended said.
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[allow(dead_code, reason = "some tests look at the code")]
    pub(crate) fn is_success(&self) -> bool {
        self.code == 0
    }
}

/// Runs the program, without standard input.
pub(crate) fn program(arguments: &[&str]) -> Said {
    let mut program = Command::new(env!("CARGO_BIN_EXE_trainer-sft"));
    let program = program.args(arguments).stdin(Stdio::null());
    Said::of(program.output().unwrap())
}

/// The folder `data` of the repository.
pub(crate) fn data_folder() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data");
    path.canonicalize().unwrap()
}

pub(crate) fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}
