//! Answers and rewards of `--method grpo`.

use serde::{Deserialize, Serialize};

use super::values::{list, number, one_or_many, whole};
use crate::config::{GrpoOptions, ScaleRewards};

/// The flags under "GRPO".
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct GrpoArgs {
    /// Answers to each prompt, which are compared with each other [default: 8]
    #[arg(long, value_name = "N", value_parser = whole)]
    pub num_generations: Option<usize>,

    /// Temperature that answers are drawn with [default: 1]
    #[arg(long, value_name = "T", value_parser = number)]
    pub temperature: Option<f64>,

    /// The most tokens of an answer [default: 512]
    #[arg(long, value_name = "TOKENS", value_parser = whole)]
    pub max_completion_length: Option<usize>,

    /// Optimizer steps on the same answers [default: 1]
    #[arg(long, value_name = "N", value_parser = whole)]
    pub num_iterations: Option<usize>,

    /// How far such steps may change the probability of a token: its ratio is clipped to 1 ± EPSILON [default: 0.2]
    #[arg(long, value_name = "EPSILON", value_parser = number)]
    pub epsilon: Option<f64>,

    /// The bound upwards, where it is another one [default: --epsilon]
    #[arg(long, value_name = "EPSILON", value_parser = number)]
    pub epsilon_high: Option<f64>,

    /// What rewards are divided by, after the mean of their group was subtracted [default: group]
    #[arg(long, value_enum)]
    pub scale_rewards: Option<ScaleRewards>,

    /// Reward of an answer, from 0 to 1; repeat for several, which are added: `exact_match` (the record's `answer`, or
    /// exact_match:COLUMN), `regex:PATTERN` (found in the answer), `json` (an object or a list), `json_schema:FILE`,
    /// `length:MIN-MAX` (in tokens)
    #[arg(long, value_name = "REWARD")]
    #[serde(deserialize_with = "one_or_many")]
    pub reward: Vec<String>,

    /// Program that gives rewards: it gets a POST with `prompts`, `completions` and `columns`, and answers {"rewards": […]};
    /// repeat for several
    #[arg(long, value_name = "URL")]
    #[serde(deserialize_with = "one_or_many")]
    pub reward_url: Vec<String>,

    /// Weights of the rewards, in the order of --reward and then of --reward-url [default: 1 each]
    #[arg(long, value_name = "WEIGHTS", value_delimiter = ',', num_args = 1.., value_parser = number)]
    pub reward_weights: Vec<f64>,

    /// Seconds that --reward-url may take to answer [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = number)]
    pub reward_timeout: Option<f64>,
}

impl GrpoArgs {
    /// These settings where given, `file`'s otherwise.
    pub(super) fn over(self, file: Self) -> Self {
        Self {
            num_generations: self.num_generations.or(file.num_generations),
            temperature: self.temperature.or(file.temperature),
            max_completion_length: self.max_completion_length.or(file.max_completion_length),
            num_iterations: self.num_iterations.or(file.num_iterations),
            epsilon: self.epsilon.or(file.epsilon),
            epsilon_high: self.epsilon_high.or(file.epsilon_high),
            scale_rewards: self.scale_rewards.or(file.scale_rewards),
            reward: list(self.reward, file.reward),
            reward_url: list(self.reward_url, file.reward_url),
            reward_weights: list(self.reward_weights, file.reward_weights),
            reward_timeout: self.reward_timeout.or(file.reward_timeout),
        }
    }

    /// These settings.
    pub(in crate::config) fn to_config(&self) -> GrpoOptions {
        GrpoOptions {
            num_generations: self.num_generations,
            temperature: self.temperature,
            max_completion_length: self.max_completion_length,
            num_iterations: self.num_iterations,
            epsilon: self.epsilon,
            epsilon_high: self.epsilon_high,
            scale_rewards: self.scale_rewards,
            rewards: self.reward.clone(),
            reward_urls: self.reward_url.clone(),
            reward_weights: self.reward_weights.clone(),
            reward_timeout: self.reward_timeout,
        }
    }
}
