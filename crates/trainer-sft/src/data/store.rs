//! Tokenized examples: few in memory, many on the disk.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::DataError;
use super::example::{Example, Place, Source};

/// Tokens that stay in memory; more of them go to a file without a name.
const IN_MEMORY: usize = 16 << 20;
/// The bit of a stored token that says whether it is learnt.
const LEARNT: u32 = 1 << 31;

/// Examples in the order of the data.
///
/// An index entry per example is in memory, and up to 64 MiB of tokens. What is more lies in a file that disappears with the
/// process.
#[derive(Debug, Default)]
pub struct Examples {
    index: Vec<Entry>,
    files: Vec<Arc<Path>>,
    /// The newest tokens, from position `on_disk`.
    memory: Vec<u32>,
    on_disk: u64,
    disk: Option<Mutex<File>>,
    /// Where the file is made.
    folder: Option<PathBuf>,
    num_targets: usize,
    longest: usize,
    /// Whether each two of them are the answers of a pair.
    are_pairs: bool,
}

/// One example.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    len: u32,
    file: u32,
    /// Line or index.
    number: u64,
    is_line: bool,
    is_wanted: bool,
}

impl Examples {
    /// No examples yet; tokens that do not fit in memory go to `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            folder: Some(folder.to_path_buf()),
            ..Self::default()
        }
    }

    /// Says that the examples come two by two: a chosen answer and a rejected one.
    pub(crate) fn set_pairs(&mut self, are_pairs: bool) {
        self.are_pairs = are_pairs;
    }

    /// How many examples belong together: 2 where they are pairs, otherwise 1.
    pub fn per_pair(&self) -> usize {
        match self.are_pairs {
            true => 2,
            false => 1,
        }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Tokens of all examples.
    pub fn num_tokens(&self) -> usize {
        self.index.iter().map(|entry| entry.len as usize).sum()
    }

    /// Tokens that are learnt.
    pub fn num_targets(&self) -> usize {
        self.num_targets
    }

    /// Tokens of the longest example.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Number of tokens of an example.
    pub fn length(&self, index: usize) -> usize {
        self.index.get(index).map_or(0, |entry| entry.len as usize)
    }

    /// Adds an example.
    ///
    /// # Errors
    /// When the file for tokens cannot be written.
    pub fn push(&mut self, example: &Example) -> Result<(), DataError> {
        if self.memory.len() > IN_MEMORY {
            self.spill()?;
        }
        self.append(example);
        Ok(())
    }

    /// Takes the examples out for which `is_taken` says so, in their order; tokens that do not fit in memory go to `folder`.
    ///
    /// # Errors
    /// When tokens cannot be read or written.
    pub(super) fn take(
        &mut self,
        is_taken: impl Fn(&Source) -> bool,
        folder: Option<&Path>,
    ) -> Result<Self, DataError> {
        let mut taken = folder.map_or_else(Self::default, Self::in_folder);
        taken.are_pairs = self.are_pairs;
        let mut kept = Vec::new();
        for index in 0..self.len() {
            match is_taken(&self.source(index)) {
                true => taken.push(&self.get(index)?)?,
                false => kept.push(self.index[index]),
            }
        }
        self.index = kept;
        self.num_targets -= taken.num_targets;
        let lengths = self.index.iter().map(|entry| entry.len as usize);
        self.longest = lengths.max().unwrap_or(0);
        Ok(taken)
    }

    /// Adds an example to those in memory.
    fn append(&mut self, example: &Example) {
        let Source { file, place } = &example.source;
        if self.files.last() != Some(file) {
            self.files.push(file.clone());
        }
        let (is_line, number) = match *place {
            Place::Line(line) => (true, line as u64),
            Place::Element(index) => (false, index as u64),
        };
        self.index.push(Entry {
            start: self.on_disk + self.memory.len() as u64,
            len: example.tokens.len() as u32,
            file: self.files.len() as u32 - 1,
            number,
            is_line,
            is_wanted: example.is_wanted,
        });
        let words = example.tokens.iter().zip(&example.mask);
        self.memory
            .extend(words.map(|(&token, &learnt)| match learnt {
                true => token | LEARNT,
                false => token,
            }));
        self.num_targets += example.num_targets();
        self.longest = self.longest.max(example.tokens.len());
    }

    /// Example `index`.
    ///
    /// # Errors
    /// When the file for tokens cannot be read.
    ///
    /// # Panics
    /// When `index` is not below [`len`](Self::len).
    pub fn get(&self, index: usize) -> Result<Example, DataError> {
        let entry = self.index[index];
        let len = entry.len as usize;
        let words = match (entry.start.checked_sub(self.on_disk), &self.disk) {
            (None, Some(disk)) => {
                let mut bytes = vec![0; len * 4];
                // A panic elsewhere leaves no half-done state in the file.
                let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
                disk.seek(SeekFrom::Start(entry.start * 4))
                    .and_then(|_| disk.read_exact(&mut bytes))
                    .map_err(|error| self.error(error))?;
                let (words, _) = bytes.as_chunks::<4>();
                words
                    .iter()
                    .map(|bytes| u32::from_le_bytes(*bytes))
                    .collect()
            }
            (start, _) => {
                let start = start.unwrap_or_default() as usize;
                self.memory[start..start + len].to_vec()
            }
        };
        Ok(Example {
            mask: words.iter().map(|word| word & LEARNT != 0).collect(),
            tokens: words.into_iter().map(|word| word & !LEARNT).collect(),
            is_wanted: entry.is_wanted,
            source: self.source(index),
        })
    }

    /// Where example `index` was read.
    ///
    /// # Panics
    /// When `index` is not below [`len`](Self::len).
    pub fn source(&self, index: usize) -> Source {
        let entry = self.index[index];
        let number = entry.number as usize;
        Source {
            file: self.files[entry.file as usize].clone(),
            place: match entry.is_line {
                true => Place::Line(number),
                false => Place::Element(number),
            },
        }
    }

    /// All examples, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Result<Example, DataError>> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Moves the tokens in memory to the disk.
    fn spill(&mut self) -> Result<(), DataError> {
        if self.disk.is_none() {
            let file = match &self.folder {
                Some(folder) => tempfile::tempfile_in(folder),
                None => tempfile::tempfile(),
            };
            let file = file.map_err(|error| self.error(error))?;
            self.disk = Some(Mutex::new(file));
        }
        let bytes: Vec<u8> = self
            .memory
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let written = self.disk.as_ref().map_or(Ok(()), |disk| {
            let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
            disk.seek(SeekFrom::End(0))
                .and_then(|_| disk.write_all(&bytes))
        });
        written.map_err(|error| self.error(error))?;
        self.on_disk += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    fn error(&self, error: std::io::Error) -> DataError {
        let folder = self.folder.clone();
        DataError::Tokens {
            folder: folder.unwrap_or_else(std::env::temp_dir),
            error,
        }
    }
}

impl From<Vec<Example>> for Examples {
    /// Keeps the examples in memory, however many they are.
    fn from(examples: Vec<Example>) -> Self {
        let mut all = Self::default();
        for example in &examples {
            all.append(example);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(line: usize, len: usize) -> Example {
        Example {
            tokens: (0..len).map(|position| (line + position) as u32).collect(),
            mask: (0..len).map(|position| position % 3 == 1).collect(),
            is_wanted: !line.is_multiple_of(2),
            source: Source {
                file: Path::new(if line < 3 { "a.jsonl" } else { "b.json" }).into(),
                place: match line < 3 {
                    true => Place::Line(line),
                    false => Place::Element(line),
                },
            },
        }
    }

    #[test]
    fn examples_come_back_from_memory_and_from_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<Example> = (1..8).map(|line| example(line, line * 5)).collect();
        let mut stored = Examples::in_folder(folder.path());
        for (index, example) in all.iter().enumerate() {
            stored.push(example).unwrap();
            if index % 3 == 2 {
                stored.spill().unwrap();
            }
        }
        assert_eq!(
            (stored.on_disk, stored.memory.len()),
            (5 + 10 + 15 + 20 + 25 + 30, 35)
        );
        let back: Vec<Example> = stored.iter().map(Result::unwrap).collect();
        assert_eq!(back, all);
        assert_eq!(
            (stored.num_tokens(), stored.longest(), stored.length(1)),
            (140, 35, 10)
        );
        let targets: usize = all.iter().map(Example::num_targets).sum();
        assert_eq!(stored.num_targets(), targets);
        // The file has no name: nothing is left behind.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_list_stays_in_memory_and_pushed_examples_do_not() {
        let all = vec![example(1, IN_MEMORY + 1), example(2, 3), example(3, 4)];
        let kept = Examples::from(all.clone());
        assert!(kept.disk.is_none());
        assert_eq!(kept.memory.len(), IN_MEMORY + 8);
        assert_eq!(kept.get(2).unwrap(), all[2]);
        let folder = tempfile::tempdir().unwrap();
        let mut pushed = Examples::in_folder(folder.path());
        for example in &all {
            pushed.push(example).unwrap();
        }
        assert_eq!(
            (pushed.on_disk, pushed.memory.len()),
            (IN_MEMORY as u64 + 1, 7)
        );
        assert_eq!(pushed.get(0).unwrap(), all[0]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let mut stored = Examples::in_folder(Path::new("/no/such/folder"));
        stored.push(&example(1, 4)).unwrap();
        let message = stored.spill().unwrap_err().to_string();
        assert!(message.starts_with("/no/such/folder: "), "{message}");
    }
}
