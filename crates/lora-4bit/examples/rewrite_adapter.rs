//! Reads a PEFT adapter folder and writes it again, for `xtask/golden/peft_roundtrip.py`.

use std::path::Path;
use std::process::ExitCode;

use lora_4bit::peft::LoraAdapter;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [from, to] = args.as_slice() else {
        eprintln!("usage: rewrite_adapter FROM TO");
        return ExitCode::FAILURE;
    };
    let written =
        LoraAdapter::load(Path::new(from)).and_then(|adapter| adapter.save(Path::new(to)));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
