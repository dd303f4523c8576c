//! The prompts of a run, with the fields that rewards are about.

use std::collections::HashMap;

use serde_json::{Map, Value};
use tracing::{info, warn};

use crate::chat_format::ChatFormat;
use crate::config::Config;
use crate::data::objects::{objects, refuse};
use crate::data::{DataError, Datasets, Records, Source};
use crate::error::TrainError;
use crate::prompts::{self, Prompt};
use crate::rewards::Rewards;

/// A prompt to be answered.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) prompt: Prompt,
    /// The other fields of its record.
    pub(crate) columns: Map<String, Value>,
}

/// All prompts of a run.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    of_source: HashMap<Source, Question>,
}

impl Questions {
    /// Reads the prompts of a run. Those that leave no room for an answer are left out, or refused with `--strict`.
    ///
    /// # Errors
    /// Files that cannot be read, records without a prompt or without a field that a reward is about, and no prompt that fits.
    pub(crate) fn load(
        config: &Config,
        format: &ChatFormat,
        records: Records,
        rewards: &Rewards,
    ) -> Result<(Self, Datasets), TrainError> {
        let (objects, hash) = objects(config, records.train)?;
        let context = format.limits.context_length;
        let answer = config.grpo.max_completion_length();
        let most = context.saturating_sub(answer);
        let (mut questions, mut order) = (Self::default(), Vec::new());
        let (mut errors, mut too_long) = (Vec::new(), Vec::new());
        for (source, fields) in objects {
            let wrong = |reason: String| DataError::TeachesNothing {
                source_place: source.clone(),
                reason,
            };
            match question(fields, format, rewards) {
                Err(reason) => errors.push(wrong(reason)),
                Ok(question) if question.prompt.tokens.len() > most => {
                    let found = question.prompt.tokens.len();
                    too_long.push(wrong(format!(
                        "a prompt of {found} tokens leaves no room for --max-completion-length {answer} in the model's context of {context}"
                    )));
                }
                Ok(question) => {
                    order.push((source.clone(), question.prompt.tokens.clone()));
                    questions.of_source.insert(source, question);
                }
            }
        }
        refuse(errors)?;
        if config.data.strict || order.is_empty() {
            refuse(too_long)?;
        } else if let Some(first) = too_long.first() {
            warn!(
                "{} prompts are left out; the first one: {first}",
                too_long.len()
            );
        }
        let tokens: usize = order.iter().map(|(_, tokens)| tokens.len()).sum();
        let names: Vec<&str> = rewards.names().collect();
        info!(
            "{} prompts with {:.0} tokens each; rewards: {}",
            order.len(),
            tokens as f64 / order.len().max(1) as f64,
            names.join(", ")
        );
        let datasets = Datasets::of_prompts(order.into_iter(), hash, context);
        Ok((questions, datasets))
    }

    /// The prompt that was read there.
    pub(crate) fn get(&self, source: &Source) -> Option<&Question> {
        self.of_source.get(source)
    }
}

fn question(
    mut fields: Map<String, Value>,
    format: &ChatFormat,
    rewards: &Rewards,
) -> Result<Question, String> {
    rewards.check(&fields)?;
    let prompt = prompts::of_record(&fields, format)?;
    for own in ["prompt", "messages", "tools"] {
        fields.remove(own);
    }
    Ok(Question {
        prompt,
        columns: fields,
    })
}
