//! The settings of a run as a file that explains each key, in the words of `--help`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::config::args::Args;
use crate::config::{Config, ConfigError};

/// Characters of a line of comments.
const WIDTH: usize = 100;

/// What a setting without a default may look like.
const EXAMPLES: [(&str, &str); 43] = [
    ("model", "\"Qwen/Qwen2.5-1.5B-Instruct\""),
    ("tokenizer", "\"models/other\""),
    ("init_config", "\"config.json\""),
    ("adapter", "\"adapters/earlier\""),
    ("output", "\"adapters/mine\""),
    ("logging_dir", "\"runs\""),
    ("beta", "0.1"),
    ("modules_to_save", "[\"embed_tokens\", \"lm_head\"]"),
    ("loss_type", "\"ipo\""),
    ("num_generations", "8"),
    ("temperature", "1.0"),
    ("max_completion_length", "512"),
    ("num_iterations", "1"),
    ("epsilon", "0.2"),
    ("epsilon_high", "0.28"),
    ("scale_rewards", "\"batch\""),
    ("reward", "[\"json\"]"),
    ("reward_url", "[\"http://127.0.0.1:9000/rewards\"]"),
    ("reward_weights", "[1.0]"),
    ("reward_timeout", "60.0"),
    ("sample_prompts", "\"prompts.txt\""),
    ("sample_steps", "50"),
    ("sample_max_tokens", "128"),
    ("label_smoothing", "0.1"),
    ("desirable_weight", "1.0"),
    ("undesirable_weight", "1.0"),
    ("ref_adapter", "\"adapters/earlier\""),
    ("eval_split", "0.05"),
    ("epochs", "3.0"),
    ("max_steps", "100"),
    ("warmup_steps", "10"),
    ("min_lr", "1e-6"),
    ("min_lr_rate", "0.1"),
    ("lr_power", "1.0"),
    ("lr_decay_steps", "50"),
    ("loraplus_lr_ratio", "16.0"),
    ("neftune_noise_alpha", "5.0"),
    ("save_steps", "100"),
    ("save_total_limit", "3"),
    ("eval_steps", "50"),
    ("early_stopping_patience", "3"),
    ("gpu_memory_utilization", "0.9"),
    ("device_memory", "\"8GiB\""),
];

const HEAD: &str = "\
# Settings of a training run. Look at the data: trainer-sft check --config FILE (or qwen-burn check --config FILE)
# Train: trainer-sft --config FILE (or qwen-burn train --config FILE)
#
# A line that begins with # and a key is a setting at its default, or an example of a setting that has none: take the # away
# to change it. Flags on the command line win over this file: max_length = 512 is --max-length 512.
# Paths that do not begin with / start at the folder in which the program is called.
";

/// The file of `settings`. It is checked as a run checks it.
///
/// # Errors
/// A setting that a run would refuse.
pub(super) fn text(settings: &Args) -> Result<String, ConfigError> {
    let config = Config::from_args(settings)?;
    let given = table(settings);
    let defaults = table(&config);
    let command = Args::command();
    let keys: Vec<&clap::Arg> = command
        .get_arguments()
        .filter(|argument| is_key(argument.get_id().as_str()))
        .collect();
    let names: BTreeSet<&str> = keys.iter().map(|key| key.get_id().as_str()).collect();
    let mut text = HEAD.to_owned();
    let mut section = |title: &str, keys: &[&&clap::Arg]| {
        if !keys.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "\n# ---- {title} ----");
        }
        for key in keys {
            let name = key.get_id().as_str();
            let help = key.get_help().map(ToString::to_string).unwrap_or_default();
            text.push('\n');
            text.push_str(&comment(&with_keys(&help, &names)));
            let _ = match given.get(name) {
                Some(value) => writeln!(text, "{name} = {value}"),
                None => writeln!(text, "#{name} = {}", example(name, &defaults)),
            };
        }
    };
    let is_given = |key: &&&clap::Arg| given.contains_key(key.get_id().as_str());
    let answered: Vec<_> = keys.iter().filter(is_given).collect();
    section("This run", &answered);
    let mut headings: Vec<&str> = Vec::new();
    for heading in keys.iter().filter_map(|key| key.get_help_heading()) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        let own = keys
            .iter()
            .filter(|key| key.get_help_heading() == Some(heading));
        let own: Vec<_> = own.filter(|key| !is_given(key)).collect();
        section(heading, &own);
    }
    Ok(text)
}

/// The settings that are there, as a table.
fn table(settings: &impl serde::Serialize) -> toml::Table {
    let mut table = toml::Table::try_from(settings).unwrap_or_default();
    // Of a list that is empty, nothing is said.
    table.retain(|_, value| value.as_array().is_none_or(|values| !values.is_empty()));
    table
}

/// Whether a flag is a key of the file: some are flags only, such as `--resume`.
fn is_key(name: &str) -> bool {
    Args::is_key(name)
}

/// The default of a setting or, where it has none, a value that it takes.
fn example(name: &str, defaults: &toml::Table) -> String {
    if let Some(value) = defaults.get(name) {
        return value.to_string();
    }
    let known = EXAMPLES.iter().find(|(key, _)| *key == name);
    let values = known.map(|(_, value)| *value).into_iter();
    let mut values = values.chain(["[]", "true", "1", "0.5", "\"\""]);
    let is_taken = |value: &&str| Args::from_toml(&format!("{name} = {value}")).is_ok();
    values.find(is_taken).unwrap_or("\"\"").to_owned()
}

/// Help with the names of keys in the place of flags: --max-length is `max_length`.
fn with_keys(help: &str, names: &BTreeSet<&str>) -> String {
    let mut parts = help.split("--");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let end = part.find(|c| !is_part_of_name(c)).unwrap_or(part.len());
        let (flag, rest) = part.split_at(end);
        let key = flag.trim_end_matches('-').replace('-', "_");
        match names.contains(key.as_str()) {
            true if text.ends_with('`') => text.push_str(&key),
            true => text.push_str(&format!("`{key}`")),
            false => text.push_str(&format!("--{flag}")),
        }
        text.push_str(rest);
    }
    text
}

/// Lines that begin with `# `.
fn comment(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + word.chars().count() + 3 > WIDTH {
            lines.push_str(&format!("#{line}\n"));
            line.clear();
        }
        line.push(' ');
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push_str(&format!("#{line}\n"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of the lines that set something, with the lines, and whether they are comments.
    fn lines(text: &str) -> Vec<(&str, &str, bool)> {
        let lines = text.lines().filter_map(|line| {
            let own = line.strip_prefix('#').unwrap_or(line);
            let (key, _) = own.split_once(" = ")?;
            let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            is_key.then_some((key, own, own.len() < line.len()))
        });
        lines.collect()
    }

    fn settings() -> [Args; 4] {
        let mut own = Args::default();
        own.data.data = vec!["data/train.jsonl".into()];
        own.model.device = Some("cpu".to_owned());
        let mut other = own.clone();
        other.model.model = Some("Qwen/Qwen2.5-0.5B-Instruct".to_owned());
        let mut longer = other.clone();
        longer.training.epochs = Some(0.5);
        longer.output.output = Some("adapters/a \"b\"\\c".into());
        let mut thinking = other.clone();
        thinking.data.thinking = Some(crate::config::Thinking::Empty);
        [own, other, longer, thinking]
    }

    #[test]
    fn a_run_takes_every_file_and_it_says_what_was_asked_for() {
        for settings in settings() {
            let text = text(&settings).unwrap();
            let read = Args::from_toml(&text).unwrap();
            let config = Config::from_args(&read).unwrap();
            assert_eq!(config, Config::from_args(&settings).unwrap(), "{text}");
        }
    }

    #[test]
    fn comments_name_real_keys_all_of_them_once_with_values_that_are_taken() {
        let command = Args::command();
        for settings in &settings() {
            let text = text(settings).unwrap();
            let lines = lines(&text);
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                let expected = usize::from(is_key(name));
                let found = lines.iter().filter(|(key, ..)| *key == name).count();
                assert_eq!(found, expected, "{name} in {text}");
            }
            for (key, line, is_comment) in lines {
                let taken = Args::from_toml(line);
                assert!(taken.is_ok(), "{line}: {taken:?}");
                assert!(is_key(key), "{key}");
                assert!(is_comment || table(&settings).contains_key(key), "{line}");
            }
            // Defaults change nothing: each line may be made a setting.
            let mut config = Config::from_args(settings).unwrap();
            for (key, value) in table(&config) {
                if !table(&settings).contains_key(&key) {
                    assert!(text.contains(&format!("\n#{key} = {value}\n")), "{key}");
                }
            }
            config.run.preview = None;
        }
    }

    #[test]
    fn flags_in_comments_are_keys() {
        let names = BTreeSet::from(["max_length", "data"]);
        let help = "tokens of --max-length; see --data, --resume";
        assert_eq!(
            with_keys(help, &names),
            "tokens of `max_length`; see `data`, --resume"
        );
        for settings in settings() {
            let text = text(&settings).unwrap();
            for word in ["--max-length ", "--max-steps;", "--lr-schedule"] {
                let comments = text.lines().skip(HEAD.lines().count());
                assert!(!comments.into_iter().any(|line| line.contains(word)));
            }
        }
    }
}
