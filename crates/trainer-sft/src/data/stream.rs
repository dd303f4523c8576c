//! Training data that is read while the run goes on, a block at a time.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::error::DataError;
use super::files::STDIN;
use super::load::{Collector, Recipe, nothing_to_learn};
use super::open::Progress;
use super::read::{BLOCK, RawRecord, RecordReader};
use super::report::DataReport;
use super::store::Examples;

/// Where a block begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamPlace {
    /// Index of the file.
    pub file: usize,
    /// Records of that file before the block.
    pub record: usize,
}

/// Files as blocks of examples, again and again.
pub struct Stream {
    files: Vec<PathBuf>,
    recipe: Recipe,
    reader: Option<RecordReader>,
    place: StreamPlace,
    /// Counts of the current pass.
    report: DataReport,
    num_examples: usize,
    /// Bytes of all files, and those read of them.
    total: u64,
    progress: Progress,
    warned: bool,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Stream")
            .field("files", &self.files)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// The examples of `files`; the first one is opened, so that a wrong one is found at once.
    pub(super) fn new(files: Vec<PathBuf>, recipe: Recipe) -> Result<Self, DataError> {
        let sizes = files
            .iter()
            .map(|file| std::fs::metadata(file).map_or(0, |file| file.len()));
        let mut stream = Self {
            total: sizes.sum(),
            files,
            recipe,
            reader: None,
            place: StreamPlace::default(),
            report: DataReport::default(),
            num_examples: 0,
            progress: Progress::default(),
            warned: false,
        };
        stream.reader = match stream.files.first() {
            Some(file) => Some(RecordReader::open(file, &stream.progress)?),
            None => None,
        };
        Ok(stream)
    }

    /// The files.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Where the next block begins.
    pub(crate) fn place(&self) -> StreamPlace {
        self.place
    }

    /// Part of the bytes of a pass that have been read.
    pub(crate) fn progress(&self) -> f64 {
        match self.total {
            0 => 0.0,
            total => (self.progress.bytes() as f64 / total as f64).min(1.0),
        }
    }

    /// Goes to a place, without rendering what is before it.
    ///
    /// # Errors
    /// When the file cannot be read, or is shorter.
    pub(crate) fn seek(&mut self, place: StreamPlace) -> Result<(), DataError> {
        self.start_pass();
        while self.place.file < place.file.min(self.files.len()) {
            self.place.file += 1;
            self.place.record = 0;
        }
        let mut skipped = 0;
        while skipped < place.record {
            let left = place.record - skipped;
            let block = self.read(left.min(BLOCK))?;
            if block.is_empty() {
                break;
            }
            skipped += block.len();
        }
        Ok(())
    }

    fn start_pass(&mut self) {
        self.place = StreamPlace::default();
        self.reader = None;
        self.progress = Progress::default();
        self.report = DataReport::default();
        self.num_examples = 0;
    }

    /// The examples of the next block; `None` at the end of a pass, after which the next one begins.
    ///
    /// # Errors
    /// Malformed records, and a pass without an example.
    pub(crate) fn next_block(&mut self) -> Result<Option<Examples>, DataError> {
        loop {
            let block = self.read(BLOCK)?;
            if block.is_empty() {
                let names = self.files.iter().map(|file| file.display().to_string());
                if self.num_examples == 0 {
                    let names = names.collect::<Vec<_>>().join(", ");
                    return Err(nothing_to_learn(names, &self.report, &self.recipe.renderer));
                }
                if self.files.iter().any(|file| file.as_os_str() == STDIN) {
                    return Err(DataError::NoFiles {
                        what: "standard input (`-`) has ended, and --streaming cannot read it a second time: give a smaller --max-steps, or a file".into(),
                    });
                }
                self.warn();
                self.start_pass();
                return Ok(None);
            }
            let mut collector = Collector::new(None);
            collector.add(block, &self.recipe)?;
            collector.check()?;
            self.report.merge(collector.report);
            if self.report.num_left_out > 0 && !self.warned {
                self.warn();
            }
            self.num_examples += collector.examples.len();
            if !collector.examples.is_empty() {
                return Ok(Some(collector.examples));
            }
        }
    }

    /// Says what was left out; in the first pass only.
    fn warn(&mut self) {
        if !self.warned {
            self.warned = true;
            if self.report.num_left_out > 0 {
                warn!("records that teach nothing are left out; so far:");
            }
            self.report.warn(self.recipe.renderer.settings().max_length);
        }
    }

    /// At most `most` records of the current file or the next ones; none at the end of the last one.
    fn read(&mut self, most: usize) -> Result<Vec<RawRecord>, DataError> {
        while let Some(file) = self.files.get(self.place.file) {
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => self
                    .reader
                    .insert(RecordReader::open(file, &self.progress)?),
            };
            let block = reader.next_records(most)?;
            if !block.is_empty() {
                self.place.record += block.len();
                return Ok(block);
            }
            if self.place.record == 0 {
                return Err(DataError::Empty { path: file.clone() });
            }
            self.place = StreamPlace {
                file: self.place.file + 1,
                record: 0,
            };
            self.reader = None;
        }
        Ok(Vec::new())
    }
}
