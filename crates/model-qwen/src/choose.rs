//! From hidden states to tokens, on every device and for every way to sample.
//!
//! The cheapest way is taken that gives the tokens of [`Sampler::sample`]. Rows whose constraint lets few tokens through come
//! first: one token needs no logits, a few need only theirs. Of the other rows:
//!
//! 1. The int8 copy of lm_head finds the largest logits of a few rows on the CPU, without reading all of lm_head.
//! 2. The device draws the tokens, or takes the most likely ones. Only ids go to the host.
//! 3. The device finds the largest logits. The host draws from these.
//! 4. The host reads all logits, of every row or of those rows that the largest logits don't decide.
//!
//! Before 2, a device makes the logits impossible that a constraint doesn't let through; so constrained rows are as others. What it
//! can do for some rows it does, whatever the others need.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use tracing::trace_span;

use crate::constraint::TokenMask;
use crate::device::is_gpu;
use crate::kernels::choice::{draw_tokens, largest_logits, mask_logits};
use crate::kernels::select_rows;
use crate::model::QwenModel;
use crate::sampling::{
    Ahead, Draw, Logprobs, LogprobsMode, RowMask, SampledToken, Sampler, TopLogits, logprobs_of,
};

/// Rows whose logits are in memory at once: `vocab_size` floats each.
pub const MAX_LOGIT_ROWS: usize = 64;

/// A row whose logits are needed.
#[derive(Debug)]
pub struct ChoiceRow<'a> {
    /// Which row of the hidden states.
    pub row: usize,
    /// What for.
    pub want: Want<'a>,
}

/// Tokens of which the logits are computed one by one, of all rows together: all of lm_head takes as long as some ten thousand.
const MAX_FEW: usize = 8192;

/// What is wanted of a row of logits.
#[derive(Debug)]
pub enum Want<'a> {
    /// The next token of a sequence.
    Token {
        /// The sequence's sampler.
        sampler: &'a mut Sampler,
        /// Tokens that may not come.
        banned: &'a [u32],
    },
    /// The log-probabilities of a token that is known, and of the most likely ones.
    Score {
        /// The token.
        id: u32,
        /// How many of the most likely ones.
        num_top: usize,
        /// Which numbers.
        mode: LogprobsMode,
    },
}

/// The answer to a [`Want`].
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// The next token; its sampler has counted it.
    Token(SampledToken),
    /// The log-probabilities of a known token.
    Score(Logprobs),
    /// A step that left no logits couldn't draw the token. The row has to be computed again: its sampler takes all logits then.
    Undrawn,
}

impl ChoiceRow<'_> {
    /// The same row, for as long as it is borrowed.
    pub(crate) fn reborrowed(&mut self) -> ChoiceRow<'_> {
        let want = match &mut self.want {
            Want::Token { sampler, banned } => Want::Token { sampler, banned },
            &mut Want::Score { id, num_top, mode } => Want::Score { id, num_top, mode },
        };
        ChoiceRow {
            row: self.row,
            want,
        }
    }
}

impl Want<'_> {
    /// Whether only some tokens may come.
    fn is_constrained(&self) -> bool {
        match self {
            Self::Token { sampler, .. } => sampler.is_constrained(),
            Self::Score { .. } => false,
        }
    }

    /// The token, if only one may come.
    fn only(&mut self) -> Option<Choice> {
        match self {
            Self::Token { sampler, .. } => sampler.sample_only().map(Choice::Token),
            Self::Score { .. } => None,
        }
    }

    /// The tokens that may come, where the device has to know them: log-probabilities are of the logits as they are.
    fn mask(&mut self) -> Option<Arc<TokenMask>> {
        match self {
            Self::Token { sampler, .. } if !sampler.has_logprobs() => sampler.mask(),
            _ => None,
        }
    }

    /// The token, from the logits of the few that may come, which `logits_of` computes. `None` if these are more than `max`.
    fn by_few(
        &mut self,
        max: usize,
        logits_of: impl FnOnce(&[u32]) -> Option<Vec<f32>>,
    ) -> Option<Choice> {
        let Self::Token { sampler, banned } = self else {
            return None;
        };
        let ids = sampler.few_allowed(max)?;
        let mut logits = logits_of(&ids)?;
        let token = sampler.sample_few(&ids, &mut logits, banned);
        Some(Choice::Token(token))
    }

    /// Whether a device may draw the token.
    fn draws_on_device(&self) -> bool {
        match self {
            Self::Token { sampler, .. } => sampler.draws_on_device(),
            Self::Score { .. } => false,
        }
    }

    /// How a device draws the token.
    fn draw(&mut self) -> Option<Draw> {
        match self {
            Self::Token { sampler, banned } => sampler.draw(Ahead::NONE, banned),
            Self::Score { .. } => None,
        }
    }

    /// Takes a token that a device has drawn, with its logits if they are wanted. `None` where it couldn't draw it.
    fn drawn(&mut self, id: Option<u32>, logits: Option<&mut [f32]>) -> Option<Choice> {
        let Self::Token { sampler, .. } = self else {
            return None;
        };
        // Where all that may come is impossible, the largest logit is that of any token.
        let Some(id) = id.filter(|&id| sampler.allows(id)) else {
            sampler.undrawn();
            return None;
        };
        sampler.observe(id);
        let logprobs = logits.and_then(|logits| sampler.logprobs_of(id, logits));
        Some(Choice::Token(SampledToken { id, logprobs }))
    }

    /// The token, from the largest logits. `None` where these don't decide.
    fn by_largest(&mut self, largest: &TopLogits) -> Option<Choice> {
        match self {
            Self::Token { sampler, banned } => {
                sampler.sample_top(largest, banned).map(Choice::Token)
            }
            Self::Score { .. } => None,
        }
    }

    /// The answer, from all logits of the row.
    fn by_all(&mut self, logits: &mut [f32]) -> Choice {
        let _span = trace_span!("sample").entered();
        match self {
            Self::Token { sampler, banned } => Choice::Token(sampler.sample(logits, banned)),
            Self::Score { id, num_top, mode } => {
                Choice::Score(logprobs_of(logits, *id, *num_top, *mode))
            }
        }
    }
}

/// Answers what is wanted of some rows of `hidden [tokens, hidden]`, which the final norm has seen. The answers are in the order
/// of `rows`.
///
/// # Errors
/// What the device says, if it couldn't compute them.
///
/// # Panics
/// As Burn does when it reads from a device that couldn't compute the logits.
pub fn choose(
    model: &QwenModel,
    hidden: &Tensor<2>,
    rows: &mut [ChoiceRow<'_>],
) -> Result<Vec<Choice>, String> {
    let num_constrained = rows.iter().filter(|row| row.want.is_constrained()).count();
    let max = MAX_FEW / num_constrained.max(1);
    let on_device = is_gpu(&model.device());
    let few = |row: &mut ChoiceRow<'_>| {
        let hidden = || hidden.clone().narrow(0, row.row, 1); // [1, hidden]
        match row.want.only() {
            None if on_device => None,
            None => row.want.by_few(max, |ids| model.logits_of(hidden(), ids)),
            only => only,
        }
    };
    few_first(rows, few, |rows, _| choose_from_hidden(model, hidden, rows))
}

/// Answers rows of which `few` knows how, and lets `rest` answer the others: it gets these, and their places among all.
fn few_first(
    rows: &mut [ChoiceRow<'_>],
    few: impl FnMut(&mut ChoiceRow<'_>) -> Option<Choice>,
    rest: impl FnOnce(&mut [ChoiceRow<'_>], &[usize]) -> Result<Vec<Choice>, String>,
) -> Result<Vec<Choice>, String> {
    let mut choices: Vec<Option<Choice>> = rows.iter_mut().map(few).collect();
    let places = (0..rows.len()).filter(|place| choices[*place].is_none());
    let places: Vec<usize> = places.collect();
    let left = rows.iter_mut().zip(&choices);
    let left = left.filter(|(_, choice)| choice.is_none());
    let mut left: Vec<ChoiceRow<'_>> = left.map(|(row, _)| row.reborrowed()).collect();
    if !left.is_empty() {
        for (place, choice) in places.iter().zip(rest(&mut left, &places)?) {
            choices[*place] = Some(choice);
        }
    }
    Ok(choices.into_iter().flatten().collect())
}

/// [`choose`] for rows whose tokens may be any of many.
fn choose_from_hidden(
    model: &QwenModel,
    hidden: &Tensor<2>,
    rows: &mut [ChoiceRow<'_>],
) -> Result<Vec<Choice>, String> {
    let mut choices = Vec::with_capacity(rows.len());
    for rows in rows.chunks_mut(MAX_LOGIT_ROWS) {
        let hidden = select(hidden, rows); // [rows, hidden]
        let largest = match rows.iter().all(takes_largest) {
            true => model.largest_logits(&hidden),
            false => None,
        };
        choices.extend(match largest {
            Some(largest) => choose_from_largest(rows, &largest, |rows| {
                model.logits(select_rows(&hidden, rows)) // [rows, vocab]
            }),
            None => choose_from_logits(model.logits(hidden), rows)?,
        });
    }
    Ok(choices)
}

/// [`choose`] for logits that are computed: `[rows, vocab]`, one row for each of `rows`. A device may change those of constrained
/// rows.
pub(crate) fn choose_from_logits(
    logits: Tensor<2>,
    rows: &mut [ChoiceRow<'_>],
) -> Result<Vec<Choice>, String> {
    if !rows.iter().any(|row| row.want.is_constrained()) {
        return choose_apart(logits, rows);
    }
    few_first(
        rows,
        |row| row.want.only(),
        |rows, places| {
            let logits = match places.len() == logits.dims()[0] {
                true => logits,
                false => select_rows(&logits, places),
            };
            let masks: Vec<RowMask> = (rows.iter_mut().enumerate())
                .filter_map(|(row, choice)| {
                    Some(RowMask {
                        row,
                        mask: choice.want.mask()?,
                    })
                })
                .collect();
            match mask_logits(&logits, &masks) {
                true => choose_apart(logits, rows),
                false => choose_from_rows(logits, rows),
            }
        },
    )
}

/// [`choose_from_logits`] for rows of which the device knows what may come. What it can draw for some of them it should not leave to
/// the host because of the others.
fn choose_apart(logits: Tensor<2>, rows: &mut [ChoiceRow<'_>]) -> Result<Vec<Choice>, String> {
    let is_drawn: Vec<bool> = rows.iter().map(|row| row.want.draws_on_device()).collect();
    let is_mixed = is_drawn.contains(&true) && is_drawn.contains(&false);
    if !is_mixed || !is_gpu(&logits.device()) {
        return choose_from_rows(logits, rows);
    }
    let mut choices: Vec<Option<Choice>> = vec![None; rows.len()];
    for drawn in [true, false] {
        let at: Vec<usize> = (0..rows.len())
            .filter(|at| is_drawn[*at] == drawn)
            .collect();
        let logits = select_rows(&logits, &at);
        let mut kind: Vec<ChoiceRow<'_>> = (rows.iter_mut().zip(&is_drawn))
            .filter(|(_, is_drawn)| **is_drawn == drawn)
            .map(|(row, _)| row.reborrowed())
            .collect();
        for (at, choice) in at.iter().zip(choose_from_rows(logits, &mut kind)?) {
            choices[*at] = Some(choice);
        }
    }
    Ok(choices.into_iter().flatten().collect())
}

/// [`choose_from_logits`] for rows that are chosen in one way.
fn choose_from_rows(logits: Tensor<2>, rows: &mut [ChoiceRow<'_>]) -> Result<Vec<Choice>, String> {
    let row_of = |row| logits.clone().narrow(0, row, 1); // [1, vocab]
    let draws_on_device = rows.iter().all(|row| row.want.draws_on_device());
    let draws: Option<Vec<Draw>> = match draws_on_device && is_gpu(&logits.device()) {
        true => rows.iter_mut().map(|row| row.want.draw()).collect(),
        false => None,
    };
    if let Some(draws) = draws
        && let Some(tokens) = draw_tokens(&logits, &draws)
    {
        let drawn = rows.iter_mut().zip(tokens.wait()?).enumerate();
        return Ok(drawn
            .map(|(i, (row, id))| {
                let choice = row.want.drawn(id, None);
                choice.unwrap_or_else(|| row.want.by_all(&mut on_host(row_of(i))))
            })
            .collect());
    }
    if let Some(scales) = scales(rows)
        && let Some(largest) = largest_logits(&logits, &scales)
    {
        return Ok(choose_from_largest(rows, &largest.wait()?, |rows| {
            select_rows(&logits, rows)
        }));
    }
    let [_, vocab] = logits.dims();
    let mut logits = on_host(logits);
    let logits = logits.chunks_exact_mut(vocab);
    Ok((rows.iter_mut().zip(logits))
        .map(|(row, logits)| row.want.by_all(logits))
        .collect())
}

/// [`choose`] for a step that left the tokens alone, which the device has drawn: one for each row of the step; and the logits of the
/// rows that want them.
pub(crate) fn choose_drawn(
    ids: &[Option<u32>],
    mut logits: HashMap<usize, Vec<f32>>,
    rows: &mut [ChoiceRow<'_>],
) -> Vec<Choice> {
    let drawn = |row: &mut ChoiceRow<'_>| {
        let logits = logits.get_mut(&row.row).map(Vec::as_mut_slice);
        row.want.drawn(ids[row.row], logits)
    };
    let choices = rows.iter_mut().map(drawn);
    choices
        .map(|choice| choice.unwrap_or(Choice::Undrawn))
        .collect()
}

/// Chooses from the largest logits of each row. For the rows that these don't decide `logits_of` computes all logits, of all such
/// rows together.
fn choose_from_largest(
    rows: &mut [ChoiceRow<'_>],
    largest: &[TopLogits],
    logits_of: impl FnOnce(&[usize]) -> Tensor<2>,
) -> Vec<Choice> {
    let decided = rows.iter_mut().zip(largest);
    let mut choices: Vec<Option<Choice>> = decided
        .map(|(row, largest)| row.want.by_largest(largest))
        .collect();
    let undecided = (0..rows.len()).filter(|&row| choices[row].is_none());
    let undecided: Vec<usize> = undecided.collect();
    if !undecided.is_empty() {
        let logits = logits_of(&undecided);
        let [_, vocab] = logits.dims();
        let mut logits = on_host(logits);
        for (&row, logits) in undecided.iter().zip(logits.chunks_exact_mut(vocab)) {
            choices[row] = Some(rows[row].want.by_all(logits));
        }
    }
    choices.into_iter().flatten().collect()
}

/// Whether the largest logits that the int8 copy of lm_head finds may decide a row.
fn takes_largest(row: &ChoiceRow<'_>) -> bool {
    match &row.want {
        Want::Token { sampler, .. } => sampler.takes_largest(QwenModel::NUM_LARGEST),
        Want::Score { .. } => false,
    }
}

/// The scale of each row's sampler, if tokens are wanted of all rows and the largest logits may decide one of them.
fn scales(rows: &[ChoiceRow<'_>]) -> Option<Vec<f32>> {
    let samplers = rows.iter().map(|row| match &row.want {
        Want::Token { sampler, .. } => Some(&**sampler),
        Want::Score { .. } => None,
    });
    let samplers: Vec<&Sampler> = samplers.collect::<Option<_>>()?;
    let may_decide = samplers.iter().any(|sampler| sampler.takes_top());
    may_decide.then(|| samplers.iter().map(|sampler| sampler.scale()).collect())
}

/// The rows of `x` that are asked for, in their order.
pub(crate) fn select(x: &Tensor<2>, rows: &[ChoiceRow<'_>]) -> Tensor<2> {
    if rows.iter().enumerate().all(|(i, row)| row.row == i) {
        return match rows.len() == x.dims()[0] {
            true => x.clone(),
            false => x.clone().narrow(0, 0, rows.len()),
        };
    }
    let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
    select_rows(x, &indices)
}

/// The values of a tensor on the host; without a copy where they are there already.
fn on_host(tensor: Tensor<2>) -> Vec<f32> {
    let _span = trace_span!("read_logits", rows = tensor.dims()[0]).entered();
    match tensor.into_data_dtype(DType::F32).try_into_vec() {
        Ok(values) => values,
        Err(error) => unreachable!("f32 values: {error}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::constraint::{ConstraintFactory, Grammar};
    use crate::load::LoadOptions;
    use crate::sampling::SamplingParams;

    /// Tokens and scores of more rows than have their logits in memory at once are those of each row by itself.
    #[test]
    fn answers_are_those_of_each_row_by_itself() {
        let dir = crate::bundled_model_dir().unwrap();
        let model = QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
        let [vocab, hidden] = model.lm_head.weight.shape();
        let random = Distribution::Normal(0.0, 1.0);
        let hidden = Tensor::random([100, hidden], random, (&Device::flex(), DType::F32));
        let sampler = |row: usize| {
            let params = SamplingParams {
                temperature: if row.is_multiple_of(2) { 0.0 } else { 1.0 },
                seed: Some(row as u64),
                ..SamplingParams::default()
            };
            Sampler::new(&params, &[], vocab)
        };
        let banned = [3];
        let mut samplers: Vec<Sampler> = (0..100).map(sampler).collect();
        let mut rows: Vec<ChoiceRow<'_>> = (samplers.iter_mut().enumerate())
            .map(|(row, sampler)| ChoiceRow {
                row: 99 - row,
                want: match row % 3 {
                    0 => Want::Score {
                        id: 7,
                        num_top: 2,
                        mode: LogprobsMode::RawLogprobs,
                    },
                    _ => Want::Token {
                        sampler,
                        banned: &banned,
                    },
                },
            })
            .collect();
        let choices = choose(&model, &hidden, &mut rows).unwrap();
        assert_eq!(choices.len(), 100);
        for (row, choice) in choices.into_iter().enumerate() {
            let mut logits = on_host(model.logits(hidden.clone().narrow(0, 99 - row, 1)));
            let expected = match row % 3 {
                0 => Choice::Score(logprobs_of(&mut logits, 7, 2, LogprobsMode::RawLogprobs)),
                _ => Choice::Token(sampler(row).sample(&mut logits, &banned)),
            };
            assert_eq!(choice, expected, "row {row}");
        }
    }

    /// Rows with a grammar, among others, get the tokens that they get by themselves from all logits.
    #[test]
    fn constrained_rows_get_the_tokens_of_all_logits() {
        let dir = crate::bundled_model_dir().unwrap();
        let model = QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
        let tokenizer = crate::Tokenizer::from_dir(&dir).unwrap();
        let [vocab, hidden] = model.lm_head.weight.shape();
        let factory = ConstraintFactory::new(&tokenizer, vocab, &[2]).unwrap();
        let grammars = ["[0-9]+", "a|b|c", ".*", "x"].map(|regex| {
            let grammar = Grammar::Regex(regex.to_owned());
            factory.compile(&grammar, None).unwrap()
        });
        let sampler = |row: usize| {
            let params = SamplingParams {
                temperature: if row.is_multiple_of(2) { 0.0 } else { 1.0 },
                seed: Some(row as u64),
                repetition_penalty: if row.is_multiple_of(3) { 1.5 } else { 1.0 },
                logprobs: (row > 16).then_some(2),
                ..SamplingParams::default()
            };
            Sampler::new(&params, &[3, 4, 300], vocab).constrained(grammars.get(row % 5).cloned())
        };
        let random = Distribution::Normal(0.0, 1.0);
        let hidden = Tensor::random([20, hidden], random, (&Device::flex(), DType::F32));
        let banned = [7, 300];
        let mut samplers: Vec<Sampler> = (0..20).map(sampler).collect();
        let mut rows: Vec<ChoiceRow<'_>> = (samplers.iter_mut().enumerate())
            .map(|(row, sampler)| ChoiceRow {
                row,
                want: Want::Token {
                    sampler,
                    banned: &banned,
                },
            })
            .collect();
        // From hidden states, as a prompt's step leaves them, and from logits.
        let by_hidden = choose(&model, &hidden, &mut rows).unwrap();
        let logits = model.logits(hidden.clone());
        let mut samplers: Vec<Sampler> = (0..20).map(sampler).collect();
        for (row, want) in rows.iter_mut().zip(&mut samplers) {
            row.want = Want::Token {
                sampler: want,
                banned: &banned,
            };
        }
        let by_logits = choose_from_logits(logits, &mut rows).unwrap();
        for row in 0..20 {
            let mut logits = on_host(model.logits(hidden.clone().narrow(0, row, 1)));
            let expected = Choice::Token(sampler(row).sample(&mut logits, &banned));
            assert_eq!(by_hidden[row], expected, "row {row}");
            assert_eq!(by_logits[row], expected, "row {row}");
        }
    }
}
