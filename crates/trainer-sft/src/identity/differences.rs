//! What differs between a run and the one that its checkpoint is part of.

use std::collections::BTreeSet;

use serde_json::Value;
use tracing::warn;

use super::settings_of;
use crate::checkpoint::{RunIdentity, TrainerState};
use crate::config::{Config, MethodConfig, micro_batches_of};
use crate::error::TrainError;

/// Settings that change nothing of the result, or whose effect is compared otherwise (files by their content, lengths as a
/// number of steps).
const FREE: [&str; 26] = [
    "data",
    "eval_data",
    "model",
    "tokenizer",
    "init_config",
    "device",
    // How many there are counts with the micro-batches of a step.
    "devices",
    "gradient_accumulation",
    "all_reduce",
    "gradient_checkpointing",
    "offload_activations",
    "strict",
    "adapter",
    "epochs",
    "max_steps",
    "save_steps",
    "save_total_limit",
    "log_steps",
    "eval_steps",
    "report_to",
    "logging_dir",
    "sample_prompts",
    "sample_steps",
    "sample_max_tokens",
    "reward_timeout",
    "seed",
];
/// Settings that the weights in a checkpoint have taken the shape of.
const FIXED: [&str; 9] = [
    "full",
    "lora_r",
    "lora_alpha",
    "target_modules",
    "use_rslora",
    "use_dora",
    "modules_to_save",
    "init_lora_weights",
    "optim",
];

/// Compares this run with the one that the checkpoint of `config` is part of.
///
/// # Errors
/// Everything that differs, unless `--resume-anyway` and the weights allow it.
pub(crate) fn check(
    this: &RunIdentity,
    config: &Config,
    state: &TrainerState,
    total_steps: usize,
) -> Result<(), TrainError> {
    let Some(checkpoint) = &config.run.resume else {
        return Ok(());
    };
    let mut differences = match &state.run {
        Some(found) => differences(found, this, config),
        None => {
            warn!(
                "{}: does not say which data and settings it is of",
                checkpoint.display()
            );
            Differences::default()
        }
    };
    differences.compare("--seed", &state.seed, &config.run.seed);
    differences.compare("the number of steps", &state.total_steps, &total_steps);
    let Differences { lines, is_fixed } = differences;
    let differences = lines.join("\n  ");
    if lines.is_empty() {
        return Ok(());
    }
    if config.run.resume_anyway && !is_fixed {
        warn!("going on although this run differs from the checkpoint:\n  {differences}");
        return Ok(());
    }
    Err(TrainError::Resume {
        checkpoint: checkpoint.clone(),
        differences,
        instead: match is_fixed {
            true => {
                "the checkpoint has its weights and its optimizer in this form already, also with --resume-anyway: leave these flags out"
            }
            false => "leave the flags out to go on as before, or add --resume-anyway",
        },
    })
}

/// What differs between two runs.
#[derive(Debug, Default)]
struct Differences {
    /// A line for each.
    lines: Vec<String>,
    /// Whether one of them is [`FIXED`].
    is_fixed: bool,
}

/// What differs between the run of a checkpoint, `found`, and this one.
fn differences(found: &RunIdentity, this: &RunIdentity, config: &Config) -> Differences {
    let mut differences = Differences::default();
    differences.compare_files(found, this);
    differences.compare_text_files(found, this);
    differences.compare_micro_batches(found, this, config.num_devices());
    differences.compare_settings(found, this, config);
    differences
}

impl Differences {
    fn add(&mut self, name: &str, found: &str, now: &str) {
        self.lines.push(format!(
            "{name}: {found} in the checkpoint, {now} in this run"
        ));
    }

    fn compare<T: PartialEq + ToString>(&mut self, name: &str, found: &T, now: &T) {
        if found != now {
            self.add(name, &found.to_string(), &now.to_string());
        }
    }

    /// Model, data and what else is read whole.
    fn compare_files(&mut self, found: &RunIdentity, this: &RunIdentity) {
        if found.model != this.model {
            let name = |run: &RunIdentity| match run.settings.get("model") {
                Some(Value::String(name)) => format!("`{name}` ({})", run.model),
                _ => format!("the bundled model ({})", run.model),
            };
            self.add("--model", &name(found), &name(this));
        }
        let files = |run: &RunIdentity, key: &str, hash: &str| {
            let files = run.settings.get(key).map(show).unwrap_or_default();
            format!("{files} ({hash})").trim_start().to_owned()
        };
        if found.data != this.data {
            let name = |run: &RunIdentity| files(run, "data", &run.data);
            self.add("--data", &name(found), &name(this));
        }
        // `None`: the checkpoint does not say.
        if found.eval.is_some() && found.eval != this.eval {
            let name = |run: &RunIdentity| match &run.eval {
                Some(hash) => files(run, "eval_data", hash),
                None => "none that decides".to_owned(),
            };
            self.add("--eval-data", &name(found), &name(this));
        }
        // `None`: the checkpoint does not say.
        if found.files.is_some() && found.files != this.files {
            self.add(
                "the weights of --model, the files of --ref-adapter (with --method dpo or kto also --adapter) or of --reward json_schema",
                hash_or_none(found.files.as_ref()),
                hash_or_none(this.files.as_ref()),
            );
        }
    }

    /// The small files of the model that say how records become tokens.
    fn compare_text_files(&mut self, found: &RunIdentity, this: &RunIdentity) {
        // `None`: the checkpoint does not say.
        let (Some(found), Some(now)) = (&found.text_files, &this.text_files) else {
            return;
        };
        let names: BTreeSet<&String> = found.keys().chain(now.keys()).collect();
        for name in names {
            let (found, now) = (found.get(name), now.get(name));
            if found != now {
                let name = format!("{name} of the model");
                self.add(&name, hash_or_none(found), hash_or_none(now));
            }
        }
    }

    /// The micro-batches of a step, on however many devices.
    fn compare_micro_batches(&mut self, found: &RunIdentity, this: &RunIdentity, devices: usize) {
        let (found, shown) = micro_batches_of(&found.settings);
        let (now, mut shown_now) = micro_batches_of(&this.settings);
        if found != now {
            let devices = devices as u64;
            if found.is_multiple_of(devices) {
                let same = found / devices;
                shown_now = format!("{shown_now}, where {same} would take the same steps");
            }
            self.add("--gradient-accumulation", &shown, &shown_now);
        }
    }

    /// All other settings, unless they are [`FREE`].
    fn compare_settings(&mut self, found: &RunIdentity, this: &RunIdentity, config: &Config) {
        // A setting that the checkpoint does not have is at its default.
        let mut defaults = Config::new("");
        defaults.method = MethodConfig::defaults_of(config.method.method);
        let defaults = settings_of(&defaults);
        let is_set = |value: &&Value| !value.is_null();
        let keys: BTreeSet<&String> = found.settings.keys().chain(this.settings.keys()).collect();
        for key in keys {
            let found = found.settings.get(key).filter(is_set);
            let found = found.or_else(|| defaults.get(key));
            let now = this.settings.get(key);
            let decides = key == "eval_steps" && config.run.decides_by_evaluations();
            if found == now || (FREE.contains(&key.as_str()) && !decides) {
                continue;
            }
            self.is_fixed |= FIXED.contains(&key.as_str());
            let show = |value: Option<&Value>| value.map_or("not set".into(), show);
            let flag = format!("--{}", key.replace('_', "-"));
            self.add(&flag, &show(found), &show(now));
        }
    }
}

fn hash_or_none(hash: Option<&String>) -> &str {
    hash.map_or("none", String::as_str)
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(","),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The identity of a run of `config` on data with this hash.
    fn identity(config: &Config, data: &str, text_files: &[(&str, &str)]) -> RunIdentity {
        let text_files = text_files.iter();
        let text_files = text_files.map(|(name, hash)| ((*name).to_owned(), (*hash).to_owned()));
        RunIdentity {
            settings: settings_of(config),
            data: data.to_owned(),
            eval: None,
            model: "m".to_owned(),
            files: None,
            text_files: Some(text_files.collect::<BTreeMap<_, _>>()),
        }
    }

    #[test]
    fn each_difference_has_a_line() {
        let mut old = Config::new("old");
        old.lora.r = 4;
        let mut new = Config::new("new");
        new.run.gradient_accumulation = 2 * old.run.gradient_accumulation;
        let found = identity(&old, "a", &[("chat_template.jinja", "1")]);
        let this = identity(&new, "b", &[]);

        let same = differences(&found, &found, &old);
        assert!(same.lines.is_empty() && !same.is_fixed, "{same:?}");
        let found = differences(&found, &this, &new);
        let names = found.lines.iter().map(|line| line.split(':').next());
        let names: Vec<&str> = names.flatten().collect();
        assert_eq!(
            names,
            [
                "--data",
                "chat_template.jinja of the model",
                "--gradient-accumulation",
                "--lora-r"
            ]
        );
        assert!(found.is_fixed);
        assert!(
            found.lines[1].ends_with("1 in the checkpoint, none in this run"),
            "{found:?}"
        );
    }
}
