//! The `--config` file: TOML with the names of the flags.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use clap::CommandFactory as _;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use toml::Spanned;

use super::hints::{Lead, elsewhere, nearest};
use super::{
    Args, DataArgs, GrpoArgs, LoraArgs, MemoryArgs, MethodArgs, ModelArgs, OutputArgs, TrainingArgs,
};
use crate::config::{ConfigError, value_at_home};

/// Flags that are no settings of a file.
const FLAGS_ONLY: [&str; 6] = [
    "config",
    "preview",
    "dry_run",
    "no_double_quant",
    "resume",
    "resume_anyway",
];

/// What the types of values are called, and how a message names them.
const TYPES: [(&str, &str); 6] = [
    ("usize", "a whole number, 0 or more"),
    ("u64", "a whole number from 0 to 2^64 - 1"),
    ("f64", "a number such as 0.5 or 2e-4"),
    ("a boolean", "true or false"),
    ("path string", "a text in quotes"),
    ("a string", "a text in quotes"),
];

/// A key that is a setting.
#[derive(PartialEq, Eq, Hash)]
struct Key;

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if Args::is_key(&name) {
            return Ok(Self);
        }
        Err(D::Error::custom(unknown(&name)))
    }
}

/// What is said of a name that is no setting.
fn unknown(name: &str) -> String {
    let keys = Args::keys();
    let flag = name.replace('_', "-");
    let lead = match (own_name(&flag), elsewhere(&flag)) {
        (Some(own), _) => Some(own),
        (None, Some(Lead::Words(words))) => return format!("unknown setting `{name}`; {words}"),
        (None, Some(Lead::Flag(here))) => Some(here.replace('-', "_")),
        (None, None) => None,
    };
    let near = lead.filter(|key| Args::is_key(key)).or_else(|| {
        let near = nearest(&name.replace('-', "_"), keys.iter().map(String::as_str));
        near.map(str::to_owned)
    });
    let near = near.map_or_else(String::new, |near| format!("; the nearest one is `{near}`"));
    format!("unknown setting `{name}`{near}")
}

/// The setting that a flag of this name or alias has.
fn own_name(flag: &str) -> Option<String> {
    let command = Args::command();
    let own = command.get_arguments().find(|arg| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        aliases.contains(&flag) || arg.get_long() == Some(flag)
    });
    own.map(|arg| arg.get_id().to_string())
}

/// A float that says the same as a whole number.
fn as_whole(float: f64) -> Option<i64> {
    (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
}

/// A value as settings take it, where it is written otherwise: `8.0` is a whole number, too, and `~/a` is at home.
fn plain(value: &toml::Value) -> Option<toml::Value> {
    match value {
        toml::Value::Float(float) => as_whole(*float).map(toml::Value::from),
        toml::Value::String(text) => {
            let value = value_at_home(text)?;
            Some(value.to_string_lossy().into_owned().into())
        }
        toml::Value::Array(items) => {
            let changed = items.iter().map(|item| match item {
                toml::Value::String(_) => plain(item),
                _ => None,
            });
            let changed: Vec<_> = changed.collect();
            let is_changed = changed.iter().any(Option::is_some);
            let items = changed.into_iter().zip(items);
            let items = items.map(|(new, item)| new.unwrap_or_else(|| item.clone()));
            is_changed.then(|| items.collect::<Vec<_>>().into())
        }
        _ => None,
    }
}

/// The text with [`plain`] values. Places of what is wrong stay.
fn with_plain_values(text: &str) -> String {
    let mut text = text.to_owned();
    let Ok(values) = toml::from_str::<HashMap<String, Spanned<toml::Value>>>(&text) else {
        return text;
    };
    let changed = values
        .values()
        .filter_map(|value| Some((value.span(), plain(value.get_ref())?)));
    let mut changed: Vec<_> = changed.collect();
    changed.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    for (span, value) in changed {
        let mut written = value.to_string();
        // A list may take several lines.
        let breaks = text[span.clone()].matches('\n').count();
        if value.is_array() && written.pop().is_some() {
            written.push_str(&"\n".repeat(breaks));
            written.push(']');
        }
        text.replace_range(span, &written);
    }
    text
}

impl Args {
    /// The settings that a file may have.
    pub(crate) fn keys() -> &'static [String] {
        static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
            let command = Args::command();
            let names = command.get_arguments().map(|arg| arg.get_id().to_string());
            names
                .filter(|name| !FLAGS_ONLY.contains(&name.as_str()))
                .collect()
        });
        &KEYS
    }

    /// Whether this is a flag of a run.
    pub(crate) fn is_flag(name: &str) -> bool {
        FLAGS_ONLY.contains(&name) || Self::is_key(name)
    }

    /// Whether a file may have this setting.
    pub(crate) fn is_key(name: &str) -> bool {
        Self::keys().iter().any(|key| key == name)
    }

    /// Reads the settings in a TOML file.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or has a key that is no setting (the nearest one is named).
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let failed = |reason: String| ConfigError::File {
            path: path.display().to_string(),
            reason,
        };
        let text = crate::text_file::read(path).map_err(|error| failed(error.to_string()))?;
        Self::from_toml(&text).map_err(|reason| {
            failed(match other_language(path, &text) {
                Some(found) => {
                    format!("expected TOML, with lines such as `lora_r = 8`; found {found}")
                }
                None => reason,
            })
        })
    }

    /// The settings in a JSON object with the same names, such as a request's.
    ///
    /// # Errors
    /// The setting that is wrong, and what is wrong with it.
    pub fn from_json(settings: &Map<String, Value>) -> Result<Self, (String, String)> {
        for (name, value) in settings {
            let wrong = |reason: String| Err((name.clone(), reason));
            if !Self::is_key(name) {
                return wrong(unknown(name));
            }
            let one = Map::from_iter([(name.clone(), value.clone())]);
            if let Err(error) = Self::from_object(&one) {
                let reason = in_words(&error.to_string(), &format!("{name} ="));
                return wrong(match reason.starts_with('`') {
                    true => reason,
                    false => format!("`{name}`: {reason}"),
                });
            }
        }
        let args =
            Self::from_object(settings).map_err(|error| (String::new(), error.to_string()))?;
        match args.training.says_twice() {
            None => Ok(args),
            Some(flags) => {
                let [one, other] = flags.map(|flag| flag.replace('-', "_"));
                let reason = format!("`{one}` and `{other}` say the same: leave one of them out");
                Err((one, reason))
            }
        }
    }

    fn from_object(settings: &Map<String, Value>) -> Result<Self, serde_json::Error> {
        let whole = |value: &Value| match value.as_f64().filter(|_| value.is_f64()) {
            Some(float) => as_whole(float).map_or_else(|| value.clone(), Value::from),
            None => value.clone(),
        };
        let settings = settings
            .iter()
            .map(|(name, value)| (name.clone(), whole(value)));
        let settings = Value::Object(settings.collect());
        Ok(Self {
            config: None,
            data: DataArgs::deserialize(&settings)?,
            model: ModelArgs::deserialize(&settings)?,
            method: MethodArgs::deserialize(&settings)?,
            lora: LoraArgs::deserialize(&settings)?,
            training: TrainingArgs::deserialize(&settings)?,
            memory: MemoryArgs::deserialize(&settings)?,
            grpo: GrpoArgs::deserialize(&settings)?,
            output: OutputArgs::deserialize(&settings)?,
        })
    }

    /// The settings in the text of a file.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub(crate) fn from_toml(text: &str) -> Result<Self, String> {
        read::<HashMap<Key, IgnoredAny>>(text)?;
        let text = &with_plain_values(text);
        // Each group takes its own keys, so that errors know their lines.
        Ok(Self {
            config: None,
            data: read(text)?,
            model: read(text)?,
            method: read(text)?,
            lora: read(text)?,
            training: read::<TrainingArgs>(text)?.without_idle_default(),
            memory: read(text)?,
            grpo: read(text)?,
            output: read(text)?,
        })
    }
}

/// What a file of settings is written in that is no TOML.
fn other_language(path: &Path, text: &str) -> Option<&'static str> {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let is_yaml = |line: &str| {
        let key = line.split_once(':').map(|(key, _)| key);
        line == "---" || key.is_some_and(|key| !key.contains(['=', '"', '\'', '[']))
    };
    if ending == "yaml" || ending == "yml" || is_yaml(first) {
        Some("YAML")
    } else if first.starts_with('{') {
        Some("JSON")
    } else {
        None
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text[..start].matches('\n').count();
        let content = text.lines().nth(line).unwrap_or_default();
        let reason = error.message();
        format!("line {}: {}", line + 1, in_words(reason, content))
    })
}

/// What serde says of a wrong value, in the words of a wrong flag.
fn in_words(reason: &str, line: &str) -> String {
    let wrong = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|start| reason.strip_prefix(start)?.split_once(", expected "));
    let key = match line.split_once('=') {
        Some((key, _)) => format!("`{}`: ", key.trim()),
        None => String::new(),
    };
    let Some((found, expected)) = wrong else {
        // What serde says of a value that may have several forms.
        return match reason.starts_with("expected ") {
            true => format!("{key}{reason}"),
            false => reason.to_owned(),
        };
    };
    let known = TYPES.iter().find(|(name, _)| *name == expected);
    let expected = known.map_or(expected, |(_, words)| words);
    format!("{key}expected {expected}, found {found}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BatchSize;

    #[test]
    fn what_is_wrong_with_a_file_is_said_in_words_with_its_line() {
        for (text, expected) in [
            (
                "seed = 1\nlora_r = -1",
                "line 2: `lora_r`: expected a whole number, 0 or more, found integer `-1`",
            ),
            (
                "lora_r = 1.5",
                "line 1: `lora_r`: expected a whole number, 0 or more, found floating point `1.5`",
            ),
            (
                "seed = -1",
                "line 1: `seed`: expected a whole number from 0 to 2^64 - 1, found integer `-1`",
            ),
            (
                "lora_alpha = \"32\"",
                "line 1: `lora_alpha`: expected a number such as 0.5 or 2e-4, found string \"32\"",
            ),
            (
                "packing = 1",
                "line 1: `packing`: expected true or false, found integer `1`",
            ),
            (
                "model = 1",
                "line 1: `model`: expected a text in quotes, found integer `1`",
            ),
            (
                "output = 1",
                "line 1: `output`: expected a text in quotes, found integer `1`",
            ),
            (
                "target_modules = 5",
                "line 1: `target_modules`: expected a text in quotes, or a list of them",
            ),
            (
                "columns = [1]",
                "line 1: `columns`: expected a list such as [\"prompt=question\"], or a table",
            ),
            (
                "batch_size = 4.5",
                "line 1: `batch_size`: expected a whole number, 1 or more, or \"auto\"",
            ),
            (
                "device_memory = true",
                "line 1: `device_memory`: expected a size such as \"8GiB\"",
            ),
            (
                "lr = 1e-4",
                "line 1: unknown setting `lr`; the nearest one is `learning_rate`",
            ),
            (
                "num_train_epochs = 1",
                "line 1: unknown setting `num_train_epochs`; the nearest one is `epochs`",
            ),
            (
                "dataset = \"x\"",
                "line 1: unknown setting `dataset`; the nearest one is `data`",
            ),
            (
                "\nlorar = 8",
                "line 2: unknown setting `lorar`; the nearest one is `lora_r`",
            ),
            (
                "val_set_size = 0.1",
                "line 1: unknown setting `val_set_size`; the nearest one is `eval_split`",
            ),
            (
                "sample_packing = true",
                "line 1: unknown setting `sample_packing`; the nearest one is `packing`",
            ),
            (
                "bf16 = true",
                "line 1: unknown setting `bf16`; the nearest one is `compute_dtype`",
            ),
            (
                "template = \"qwen\"",
                "line 1: unknown setting `template`; the chat template is the one in the model's folder",
            ),
            ("resume = \"x\"", "line 1: unknown setting `resume`"),
            ("[lora]\nr = 8", "line 1: unknown setting `lora`"),
        ] {
            let found = Args::from_toml(text).map(|_| ()).unwrap_err();
            assert!(
                found.starts_with(expected),
                "{found}\ninstead of\n{expected}"
            );
        }
        // As the run writes them, and as a person does.
        for (text, ratio) in [
            ("warmup_ratio = 0.03\nwarmup_steps = 2", None),
            ("warmup_ratio = 0.5\nwarmup_steps = 2", Some(0.5)),
            ("warmup_ratio = 0.03", Some(0.03)),
        ] {
            let args = Args::from_toml(text).unwrap();
            assert_eq!(args.training.warmup_ratio, ratio, "{text}");
        }
        let args = Args::from_toml("lora_alpha = 16\ndata = \"a\"\nepochs = 1").unwrap();
        assert_eq!(args.lora.lora_alpha, Some(16.0));
        assert_eq!(args.data.data.len(), 1);
    }

    #[test]
    fn paths_at_home_are_read_as_a_shell_reads_them() {
        let home = std::env::var("HOME").unwrap_or_default();
        let text = "output = \"~/a\"\ndata = [\n\"~/b\",\n\"c\"\n]\nmodel = '~/m'\n";
        let args = Args::from_toml(text).unwrap();
        let at = |rest: &str| Some(std::path::PathBuf::from(format!("{home}/{rest}")));
        assert_eq!(args.output.output, at("a"));
        assert_eq!(args.data.data, [at("b").unwrap(), "c".into()]);
        assert_eq!(args.model.model, Some(format!("{home}/m")));
        let reward = Args::from_toml("reward = [\"json_schema:~/x\"]").unwrap();
        assert_eq!(reward.grpo.reward, [format!("json_schema:{home}/x")]);
        let wrong = Args::from_toml(&format!("{text}lora_r = \"x\"\n")).unwrap_err();
        assert!(wrong.starts_with("line 7: "), "{wrong}");
    }

    #[test]
    fn numbers_and_columns_may_be_written_in_several_ways() {
        let wholes = "lora_r = 8.0\nseed = 42.0 # the answer\nbatch_size = 4.0\nlearning_rate = 2.0\nlora_alpha = 1.5";
        let settings = serde_json::json!({
            "lora_r": 8.0, "seed": 42.0, "batch_size": 4.0, "learning_rate": 2.0, "lora_alpha": 1.5,
        });
        let from_json = Args::from_json(settings.as_object().unwrap()).unwrap();
        for args in [Args::from_toml(wholes).unwrap(), from_json] {
            assert_eq!(args.lora.lora_r, Some(8));
            assert_eq!(args.lora.lora_alpha, Some(1.5));
            assert_eq!(args.training.seed, Some(42));
            assert_eq!(args.training.batch_size, Some(BatchSize::Rows(4)));
            assert_eq!(args.training.learning_rate, Some(2.0));
        }
        for columns in [
            "columns = {prompt = \"question\", completion = \"answer\"}",
            "[columns]\nprompt = \"question\"\ncompletion = \"answer\"",
            "columns = [\"completion=answer\", \"prompt=question\"]",
        ] {
            let args = Args::from_toml(columns).unwrap();
            let mut pairs = args.data.columns;
            pairs.sort();
            assert_eq!(pairs, ["completion=answer", "prompt=question"]);
        }
    }
}
