//! `trainer-sft`: settings in, adapter folder out.

use std::process::ExitCode;

use trainer_sft::program::{self, Commands};

fn main() -> ExitCode {
    program::run(std::env::args_os(), Commands::OF_CARGO)
}
