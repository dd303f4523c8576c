//! What a check has found.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::lengths::Lengths;
use crate::Footprint;
use crate::config::Method;
use crate::data::Format;
use crate::data::survey::{FileCounts, Places};

/// What was found in the data of a run.
#[derive(Clone, Debug, Serialize)]
pub struct DataCheck {
    /// The model whose tokenizer and chat template count; `None` is the bundled one.
    pub model: Option<String>,
    /// How the data is learnt from.
    pub method: Method,
    /// The length limit in force.
    pub max_length: usize,
    /// File by file.
    pub files: Vec<FileFound>,
    /// Records read.
    pub num_records: usize,
    /// Records of each format that are learnt.
    pub formats: BTreeMap<&'static str, usize>,
    /// Examples that the records make.
    pub num_examples: usize,
    /// Their tokens.
    pub num_tokens: usize,
    /// The ones that are learnt.
    pub num_targets: usize,
    /// Tokens of an example.
    pub lengths: Lengths,
    /// Records that are left out, by the reason.
    pub left_out: Vec<LeftOut>,
    /// Records that lose the left of their prompt, or earlier turns; where answers are compared, the end of one.
    pub truncated: Group,
    /// Tokens of answers that do not fit and are not learnt.
    pub num_lost_targets: usize,
    /// Tokens of the longest record before it is cut: this --max-length cuts nothing.
    pub longest: usize,
    /// Records that say the same as an earlier one.
    pub num_duplicates: usize,
    /// The groups of them, each with the first record.
    pub duplicates: Vec<Group>,
    /// Prompts with different answers, each with its records; where answers are compared, answers that are judged in several
    /// ways.
    pub conflicts: Vec<Group>,
    /// What is unusual and is learnt all the same.
    pub notes: Vec<String>,
    /// What an epoch and the run cost.
    pub cost: Cost,
    /// Bytes of memory that the run takes before its first batch.
    pub memory: Footprint,
    /// The evaluation data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// The first examples.
    pub previews: Vec<Preview>,
    /// Why a run would be refused; none where it would start.
    pub problems: Vec<String>,
    /// The examples as text for a terminal.
    #[serde(skip)]
    pub(super) shown: String,
}

/// What one file has.
#[derive(Clone, Debug, Serialize)]
pub struct FileFound {
    /// The file.
    pub path: PathBuf,
    /// Records read.
    pub num_records: usize,
    /// Records of each format that are learnt.
    pub formats: BTreeMap<&'static str, usize>,
}

/// Records of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Group {
    /// How many they are.
    pub count: usize,
    /// The first hundred, as `file:line` or `file[index]`.
    pub places: Vec<String>,
}

/// Records that teach nothing.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// Why.
    pub reason: String,
    /// Which.
    #[serde(flatten)]
    pub records: Group,
}

/// Steps, tokens and, where the speed is known, seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    /// Rows of an epoch: examples, or several of them with packing.
    pub rows: usize,
    /// Rows of an optimizer step.
    pub rows_per_step: usize,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: usize,
    /// Epochs of the run.
    pub epochs: f64,
    /// Optimizer steps of the run.
    pub steps: usize,
    /// Tokens of the run.
    pub tokens: usize,
    /// Seconds of an epoch, where `--tokens-per-second` says how fast it goes.
    pub seconds_per_epoch: Option<f64>,
    /// Seconds of the run.
    pub seconds: Option<f64>,
}

/// The evaluation data.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Examples to measure on.
    pub num_examples: usize,
    /// Their tokens.
    pub num_tokens: usize,
    /// The ones that are measured.
    pub num_targets: usize,
    /// Records of --eval-data that are also learnt; unknown for those of --eval-split.
    pub num_shared: Option<usize>,
}

/// One example.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// Its record.
    pub place: String,
    /// Whether the answer is a wanted one; false for a rejected one.
    pub is_wanted: bool,
    /// Tokens.
    pub num_tokens: usize,
    /// Tokens that are learnt.
    pub num_targets: usize,
    /// Its text, cut where what is learnt begins or ends.
    pub segments: Vec<Segment>,
}

/// Text that is learnt, or is not.
#[derive(Clone, Debug, Serialize)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether it is learnt.
    pub learnt: bool,
}

/// Formats by their names.
pub(super) fn named(formats: &BTreeMap<Format, usize>) -> BTreeMap<&'static str, usize> {
    let formats = formats.iter();
    formats
        .map(|(format, &count)| (format.name(), count))
        .collect()
}

impl FileFound {
    pub(super) fn of(counts: &FileCounts) -> Self {
        Self {
            path: counts.path.clone(),
            num_records: counts.num_records,
            formats: named(&counts.formats),
        }
    }
}

impl Group {
    pub(super) fn of(places: &Places) -> Self {
        Self {
            count: places.count,
            places: places.first.iter().map(ToString::to_string).collect(),
        }
    }
}
