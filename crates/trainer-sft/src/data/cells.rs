//! Rows of tables: texts, some of which are the JSON of messages.

use std::str;

use serde_json::{Map, Value};

use super::error::DataError;
use super::example::Source;
use super::format::{Speaker, speaker_name};
use super::names::Names;
use super::wide;

/// Cells that programs write where a value is missing.
const MISSING: [&str; 9] = [
    "nan", "NaN", "None", "NULL", "null", "N/A", "NA", "#N/A", "<NA>",
];
/// Fields whose texts are learnt or asked.
const TEXTS: [&str; 14] = [
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "query",
    "response",
    "text",
    "system",
    "chosen",
    "rejected",
    "reasoning_content",
    "reasoning",
    "thinking",
];

/// Whether a field that is read has a cell that says that a value is missing.
pub(super) fn is_missing(row: &Map<String, Value>, names: &Names<'_>) -> bool {
    row.iter().any(|(name, cell)| {
        let text = cell.as_str().map(str::trim);
        text.is_some_and(|text| MISSING.contains(&text)) && names.has(name, &TEXTS)
    })
}

/// Fields that are a text or messages.
const EITHER: [&str; 5] = [
    "prompt",
    "chosen",
    "rejected",
    "preferred_output",
    "non_preferred_output",
];
/// Another one, whose messages belong to those of the question.
const COMPLETION: &str = "completion";
/// Fields that are messages.
const LISTS: [&str; 3] = ["messages", "conversations", "conversation"];

/// A row as a text for each column; what is wrong with it otherwise.
pub(super) fn texts(
    header: &[String],
    row: &csv::ByteRecord,
) -> Result<Map<String, Value>, String> {
    if row.len() != header.len() {
        return Err(format!(
            "expected {} cells as in the header, found {}",
            header.len(),
            row.len()
        ));
    }
    let cells = header.iter().zip(row).map(|(name, cell)| {
        let text = str::from_utf8(cell);
        let text = text.map_err(|error| format!("column `{name}`: {}", no_text(cell, &error)))?;
        Ok((name.clone(), text.into()))
    });
    cells.collect()
}

/// What is said of bytes that are not UTF-8, as spreadsheets on Windows write them.
pub(super) fn no_text(cell: &[u8], error: &str::Utf8Error) -> String {
    let at = error.valid_up_to();
    format!(
        "expected UTF-8 text, found byte {:#04x} at position {} of the cell: convert the file, for example with `iconv -f \
         WINDOWS-1252 -t UTF-8`, or save it as \"CSV UTF-8\"",
        cell.get(at).copied().unwrap_or_default(),
        at + 1
    )
}

/// Reads the messages among the cells of a row, where its fields may have some.
pub(super) fn read_messages(
    source: &Source,
    row: &mut Map<String, Value>,
    names: &Names<'_>,
) -> Result<(), DataError> {
    for name in LISTS.into_iter().chain(EITHER) {
        if let Some(column) = names.of(name) {
            read_cell(source, row, column)?;
        }
    }
    let is_list = |name: &str| {
        let cell = names.of(name).and_then(|column| row.get(column));
        cell.is_some_and(Value::is_array)
    };
    let asks_in_messages = LISTS.into_iter().chain(["prompt"]).any(is_list);
    match names.of(COMPLETION).filter(|_| asks_in_messages) {
        Some(column) => read_cell(source, row, column),
        None => Ok(()),
    }
}

fn read_cell(source: &Source, row: &mut Map<String, Value>, name: &str) -> Result<(), DataError> {
    let Some(Value::String(cell)) = row.get(name) else {
        return Ok(());
    };
    let refused = |expected: &str, found: String| DataError::Field {
        source_place: source.clone(),
        field: name.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    if let Some(messages) = messages(cell) {
        if let Some((_, number)) = wide::written_wide_integer(cell, &|_| true) {
            return Err(refused(wide::EXPECTED, format!("the number {number}")));
        }
        row.insert(name.to_owned(), messages);
        return Ok(());
    }
    let inner = cell.trim_start().trim_start_matches('[');
    let keys = ["{'role':", "{'from':", "{'content':"];
    match keys.iter().any(|key| inner.starts_with(key)) {
        true => Err(refused(
            "JSON, as `json.dumps` writes it",
            "messages as Python prints them".to_owned(),
        )),
        false => Ok(()),
    }
}

/// Who speaks in a message; `None` for a value that is none.
pub(crate) fn speaker(item: &Value) -> Option<&str> {
    let says = ["content", "value", "tool_calls", "function_call"];
    speaker_name(item).filter(|_| says.iter().any(|key| item.get(*key).is_some()))
}

/// The message, or the list of messages, that a text is the JSON of.
fn messages(text: &str) -> Option<Value> {
    if !text.trim_start().starts_with(['[', '{']) {
        return None;
    }
    // In a list with an unknown role, too, which is named later.
    let value: Value = serde_json::from_str(text).ok()?;
    let is_it = match &value {
        Value::Array(items) => {
            !items.is_empty() && items.iter().all(|item| speaker(item).is_some())
        }
        item => speaker(item).is_some_and(|name| Speaker::named(name).is_some()),
    };
    is_it.then_some(value)
}
