//! Records as they are, for methods that learn from something else than examples.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::error::{DataError, MAX_ERRORS};
use super::example::Source;
use super::files;
use super::names::Names;
use super::open::Progress;
use super::read::{RawRecord, RecordReader};
use super::{DataReport, Dataset, Example, raw};
use crate::config::{Columns, Config};
use crate::data::format::{ASKED, PROMPTS, describe, named as names};
use crate::digest;

/// A record: its fields, and where it was read.
pub(crate) type Object = (Source, Map<String, Value>);

/// All records of files, or of a program that has them in memory and calls them by a name, as objects; and what tells them from any
/// other records. `--columns` renames fields, the other ones stay.
///
/// # Errors
/// Files that cannot be read, and records that are no objects.
pub(crate) fn objects(
    config: &Config,
    paths: &[PathBuf],
    (name, records): (&'static str, Option<Vec<Value>>),
) -> Result<(Vec<Object>, String), DataError> {
    let mut all: Vec<RawRecord> = Vec::new();
    match records {
        Some(records) => all.extend(raw(name, records)),
        None => {
            for file in files::expand(paths)? {
                all.extend(of_file(&file)?);
            }
        }
    }
    if all.is_empty() {
        return Err(DataError::NoRecords(name.to_owned()));
    }
    let columns = Columns::parse(&config.data.columns).map_err(DataError::Columns)?;
    let mut hash = Sha256::new();
    let (mut objects, mut errors) = (Vec::with_capacity(all.len()), Vec::new());
    for record in all {
        record.hash(&mut hash);
        match object(record, &columns) {
            Ok(object) => objects.push(object),
            Err(error) => errors.push(error),
        }
    }
    refuse(errors)?;
    check_parts(&columns, |part| {
        let mut all = objects.iter();
        all.any(|(_, fields)| fields.contains_key(part))
    })?;
    Ok((objects, digest::short(hash)))
}

/// The records of one file, each one as an object or as what is wrong with it.
pub(crate) type FileObjects = (PathBuf, Vec<Result<Object, DataError>>);

/// As [`objects`], of files, without an end at what is wrong with a record.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn all_objects(
    config: &Config,
    paths: &[PathBuf],
) -> Result<Vec<FileObjects>, DataError> {
    let columns = Columns::parse(&config.data.columns).map_err(DataError::Columns)?;
    let files = files::expand(paths)?.into_iter();
    let files = files.map(|file| {
        let mut reader = RecordReader::open(&file, &Progress::default())?;
        let mut found = Vec::new();
        loop {
            match reader.next_block() {
                Ok(block) if block.is_empty() => break,
                Ok(block) => found.extend(block.into_iter().map(|record| object(record, &columns))),
                Err(error) if error.is_of_a_record() => {
                    found.push(Err(error));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if found.is_empty() {
            found.push(Err(DataError::Empty { path: file.clone() }));
        }
        Ok((file, found))
    });
    let files: Vec<FileObjects> = files.collect::<Result<_, DataError>>()?;
    let all = || files.iter().flat_map(|(_, found)| found);
    if all().all(Result::is_ok) {
        check_parts(&columns, |part| {
            let mut all = all().flatten();
            all.any(|(_, fields)| fields.contains_key(part))
        })?;
    }
    Ok(files)
}

/// The fields of the first record, as they are named in the file; `None` where it cannot be read.
pub(crate) fn first_object(paths: &[PathBuf]) -> Option<Map<String, Value>> {
    let files = files::expand(paths).ok()?;
    let mut reader = RecordReader::open(files.first()?, &Progress::default()).ok()?;
    let first = reader.next_block().ok()?.into_iter().next()?;
    Some(object(first, &Columns::default()).ok()?.1)
}

/// Refuses data with errors, and names the first of them.
///
/// # Errors
/// Where there is one.
pub(crate) fn refuse(mut errors: Vec<DataError>) -> Result<(), DataError> {
    let all = errors.len() <= MAX_ERRORS;
    errors.truncate(MAX_ERRORS);
    match errors.is_empty() {
        true => Ok(()),
        false => Err(DataError::Malformed { errors, all }),
    }
}

fn of_file(file: &Path) -> Result<Vec<RawRecord>, DataError> {
    let mut reader = RecordReader::open(file, &Progress::default())?;
    let mut records = Vec::new();
    loop {
        let block = reader.next_block()?;
        if block.is_empty() {
            break;
        }
        records.extend(block);
    }
    match records.is_empty() {
        true => Err(DataError::Empty { path: file.into() }),
        false => Ok(records),
    }
}

fn object(record: RawRecord, columns: &Columns) -> Result<Object, DataError> {
    let (source, value) = record.parse(&Names::and_others(columns))?;
    let Value::Object(mut fields) = value else {
        return Err(DataError::TeachesNothing {
            source_place: source,
            reason: format!("expected an object, found {}", describe(Some(&value))),
        });
    };
    check_prompt(&source, &fields, columns)?;
    for (ours, theirs) in columns.iter() {
        if let Some(value) = fields.remove(theirs) {
            fields.insert(ours.to_owned(), value);
        }
    }
    Ok((source, fields))
}

/// Refuses a record without the field that `--columns` names for the prompt.
fn check_prompt(
    source: &Source,
    fields: &Map<String, Value>,
    columns: &Columns,
) -> Result<(), DataError> {
    let named = columns.iter().filter(|(ours, _)| PROMPTS.contains(ours));
    let mut named = named.peekable();
    let Some(&(ours, theirs)) = named.peek() else {
        return Ok(());
    };
    match named.any(|(_, theirs)| fields.contains_key(theirs)) {
        true => Ok(()),
        false => Err(DataError::Render {
            source_place: source.clone(),
            reason: format!(
                "--columns {ours}={theirs} names a field that is not there; found {}",
                names(fields)
            ),
        }),
    }
}

/// Refuses a part of the prompt whose field is in no record.
fn check_parts(columns: &Columns, is_there: impl Fn(&str) -> bool) -> Result<(), DataError> {
    let mut parts = columns.iter().filter(|(ours, _)| ASKED.contains(ours));
    match parts.find(|(ours, _)| !is_there(ours)) {
        None => Ok(()),
        Some(pair) => Err(DataError::no_field(pair)),
    }
}

impl Example {
    /// A prompt alone: nothing of it is learnt.
    pub(crate) fn prompt(source: Source, tokens: Vec<u32>) -> Self {
        Self {
            mask: vec![false; tokens.len()],
            tokens,
            is_wanted: true,
            source,
        }
    }
}

impl Dataset {
    /// Data whose examples are prompts alone.
    pub(crate) fn of_prompts(
        prompts: impl IntoIterator<Item = (Source, Vec<u32>)>,
        hash: String,
    ) -> Self {
        let prompts = prompts.into_iter();
        let examples = prompts.map(|(source, tokens)| Example::prompt(source, tokens));
        let examples: Vec<Example> = examples.collect();
        Self {
            examples: examples.into(),
            report: DataReport::default(),
            hash,
        }
    }
}
