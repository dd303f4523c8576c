//! The flag pages of docs/ are what the programs print for `--help`.

use std::fs;

use anyhow::{Context, Result, bail};

use serde_json::Value;

use crate::{output, root, run as command};

/// Program, and the page that holds its help.
const PAGES: [(&str, &str); 2] = [
    ("server", "docs/src/flags-server.md"),
    ("trainer-sft", "docs/src/flags-trainer-sft.md"),
];

/// The commands of a program that have a help of their own.
const COMMANDS: [(&str, &[&str]); 1] = [("trainer-sft", &["merge", "inspect", "export", "eval"])];

/// What a program prints, as a block of text.
fn help(program: &str, words: &[&str]) -> Result<String> {
    let help = output(program, words)?;
    // Wrapped lines end in blanks that editors remove.
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    Ok(format!("```text\n{}\n```\n", help.join("\n").trim_end()))
}

/// Writes the pages, or with `check` fails where one differs.
pub(crate) fn run(check: bool) -> Result<()> {
    command("cargo", &["build", "--workspace", "--bins"])?;
    let metadata = output("cargo", &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str();
    let target = target.context("cargo metadata: no target_directory")?;
    for (program, page) in PAGES {
        let help = |words: &[&str]| help(&format!("{target}/debug/{program}"), words);
        let mut text = format!(
            "# Flags of `{program}`\n\nWhat `cargo run -p {program} -- --help` prints.\n\n{}",
            help(&["--help"])?
        );
        let own = COMMANDS.iter().filter(|(of, _)| *of == program);
        for command in own.flat_map(|(_, commands)| *commands) {
            text += &format!(
                "\n## `{program} {command}`\n\n{}",
                help(&[command, "--help"])?
            );
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
