//! The `server` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::program::run(std::env::args_os())
}
