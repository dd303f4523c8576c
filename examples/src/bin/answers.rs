//! The likeliest answers of a model to a file of prompts, and which of them loop; or pairs that teach it not to.
//! `answers data/model data/prompts.txt`

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Parser;
use examples::answers::{Answer, repetition};
use model_qwen::{ChatModel, LoadOptions, parse_device};
use serde_json::{Value, json};

/// Words that are left of a rejected answer: where a loop begins is learnt, not how long it is.
const REJECTED_WORDS: usize = 95;

/// Answer prompts with the likeliest tokens and say which answers loop.
#[derive(Parser)]
struct Args {
    /// Folder or Hugging Face id.
    model: String,
    /// A prompt per line, or JSON lines with `messages`, of which the first one is the prompt and the second one an answer.
    prompts: PathBuf,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 400)]
    max_tokens: usize,
    /// An answer loops if more than this part of its runs of four words were in it before.
    #[arg(long, default_value_t = Answer::LOOP)]
    most: f64,
    /// Write pairs for `--method dpo` instead, of the answers that loop or do not end: those of the file are chosen.
    #[arg(long)]
    pairs: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let chat = ChatModel::load(&args.model, &LoadOptions::default(), &parse_device("auto")?)?;
    let text = std::fs::read_to_string(&args.prompts)
        .with_context(|| args.prompts.display().to_string())?;
    let mut out = std::io::stdout().lock();
    let (mut all, mut broken) = (0, 0);
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let place = || format!("{}:{}", args.prompts.display(), index + 1);
        let (prompt, chosen) = parts(line).with_context(place)?;
        let message = json!({"role": "user", "content": prompt});
        let answer = Answer::likeliest(&chat, &[message], args.max_tokens).with_context(place)?;
        let is_broken = answer.is_broken(args.most);
        all += 1;
        broken += usize::from(is_broken);
        if !args.pairs {
            let line = json!({
                "prompt": prompt,
                "answer": answer.text,
                "has_ended": answer.has_ended,
                "repetition": repetition(&answer.text),
            });
            writeln!(out, "{line}")?;
        } else if is_broken {
            let Some(chosen) = chosen else {
                bail!(
                    "{}: expected `messages` with an answer for --pairs, found a prompt",
                    place()
                );
            };
            let words: Vec<&str> = answer.text.split(' ').take(REJECTED_WORDS).collect();
            let pair = json!({"prompt": prompt, "chosen": chosen, "rejected": words.join(" ")});
            writeln!(out, "{pair}")?;
        }
    }
    eprintln!("{broken} of {all} answers loop or do not end");
    Ok(())
}

/// The prompt of a line, and the answer that the line has to it.
fn parts(line: &str) -> anyhow::Result<(String, Option<String>)> {
    if !line.starts_with('{') {
        return Ok((line.to_owned(), None));
    }
    let record: Value = serde_json::from_str(line)?;
    let content = |index: usize| {
        let content = record.pointer(&format!("/messages/{index}/content"));
        content.and_then(Value::as_str).map(str::to_owned)
    };
    let prompt = content(0).context("expected `messages` with a text, found none")?;
    Ok((prompt, content(1)))
}
