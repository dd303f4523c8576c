//! The flag pages of docs/ are what the programs print for `--help`.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::{output, root, run as command};

/// A program, the words after which it lists its commands, and the page that holds its help.
const PAGES: [(&str, &str, &str); 2] = [
    ("server", "--help", "docs/src/flags-server.md"),
    ("trainer-sft", "help", "docs/src/flags-trainer-sft.md"),
];
/// Commands that have no help of their own.
const WITHOUT_HELP: [&str; 2] = ["serve", "help"];

/// Writes the pages, or with `check` fails where one differs.
pub(crate) fn run(check: bool) -> Result<()> {
    command("cargo", &["build", "--workspace", "--bins"])?;
    let target = crate::target_directory()?;
    for (program, list, page) in PAGES {
        let path = format!("{target}/debug/{program}");
        let mut text = format!(
            "# Flags of `{program}`\n\n{}",
            help_of(&path, program, &["--help"])?
        );
        let listed = output(&path, &[list])?;
        let commands = commands(&listed);
        ensure!(!commands.is_empty(), "{program} {list} lists no commands");
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

/// The commands in a list that a program prints under "Commands": lines of a name and, two blanks later, what it does.
fn commands(help: &str) -> Vec<&str> {
    let lines = help.lines();
    let lines = lines
        .skip_while(|line| !line.starts_with("Commands"))
        .skip(1);
    let lines = lines.take_while(|line| line.starts_with("  "));
    let own = lines.filter_map(|line| {
        line.strip_prefix("  ")
            .filter(|rest| !rest.starts_with(' '))
    });
    let names = own.filter_map(|line| line.split("  ").next());
    names.filter(|name| !WITHOUT_HELP.contains(name)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_the_list() {
        let help = "Usage: x\n\nCommands:\n  merge        Merge a\n               long line\n  bench serve  Send\n  help         Print\n\n\
                    Options:\n  -h  Print\n";
        assert_eq!(commands(help), ["merge", "bench serve"]);
    }
}
