//! The flag pages of docs/ are what the programs print for `--help`.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::{output, root, run as command};

/// A program and the page that holds its help.
struct Page {
    program: &'static str,
    /// How it is run from the source tree.
    run: &'static str,
    /// The word after which it lists its commands.
    list: &'static str,
    /// Commands whose help is not on this page: they have none of their own, or it is on another page.
    without: &'static [&'static str],
    page: &'static str,
}

const PAGES: [Page; 3] = [
    Page {
        program: "server",
        run: "cargo run -p server --",
        list: "--help",
        without: &["serve", "help"],
        page: "docs/src/flags-server.md",
    },
    Page {
        program: "trainer-sft",
        run: "cargo run -p trainer-sft --",
        list: "help",
        without: &["help"],
        page: "docs/src/flags-trainer-sft.md",
    },
    Page {
        program: "qwen-burn",
        run: "qwen-burn",
        list: "--help",
        without: &[
            "serve",
            "chat",
            "init",
            "check",
            "train",
            "eval",
            "merge",
            "export",
            "inspect",
            "run-batch",
            "bench",
            "help",
        ],
        page: "docs/src/flags-qwen-burn.md",
    },
];

/// Writes the pages, or with `check` fails where one differs.
pub(crate) fn run(check: bool) -> Result<()> {
    command("cargo", &["build", "--workspace", "--bins"])?;
    let target = crate::target_directory()?;
    for Page {
        program,
        run,
        list,
        without,
        page,
    } in PAGES
    {
        let path = format!("{target}/debug/{program}");
        let mut text = format!(
            "# Flags of `{program}`\n\n{}",
            help_of(&path, run, &["--help"])?
        );
        let listed = output(&path, &[list])?;
        let commands = commands(&listed, without);
        ensure!(!commands.is_empty(), "{program} {list} lists no commands");
        for command in commands {
            let words: Vec<&str> = command.split(' ').chain(["-h"]).collect();
            text += &format!("\n## `{command}`\n\n{}", help_of(&path, run, &words)?);
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
fn commands<'a>(help: &'a str, without: &[&str]) -> Vec<&'a str> {
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
    names.filter(|name| !without.contains(name)).collect()
}

/// What a program prints of its flags.
fn help_of(path: &str, run: &str, words: &[&str]) -> Result<String> {
    let help = output(path, words)?;
    // Wrapped lines end in blanks that editors remove.
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    Ok(format!(
        "What `{run} {}` prints.\n\n```text\n{}\n```\n",
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
        assert_eq!(commands(help, &["help"]), ["merge", "bench serve"]);
    }
}
