//! Prompts of a run.

use std::io::BufRead as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::Value;

use super::dataset_args::{DatasetArgs, DatasetName};
use super::texts::Texts;

/// Prompts that are made at once, where a server has the tokenizer.
const AT_ONCE: usize = 16;
/// How often a random text is changed until its tokens have the wanted length.
const MAX_TRIES: usize = 10;
/// Shortest prompt and answer of a chat, longest prompt, and longest of both together: vLLM's limits for ShareGPT.
const SHAREGPT: [usize; 3] = [4, 1024, 2048];

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// Its text.
    pub(super) prompt: String,
    /// Tokens of the text, without any around it.
    pub(super) prompt_len: usize,
    /// Tokens to generate.
    pub(super) output_len: usize,
}

/// What the file of a data set has.
pub(super) enum Records {
    /// There is no file.
    Random,
    /// Questions and answers.
    Sharegpt(Vec<(String, String)>),
    /// Prompts.
    Custom(Vec<Row>),
}

impl Records {
    /// Reads `--dataset-path`, if the data set has a file.
    pub(super) fn read(args: &DatasetArgs) -> Result<Self> {
        let path = args.dataset_path.as_deref().unwrap_or(Path::new(""));
        let records = match args.name() {
            DatasetName::Random => Ok(Self::Random),
            DatasetName::Sharegpt => read_sharegpt(path).map(Self::Sharegpt),
            DatasetName::Custom => read_custom(path).map(Self::Custom),
        };
        records.with_context(|| format!("--dataset-path {}", path.display()))
    }
}

/// The requests of a run. With `as_chat`, prompts of custom get the chat template here.
pub(super) async fn samples(
    args: &DatasetArgs,
    records: Records,
    texts: &Texts,
    as_chat: bool,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Sample>> {
    match records {
        Records::Random => random(args, texts, rng).await,
        Records::Sharegpt(chats) => {
            from_file(args, chats, rng, async |(question, answer)| {
                sharegpt(args, texts, question, answer).await
            })
            .await
        }
        Records::Custom(rows) => {
            let as_chat = as_chat && !args.skip_chat_template;
            from_file(args, rows, rng, async |row| {
                custom(args, texts, as_chat, row).await
            })
            .await
        }
    }
}

async fn random(args: &DatasetArgs, texts: &Texts, rng: &mut ChaCha8Rng) -> Result<Vec<Sample>> {
    let words = texts.ordinary_tokens();
    ensure!(!words.is_empty(), "the tokenizer has no ordinary tokens");
    let input_len = args.input_len.unwrap_or(args.random_input_len);
    let output_len = args.output_len.unwrap_or(args.random_output_len);
    ensure!(
        input_len + args.random_prefix_len > 0,
        "--random-input-len: expected 1 or more, found 0"
    );
    let around = |len: usize, rng: &mut ChaCha8Rng| {
        let (low, high) = (1.0 - args.random_range_ratio, 1.0 + args.random_range_ratio);
        let low = (len as f64 * low).floor() as usize;
        rng.random_range(low..=(len as f64 * high).ceil() as usize)
            .max(1)
    };
    let prefix: Vec<u32> = (0..args.random_prefix_len)
        .map(|_| words[rng.random_range(0..words.len())])
        .collect();
    // Random numbers first: what is made at once must not depend on who comes first.
    let plans: Vec<(Vec<u32>, usize, usize)> = (0..args.num_prompts)
        .map(|index| {
            let own_len = match input_len {
                0 => 0,
                len => around(len, rng),
            };
            let start = rng.random_range(0..words.len()) + index;
            let own = (start..start + own_len + MAX_TRIES).map(|i| words[i % words.len()]);
            let ids = prefix.iter().copied().chain(own).collect();
            (ids, prefix.len() + own_len, around(output_len, rng))
        })
        .collect();
    let made = futures::stream::iter(plans).map(async |(ids, len, output_len)| {
        let (prompt, prompt_len) = text_of_length(texts, ids, len).await?;
        Ok(Sample {
            prompt,
            prompt_len,
            output_len,
        })
    });
    let made: Vec<Result<Sample>> = made.buffered(AT_ONCE).collect().await;
    made.into_iter().collect()
}

/// A text of `len` tokens that begins as `ids` do, as nearly as there is one: tokens next to each other may join.
async fn text_of_length(texts: &Texts, mut ids: Vec<u32>, len: usize) -> Result<(String, usize)> {
    let spare = ids.split_off(len);
    let mut text = texts.decode(&ids).await?;
    for extra in spare {
        let found = texts.encode(&text).await?;
        if found.len() == len {
            break;
        }
        ids = found;
        ids.truncate(len);
        if ids.len() < len {
            ids.push(extra);
        }
        text = texts.decode(&ids).await?;
    }
    let found = texts.encode(&text).await?.len();
    Ok((text, found))
}

/// A chat's first question, and the length of its answer; `None` where it is too short or too long.
async fn sharegpt(
    args: &DatasetArgs,
    texts: &Texts,
    question: &str,
    answer: &str,
) -> Result<Option<Sample>> {
    let prompt_len = texts.encode(question).await?.len();
    let given = args.output_len.or(args.sharegpt_output_len);
    let output_len = match given {
        Some(len) => len,
        None => texts.encode(answer).await?.len(),
    };
    let [shortest, longest_prompt, longest] = SHAREGPT;
    let fits = prompt_len >= shortest
        && (given.is_some() || output_len >= shortest)
        && prompt_len <= longest_prompt
        && prompt_len.saturating_add(output_len) <= longest;
    Ok(fits.then(|| Sample {
        prompt: question.to_owned(),
        prompt_len,
        output_len,
    }))
}

async fn custom(
    args: &DatasetArgs,
    texts: &Texts,
    as_chat: bool,
    row: &Row,
) -> Result<Option<Sample>> {
    let prompt = match as_chat {
        true => texts.chat(&row.prompt).await?,
        false => row.prompt.clone(),
    };
    let given = args.output_len.or(args.custom_output_len);
    Ok(Some(Sample {
        prompt_len: texts.encode(&prompt).await?.len(),
        output_len: given.or(row.output_tokens).unwrap_or(256).max(1),
        prompt,
    }))
}

/// As many samples as there are to be; records are taken again where a file has too few.
async fn from_file<T>(
    args: &DatasetArgs,
    mut records: Vec<T>,
    rng: &mut ChaCha8Rng,
    sample: impl AsyncFn(&T) -> Result<Option<Sample>>,
) -> Result<Vec<Sample>> {
    if !args.disable_shuffle {
        records.shuffle(rng);
    }
    let mut samples = Vec::new();
    for record in &records {
        if samples.len() == args.num_prompts {
            break;
        }
        samples.extend(sample(record).await?);
    }
    let num = samples.len();
    ensure!(
        num > 0,
        "--dataset-path: none of {} records can be used (of a chat, question and answer have {} tokens or more, the question \
         at most {}, both together at most {})",
        records.len(),
        SHAREGPT[0],
        SHAREGPT[1],
        SHAREGPT[2]
    );
    if num < args.num_prompts && !args.no_oversample {
        let again: Vec<Sample> = samples
            .iter()
            .cycle()
            .take(args.num_prompts)
            .cloned()
            .collect();
        return Ok(again);
    }
    Ok(samples)
}

/// First question and answer of each chat that has both.
fn read_sharegpt(path: &Path) -> Result<Vec<(String, String)>> {
    let bytes = std::fs::read(path)?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let chats: Vec<Value> = match serde_json::from_slice(text) {
        Ok(chats) => chats,
        Err(error) if text.trim_ascii_start().starts_with(b"[") => {
            return Err(error).context("expected a JSON list of chats");
        }
        // One chat per line is as good.
        Err(_) => {
            let lines = text.split(|&byte| byte == b'\n').enumerate();
            let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
            let chat = |(index, line)| {
                serde_json::from_slice(line).with_context(|| {
                    let number = index + 1;
                    format!("line {number}: expected a JSON list of chats, or one chat per line")
                })
            };
            lines.map(chat).collect::<Result<_>>()?
        }
    };
    let turn = |chat: &Value, index: usize| {
        let turn = &chat["conversations"][index];
        let text = turn["value"].as_str().or_else(|| turn["content"].as_str());
        text.map(str::to_owned)
    };
    let pairs: Vec<(String, String)> = chats
        .iter()
        .filter_map(|chat| turn(chat, 0).zip(turn(chat, 1)))
        .collect();
    ensure!(
        !pairs.is_empty(),
        "none of {} records has `conversations` with two turns or more, each with a `value`",
        chats.len()
    );
    Ok(pairs)
}

/// A line of a custom file; further columns belong to somebody else.
#[derive(Deserialize)]
pub(super) struct Row {
    prompt: String,
    output_tokens: Option<usize>,
}

fn read_custom(path: &Path) -> Result<Vec<Row>> {
    let file = std::io::BufReader::new(std::fs::File::open(path)?);
    let mut rows = Vec::new();
    for (index, line) in file.lines().enumerate() {
        let line = line?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(line)
            .with_context(|| format!("line {}: expected {{\"prompt\": \"…\"}}", index + 1))?;
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "the file is empty");
    Ok(rows)
}
