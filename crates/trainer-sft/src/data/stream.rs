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
    /// Whether this is the first pass, read from its beginning.
    is_first_pass: bool,
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

/// Bytes of all files; what is no file has none.
fn size_of(files: &[PathBuf]) -> u64 {
    let sizes = files
        .iter()
        .map(|file| std::fs::metadata(file).map_or(0, |file| file.len()));
    sizes.sum()
}

impl Stream {
    /// The examples of `files`; the first one is opened, so that a wrong one is found at once.
    pub(super) fn new(files: Vec<PathBuf>, recipe: Recipe) -> Result<Self, DataError> {
        let mut stream = Self {
            total: size_of(&files),
            files,
            recipe,
            reader: None,
            place: StreamPlace::default(),
            report: DataReport::default(),
            num_examples: 0,
            progress: Progress::default(),
            warned: false,
            is_first_pass: true,
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

    /// Goes to a place, without reading the files before it and without rendering the records before it.
    ///
    /// # Errors
    /// When the file cannot be read, has fewer records or is not there, and standard input that has been read already.
    pub(crate) fn seek(&mut self, place: StreamPlace) -> Result<(), DataError> {
        let Some(file) = self.files.get(place.file).cloned() else {
            let (found, expected) = (self.files.len(), place.file + 1);
            return Err(DataError::NoFiles {
                what: format!(
                    "expected at least {expected} files, as the run that goes on has read, found {found}"
                ),
            });
        };
        // The first file has been opened, and a block of it read.
        if self.files[0].as_os_str() == STDIN {
            return Err(DataError::NoFiles {
                what: "a streamed run cannot go on from standard input (`-`), whose beginning has been read: give a file"
                    .into(),
            });
        }
        self.start_pass();
        self.place.file = place.file;
        self.progress = Progress::after(size_of(&self.files[..place.file]));
        while self.place.record < place.record {
            let found = self.place.record;
            self.read((place.record - found).min(BLOCK))?;
            if self.place.file != place.file {
                return Err(DataError::Shorter {
                    path: file,
                    expected: place.record,
                    found,
                });
            }
        }
        Ok(())
    }

    fn start_pass(&mut self) {
        self.place = StreamPlace::default();
        self.reader = None;
        self.progress = Progress::default();
        self.report = DataReport::default();
        self.num_examples = 0;
        self.is_first_pass = false;
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
                self.warn_of_columns();
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

    /// Says which of `--columns` names a field that no record of the first pass had.
    fn warn_of_columns(&mut self) {
        let missing = self.recipe.columns.not_in(self.report.columns);
        if let (true, Some((ours, theirs))) = (self.is_first_pass, missing) {
            warn!("--columns: no record has the field of `{ours}={theirs}`, which has no effect");
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::super::example::Example;
    use super::super::render::{RenderSettings, Renderer};
    use super::*;
    use crate::chat_format::ChatFormat;
    use crate::config::{Columns, Config, Method, Thinking, TrainOn};

    /// Files with so many records, each a text of its own.
    fn files(folder: &Path, counts: &[usize]) -> Vec<PathBuf> {
        let file = |(index, &count): (usize, &usize)| {
            let path = folder.join(format!("{index}.jsonl"));
            let lines = (0..count).map(|line| format!("{{\"text\": \"{index} {line}\"}}\n"));
            std::fs::write(&path, lines.collect::<String>()).unwrap();
            path
        };
        counts.iter().enumerate().map(file).collect()
    }

    fn stream(files: &[PathBuf]) -> Stream {
        let format = ChatFormat::load(&Config::new("unused")).unwrap();
        let settings = RenderSettings {
            train_on: TrainOn::All,
            thinking: Thinking::Keep,
            max_length: 64,
            eos_token_id: None,
        };
        let recipe = Recipe {
            renderer: Renderer::new(&format.tokenizer, None, settings),
            columns: Columns::default(),
            strict: false,
            compares: false,
            method: Method::Sft,
        };
        Stream::new(files.to_vec(), recipe).unwrap()
    }

    fn block(stream: &mut Stream) -> Option<Vec<Example>> {
        let examples = stream.next_block().unwrap()?;
        Some(examples.iter().map(Result::unwrap).collect())
    }

    #[test]
    fn a_stream_goes_on_at_each_place_as_if_all_before_it_had_been_read() {
        let folder = TempDir::new().unwrap();
        let files = files(folder.path(), &[3, BLOCK + 2, 2]);
        let mut whole = stream(&files);
        let mut places = vec![whole.place()];
        let mut blocks = Vec::new();
        while let Some(examples) = block(&mut whole) {
            blocks.push((examples, whole.progress()));
            places.push(whole.place());
        }
        let at = |file, record| StreamPlace { file, record };
        assert_eq!(
            places,
            [at(0, 0), at(0, 3), at(1, BLOCK), at(1, BLOCK + 2), at(2, 2)]
        );
        assert!(blocks.is_sorted_by_key(|(_, progress)| *progress));
        assert_eq!(blocks[3].1, 1.0);
        for (place, expected) in places.into_iter().zip(&blocks) {
            let mut stream = stream(&files);
            stream.seek(place).unwrap();
            assert_eq!(stream.place(), place);
            let found = block(&mut stream).unwrap();
            assert!(
                (&found, stream.progress()) == (&expected.0, expected.1),
                "{place:?}"
            );
        }
        let mut within = stream(&files);
        within.seek(at(1, 7)).unwrap();
        assert_eq!(
            block(&mut within).unwrap()[0].source.to_string(),
            format!("{}:8", files[1].display())
        );
    }

    #[test]
    fn data_that_is_shorter_than_before_is_named() {
        let folder = TempDir::new().unwrap();
        let files = files(folder.path(), &[3, 2]);
        let seek = |files: &[PathBuf], file, record| {
            let place = StreamPlace { file, record };
            stream(files).seek(place).unwrap_err().to_string()
        };
        let message = seek(&files, 0, 5);
        assert!(
            message.ends_with(
                "0.jsonl: expected at least 5 records, as the run that goes on has read, found 3"
            ),
            "{message}"
        );
        let message = seek(&files, 1, 3);
        assert!(
            message.ends_with(
                "1.jsonl: expected at least 3 records, as the run that goes on has read, found 2"
            ),
            "{message}"
        );
        let message = seek(&files, 4, 0);
        assert!(
            message
                .ends_with("expected at least 5 files, as the run that goes on has read, found 2"),
            "{message}"
        );
        stream(&files)
            .seek(StreamPlace { file: 0, record: 3 })
            .unwrap();
    }
}
