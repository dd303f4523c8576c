//! How records become tokens where an adapter is measured: as its run read them, unless a flag says otherwise.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Deserialize;
use tracing::info;

use super::ToolError;
use super::base::settings_of_run;
use crate::config::args::whole;
use crate::config::{Columns, Config, DataConfig, Method, SETTINGS, Thinking, TrainOn};
use crate::data::{DataError, objects};

/// The flags of it, the same as those of a run.
#[derive(Clone, Debug, Default, Args)]
pub struct ReadingArgs {
    /// Names of the fields in the data, as in training [default: as the run of --adapter had it, else as the data names them]
    #[arg(long, value_name = "PART=FIELD", value_delimiter = ',', num_args = 1.., requires = "data")]
    pub columns: Vec<String>,

    /// Longest example in tokens, at most the model's context [default: as the run of --adapter had it, else 1024]
    #[arg(
        long,
        value_name = "TOKENS",
        value_parser = whole,
        visible_alias = "max-seq-length",
        requires = "data"
    )]
    pub max_length: Option<usize>,

    /// Tokens that are measured [default: as the run of --adapter had it, else assistant]
    #[arg(long, value_enum, requires = "data")]
    pub train_on: Option<TrainOn>,

    /// For templates that open a think block, as in training [default: as the run of --adapter had it, else keep]
    #[arg(long, value_enum, requires = "data")]
    pub thinking: Option<Thinking>,

    /// Folder with tokenizer.json and the chat template [default: as the run of --adapter had it, else the model's]
    #[arg(long, value_name = "FOLDER", requires = "data")]
    pub tokenizer: Option<PathBuf>,
}

/// What a run wrote down of it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Noted {
    columns: Option<Vec<String>>,
    max_length: Option<usize>,
    train_on: Option<TrainOn>,
    thinking: Option<Thinking>,
    tokenizer: Option<PathBuf>,
}

impl ReadingArgs {
    /// Puts these settings into `config`, and what the run of `adapter` wrote down for the others. One line of the log says what
    /// is used. Gives the adapter back where the names of the fields are those of its run.
    ///
    /// # Errors
    /// A setting out of range, and settings of a run that cannot be read.
    pub(super) fn put_into<'a>(
        &self,
        config: &mut Config,
        adapter: Option<&'a Path>,
    ) -> Result<Option<&'a Path>, ToolError> {
        if self.max_length == Some(0) {
            return Err(ToolError::Flag {
                flag: "max-length",
                expected: "a whole number, 1 or more".to_owned(),
                found: "0".to_owned(),
            });
        }
        Columns::parse(&self.columns)?.check_parts(Method::Sft, |_| false)?;
        let noted: Option<Noted> = match adapter {
            Some(folder) => settings_of_run(folder)?,
            None => None,
        };
        let is_noted = noted.is_some();
        let noted = noted.unwrap_or_default();
        let data = &mut config.data;
        data.columns = match self.columns.is_empty() {
            // Answers that a run has compared or judged have parts that a loss is not about.
            true => Columns::read_by(noted.columns.unwrap_or_default(), Method::Sft),
            false => self.columns.clone(),
        };
        data.max_length = (self.max_length.or(noted.max_length)).unwrap_or(data.max_length);
        data.train_on = (self.train_on.or(noted.train_on)).unwrap_or(data.train_on);
        data.thinking = (self.thinking.or(noted.thinking)).unwrap_or(data.thinking);
        config.model.tokenizer = self.tokenizer.clone().or(noted.tokenizer);
        if let Some(folder) = adapter {
            info!("{}", self.told(config, (folder, is_noted)));
        }
        Ok(adapter.filter(|_| self.columns.is_empty() && !config.data.columns.is_empty()))
    }

    /// What is used, and where it comes from.
    fn told(&self, config: &Config, (adapter, is_noted): (&Path, bool)) -> String {
        let (data, tokenizer) = (&config.data, &config.model.tokenizer);
        let columns = (!data.columns.is_empty()).then(|| data.columns.join(","));
        let all = [
            (
                "max-length",
                Some(data.max_length.to_string()),
                self.max_length.is_some(),
            ),
            ("train-on", name(data.train_on), self.train_on.is_some()),
            ("thinking", name(data.thinking), self.thinking.is_some()),
            ("columns", columns, !self.columns.is_empty()),
            (
                "tokenizer",
                tokenizer.as_ref().map(|path| path.display().to_string()),
                self.tokenizer.is_some(),
            ),
        ];
        let some = |by_flag: bool| {
            let own = all.iter().filter(|(.., is_flag)| *is_flag == by_flag);
            let own =
                own.filter_map(|(name, value, _)| Some(format!("--{name} {}", value.as_ref()?)));
            own.collect::<Vec<_>>().join(" ")
        };
        let folder = adapter.display();
        let (by_flags, others) = (some(true), some(false));
        let others = match (is_noted, others.is_empty()) {
            (_, true) => String::new(),
            (true, false) => format!(" as the run of {folder} read them: {others}"),
            (false, false) => {
                format!(" by default, as {folder} has no settings of a run: {others}")
            }
        };
        match by_flags.is_empty() {
            true => format!("records are read{others}"),
            false if others.is_empty() => format!("records are read by flags: {by_flags}"),
            false => format!("records are read{others}; by flags: {by_flags}"),
        }
    }
}

/// An error of data that lacks fields which the run of `adapter` read, with where their names come from.
pub(super) fn of_noted_columns(error: DataError, data: &DataConfig, adapter: &Path) -> ToolError {
    let Ok(columns) = Columns::parse(&data.columns) else {
        return error.into();
    };
    let first = objects::first_object(&data.train);
    let lacks = |field: &str| (first.as_ref()).is_some_and(|first| !first.contains_key(field));
    let mut fields = columns.iter();
    match matches!(error, DataError::Columns(_)) || fields.any(|(_, field)| lacks(field)) {
        true => ToolError::NotedColumns {
            columns: data.columns.join(","),
            settings: adapter.join(SETTINGS),
            error: Box::new(error),
        },
        false => error.into(),
    }
}

/// As it is written on the command line.
fn name(value: impl ValueEnum) -> Option<String> {
    Some(value.to_possible_value()?.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_run_and_the_run_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let put = |args: &ReadingArgs| {
            let mut config = Config::new("");
            let noted = args.put_into(&mut config, Some(path)).unwrap();
            let from_run = args.columns.is_empty() && !config.data.columns.is_empty();
            assert_eq!(noted.is_some(), from_run);
            let is_noted = path.join(SETTINGS).exists();
            let told = args.told(&config, (path, is_noted));
            (config, told.replace(&path.display().to_string(), "A"))
        };
        let none = ReadingArgs::default();
        let (config, told) = put(&none);
        assert_eq!(config.data, Config::new("").data);
        let defaults = "--max-length 1024 --train-on assistant --thinking keep";
        assert_eq!(
            told,
            format!("records are read by default, as A has no settings of a run: {defaults}")
        );
        let settings = "max_length = 96\ntrain_on = \"all\"\nthinking = \"empty\"\ncolumns = [\"prompt=q\"]\ntokenizer = \"/t\"\n";
        std::fs::write(path.join(SETTINGS), settings).unwrap();
        let (config, told) = put(&none);
        assert_eq!(config.data.max_length, 96);
        assert_eq!(config.data.train_on, TrainOn::All);
        assert_eq!(config.data.thinking, Thinking::Empty);
        assert_eq!(config.model.tokenizer.as_deref(), Some(Path::new("/t")));
        let all =
            "--max-length 96 --train-on all --thinking empty --columns prompt=q --tokenizer /t";
        assert_eq!(
            told,
            format!("records are read as the run of A read them: {all}")
        );
        let own = ReadingArgs {
            columns: vec!["prompt=p".to_owned()],
            max_length: Some(7),
            train_on: Some(TrainOn::Prompt),
            ..ReadingArgs::default()
        };
        let (config, told) = put(&own);
        assert_eq!(config.data.columns, ["prompt=p"]);
        let end = "--thinking empty --tokenizer /t; by flags: --max-length 7 --train-on prompt --columns prompt=p";
        assert!(told.ends_with(end), "{told}");
        // Of answers with labels, the labels are no part of a loss.
        let judged = "columns = [\"prompt=q\", \"completion=a\", \"label=ok\"]\n";
        std::fs::write(path.join(SETTINGS), judged).unwrap();
        assert_eq!(put(&none).0.data.columns, ["prompt=q", "completion=a"]);
        let labelled = ReadingArgs {
            columns: vec!["label=ok".to_owned()],
            ..ReadingArgs::default()
        };
        let error = labelled.put_into(&mut Config::new(""), None).unwrap_err();
        assert!(error.to_string().contains("found `label=ok`"), "{error}");
        std::fs::write(path.join(SETTINGS), "train_on = \"some\"\n").unwrap();
        let error = none.put_into(&mut Config::new(""), Some(path)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("run.toml: expected the settings"),
            "{error}"
        );
    }
}
