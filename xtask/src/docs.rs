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

/// Writes the pages, or with `check` fails where one differs.
pub(crate) fn run(check: bool) -> Result<()> {
    command("cargo", &["build", "--workspace", "--bins"])?;
    let metadata = output("cargo", &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str();
    let target = target.context("cargo metadata: no target_directory")?;
    for (program, page) in PAGES {
        let help = output(&format!("{target}/debug/{program}"), &["--help"])?;
        // Wrapped lines end in blanks that editors remove.
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let text = format!(
            "# Flags of `{program}`\n\nWhat `cargo run -p {program} -- --help` prints.\n\n\
             ```text\n{}\n```\n",
            help.join("\n").trim_end()
        );
        let path = root().join(page);
        if !check {
            fs::write(&path, text).with_context(|| page.to_owned())?;
        } else if fs::read_to_string(&path).with_context(|| page.to_owned())? != text {
            bail!("{page} differs from `{program} --help`: run `cargo xtask docs`");
        }
    }
    Ok(())
}
