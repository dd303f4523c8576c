//! What the engine knows of drafts: how long they may be, what they cost and what has come of them.

use kv_paging::LookupConfig;
use model_qwen::{MAX_LOGIT_ROWS, QwenModel, Sampler, is_gpu};

use super::cost::StepCost;
use super::drafter::Drafter;
use crate::config::{NgramConfig, Speculation};
use crate::engine::stats::SpeculationStats;

/// Rows of a step with drafts, at most.
const MAX_ROWS: usize = MAX_LOGIT_ROWS;

/// What the engine knows of drafts.
#[derive(Debug)]
pub(in crate::engine) struct Drafts {
    config: LookupConfig,
    pub(super) cost: StepCost,
    /// Numbers of rows from which on a row may have other bits: see [`QwenModel::row_boundaries`].
    boundaries: Vec<usize>,
    /// Samplers of drafts that are over, at most [`MAX_ROWS`].
    pub(in crate::engine) spare: Vec<Sampler>,
    stats: SpeculationStats,
}

impl Drafts {
    /// `None` if there are to be no drafts.
    pub(in crate::engine) fn new(speculation: Speculation, model: &QwenModel) -> Option<Self> {
        let on_gpu = is_gpu(&model.device());
        let ngram = match speculation {
            Speculation::Off => return None,
            Speculation::Auto if on_gpu => return None,
            Speculation::Auto => NgramConfig::default(),
            Speculation::Ngram(ngram) => ngram,
        };
        tracing::info!("speculative decoding by prompt lookup: {ngram}");
        Some(Self {
            config: LookupConfig {
                min_ngram: ngram.prompt_lookup_min,
                max_ngram: ngram.prompt_lookup_max,
                max_tokens: ngram.num_speculative_tokens,
            },
            cost: StepCost::default(),
            boundaries: model.row_boundaries(MAX_ROWS),
            spare: Vec::new(),
            stats: SpeculationStats {
                accepted_per_position: vec![0; ngram.num_speculative_tokens],
                ..SpeculationStats::default()
            },
        })
    }

    /// What has come of the drafts so far.
    pub(in crate::engine) fn stats(&self) -> &SpeculationStats {
        &self.stats
    }

    /// The guesses for a sequence that begins with `prompt`.
    pub(in crate::engine) fn drafter(&self, prompt: &[u32]) -> Drafter {
        Drafter::new(self.config, prompt)
    }

    /// How many tokens of each draft are worth their rows, in a step that has `rows` without them. `chances` has for each draft
    /// how likely each of its tokens is to be kept.
    pub(super) fn lengths(&self, rows: usize, chances: &[Vec<f32>]) -> Vec<usize> {
        let least = self.cost.least_chance(rows);
        let drafts = chances.iter().enumerate();
        let mut worth: Vec<(usize, f32)> = drafts
            .flat_map(|(i, chances)| chances.iter().map(move |&chance| (i, chance)))
            .filter(|(_, chance)| f64::from(*chance) > least)
            .collect();
        // A token is never likelier than the one before it, so the tokens of a draft stay in their order.
        worth.sort_by(|a, b| b.1.total_cmp(&a.1));
        worth.truncate(self.room(rows));
        let mut lengths = vec![0; chances.len()];
        worth.iter().for_each(|(i, _)| lengths[*i] += 1);
        lengths
    }

    /// Rows that can be added. On a CPU no row gets other bits; for a GPU no boundary is known.
    fn room(&self, rows: usize) -> usize {
        let next = self.boundaries.iter().find(|&&next| next > rows);
        let end = next.map_or(MAX_ROWS, |next| (next - 1).min(MAX_ROWS));
        end.saturating_sub(rows)
    }

    /// Keeps samplers of a draft that is over for others.
    pub(in crate::engine) fn keep_spare(&mut self, samplers: &mut Vec<Sampler>) {
        self.spare.append(samplers);
        self.spare.truncate(MAX_ROWS);
    }

    /// Takes note of a draft that was computed, of whose tokens the first `num_accepted` were right.
    pub(in crate::engine) fn count(&mut self, num_tokens: usize, num_accepted: usize) {
        self.stats.num_drafts += 1;
        self.stats.num_draft_tokens += num_tokens as u64;
        self.stats.num_accepted_tokens += num_accepted as u64;
        let accepted = self.stats.accepted_per_position.iter_mut();
        accepted.take(num_accepted).for_each(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(boundaries: &[usize]) -> Drafts {
        let mut cost = StepCost::default();
        for rows in [1, 2, 3, 4, 3, 2].repeat(20) {
            // A further row costs a tenth.
            cost.observe(rows, 0.9 + 0.1 * rows as f64);
        }
        Drafts {
            config: LookupConfig {
                min_ngram: 2,
                max_ngram: 4,
                max_tokens: 5,
            },
            cost,
            boundaries: boundaries.to_vec(),
            spare: Vec::new(),
            stats: SpeculationStats::default(),
        }
    }

    #[test]
    fn likely_tokens_get_rows_and_unlikely_ones_none() {
        let likely = vec![0.95, 0.9, 0.86, 0.81, 0.77];
        let chances = [
            likely.clone(),
            vec![0.05, 0.01],
            Vec::new(),
            vec![0.93, 0.5],
        ];
        assert_eq!(drafts(&[]).lengths(1, &chances[..1]), [5]);
        assert_eq!(drafts(&[]).lengths(4, &chances), [5, 0, 0, 2]);
        // No row may come to be the fifth, or be added to 64.
        assert_eq!(drafts(&[5, 17]).lengths(1, &chances[..1]), [3]);
        assert_eq!(drafts(&[5, 17]).lengths(4, &chances), [0, 0, 0, 0]);
        assert_eq!(drafts(&[5, 17]).lengths(14, &chances), [1, 0, 0, 1]);
        assert_eq!(drafts(&[]).lengths(64, &chances), [0, 0, 0, 0]);
        // With many rows, further ones cost nearly their share.
        assert_eq!(drafts(&[]).lengths(50, &[likely]), [0]);
    }

    #[test]
    fn accepted_tokens_are_counted_by_their_place() {
        let mut drafts = drafts(&[]);
        drafts.stats.accepted_per_position = vec![0; 3];
        for (num_tokens, num_accepted) in [(3, 3), (2, 0), (3, 1)] {
            drafts.count(num_tokens, num_accepted);
        }
        let SpeculationStats {
            num_drafts,
            num_draft_tokens,
            num_accepted_tokens,
            accepted_per_position,
        } = drafts.stats();
        assert_eq!(
            (*num_drafts, *num_draft_tokens, *num_accepted_tokens),
            (3, 8, 4)
        );
        assert_eq!(accepted_per_position[..], [2, 1, 1]);
    }
}
