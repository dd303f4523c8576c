//! Tokenized examples, and where they come from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// One training document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids, at least two.
    pub tokens: Vec<u32>,
    /// Whether token `i` is a target: something the model is taught to say. Token 0 never is.
    pub mask: Vec<bool>,
    /// Whether the answer is a wanted one; false for the rejected answer of a pair, and for one whose label is false.
    pub is_wanted: bool,
    /// Where the example was read.
    pub source: Source,
}

impl Example {
    /// Number of tokens that are learnt.
    pub fn num_targets(&self) -> usize {
        self.mask.iter().filter(|&&target| target).count()
    }
}

/// A record's place in its file. Prints as `train.jsonl:17` or, in a JSON array, as `train.json[16]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The file.
    pub file: Arc<Path>,
    /// The record in it.
    pub place: Place,
}

/// A record within a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Line of a JSONL file, from 1.
    Line(usize),
    /// Element of a JSON array, from 0.
    Element(usize),
}

impl Source {
    /// The place without the file: a number of a line from 1, or `[index]` from 0.
    #[must_use]
    pub fn place_name(&self) -> String {
        match self.place {
            Place::Line(line) => line.to_string(),
            Place::Element(index) => format!("[{index}]"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.place {
            Place::Line(line) => write!(formatter, "{file}:{line}"),
            Place::Element(index) => write!(formatter, "{file}[{index}]"),
        }
    }
}
