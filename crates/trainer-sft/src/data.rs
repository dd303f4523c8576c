//! From files to tokenized [`Example`]s.
//!
//! `open` unpacks files, [`read`] tells records apart, [`mod@format`] recognises and checks them, [`render`] turns them into
//! tokens and a loss mask, and [`Datasets::load`] does it all on all cores, reporting what was recognised, shortened and
//! left out. [`Examples`] holds the tokens, on the disk where there are many; a stream reads while the run goes on.

mod array;
mod cells;
mod dataset;
mod error;
mod example;
pub mod files;
pub(crate) mod findings;
pub mod format;
mod last_break;
mod load;
mod names;
mod no_numbers;
pub(crate) mod objects;
mod open;
pub mod read;
pub mod render;
mod report;
mod shown;
mod split;
mod store;
mod stream;
pub mod survey;
mod wide;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tracing::info;

pub(crate) use cells::speaker;
pub use dataset::Dataset;
pub use error::DataError;
pub use example::{Example, Place, Source};
pub use format::{Chat, Content, Extras, Format, Record, TurnKind};
pub(crate) use names::shown_key;
pub(crate) use no_numbers::no_number;
pub use report::{DataReport, Found};
pub use store::Examples;
pub(crate) use stream::{Stream, StreamPlace};
pub(crate) use wide::{EXPECTED as WIDE_EXPECTED, written_wide_integer};

use crate::chat_format::ChatFormat;
use crate::config::{Columns, Config, Method};
use crate::digest;
use load::{Recipe, load_files, load_records};
use read::RawRecord;
use render::{RenderSettings, Renderer};

/// Records that a program has in memory: JSON objects of any of the [formats](Format), instead of the files of a [`Config`].
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// What is learnt; `None` is the files of [`DataConfig::train`](crate::config::DataConfig::train).
    pub train: Option<Vec<Value>>,
    /// What is only measured; `None` is the files of [`DataConfig::eval`](crate::config::DataConfig::eval).
    pub eval: Option<Vec<Value>>,
}

/// What is learnt, read before the run or while it goes on.
#[derive(Debug)]
pub enum TrainData {
    /// All of it is there.
    Loaded(Box<Dataset>),
    /// It comes a block at a time.
    Streamed(Box<Stream>),
}

/// The data of a run.
#[derive(Debug)]
pub struct Datasets {
    /// What is learnt.
    pub train: TrainData,
    /// What is only measured.
    pub eval: Option<Dataset>,
    /// The length limit in force: `--max-length`, or the model's context where that is shorter.
    pub max_length: usize,
}

impl Datasets {
    /// Reads, renders and tokenizes the data of a run: `records`, or the files of `config` where there are none. Tokens that do
    /// not fit in memory go to `folder`; with `show`, a bar on standard error or the log shows the progress.
    ///
    /// # Errors
    /// The files, records or fields that cannot be used, and data of which nothing is left to learn.
    pub fn load(
        config: &Config,
        format: &ChatFormat,
        records: Records,
        folder: Option<&Path>,
        show: bool,
    ) -> Result<Self, DataError> {
        Self::load_until(config, format, records, folder, show, None)
    }

    /// As [`load`](Self::load). When `stop` becomes true, it ends with [`DataError::Stopped`].
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_until(
        config: &Config,
        format: &ChatFormat,
        records: Records,
        folder: Option<&Path>,
        show: bool,
        stop: Option<&AtomicBool>,
    ) -> Result<Self, DataError> {
        let recipe = recipe(config, format)?;
        let read = |files: Vec<PathBuf>| load_files(&files, &recipe, folder, show, stop);
        let memory = |name, records| load_records(name, raw(name, records), &recipe, folder, stop);
        let whole = match records.train {
            Some(records) => Some(memory("records", records)?),
            // A split is of all records, which a stream does not know.
            None if config.data.streaming && config.data.eval_split.is_none() => None,
            // Records of a program may be a few of many, of which others have the field.
            None => {
                let data = read(files::expand(&config.data.train)?)?;
                data.check_columns(&recipe.columns)?;
                Some(data)
            }
        };
        let mut split = None;
        let train = match whole {
            Some(mut data) => {
                if let Some(part) = config.data.eval_split {
                    split = Some(data.split(part, config.run.seed, folder)?);
                }
                TrainData::Loaded(Box::new(data))
            }
            None => {
                let files = files::expand(&config.data.train)?;
                TrainData::Streamed(Box::new(Stream::new(files, recipe.clone())?))
            }
        };
        let eval = match (split, records.eval) {
            (Some(split), _) => Some(split),
            (None, Some(records)) => Some(memory("eval_records", records)?),
            (None, None) if config.data.eval.is_empty() => None,
            (None, None) => Some(read(files::expand_to_measure(&config.data.eval)?)?),
        };
        Ok(Self {
            train,
            eval,
            max_length: recipe.renderer.settings().max_length,
        })
    }
}

/// How the records of a run become examples.
fn recipe(config: &Config, format: &ChatFormat) -> Result<Recipe, DataError> {
    let limits = &format.limits;
    let max_length = config.data.max_length.min(limits.context_length);
    if max_length < config.data.max_length {
        info!("examples are limited to the model's context of {max_length} tokens");
    }
    let settings = RenderSettings {
        train_on: config.data.train_on,
        thinking: config.data.thinking,
        max_length,
        eos_token_id: limits.eos_token_ids.first().copied(),
    };
    Ok(Recipe {
        renderer: Renderer::of(format, settings),
        columns: Columns::parse(&config.data.columns).map_err(DataError::Columns)?,
        strict: config.data.strict,
        compares: false,
        method: config.method.method,
    })
}

impl Dataset {
    /// Reads all training files of `config`, also those of `--streaming`, as [`Datasets::load`] would.
    ///
    /// # Errors
    /// As [`Datasets::load`].
    pub fn of(config: &Config, format: &ChatFormat) -> Result<Self, DataError> {
        Self::of_files(&files::expand(&config.data.train)?, config, format)
    }

    /// As [`Self::of`], of data that is only measured.
    ///
    /// # Errors
    /// As [`Datasets::load`].
    pub(crate) fn to_measure(config: &Config, format: &ChatFormat) -> Result<Self, DataError> {
        let files = files::expand_to_measure(&config.data.train)?;
        Self::of_files(&files, config, format)
    }

    fn of_files(
        files: &[PathBuf],
        config: &Config,
        format: &ChatFormat,
    ) -> Result<Self, DataError> {
        let recipe = recipe(config, format)?;
        let data = load_files(files, &recipe, None, true, None)?;
        data.check_columns(&recipe.columns)?;
        Ok(data)
    }

    /// Refuses `--columns` with a field that is in no record. Data that is only measured may lack some of them.
    fn check_columns(&self, columns: &Columns) -> Result<(), DataError> {
        let missing = columns.not_in(self.report.columns);
        missing.map_or(Ok(()), |pair| Err(DataError::no_field(pair)))
    }

    /// Reads and renders `files`, and logs what was recognised.
    ///
    /// # Errors
    /// As [`Datasets::load`].
    pub fn load(files: &[PathBuf], renderer: &Renderer) -> Result<Self, DataError> {
        let recipe = Recipe {
            renderer: renderer.clone(),
            columns: Columns::default(),
            strict: false,
            compares: false,
            method: Method::Sft,
        };
        load_files(&files::expand(files)?, &recipe, None, false, None)
    }
}

/// Records of a program. Record 3 of `records` is named `records[3]`.
fn raw(name: &str, records: Vec<Value>) -> impl Iterator<Item = RawRecord> {
    let file: Arc<Path> = Path::new(name).into();
    records.into_iter().enumerate().map(move |(index, value)| {
        let source = Source {
            file: file.clone(),
            place: Place::Element(index),
        };
        RawRecord::from_value(source, value)
    })
}

impl TrainData {
    /// Tells this data from any other.
    pub(crate) fn hash(&self) -> String {
        match self {
            Self::Loaded(dataset) => dataset.hash.clone(),
            Self::Streamed(stream) => {
                let mut hash = Sha256::new();
                for file in stream.files() {
                    read::hash_start(file, &mut hash);
                }
                digest::short(hash)
            }
        }
    }
}
