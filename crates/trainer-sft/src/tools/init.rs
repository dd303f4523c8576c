//! `trainer-sft init`: five questions, or flags, and the settings of a run as a file.

mod dialog;
mod file;

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use model_qwen::{
    ChatTemplate, DeviceError, HubOptions, RenderOptions, bundled_model_dir, parse_device,
    resolve_model_with,
};
use serde_json::json;

use self::dialog::Dialog;
use super::ToolError;
use super::error::io_error;
use crate::commands::Commands;
use crate::config::args::{Args, number};
use crate::config::{Config, Thinking};
use crate::data::files;
use crate::sample_data;

/// `trainer-sft init`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct InitArgs {
    /// File to write
    #[arg(value_name = "FILE", default_value = "run.toml")]
    pub file: PathBuf,

    /// Folder or Hugging Face id of the base model [default: the bundled model]
    #[arg(long, value_name = "MODEL", visible_alias = "model-name-or-path")]
    pub model: Option<String>,

    /// Data to learn from: files, folders, glob patterns
    #[arg(long, value_name = "DATA", visible_alias = "train-file", num_args = 1..)]
    pub data: Vec<PathBuf>,

    /// auto, cpu, cuda and so on [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// For models that open a think block: whether the data has the reasoning (`keep`) or has none (`empty`) [default: keep]
    #[arg(long, value_enum)]
    pub thinking: Option<Thinking>,

    /// Passes over the data [default: 3; 10 for the bundled model]
    #[arg(long, value_name = "N", visible_alias = "num-train-epochs", value_parser = number)]
    pub epochs: Option<f64>,

    /// Folder for the result [default: a new one for each run, adapters/DATA-N]
    #[arg(long, short, value_name = "FOLDER", visible_alias = "output-dir")]
    pub output: Option<PathBuf>,

    /// Ask nothing: what no flag says is at its default
    #[arg(long, short)]
    pub yes: bool,

    /// Overwrite FILE
    #[arg(long)]
    pub force: bool,
}

/// Writes the file, and says what comes next.
pub(super) fn init(args: &InitArgs, commands: Commands) -> Result<String, ToolError> {
    check_file(args)?;
    let (mut input, mut out) = (io::stdin().lock(), io::stderr());
    let missing = args.missing();
    let dialog = match missing.is_empty() || args.yes {
        true => None,
        false if !input.is_terminal() => return Err(ToolError::NoTerminal { missing }),
        false => Some(Dialog::new(&mut input, &mut out)),
    };
    let settings = args.settings(dialog)?;
    let text = file::text(&settings)?;
    write(args, &text)?;
    let file = args.file.display();
    let Commands { tool, train, .. } = commands;
    Ok(format!(
        "Written to {file}\nLook at the data: {tool} check --config {file}\nTrain: {train} --config {file}\n"
    ))
}

/// Refuses a file that exists, before anything is asked.
fn check_file(args: &InitArgs) -> Result<(), ToolError> {
    match args.force || fs::symlink_metadata(&args.file).is_err() {
        true => Ok(()),
        false => Err(exists(args)),
    }
}

fn exists(args: &InitArgs) -> ToolError {
    let path = args.file.clone();
    ToolError::FileExists { path }
}

fn write(args: &InitArgs, text: &str) -> Result<(), ToolError> {
    let path = &args.file;
    let mut options = OpenOptions::new();
    match args.force {
        true => options.write(true).create(true).truncate(true),
        false => options.write(true).create_new(true),
    };
    let written = options.open(path);
    match written.and_then(|mut file| file.write_all(text.as_bytes())) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists(args)),
        written => written.map_err(io_error(path)),
    }
}

impl InitArgs {
    /// The flags that would answer the questions that are left.
    fn missing(&self) -> Vec<&'static str> {
        let flags = [
            ("--model", self.model.is_none()),
            ("--data", self.data.is_empty()),
            ("--device", self.device.is_none()),
            (
                "--epochs (or --thinking)",
                self.epochs.is_none() && self.thinking.is_none(),
            ),
            ("--output", self.output.is_none()),
        ];
        let missing = flags.into_iter().filter(|(_, is_missing)| *is_missing);
        missing.map(|(flag, _)| flag).collect()
    }

    /// The settings that the flags say, and the answers to what they do not say.
    fn settings(&self, mut dialog: Option<Dialog<'_>>) -> Result<Args, ToolError> {
        let mut settings = Args {
            epochs: self.epochs,
            thinking: self.thinking,
            output: self.output.clone(),
            ..Args::default()
        };
        settings.model = match (&self.model, &mut dialog) {
            (Some(model), _) => named_model(model).map_err(refused("model"))?,
            (None, Some(dialog)) => dialog.ask("model", MODEL, "", named_model)?,
            (None, None) => None,
        };
        settings.data = match (&self.data[..], &mut dialog) {
            ([], Some(dialog)) => {
                let example = sample_data::example().unwrap_or_default();
                dialog.ask("data", DATA, &example.to_string_lossy(), named_data)?
            }
            ([], None) => return Err(refused("data")("none".to_owned())),
            (data, _) => {
                files::expand(data)?;
                data.to_vec()
            }
        };
        let device = match (&self.device, &mut dialog) {
            (Some(device), _) => named_device(device).map_err(refused("device"))?,
            (None, Some(dialog)) => dialog.ask("device", DEVICE, "auto", named_device)?,
            (None, None) => "auto".to_owned(),
        };
        note_absent(&device);
        settings.device = Some(device);
        if let (Some(dialog), None, None) = (&mut dialog, self.epochs, self.thinking) {
            match opens_think(settings.model.as_deref()) {
                true => {
                    let answer = dialog.ask("thinking", THINKING, "keep", named_thinking)?;
                    settings.thinking = Some(answer);
                }
                false => {
                    let default = Config::new("x").epochs().to_string();
                    let default = match settings.model {
                        None => default,
                        Some(_) => crate::config::DEFAULT_EPOCHS.to_string(),
                    };
                    let answer = dialog.ask("epochs", EPOCHS, &default, positive)?;
                    settings.epochs = Some(answer);
                }
            }
        }
        if let (Some(dialog), None) = (&mut dialog, &self.output) {
            settings.output = dialog.ask("output", OUTPUT, "", |text| {
                Ok((!text.is_empty()).then(|| at_home(text)))
            })?;
        }
        Ok(settings)
    }
}

const MODEL: &str = "1. Which model? A folder, or a Hugging Face id such as Qwen/Qwen2.5-1.5B-Instruct. \
                     Empty: the small bundled model";
const DATA: &str =
    "2. Which data? A file of chats or instructions (JSONL, JSON, CSV), or a folder of them";
const DEVICE: &str =
    "3. Where? `cpu`, `cuda` for an NVIDIA card, or `auto` for a card where one is found";
const THINKING: &str = "4. The model writes its reasoning before the answer. Does the data have reasoning (`keep`), \
                        or none (`empty`: an empty think block is learnt)?";
const EPOCHS: &str = "4. How often is the data learnt? 1 is quick, 3 is usual";
const OUTPUT: &str =
    "5. Which folder for the result? Empty: a new one for each run, adapters/DATA-1 and so on";

/// An error of a flag; takes what was found.
fn refused(flag: &'static str) -> impl FnOnce(String) -> ToolError {
    move |found| ToolError::Flag {
        flag,
        expected: match flag {
            "model" => "a model folder, or a Hugging Face id such as Qwen/Qwen2.5-1.5B-Instruct",
            "data" => "a file to learn from",
            _ => "auto, cpu, cuda, cuda:N, wgpu, vulkan, metal, rocm or rocm:N",
        }
        .to_owned(),
        found,
    }
}

/// A path as a shell would read it.
fn at_home(text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(text),
    }
}

/// A model that is on this machine or may be on the Hub; nothing is downloaded.
fn named_model(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return match bundled_model_dir() {
            Ok(_) => Ok(None),
            Err(error) => Err(error.to_string()),
        };
    }
    let path = at_home(text).display().to_string();
    let is_id = text.split('/').count() == 2 && !text.starts_with(['.', '/', '~']);
    match resolve_model_with(&path, &offline()) {
        Ok(_) => Ok(Some(path)),
        Err(_) if is_id => Ok(Some(text.to_owned())),
        Err(error) => Err(error.to_string()),
    }
}

fn offline() -> HubOptions {
    HubOptions {
        offline: true,
        ..HubOptions::from_env()
    }
}

fn named_data(text: &str) -> Result<Vec<PathBuf>, String> {
    let paths = vec![at_home(text)];
    match files::expand(&paths) {
        Ok(_) => Ok(paths),
        Err(error) => Err(error.to_string()),
    }
}

/// A device that this build or another one knows.
fn named_device(text: &str) -> Result<String, String> {
    match parse_device(text) {
        Err(error @ (DeviceError::Unknown { .. } | DeviceError::Index { .. })) => {
            Err(error.to_string())
        }
        _ => Ok(text.to_owned()),
    }
}

/// The file may be for another machine or build, so what is missing here is only said.
fn note_absent(device: &str) {
    if let Err(error) = parse_device(device) {
        tracing::warn!("{error}");
    }
}

fn named_thinking(text: &str) -> Result<Thinking, String> {
    clap::ValueEnum::from_str(text, true).map_err(|_| format!("expected keep or empty: {text:?}"))
}

fn positive(text: &str) -> Result<f64, String> {
    let value = number(text)?;
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(format!("expected a number above 0, found {value}")),
    }
}

/// Whether the generation prompt of a model opens a think block; no where the model is not on this machine.
fn opens_think(model: Option<&str>) -> bool {
    let folder = match model {
        Some(model) => resolve_model_with(model, &offline()).ok(),
        None => bundled_model_dir().ok(),
    };
    let template = folder.and_then(|folder| ChatTemplate::from_dir(&folder).ok().flatten());
    let prompt = template.and_then(|template| {
        let options = RenderOptions {
            add_generation_prompt: true,
            ..RenderOptions::default()
        };
        let messages = [json!({"role": "user", "content": "hi"})];
        template.render(&messages, &options).ok()
    });
    prompt.is_some_and(|prompt| prompt.trim_end().ends_with("<think>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings after these answers, and what was printed.
    fn ask(args: &InitArgs, answers: &str) -> (Result<Args, ToolError>, String) {
        let mut input = answers.as_bytes();
        let mut out = Vec::new();
        let settings = args.settings(Some(Dialog::new(&mut input, &mut out)));
        (settings, String::from_utf8(out).unwrap())
    }

    fn data() -> String {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/train.jsonl");
        data.display().to_string()
    }

    #[test]
    fn five_questions_make_the_settings_of_a_run() {
        let answers = format!("\n{}\ncpu\n2\nadapters/mine\n", data());
        let (settings, printed) = ask(&InitArgs::default(), &answers);
        let settings = settings.unwrap();
        assert_eq!(settings.model, None);
        assert_eq!(settings.data, [PathBuf::from(data())]);
        assert_eq!(settings.device.as_deref(), Some("cpu"));
        assert_eq!(settings.epochs, Some(2.0));
        assert_eq!(settings.output, Some("adapters/mine".into()));
        for number in 1..=5 {
            assert!(printed.contains(&format!("{number}. ")), "{printed}");
        }
    }

    #[test]
    fn wrong_answers_are_asked_again_and_flags_are_not_asked() {
        let args = InitArgs {
            model: Some("Qwen/Qwen2.5-0.5B-Instruct".to_owned()),
            device: Some("cpu".to_owned()),
            ..InitArgs::default()
        };
        let answers = format!("no-such-file\n{}\n-1\nmany\n\n\n", data());
        let (settings, printed) = ask(&args, &answers);
        let settings = settings.unwrap();
        assert_eq!(settings.epochs, Some(3.0), "{printed}");
        assert_eq!(settings.output, None);
        assert!(!printed.contains("1. Which model"), "{printed}");
        for part in ["no such file", "above 0", "a number such as"] {
            assert!(printed.contains(part), "{part}: {printed}");
        }
        let (settings, _) = ask(&args, "");
        let error = settings.unwrap_err().to_string();
        assert!(error.starts_with("--data: expected an answer"), "{error}");
    }
}
