//! Files → records with their places, a block at a time.

use std::io::{BufRead, Read};
use std::path::Path;
use std::str;
use std::sync::Arc;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::example::{Place, Source};
use super::files::STDIN;
use super::last_break::EndsInBreak;
use super::names::Names;
use super::no_numbers::no_number;
use super::open::{Layout, Progress, Room, Stream, open};
use super::{cells, wide};
use crate::config::Columns;

/// Records that are parsed and rendered together.
pub(super) const BLOCK: usize = 4096;
/// Bytes after which a block ends before that.
const BLOCK_BYTES: usize = 8 << 20;

/// One record, not parsed yet.
#[derive(Clone, Debug)]
pub(super) struct RawRecord {
    pub(super) source: Source,
    content: RawContent,
}

#[derive(Clone, Debug)]
enum RawContent {
    /// JSON text, and the line that it begins on.
    Json(Vec<u8>, usize),
    /// A record that a program has in memory.
    Value(Value),
    /// A row of a table.
    Row(Map<String, Value>),
    /// A row that cannot be read.
    Broken(String),
}

impl RawRecord {
    /// A record that a program has in memory.
    pub(super) fn from_value(source: Source, value: Value) -> Self {
        Self {
            source,
            content: RawContent::Value(value),
        }
    }

    /// Whether it is a row with a cell that says that a value is missing, such as `nan`, in a field that is read.
    pub(super) fn has_missing(&self, names: &Names<'_>) -> bool {
        matches!(&self.content, RawContent::Row(row) if cells::is_missing(row, names))
    }

    /// Adds the record to what tells one data set from another.
    pub(super) fn hash(&self, hash: &mut Sha256) {
        match &self.content {
            RawContent::Json(text, _) => hash.update(text),
            RawContent::Value(value) => hash.update(value.to_string()),
            RawContent::Row(cells) => hash.update(Value::from(cells.clone()).to_string()),
            RawContent::Broken(reason) => hash.update(reason),
        }
        hash.update(b"\n");
    }

    /// Parses the record.
    ///
    /// # Errors
    /// Bytes that are not UTF-8, and text that is not JSON.
    pub(super) fn parse(self, names: &Names<'_>) -> Result<(Source, Value), DataError> {
        let source = self.source;
        let (bytes, first_line) = match self.content {
            RawContent::Value(value) => return Ok((source, value)),
            RawContent::Row(mut row) => {
                cells::read_messages(&source, &mut row, names)?;
                return Ok((source, row.into()));
            }
            RawContent::Broken(reason) => {
                return Err(DataError::Table {
                    place: source.to_string(),
                    reason,
                });
            }
            RawContent::Json(bytes, line) => (bytes, line),
        };
        let is_line = matches!(source.place, Place::Line(_));
        let place = |line: usize| match is_line {
            true => source.to_string(),
            false => format!("{}:{}", source.file.display(), first_line + line - 1),
        };
        let text = str::from_utf8(&bytes).map_err(|error| {
            let valid = &bytes[..error.valid_up_to()];
            let breaks = valid.iter().filter(|&&byte| byte == b'\n').count();
            let of = if is_line {
                "of the line"
            } else {
                "of the record"
            };
            DataError::Encoding {
                place: place(breaks + 1),
                found: format!(
                    "byte {:#04x} at position {} {of}",
                    bytes.get(valid.len()).copied().unwrap_or_default(),
                    valid.len() + 1
                ),
            }
        })?;
        if let Some((field, number)) =
            wide::written_wide_integer(text, &|field| names.has(field, &wide::READ))
        {
            return Err(DataError::Field {
                source_place: source,
                field,
                expected: wide::EXPECTED.into(),
                found: format!("the number {number}"),
            });
        }
        match serde_json::from_str(text) {
            Ok(value) => Ok((source, value)),
            Err(error) => {
                if let Some(reason) = no_number(text, &error) {
                    return Err(DataError::Json {
                        place: place(error.line()),
                        reason,
                    });
                }
                let hint = if let Some(hint) = what_else(text, &source, &error) {
                    hint
                } else if text.contains('\0') {
                    " (there are bytes of value 0: the file was not written to its end, or is no text)"
                } else if error.is_eof() && source.place == Place::Line(1) {
                    " (a record has to be on one line; a file with line breaks inside records has to be one JSON array, such as `jq '.data'` gives of an object with all records under `data`)"
                } else if is_line && text.contains('\r') {
                    " (the lines end in carriage returns alone: convert the file, for example with `tr '\\r' '\\n'`)"
                } else {
                    ""
                };
                Err(DataError::Json {
                    place: place(error.line()),
                    reason: format!("{} at column {}{hint}", message(&error), error.column()),
                })
            }
        }
    }
}

/// The records of one file, in their order.
pub(super) struct RecordReader {
    path: Arc<Path>,
    records: Records,
    room: Room,
    /// What was found after records that are still to be given out.
    failed: Option<DataError>,
}

enum Records {
    Lines {
        stream: Stream,
        line: usize,
    },
    Array(super::array::Elements<Stream>),
    Table {
        reader: Box<csv::Reader<EndsInBreak>>,
        header: Vec<String>,
        /// Lines end in CRLF, of which the reader counts the second byte with the next row.
        is_crlf: bool,
    },
}

impl RecordReader {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that cannot be read, or is of a kind that is not.
    pub(super) fn open(path: &Path, progress: &Progress) -> Result<Self, DataError> {
        let (stream, layout, room) = open(path, progress)?;
        let records = match layout {
            Layout::Lines => Records::Lines { stream, line: 0 },
            Layout::Array => Records::Array(super::array::Elements::new(stream)),
            Layout::Table(separator) => {
                let mut reader = csv::ReaderBuilder::new()
                    .delimiter(separator)
                    .flexible(true)
                    .from_reader(EndsInBreak::new(stream));
                let failed = |reason: String| DataError::Table {
                    place: path.display().to_string(),
                    reason,
                };
                let header = reader.byte_headers().map_err(|error| {
                    failed(format!("expected a table with a header, found: {error}"))
                })?;
                let header = header.iter().map(|name| {
                    let text = str::from_utf8(name).map_err(|error| {
                        failed(format!("header: {}", cells::no_text(name, &error)))
                    })?;
                    Ok(text.trim().to_owned())
                });
                let header: Vec<String> = header.collect::<Result<_, DataError>>()?;
                let is_twice =
                    |at: &usize| !header[*at].is_empty() && header[..*at].contains(&header[*at]);
                if let Some(name) = (1..header.len()).find(is_twice).map(|at| &header[at]) {
                    let reason =
                        format!("expected a header with each name once, found `{name}` twice");
                    return Err(failed(reason));
                }
                let is_crlf = reader.position().line()
                    == line_breaks(header.iter().map(String::as_bytes)) + 1;
                let reader = Box::new(reader);
                Records::Table {
                    reader,
                    header,
                    is_crlf,
                }
            }
        };
        Ok(Self {
            path: path.into(),
            records,
            room,
            failed: None,
        })
    }

    /// The next records, at most [`BLOCK`] of them; none at the end of the file.
    ///
    /// # Errors
    /// When the file cannot be read, or is no array to its end.
    pub(super) fn next_block(&mut self) -> Result<Vec<RawRecord>, DataError> {
        self.next_records(BLOCK)
    }

    /// The next records, at most `most` of them.
    ///
    /// # Errors
    /// As [`next_block`](Self::next_block).
    pub(super) fn next_records(&mut self, most: usize) -> Result<Vec<RawRecord>, DataError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut block = Vec::new();
        let mut bytes = 0;
        while block.len() < most && bytes < BLOCK_BYTES {
            match self.next() {
                Ok(Some((record, size))) => {
                    bytes += size;
                    block.push(record);
                }
                Ok(None) => break,
                Err(error) if block.is_empty() => return Err(error),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(block)
    }

    /// The next record and its size in bytes.
    fn next(&mut self) -> Result<Option<(RawRecord, usize)>, DataError> {
        self.room.refill();
        let file = self.path.clone();
        let io_error = |error| DataError::Io {
            path: file.to_path_buf(),
            error,
        };
        let record = |place, content| RawRecord {
            source: Source {
                file: file.clone(),
                place,
            },
            content,
        };
        match &mut self.records {
            Records::Lines { stream, line } => loop {
                let mut text = Vec::new();
                if stream.read_until(b'\n', &mut text).map_err(io_error)? == 0 {
                    return Ok(None);
                }
                *line += 1;
                let text = text.trim_ascii();
                if !text.is_empty() {
                    let content = RawContent::Json(text.to_vec(), *line);
                    return Ok(Some((record(Place::Line(*line), content), text.len())));
                }
            },
            Records::Array(elements) => {
                let next = elements.next().map_err(io_error)?;
                let next = next.map_err(|(line, reason)| DataError::Json {
                    place: format!("{}:{line}", file.display()),
                    reason,
                })?;
                Ok(next.map(|(index, line, text)| {
                    let size = text.len();
                    let content = RawContent::Json(text, line);
                    (record(Place::Element(index), content), size)
                }))
            }
            Records::Table {
                reader,
                header,
                is_crlf,
            } => {
                let mut row = csv::ByteRecord::new();
                let is_row = reader.read_byte_record(&mut row);
                let is_row = is_row.map_err(|error| io_error(std::io::Error::other(error)))?;
                if !is_row {
                    return Ok(None);
                }
                // The reader's own place of the row is before blank lines, and before half of a line break.
                let before = row.position().map_or(0, csv::Position::line) + u64::from(*is_crlf);
                let end = reader.position().line() - u64::from(!*is_crlf);
                let line = before.max(end.saturating_sub(line_breaks(row.iter()))) as usize;
                let size = row.as_slice().len();
                let content = match cells::texts(header, &row) {
                    Ok(row) => RawContent::Row(row),
                    Err(reason) => RawContent::Broken(reason),
                };
                Ok(Some((record(Place::Line(line), content), size)))
            }
        }
    }
}

/// What a text that is no JSON may be, and what to do.
fn what_else(text: &str, source: &Source, error: &serde_json::Error) -> Option<&'static str> {
    let is_first = source.place == Place::Line(1);
    let is_json = text.starts_with(['{', '[', '"']);
    let is_table = text.contains([',', '\t', ';']) && !is_json;
    if is_first && text.starts_with('<') {
        Some(" (this is a page in HTML or XML: download the file itself)")
    } else if text.starts_with("{'") {
        Some(
            " (this is a record as Python prints it: write it with `json.dumps`, one record per line)",
        )
    } else if is_first && is_table && source.file.as_os_str() == STDIN {
        Some(" (`-` reads JSON only: give a table as a .csv or .tsv file)")
    } else if error.to_string().contains("hex escape") {
        Some(
            " (an escape of half a character, such as \\ud83d alone, is no text: write the whole character, or leave it out)",
        )
    } else {
        None
    }
}

/// How many line breaks are within cells.
fn line_breaks<'a>(cells: impl Iterator<Item = &'a [u8]>) -> u64 {
    let breaks = cells.flatten().filter(|&&byte| byte == b'\n');
    breaks.count() as u64
}

/// Reads and parses every record of a file. Blank lines, CRLF and a byte order mark are tolerated.
///
/// # Errors
/// Unreadable or empty files, bytes that are not UTF-8, text that is not JSON.
pub fn read_file(path: &Path) -> Result<Vec<(Source, Value)>, DataError> {
    let mut reader = RecordReader::open(path, &Progress::default())?;
    let mut records = Vec::new();
    loop {
        let block = reader.next_block()?;
        if block.is_empty() {
            break;
        }
        for record in block {
            records.push(record.parse(&Names::only(&Columns::default()))?);
        }
    }
    match records.is_empty() {
        true => Err(DataError::Empty { path: path.into() }),
        false => Ok(records),
    }
}

/// The parser's message without its own line and column, which count from the start of what it was given.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// What tells one file from another without reading it: its length and its beginning.
pub(super) fn hash_start(path: &Path, hash: &mut Sha256) {
    let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    hash.update(length.to_le_bytes());
    let mut start = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What cannot be read now is an error when it is read for training.
        let _ = file.take(1 << 16).read_to_end(&mut start);
    }
    hash.update(&start);
}
