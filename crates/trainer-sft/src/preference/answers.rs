//! The answers of a batch, and the texts that KTO makes of them.

use std::ops::Range;

use super::objective::Objective;
use crate::batch::Batch;
use crate::data::{Example, Place, Source};
use crate::loss::TokenStats;

/// The answers of a batch, one in each document.
pub(super) struct Answers {
    /// With a target for each token that the loss needs.
    pub(super) batch: Batch,
    /// The targets of each document among those of the batch.
    pub(super) rows: Vec<Range<usize>>,
    /// Whether a target is a token of an answer.
    is_answer: Vec<bool>,
    pub(super) are_wanted: Vec<bool>,
}

/// What is known of one answer: sums over its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Read {
    pub(super) log_p: f64,
    pub(super) hits: f64,
    pub(super) entropy: f64,
    pub(super) num_tokens: usize,
}

impl Read {
    pub(super) fn mean(&self) -> f64 {
        self.log_p / self.num_tokens.max(1) as f64
    }
}

impl Answers {
    pub(super) fn new(batch: &Batch, objective: &Objective) -> Self {
        let mut batch = batch.clone();
        let mut are_wanted = batch.are_wanted.clone();
        are_wanted.resize(batch.lengths.len(), true);
        let (mut rows, mut is_answer, mut start) = (Vec::new(), Vec::new(), 0);
        for (document, &length) in batch.lengths.iter().enumerate() {
            let first = is_answer.len();
            // TRL's ORPO learns the whole chosen text, its prompt too.
            let learns_all = matches!(objective, Objective::Orpo { .. }) && document % 2 == 0;
            for token in start..start + length {
                let has_target = batch.targets[token].is_some();
                if !has_target && learns_all && token + 1 < start + length {
                    batch.targets[token] = Some(batch.tokens[token + 1]);
                }
                if batch.targets[token].is_some() {
                    is_answer.push(has_target);
                }
            }
            rows.push(first..is_answer.len());
            start += length;
        }
        Self {
            batch,
            rows,
            is_answer,
            are_wanted,
        }
    }

    /// The targets of document `index` that are tokens of its answer.
    fn targets(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        let rows = self.rows[index].clone();
        rows.filter(|&row| self.is_answer[row])
    }

    pub(super) fn read(&self, index: usize, stats: &[TokenStats]) -> Read {
        let mut read = Read::default();
        for row in self.targets(index) {
            let token = stats[row];
            read.log_p -= f64::from(token.cross_entropy);
            read.hits += f64::from(u8::from(token.is_most_likely));
            read.entropy += f64::from(token.entropy);
            read.num_tokens += 1;
        }
        read
    }

    pub(super) fn weigh(&self, weights: &mut [f32], index: usize, weight: f64) {
        for row in self.targets(index) {
            weights[row] += weight as f32;
        }
    }
}

/// Each answer of a step after the prompt of the next one; none where there is only one.
pub(super) fn mismatched(batches: &[Batch], max_length: usize) -> Vec<Example> {
    /// Tokens of a prompt, and of an answer with whether they are learnt.
    type Text = (Vec<u32>, Vec<(u32, bool)>);
    let mut texts: Vec<Text> = Vec::new();
    for batch in batches {
        let mut start = 0;
        for &length in &batch.lengths {
            let targets = &batch.targets[start..start + length];
            let first = targets.iter().position(Option::is_some);
            let prompt = first.map_or(length, |first| first + 1);
            let (prompt, answer) = batch.tokens[start..start + length].split_at(prompt);
            let learnt = targets
                .iter()
                .map(Option::is_some)
                .skip(prompt.len().max(1) - 1);
            texts.push((
                prompt.to_vec(),
                answer.iter().copied().zip(learnt).collect(),
            ));
            start += length;
        }
    }
    if texts.len() < 2 {
        return Vec::new();
    }
    let answers = texts.iter().cycle().skip(texts.len() - 1);
    let joined = texts.iter().zip(answers).map(|((prompt, _), (_, answer))| {
        let prompt = prompt.iter().map(|&token| (token, false));
        let (tokens, mask) = prompt
            .chain(answer.iter().copied())
            .take(max_length)
            .unzip();
        Example {
            tokens,
            mask,
            is_wanted: true,
            source: Source {
                file: std::path::Path::new("").into(),
                place: Place::Line(0),
            },
        }
    });
    joined.collect()
}
