//! Limits of the scheduler, and the errors of exceeding them.

use thiserror::Error;

use super::step::SequenceId;

/// Limits of a scheduler. Field names and meanings are those of vLLM's flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// The most sequences in one step.
    pub max_num_seqs: usize,
    /// The most tokens in one step, over all its sequences. Should be at least `max_num_seqs`; with less, the
    /// latest sequences pause.
    pub max_num_batched_tokens: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// The most tokens of one sequence, prompt and output together.
    pub max_model_len: usize,
    /// Whether full blocks are kept for sequences with the same prefix.
    pub enable_prefix_caching: bool,
}

impl SchedulerConfig {
    /// The most tokens a sequence may reach, prompt and output together: the least of `prompt_len + max_tokens`
    /// (0 counts as 1), `max_model_len`, and what the pool holds for one sequence alone. The last token of a sequence
    /// needs no room, since nothing is computed from it.
    pub fn max_len(&self, prompt_len: usize, max_tokens: usize) -> usize {
        (prompt_len.saturating_add(max_tokens.max(1)))
            .min(self.max_model_len)
            .min(
                self.block_size
                    .saturating_mul(self.num_blocks)
                    .saturating_add(1),
            )
    }

    pub(crate) fn validate(&self) -> Result<u32, ConfigError> {
        for (field, value) in [
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("block_size", self.block_size),
            ("num_blocks", self.num_blocks),
            ("max_model_len", self.max_model_len),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
        }
        let num_blocks = self.num_blocks;
        u32::try_from(num_blocks).map_err(|_| ConfigError::TooManyBlocks { num_blocks })
    }

    pub(crate) fn check(&self, id: SequenceId, prompt_len: usize) -> Result<(), AddError> {
        if prompt_len == 0 {
            return Err(AddError::EmptyPrompt { id });
        }
        if prompt_len >= self.max_model_len {
            let max_model_len = self.max_model_len;
            return Err(AddError::PromptTooLong {
                id,
                prompt_len,
                max_model_len,
            });
        }
        let num_needed = prompt_len.div_ceil(self.block_size);
        if num_needed > self.num_blocks {
            return Err(AddError::PoolTooSmall {
                id,
                prompt_len,
                num_needed,
                block_size: self.block_size,
                num_blocks: self.num_blocks,
            });
        }
        Ok(())
    }
}

/// Why no scheduler can be made from a [`SchedulerConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A limit of zero lets nothing through.
    #[error("{field} is 0, expected at least 1")]
    Zero {
        /// Field of [`SchedulerConfig`].
        field: &'static str,
    },
    /// Block numbers have 32 bits.
    #[error("num_blocks is {num_blocks}, expected at most {}", u32::MAX)]
    TooManyBlocks {
        /// As configured.
        num_blocks: usize,
    },
}

/// Why a sequence was refused. It has not been added.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddError {
    /// There is nothing to compute a next token from.
    #[error("sequence {id} has an empty prompt, expected at least 1 token")]
    EmptyPrompt {
        /// The refused sequence.
        id: SequenceId,
    },
    /// The id belongs to a sequence that is running or waiting.
    #[error("sequence {id} is already being scheduled")]
    DuplicateId {
        /// The refused sequence.
        id: SequenceId,
    },
    /// The prompt leaves no room for a generated token.
    #[error(
        "sequence {id} has a prompt of {prompt_len} tokens; with at least one generated token it exceeds the maximum \
         length of {max_model_len} tokens (max_model_len)"
    )]
    PromptTooLong {
        /// The refused sequence.
        id: SequenceId,
        /// Tokens in its prompt.
        prompt_len: usize,
        /// The limit.
        max_model_len: usize,
    },
    /// The prompt would not fit even if nothing else ran.
    #[error(
        "sequence {id} has a prompt of {prompt_len} tokens, which needs {num_needed} KV blocks of {block_size} \
         tokens, but there are only {num_blocks}"
    )]
    PoolTooSmall {
        /// The refused sequence.
        id: SequenceId,
        /// Tokens in its prompt.
        prompt_len: usize,
        /// Blocks for these.
        num_needed: usize,
        /// Tokens per block.
        block_size: usize,
        /// Blocks in the pool.
        num_blocks: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> SchedulerConfig {
        SchedulerConfig {
            max_num_seqs: 4,
            max_num_batched_tokens: 8,
            block_size: 4,
            num_blocks: 3,
            max_model_len: 20,
            enable_prefix_caching: true,
        }
    }

    #[test]
    fn zero_limits_are_refused_by_name() {
        assert!(config().validate().is_ok());
        let error = SchedulerConfig {
            block_size: 0,
            ..config()
        }
        .validate()
        .unwrap_err();
        assert_eq!(error.to_string(), "block_size is 0, expected at least 1");
    }

    #[test]
    fn a_sequence_ends_at_the_nearest_limit() {
        assert_eq!(config().max_len(5, 3), 8);
        assert_eq!(config().max_len(5, 0), 6);
        assert_eq!(
            config().max_len(5, usize::MAX),
            13,
            "3 blocks of 4 and one token"
        );
        assert_eq!(
            SchedulerConfig {
                max_model_len: 7,
                ..config()
            }
            .max_len(5, 100),
            7
        );
    }

    #[test]
    fn prompts_that_never_fit_are_refused_with_both_numbers() {
        assert_eq!(config().check(1, 12), Ok(()));
        let error = config().check(1, 13).unwrap_err().to_string();
        assert!(
            error.contains("needs 4 KV blocks") && error.contains("only 3"),
            "{error}"
        );
        let error = config().check(1, 20).unwrap_err().to_string();
        assert!(
            error.contains("prompt of 20 tokens") && error.contains("length of 20"),
            "{error}"
        );
        assert_eq!(config().check(1, 0), Err(AddError::EmptyPrompt { id: 1 }));
    }
}
