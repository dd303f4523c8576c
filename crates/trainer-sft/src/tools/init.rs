//! `trainer-sft init`: a few questions, or flags, and the settings of a run as a file.

mod answers;
mod dialog;
mod file;

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use self::answers::{
    columns_of, local_model, named_data, named_device, named_method, named_model, named_reward,
    named_thinking, note_absent, positive, refused, usual_method,
};
use self::dialog::Dialog;
use super::ToolError;
use super::check::problems_of;
use super::error::io_error;
use crate::chat_format::ChatFormat;
use crate::commands::{Commands, quoted};
use crate::config::args::{Args, number};
use crate::config::{Columns, Config, Method, Thinking};
use crate::data::files;
use crate::output::can_be_made;
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

    /// Names of the fields in the data, as in training [default: the ones that read the first record]
    #[arg(long, value_name = "PART=FIELD", value_delimiter = ',')]
    pub columns: Vec<String>,

    /// What is learnt, as in training [default: sft]
    #[arg(long, value_enum)]
    pub method: Option<Method>,

    /// Rewards of --method grpo, as in training; an address is a program that gives rewards
    #[arg(long, value_name = "REWARD")]
    pub reward: Vec<String>,

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
    let written = args.file.display();
    let file = quoted(&written.to_string());
    let Commands { tool, train, .. } = commands;
    Ok(format!(
        "Written to {written}\nLook at the data: {tool} check --config {file}\nTrain: {train} --config {file}\n"
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
            ("--epochs", self.epochs.is_none()),
            ("--output", self.output.is_none()),
        ];
        let missing = flags.into_iter().filter(|(_, is_missing)| *is_missing);
        missing.map(|(flag, _)| flag).collect()
    }

    /// The settings that the flags say, and the answers to what they do not say.
    fn settings(&self, mut dialog: Option<Dialog<'_>>) -> Result<Args, ToolError> {
        let mut settings = Args::default();
        settings.data.thinking = self.thinking;
        settings.training.epochs = self.epochs;
        if let Some(output) = &self.output {
            can_be_made(output).map_err(refused("output"))?;
        }
        settings.output.output = self.output.clone();
        settings.model.model = match (&self.model, &mut dialog) {
            (Some(model), _) => named_model(model).map_err(refused("model"))?,
            (None, Some(dialog)) => dialog.ask("model", MODEL, "", named_model)?,
            (None, None) => None,
        };
        self.learn(&mut settings, &mut dialog)?;
        let device = match (&self.device, &mut dialog) {
            (Some(device), _) => named_device(device).map_err(refused("device"))?,
            (None, Some(dialog)) => dialog.ask("device", DEVICE, "auto", named_device)?,
            (None, None) => "auto".to_owned(),
        };
        note_absent(&device);
        settings.model.device = Some(device);
        if let (Some(dialog), None) = (&mut dialog, self.epochs) {
            let default = Config::from_args(&settings)?.epochs().to_string();
            settings.training.epochs = Some(dialog.ask("epochs", EPOCHS, &default, positive)?);
        }
        if let (Some(dialog), None) = (&mut dialog, &self.output) {
            settings.output.output = dialog.ask("output", OUTPUT, "", |text| {
                let folder = (!text.is_empty()).then(|| answers::at_home(text));
                let made = folder.as_deref().map_or(Ok(()), can_be_made);
                made.map_err(|found| format!("expected a folder that can be made, found {found}"))?;
                let mut settings = settings.clone();
                settings.output.output = folder.clone();
                let checked = Config::from_args(&settings).map_err(|error| error.to_string());
                checked.map(|_| folder)
            })?;
        }
        Ok(settings)
    }

    /// What is learnt from which data. Where a run would refuse the records, the questions are asked again.
    fn learn(&self, settings: &mut Args, dialog: &mut Option<Dialog<'_>>) -> Result<(), ToolError> {
        let first = dialog.as_ref().map_or(0, Dialog::number);
        let mut was_refused = false;
        loop {
            settings.data.data = match (&self.data[..], &mut *dialog) {
                ([], Some(dialog)) => {
                    let example = sample_data::example().unwrap_or_default();
                    dialog.ask("data", DATA, &example.to_string_lossy(), named_data)?
                }
                ([], None) => return Err(refused("data")("none".to_owned())),
                (data, _) => {
                    refuse_settings(data)?;
                    files::expand(data)?;
                    data.to_vec()
                }
            };
            settings.method.method = match (self.method, &mut *dialog) {
                (None, Some(dialog)) => Some(method(dialog, &settings.data.data, was_refused)?),
                (method, _) => method,
            };
            settings.data.columns = self.named_columns(settings, dialog)?;
            self.reward(settings, dialog)?;
            self.think(settings, dialog)?;
            let problem = match look_at(settings) {
                Ok(None) => return Ok(()),
                Ok(Some(problem)) => problem,
                Err(error) if dialog.is_none() => return Err(error),
                Err(error) => error.to_string(),
            };
            match dialog {
                Some(dialog) if dialog.number() > first => {
                    dialog.say(&format!("A run would refuse this data: {problem}"));
                    dialog.go_back_to(first);
                    was_refused = true;
                }
                _ => return Err(refused("data")(problem)),
            }
        }
    }

    /// The columns of the flag or, where the first record has other names than a run reads, the ones that read it.
    fn named_columns(
        &self,
        settings: &Args,
        dialog: &mut Option<Dialog<'_>>,
    ) -> Result<Vec<String>, ToolError> {
        if !self.columns.is_empty() {
            Columns::parse(&self.columns)?;
            return Ok(self.columns.clone());
        }
        let method = settings.method.method.unwrap_or(Method::Sft);
        let columns = columns_of(&settings.data.data, method);
        if !columns.is_empty() {
            let text = format!(
                "The data has its own names of fields: it is read with --columns {}",
                columns.join(",")
            );
            match dialog {
                Some(dialog) => dialog.say(&text),
                None => tracing::info!("{text}"),
            }
        }
        Ok(columns)
    }

    /// The rewards of GRPO.
    fn reward(
        &self,
        settings: &mut Args,
        dialog: &mut Option<Dialog<'_>>,
    ) -> Result<(), ToolError> {
        let is_grpo = settings.method.method == Some(Method::Grpo);
        let rewards = match dialog {
            Some(dialog) if is_grpo && self.reward.is_empty() => {
                vec![dialog.ask("reward", REWARD, "", named_reward)?]
            }
            _ => self.reward.clone(),
        };
        let (urls, rewards) = rewards
            .into_iter()
            .partition(|reward| reward.starts_with("http"));
        (settings.grpo.reward, settings.grpo.reward_url) = (rewards, urls);
        Ok(())
    }

    /// Whether the data has reasoning, for a model that opens a think block.
    fn think(&self, settings: &mut Args, dialog: &mut Option<Dialog<'_>>) -> Result<(), ToolError> {
        let Some(dialog) = dialog else { return Ok(()) };
        if self.thinking.is_some() || settings.method.method == Some(Method::Grpo) {
            return Ok(());
        }
        settings.data.thinking = None;
        let Some(config) = on_this_machine(settings)? else {
            return Ok(());
        };
        if ChatFormat::load(&config)?.facts.opens_think {
            let answer = dialog.ask("thinking", THINKING, "keep", named_thinking)?;
            settings.data.thinking = Some(answer);
        }
        Ok(())
    }
}

/// What is learnt: as the data looks, or an answer where it may be for several methods or its look has led to a refusal.
fn method(
    dialog: &mut Dialog<'_>,
    data: &[PathBuf],
    was_refused: bool,
) -> Result<Method, ToolError> {
    let (usual, is_sure) = usual_method(data);
    if !is_sure || was_refused {
        return dialog.ask("method", METHOD, usual.name(), named_method);
    }
    let name = usual.name();
    dialog.say(&format!(
        "The first record is data for --method {name}, which this run takes. The flag chooses another method"
    ));
    Ok(usual)
}

/// Refuses a FILE that --data has taken, since it takes all words after it.
fn refuse_settings(data: &[PathBuf]) -> Result<(), ToolError> {
    let is_settings = |path: &&PathBuf| path.extension().is_some_and(|end| end == "toml");
    match data.iter().find(is_settings) {
        None => Ok(()),
        Some(path) => Err(ToolError::Flag {
            flag: "data",
            expected: "data; the file to write stands before --data".to_owned(),
            found: path.display().to_string(),
        }),
    }
}

/// What a run would refuse in the data; nothing where the model is not on this machine, since its tokenizer decides, too.
fn look_at(settings: &Args) -> Result<Option<String>, ToolError> {
    let is_stream = |path: &PathBuf| path.as_os_str() == "-";
    if settings.data.data.iter().any(is_stream) {
        return Ok(None);
    }
    let Some(config) = on_this_machine(settings)? else {
        tracing::warn!(
            "the model is not on this machine, so that nobody has looked at the data: `trainer-sft check` does"
        );
        return Ok(None);
    };
    let problems = problems_of(&config)?;
    Ok(problems.first().map(|first| match problems.len() - 1 {
        0 => first.clone(),
        more => format!("{first} (and {more} more)"),
    }))
}

/// The settings with the model's folder; `None` where it has none on this machine.
fn on_this_machine(settings: &Args) -> Result<Option<Config>, ToolError> {
    let mut settings = settings.clone();
    if let Some(model) = &settings.model.model {
        let Some(folder) = local_model(model) else {
            return Ok(None);
        };
        settings.model.model = Some(folder.display().to_string());
    }
    Ok(Some(Config::from_args(&settings)?))
}

const MODEL: &str = "Which model? A folder, or a Hugging Face id such as Qwen/Qwen2.5-1.5B-Instruct. \
                     Empty: the small bundled model";
const DATA: &str =
    "Which data? A file of chats or instructions (JSONL, JSON, CSV), or a folder of them";
const METHOD: &str = "What is learnt? `sft`: to say the answers; `dpo` or `orpo`: which of two answers is better; `kto`: which \
                      answers are good; `grpo`: what gets rewards";
const REWARD: &str = "Which reward? json, exact_match, regex:PATTERN, json_schema:FILE, length:MIN-MAX, or the address of a \
                      program that gives rewards (http://…)";
const THINKING: &str = "The model writes its reasoning before the answer. Does the data have reasoning (`keep`), \
                        or none (`empty`: an empty think block is learnt)?";
const DEVICE: &str =
    "Where? `cpu`, `cuda` for an NVIDIA card, or `auto` for a card where one is found";
const EPOCHS: &str = "How often is the data learnt? 1 is quick, 3 is usual";
const OUTPUT: &str =
    "Which folder for the result? Empty: a new one for each run, adapters/DATA-1 and so on";

#[cfg(test)]
mod tests {
    use std::path::Path;

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

    const PAIR: &str = r#"{"prompt": "Who?", "chosen": "Ann.", "rejected": "Bob."}"#;

    #[test]
    fn five_questions_make_the_settings_of_a_run() {
        let answers = format!("\n{}\ncpu\n2\nadapters/mine\n", data());
        let (settings, printed) = ask(&InitArgs::default(), &answers);
        let settings = settings.unwrap();
        assert_eq!(settings.model.model, None);
        assert_eq!(settings.data.data, [PathBuf::from(data())]);
        assert_eq!(settings.method.method, Some(Method::Sft));
        assert_eq!(settings.model.device.as_deref(), Some("cpu"));
        assert_eq!(settings.training.epochs, Some(2.0));
        assert_eq!(settings.output.output, Some("adapters/mine".into()));
        for number in 1..=5 {
            assert!(printed.contains(&format!("{number}. ")), "{printed}");
        }
        assert!(!printed.contains("6. "), "{printed}");
        // The method is told where it is not asked for.
        assert!(printed.contains("--method sft"), "{printed}");
    }

    #[test]
    fn other_names_of_fields_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        std::fs::write(&path, "{\"question\": \"Hi?\", \"answer\": \"Yes.\"}\n").unwrap();
        let answers = format!("\n{}\ncpu\n2\n\n", path.display());
        let (settings, printed) = ask(&InitArgs::default(), &answers);
        let columns = settings.unwrap().data.columns;
        assert_eq!(columns, ["prompt=question", "completion=answer"]);
        let told = "it is read with --columns prompt=question,completion=answer";
        assert!(printed.contains(told), "{printed}");
    }

    #[test]
    fn wrong_answers_are_asked_again_and_flags_are_not_asked() {
        let args = InitArgs {
            model: Some("Qwen/Qwen2.5-0.5B-Instruct".to_owned()),
            device: Some("cpu".to_owned()),
            ..InitArgs::default()
        };
        let full = tempfile::tempdir().unwrap();
        std::fs::write(full.path().join("x"), "x").unwrap();
        let pairs = full.path().join("pairs.jsonl");
        std::fs::write(&pairs, PAIR).unwrap();
        let (full, pairs) = (full.path().display(), pairs.display());
        let answers = format!("no-such-file\n{pairs}\nppo\ndpo\n-1\nmany\n\n{full}\n\n");
        let (settings, printed) = ask(&args, &answers);
        let settings = settings.unwrap();
        assert_eq!(settings.training.epochs, Some(3.0), "{printed}");
        assert_eq!(settings.output.output, None);
        assert!(!printed.contains("Which model"), "{printed}");
        for part in [
            "no such file",
            "expected sft, dpo, orpo, kto, grpo, found `ppo`",
            "above 0",
            "a number such as",
            "expected a new or empty folder",
            "1. Which data",
            "2. What is learnt",
            "3. How often",
            "4. Which folder",
        ] {
            assert!(printed.contains(part), "{part}: {printed}");
        }
        let (settings, _) = ask(&args, "");
        let error = settings.unwrap_err().to_string();
        assert!(error.starts_with("--data: expected an answer"), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_folder_that_cannot_be_made_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("a/b");
        let args = InitArgs {
            model: None,
            device: Some("cpu".to_owned()),
            epochs: Some(1.0),
            ..InitArgs::default()
        };
        let answers = format!("\n{}\n/proc/x/y\n{}\n", data(), own.display());
        let (settings, printed) = ask(&args, &answers);
        assert_eq!(settings.unwrap().output.output, Some(own));
        assert!(printed.contains("found /proc/x/y: /proc/x: "), "{printed}");
        assert!(!folder.path().join("a").exists());
        let args = InitArgs {
            output: Some("/proc/x".into()),
            ..args
        };
        let error = args.settings(None).unwrap_err().to_string();
        assert!(error.starts_with("--output: expected a folder"), "{error}");
    }

    #[test]
    fn data_that_a_run_would_refuse_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let pairs = folder.path().join("pairs.jsonl");
        std::fs::write(&pairs, PAIR).unwrap();
        let pairs = pairs.display();
        // The method is guessed; another one is refused with the reason, and both questions are asked again.
        let answers = format!("\n{pairs}\nsft\n{pairs}\n\ncpu\n1\n\n");
        let (settings, printed) = ask(&InitArgs::default(), &answers);
        assert_eq!(settings.unwrap().method.method, Some(Method::Dpo));
        for part in ["[dpo]", "A run would refuse this data", "6. Which folder"] {
            assert!(printed.contains(part), "{part}: {printed}");
        }
        assert_eq!(printed.matches("2. Which data").count(), 2, "{printed}");
        // Where data looks like that of one method only, a refusal makes its method a question.
        let asked = folder.path().join("asked.jsonl");
        std::fs::write(
            &asked,
            r#"{"messages": [{"role": "user", "content": "Who?"}]}"#,
        )
        .unwrap();
        let asked = asked.display();
        let answers = format!("\n{asked}\n{asked}\ngrpo\njson\ncpu\n1\n\n");
        let (settings, printed) = ask(&InitArgs::default(), &answers);
        let settings = settings.unwrap();
        assert_eq!(settings.method.method, Some(Method::Grpo), "{printed}");
        // Without questions it is an error.
        let args = InitArgs {
            data: vec![pairs.to_string().into()],
            ..InitArgs::default()
        };
        let refused = args.settings(None).unwrap_err().to_string();
        assert!(
            refused.starts_with("--data: expected") && refused.contains("--method dpo"),
            "{refused}"
        );
        let prompts = folder.path().join("prompts.jsonl");
        std::fs::write(&prompts, r#"{"prompt": "An object, please"}"#).unwrap();
        let answers = format!("\n{}\n\nnone\njson\ncpu\n1\n\n", prompts.display());
        let (settings, printed) = ask(&InitArgs::default(), &answers);
        let settings = settings.unwrap();
        assert_eq!(settings.method.method, Some(Method::Grpo));
        assert_eq!(settings.grpo.reward, ["json"]);
        assert!(printed.contains("4. Which reward"), "{printed}");
        assert!(printed.contains("expected exact_match"), "{printed}");
    }
}
