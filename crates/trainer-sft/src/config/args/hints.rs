//! The name that an unknown flag may stand for.

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What a setting of another trainer is here.
#[derive(Clone, Copy)]
pub(super) enum Lead {
    /// The flag of this name.
    Flag(&'static str),
    /// No flag: what to do, or why there is nothing to do.
    Words(&'static str),
}

const ADAPTER: Lead = Lead::Words(
    "an adapter is trained unless `full` is given, and in 4 bits unless `quantization` is `none`",
);
const TEMPLATE: Lead = Lead::Words(
    "the chat template is the one in the model's folder; another one is written there as chat_template.jinja",
);

/// What the settings of TRL, LLaMA-Factory, axolotl, ms-swift, Unsloth and mlx-lm are here, where the names are not alike; by
/// flags, and by keys of files with hyphens for their underscores.
const ELSEWHERE: [(&str, Lead); 78] = [
    ("4bit", Lead::Flag("quantization")),
    ("load-in-4bit", Lead::Flag("quantization")),
    ("load-in-8bit", Lead::Flag("quantization")),
    ("quantization-bit", Lead::Flag("quantization")),
    ("quant-bits", Lead::Flag("quantization")),
    ("qlora", Lead::Flag("quantization")),
    ("bits", Lead::Flag("quantization")),
    ("bs", Lead::Flag("batch-size")),
    ("micro-batch-size", Lead::Flag("batch-size")),
    ("train-batch-size", Lead::Flag("batch-size")),
    ("grad-accum", Lead::Flag("gradient-accumulation")),
    (
        "grad-accumulation-steps",
        Lead::Flag("gradient-accumulation"),
    ),
    ("grad-checkpoint", Lead::Flag("gradient-checkpointing")),
    ("dataset", Lead::Flag("data")),
    ("datasets", Lead::Flag("data")),
    ("dataset-name", Lead::Flag("data")),
    ("dataset-path", Lead::Flag("data")),
    ("train-data", Lead::Flag("data")),
    ("val-dataset", Lead::Flag("eval-data")),
    ("eval-dataset", Lead::Flag("eval-data")),
    ("test-datasets", Lead::Flag("eval-data")),
    ("val-set-size", Lead::Flag("eval-split")),
    ("split-dataset-ratio", Lead::Flag("eval-split")),
    ("dataset-text-field", Lead::Flag("columns")),
    ("sequence-len", Lead::Flag("max-length")),
    ("max-len", Lead::Flag("max-length")),
    ("context-length", Lead::Flag("max-length")),
    ("model-max-length", Lead::Flag("max-length")),
    ("sample-packing", Lead::Flag("packing")),
    ("base-model", Lead::Flag("model")),
    ("alpha", Lead::Flag("lora-alpha")),
    ("lora-rank-dim", Lead::Flag("lora-r")),
    ("lora-target-linear", Lead::Flag("target-modules")),
    ("full-finetune", Lead::Flag("full")),
    ("train-type", Lead::Flag("full")),
    ("tuner-type", Lead::Flag("full")),
    ("finetuning-type", ADAPTER),
    ("fine-tune-type", ADAPTER),
    ("use-peft", ADAPTER),
    ("use-lora", ADAPTER),
    ("adapters", Lead::Flag("adapter")),
    ("lora-model-dir", Lead::Flag("adapter")),
    ("resume-from", Lead::Flag("resume")),
    ("steps", Lead::Flag("max-steps")),
    ("iters", Lead::Flag("max-steps")),
    ("num-epochs", Lead::Flag("epochs")),
    ("bf16", Lead::Flag("compute-dtype")),
    ("pure-bf16", Lead::Flag("compute-dtype")),
    ("tf32", Lead::Flag("compute-dtype")),
    (
        "fp16",
        Lead::Words(
            "there is no training in f16: --compute-dtype is bf16 or f32, and what is trained is f32",
        ),
    ),
    ("stage", Lead::Flag("method")),
    ("rlhf-type", Lead::Flag("method")),
    ("rl", Lead::Flag("method")),
    ("pref-beta", Lead::Flag("beta")),
    ("pref-loss", Lead::Flag("loss-type")),
    ("neftune-alpha", Lead::Flag("neftune-noise-alpha")),
    ("optimizer", Lead::Flag("optim")),
    ("max-norm", Lead::Flag("max-grad-norm")),
    (
        "adam-beta1",
        Lead::Words("AdamW has the betas 0.9 and 0.999"),
    ),
    (
        "adam-beta2",
        Lead::Words("AdamW has the betas 0.9 and 0.999"),
    ),
    ("adam-epsilon", Lead::Words("AdamW has the epsilon 1e-8")),
    ("save-strategy", Lead::Flag("save-steps")),
    ("save-every", Lead::Flag("save-steps")),
    ("eval-strategy", Lead::Flag("eval-steps")),
    ("evaluation-strategy", Lead::Flag("eval-steps")),
    (
        "overwrite-output-dir",
        Lead::Words("a folder with a result is not overwritten: give another `output`"),
    ),
    (
        "max-samples",
        Lead::Words(
            "all records are read: cut the file, for example with `head`, or give `max_steps`",
        ),
    ),
    ("template", TEMPLATE),
    ("chat-template", TEMPLATE),
    ("chat-template-path", TEMPLATE),
    ("enable-thinking", Lead::Flag("thinking")),
    ("completion-only-loss", Lead::Flag("train-on")),
    ("assistant-only-loss", Lead::Flag("train-on")),
    ("train-on-inputs", Lead::Flag("train-on")),
    ("train-on-prompt", Lead::Flag("train-on")),
    ("mask-prompt", Lead::Flag("train-on")),
    (
        "mask-history",
        Lead::Words("all answers of a conversation are learnt; a turn with `\"weight\": 0` is not"),
    ),
    (
        "deepspeed",
        Lead::Words("several GPUs of one machine are used with `devices`"),
    ),
];

/// What a setting of another trainer is here.
pub(super) fn elsewhere(name: &str) -> Option<Lead> {
    let known = ELSEWHERE.iter().find(|(known, _)| *known == name);
    known.map(|(_, here)| *here)
}

/// Lets every flag of a command and of its commands take a negative number, which is then refused by the flag's name.
pub(crate) fn with_negative_numbers(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let takes_one = !arg.is_positional() && arg.get_action().takes_values();
            match takes_one {
                true => arg.allow_negative_numbers(true),
                false => arg,
            }
        })
        .mut_subcommands(with_negative_numbers)
}

/// Names the flag of `command` that an unknown one stands for, in the place of clap's guess, which also names flags that are little alike.
pub(crate) fn with_nearest_flag(mut error: clap::Error, command: &Command) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    error.remove(ContextKind::SuggestedArg);
    error.remove(ContextKind::Suggested);
    // It has clap's guess in it.
    let usage = ContextValue::StyledStr(command.clone().render_usage());
    error.insert(ContextKind::Usage, usage);
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let unknown = unknown.trim_start_matches('-').to_owned();
    let mut names: Vec<String> = Vec::new();
    for argument in command.get_arguments() {
        names.extend(argument.get_long().map(ToOwned::to_owned));
        let aliases = argument.get_all_aliases().unwrap_or_default();
        names.extend(aliases.into_iter().map(ToOwned::to_owned));
    }
    let near = match elsewhere(&unknown) {
        Some(Lead::Flag(here)) if names.iter().any(|name| name == here) => Some(here),
        Some(Lead::Words(words)) => {
            let words = ContextValue::StyledStrs(vec![words.into()]);
            error.insert(ContextKind::Suggested, words);
            None
        }
        _ => nearest(&unknown, names.iter().map(String::as_str)),
    };
    if let Some(near) = near {
        let near = ContextValue::String(format!("--{near}"));
        error.insert(ContextKind::SuggestedArg, near);
    }
    error
}

/// The name that `unknown` is a misspelling or the beginning of.
pub(crate) fn nearest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &str| {
        let is_start = unknown.len() >= 4 && name.starts_with(unknown);
        let edits = strsim::damerau_levenshtein(unknown, name);
        let longest = unknown.len().max(name.len());
        (is_start || edits * 4 <= longest.max(4)).then_some(edits)
    };
    let near = names.filter_map(|name| Some((distance(name)?, name)));
    near.min().map(|(_, name)| name)
}
