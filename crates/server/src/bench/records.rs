//! Files of data sets.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::dataset_args::{DatasetArgs, DatasetName, MAX_LEN};

/// What the file of a data set has.
#[derive(Debug)]
pub(super) enum Records {
    /// There is no file.
    Random,
    /// Nor here.
    PrefixRepetition,
    /// Lines of a poem, with their ends.
    Sonnet(Vec<String>),
    /// Lengths.
    Burst(Vec<Burst>),
    /// Questions and answers.
    Sharegpt(Vec<(String, String)>),
    /// Prompts.
    Custom(Vec<Row>),
}

/// A line of a custom file; further columns belong to somebody else.
#[derive(Debug, Deserialize, PartialEq)]
pub(super) struct Row {
    pub(super) prompt: String,
    #[serde(default, deserialize_with = "output_tokens")]
    pub(super) output_tokens: Option<usize>,
}

/// The lengths of one request of BurstGPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Burst {
    /// Its place in the file.
    pub(super) index: usize,
    /// Tokens of the prompt.
    pub(super) input_len: usize,
    /// Tokens of the answer.
    pub(super) output_len: usize,
}

/// A record of ShareGPT, of which nothing else is kept.
#[derive(Deserialize)]
struct Chat {
    #[serde(default, deserialize_with = "first_turns")]
    conversations: [Turn; 2],
}

/// A turn of a chat; the text is `None` where it is no text.
#[derive(Default, Deserialize)]
struct Turn {
    #[serde(default, deserialize_with = "text")]
    value: Option<String>,
    #[serde(default, deserialize_with = "text")]
    content: Option<String>,
}

impl Records {
    /// Reads `--dataset-path`, if the data set has a file.
    pub(super) fn read(args: &DatasetArgs) -> Result<Self> {
        let path = args.dataset_path.as_deref().unwrap_or(Path::new(""));
        let records = match args.name() {
            DatasetName::Random => Ok(Self::Random),
            DatasetName::PrefixRepetition => Ok(Self::PrefixRepetition),
            DatasetName::Sonnet => read_lines(path).map(Self::Sonnet),
            DatasetName::Burstgpt => read_bursts(path).map(Self::Burst),
            // Refused where the flags are read.
            DatasetName::Other => Ok(Self::Random),
            DatasetName::Sharegpt => read_sharegpt(path).map(Self::Sharegpt),
            DatasetName::Custom => read_custom(path).map(Self::Custom),
        };
        records.with_context(|| format!("--dataset-path {}", path.display()))
    }
}

/// First question and answer of each chat that has both.
fn read_sharegpt(path: &Path) -> Result<Vec<(String, String)>> {
    let text = read(path)?;
    let chats: Vec<Chat> = match text.trim_ascii_start().starts_with(b"[") {
        true => serde_json::from_slice(&text).context("expected a JSON list of chats")?,
        // One chat per line is as good.
        false => objects(&text, "a JSON list of chats, or one chat per line")?,
    };
    let num_chats = chats.len();
    let text = |turn: Turn| turn.value.or(turn.content);
    let pair = |chat: Chat| {
        let [question, answer] = chat.conversations.map(text);
        question.zip(answer)
    };
    let pairs: Vec<(String, String)> = chats.into_iter().filter_map(pair).collect();
    ensure!(
        !pairs.is_empty(),
        "none of {num_chats} records has `conversations` with two turns or more, each with a `value`"
    );
    Ok(pairs)
}

fn read_custom(path: &Path) -> Result<Vec<Row>> {
    let text = read(path)?;
    let rows: Vec<Row> = objects(&text, "{\"prompt\": \"…\"}")?;
    ensure!(!rows.is_empty(), "the file is empty");
    Ok(rows)
}

/// Lines, each with its end.
fn read_lines(path: &Path) -> Result<Vec<String>> {
    let text = String::from_utf8(read(path)?).context("expected UTF-8")?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let lines: Vec<String> = lines.map(|line| format!("{line}\n")).collect();
    ensure!(!lines.is_empty(), "the file is empty");
    Ok(lines)
}

/// The answered requests of GPT-4, as vLLM takes them.
fn read_bursts(path: &Path) -> Result<Vec<Burst>> {
    const COLUMNS: [&str; 3] = ["Model", "Request tokens", "Response tokens"];
    let text = String::from_utf8(read(path)?).context("expected UTF-8")?;
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let place = |column: &str| head.iter().position(|name| name.trim() == column);
    let [Some(model), Some(input), Some(output)] = COLUMNS.map(place) else {
        anyhow::bail!(
            "expected a first line with the columns {}",
            COLUMNS.join(", ")
        );
    };
    let mut bursts = Vec::new();
    for (line, number) in lines.zip(2..).filter(|(line, _)| !line.trim().is_empty()) {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let cell = |place: usize| {
            let cell = cells.get(place).copied();
            cell.with_context(|| format!("line {number}: expected {} columns", head.len()))
        };
        let num_tokens = |place: usize| {
            let cell = cell(place)?;
            // Some tools write whole numbers as floats.
            let num = cell.trim_end_matches(".0").parse::<usize>().ok();
            num.filter(|num| *num <= MAX_LEN).with_context(|| {
                let column = head[place].trim();
                format!("line {number}: {column}: expected 0 to {MAX_LEN}, found {cell:?}")
            })
        };
        let (input_len, output_len) = (num_tokens(input)?, num_tokens(output)?);
        if cell(model)? == "GPT-4" && input_len > 0 && output_len > 0 {
            bursts.push(Burst {
                index: bursts.len(),
                input_len,
                output_len,
            });
        }
    }
    ensure!(
        !bursts.is_empty(),
        "no line is of the model GPT-4 and has an answer"
    );
    Ok(bursts)
}

/// The bytes of a file without a byte order mark.
fn read(path: &Path) -> Result<Vec<u8>> {
    let mut text = fs::read(path)?;
    if text.starts_with("\u{feff}".as_bytes()) {
        text.drain(..3);
    }
    Ok(text)
}

/// The objects of a text with one per line, without blank lines.
fn objects<T: DeserializeOwned>(text: &[u8], expected: &str) -> Result<Vec<T>> {
    let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.zip(1..).filter(|(line, _)| !line.is_empty());
    lines
        .map(|(line, number)| {
            // A list of as many values would be read as the fields in their order.
            ensure!(
                line.starts_with(b"{"),
                "line {number}: expected {expected}, found no object"
            );
            serde_json::from_slice(line)
                .with_context(|| format!("line {number}: expected {expected}"))
        })
        .collect()
}

/// A number of tokens that an answer may have.
fn output_tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let num = Option::<usize>::deserialize(deserializer)?;
    match num.filter(|num| !(1..=MAX_LEN).contains(num)) {
        None => Ok(num),
        Some(num) => Err(D::Error::custom(format!(
            "output_tokens: expected 1 to {MAX_LEN}, found {num}"
        ))),
    }
}

/// A text, or nothing where there is something else.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(match value {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    })
}

/// The first two turns of a chat; turns that are not there have no text.
fn first_turns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[Turn; 2], D::Error> {
    struct FirstTurns;

    impl<'de> Visitor<'de> for FirstTurns {
        type Value = [Turn; 2];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of turns")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut turns: A) -> Result<Self::Value, A::Error> {
            let mut first = Self::Value::default();
            for turn in &mut first {
                match turns.next_element()? {
                    Some(next) => *turn = next,
                    None => return Ok(first),
                }
            }
            while turns.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }

    deserializer.deserialize_any(FirstTurns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_text<T>(text: &str, read: impl Fn(&Path) -> Result<T>) -> Result<T> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn chats_come_in_a_list_or_one_per_line() {
        let one = r#"{"id": 1, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"value": "c"}]}"#;
        let two = r#"{"conversations": [{"role": "user", "content": "d"}, {"content": "e", "value": null}]}"#;
        let others = r#"{"conversations": [{"value": "alone"}]}, {"conversations": null}, {}, {"conversations": [{"value": [1]}, {"value": "x"}]}"#;
        let owned = |(a, b): (&str, &str)| (a.to_owned(), b.to_owned());
        let expected = [("a", "b"), ("d", "e")].map(owned);
        for text in [
            format!("\u{feff} [{one}, {others}, {two}]"),
            format!("\u{feff}{one}\r\n\n{two}\n"),
        ] {
            assert_eq!(with_text(&text, read_sharegpt).unwrap(), expected, "{text}");
        }
        for (text, expected) in [
            (format!("[{others}]"), "none of 4 records has"),
            (format!("[{one}"), "expected a JSON list of chats"),
            (
                format!("{one}\n[]"),
                "line 2: expected a JSON list of chats, or one chat per line, found no object",
            ),
            (
                r#"{"conversations": "a"}"#.to_owned(),
                "line 1: expected a JSON list of chats, or one chat per line: invalid type: string \"a\", expected a list of turns",
            ),
        ] {
            let error = with_text(&text, read_sharegpt).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn lengths_come_in_a_table() {
        let head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n";
        let rows = "5,ChatGPT,10,20,30,API log\n6,GPT-4,10,20.0,30,x\n\n7,GPT-4,3,0,3,x\n8,GPT-4,4,5,9,x\n";
        let bursts = with_text(&format!("{head}{rows}"), read_bursts).unwrap();
        let burst = |index, input_len, output_len| Burst {
            index,
            input_len,
            output_len,
        };
        assert_eq!(bursts, [burst(0, 10, 20), burst(1, 4, 5)]);
        for (text, expected) in [
            (String::new(), "a first line with the columns Model, "),
            ("Model,Request tokens\n".to_owned(), "the columns"),
            (format!("{head}1,GPT-4\n"), "line 2: expected 6 columns"),
            (
                format!("{head}1,GPT-4,many,5\n"),
                "line 2: Request tokens: expected 0 to 1048576, found \"many\"",
            ),
            (format!("{head}1,ChatGPT,5,5\n"), "no line is of the model"),
        ] {
            let error = with_text(&text, read_bursts).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{text}: {error}");
        }
        let lines = with_text("a\r\n\nb", read_lines).unwrap();
        assert_eq!(lines, ["a\n", "b\n"]);
        assert!(with_text("\n", read_lines).is_err());
    }

    #[test]
    fn prompts_come_one_per_line() {
        let text = "\u{feff}{\"prompt\": \"a\", \"output_tokens\": 3}\n\n{\"prompt\": \"b\", \"answer\": \"c\"}";
        let rows = with_text(text, read_custom).unwrap();
        let row = |prompt: &str, output_tokens| Row {
            prompt: prompt.to_owned(),
            output_tokens,
        };
        assert_eq!(rows, [row("a", Some(3)), row("b", None)]);
        for (text, expected) in [
            ("", "the file is empty"),
            ("\n{\"text\": \"a\"}", "line 2: expected {\"prompt\""),
            ("[\"a\", 5]", "line 1: expected {\"prompt\""),
            (
                "{\"prompt\": \"a\", \"output_tokens\": 0}",
                "output_tokens: expected 1 to 1048576, found 0",
            ),
        ] {
            let error = with_text(text, read_custom).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
