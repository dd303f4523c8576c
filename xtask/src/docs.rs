//! The flag pages of docs/ are what the programs print for `--help`.

use std::fs;

use anyhow::{Context, Result, bail};

use serde_json::Value;

use crate::{output, root, run as command};

/// A program, its commands, and the page that holds their help.
const PAGES: [(&str, &[&str], &str); 2] = [
    (
        "server",
        &[
            "run-batch",
            "bench serve",
            "bench throughput",
            "bench latency",
        ],
        "docs/src/flags-server.md",
    ),
    (
        "trainer-sft",
        &["merge", "inspect", "export", "eval"],
        "docs/src/flags-trainer-sft.md",
    ),
];

/// Writes the pages, or with `check` fails where one differs.
pub(crate) fn run(check: bool) -> Result<()> {
    command("cargo", &["build", "--workspace", "--bins"])?;
    let metadata = output("cargo", &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str();
    let target = target.context("cargo metadata: no target_directory")?;
    for (program, commands, page) in PAGES {
        let path = format!("{target}/debug/{program}");
        let mut text = format!(
            "# Flags of `{program}`\n\n{}",
            help_of(&path, program, &["--help"])?
        );
        for command in commands {
            let words: Vec<&str> = command.split(' ').chain(["-h"]).collect();
            text += &format!("\n## `{command}`\n\n{}", help_of(&path, program, &words)?);
        }
        let path = root().join(page);
        if !check {
            fs::write(&path, text).with_context(|| page.to_owned())?;
        } else if fs::read_to_string(&path).with_context(|| page.to_owned())? != text {
            bail!("{page} differs from `{program} --help`: run `cargo xtask docs`");
        }
    }
    Ok(())
}

/// What a program prints of its flags.
fn help_of(path: &str, program: &str, words: &[&str]) -> Result<String> {
    let help = output(path, words)?;
    // Wrapped lines end in blanks that editors remove.
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    Ok(format!(
        "What `cargo run -p {program} -- {}` prints.\n\n```text\n{}\n```\n",
        words.join(" "),
        help.join("\n").trim_end()
    ))
}
