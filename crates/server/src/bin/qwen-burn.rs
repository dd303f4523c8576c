//! The `qwen-burn` program: all commands of this project under one name.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::qwen_burn::run(std::env::args_os())
}
