//! Prompts without meaning, of wanted lengths.

use std::sync::Arc;

use anyhow::{Result, ensure};
use futures::StreamExt as _;
use futures::stream;
use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::sample::{AT_ONCE, Sample};
use crate::bench::dataset_args::DatasetArgs;
use crate::bench::records::Burst;
use crate::bench::texts::Texts;

/// How often a random text is changed until its tokens have the wanted length.
pub(super) const MAX_TRIES: usize = 10;

pub(super) async fn random(
    args: &DatasetArgs,
    texts: &Texts,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Arc<Sample>>> {
    let words = ordinary_tokens(texts)?;
    let (input_len, output_len) = (args.input_len(), args.output_len());
    let around = |len: usize, rng: &mut ChaCha8Rng| {
        let (low, high) = (1.0 - args.range_ratio(), 1.0 + args.range_ratio());
        let low = (len as f64 * low).floor() as usize;
        rng.random_range(low..=(len as f64 * high).ceil() as usize)
            .max(1)
    };
    let prefix: Vec<u32> = (0..args.prefix_len())
        .map(|_| words[rng.random_range(0..words.len())])
        .collect();
    // Random numbers first: what is made at once must not depend on who comes first.
    let plans = (0..args.num_prompts)
        .map(|index| {
            let own_len = match input_len {
                0 => 0,
                len => around(len, rng),
            };
            let start = rng.random_range(0..words.len()) + index;
            let own = (start..start + own_len + MAX_TRIES).map(|i| words[i % words.len()]);
            Plan {
                ids: prefix.iter().copied().chain(own).collect(),
                len: prefix.len() + own_len,
                output_len: around(output_len, rng),
            }
        })
        .collect();
    samples(texts, plans).await
}

/// A sample whose text is still to be made.
struct Plan {
    /// How it begins, and [`MAX_TRIES`] tokens more.
    ids: Vec<u32>,
    len: usize,
    output_len: usize,
}

impl Plan {
    async fn sample(self, texts: &Texts) -> Result<Sample> {
        let (prompt, prompt_len) = text_of_length(texts, self.ids, self.len).await?;
        Ok(Sample {
            prompt,
            prompt_len,
            output_len: self.output_len,
        })
    }
}

async fn samples(texts: &Texts, plans: Vec<Plan>) -> Result<Vec<Arc<Sample>>> {
    let made = stream::iter(plans).map(async |plan| plan.sample(texts).await.map(Arc::new));
    let made: Vec<Result<Arc<Sample>>> = made.buffered(AT_ONCE).collect().await;
    made.into_iter().collect()
}

/// A text of `len` tokens that begins as `ids` do, as nearly as there is one: tokens next to each other may join.
pub(super) async fn text_of_length(
    texts: &Texts,
    mut ids: Vec<u32>,
    len: usize,
) -> Result<(String, usize)> {
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

/// Prompts that begin with one of a few texts each.
pub(super) async fn prefix_repetition(
    args: &DatasetArgs,
    texts: &Texts,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Arc<Sample>>> {
    let words = ordinary_tokens(texts)?;
    let [prefix_len, suffix_len, num_prefixes, output_len] = args.prefix_repetition();
    // As many prompts with each, as in vLLM.
    let num_each = args.num_prompts / num_prefixes;
    let mut draw = |len: usize| -> Vec<u32> {
        let ids = (0..len + MAX_TRIES).map(|_| words[rng.random_range(0..words.len())]);
        ids.collect()
    };
    let mut plans = Vec::with_capacity(num_each * num_prefixes);
    for _ in 0..num_prefixes {
        let prefix = &draw(prefix_len)[..prefix_len];
        plans.extend((0..num_each).map(|_| Plan {
            ids: [prefix, &draw(suffix_len)].concat(),
            len: prefix_len + suffix_len,
            output_len,
        }));
    }
    let mut samples = samples(texts, plans).await?;
    if !args.disable_shuffle {
        samples.shuffle(rng);
    }
    Ok(samples)
}

/// A prompt of the length that a line of a file has: the vocabulary in its order, from another place for each line.
pub(super) async fn burst(texts: &Texts, words: &[u32], burst: &Burst) -> Result<Sample> {
    let len = burst.input_len;
    let ids = (burst.index..burst.index + len + MAX_TRIES).map(|i| words[i % words.len()]);
    let plan = Plan {
        ids: ids.collect(),
        len,
        output_len: burst.output_len,
    };
    plan.sample(texts).await
}

pub(super) fn ordinary_tokens(texts: &Texts) -> Result<Vec<u32>> {
    let words = texts.ordinary_tokens();
    ensure!(!words.is_empty(), "the tokenizer has no ordinary tokens");
    Ok(words)
}
