//! Prompts of lines of a poem, the first of which are the same for all.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::sample::Sample;
use crate::bench::dataset_args::DatasetArgs;
use crate::bench::texts::Texts;

/// What is asked, as in vLLM.
const QUESTION: &str = "Pick as many lines as you can from these poem lines:\n";
/// Prompts that are tried for each that is short enough.
const MAX_TRIES: usize = 100;

/// Prompts of at most the wanted length. With `as_chat` they get the chat template here; lengths are those of chats in any case.
pub(super) async fn sonnet(
    args: &DatasetArgs,
    texts: &Texts,
    lines: &[String],
    as_chat: bool,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Arc<Sample>>> {
    let [prefix_len, input_len, output_len] = args.sonnet();
    let mut num_tokens = 0;
    for line in lines {
        num_tokens += texts.encode(line).await?.len();
    }
    let mean = num_tokens as f64 / lines.len() as f64;
    let question = texts.chat(QUESTION).await;
    let question = question.context("--dataset-name sonnet: lengths are those of chats")?;
    let base = texts.encode(&question).await?.len();
    ensure!(
        input_len > base,
        "--sonnet-input-len: expected more than the {base} tokens of the question, found {input_len}"
    );
    let num_lines = |len: usize| ((len as f64 - base as f64) / mean).round().max(0.0) as usize;
    let num_prefix = num_lines(prefix_len).min(lines.len());
    let num_others = num_lines(input_len).max(1).saturating_sub(num_prefix);
    let prefix = lines[..num_prefix].concat();
    let mut samples = Vec::with_capacity(args.num_prompts);
    for _ in 0..args.num_prompts.saturating_mul(MAX_TRIES) {
        if samples.len() == args.num_prompts {
            break;
        }
        let mut prompt = format!("{QUESTION}{prefix}");
        for _ in 0..num_others {
            prompt.push_str(&lines[rng.random_range(0..lines.len())]);
        }
        let chat = texts.chat(&prompt).await?;
        let prompt_len = texts.encode(&chat).await?.len();
        if prompt_len <= input_len {
            samples.push(Arc::new(Sample {
                prompt: if as_chat { chat } else { prompt },
                prompt_len,
                output_len,
            }));
        }
    }
    ensure!(
        samples.len() == args.num_prompts,
        "--sonnet-input-len: most prompts of {num_lines} lines have more than {input_len} tokens",
        num_lines = num_prefix + num_others
    );
    Ok(samples)
}
