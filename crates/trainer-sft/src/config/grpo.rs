//! `--method grpo`: answers to each prompt, and how they are rewarded and learnt.

use serde::{Deserialize, Serialize};

use super::ranges::{in_range, whole_in_range};
use super::{Config, ConfigError, Method};

/// The settings of GRPO, with the names and the defaults of TRL's `GRPOConfig`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GrpoOptions {
    /// Answers to each prompt; `None` is 8.
    pub num_generations: Option<usize>,
    /// Temperature that they are drawn with; `None` is 1.
    pub temperature: Option<f64>,
    /// The most tokens of an answer; `None` is 512.
    pub max_completion_length: Option<usize>,
    /// Optimizer steps on the same answers; `None` is 1.
    pub num_iterations: Option<usize>,
    /// How far the probability of a token may change from when it was drawn, down and up; `None` is 0.2.
    pub epsilon: Option<f64>,
    /// The same upwards; `None` is `epsilon`.
    pub epsilon_high: Option<f64>,
    /// What rewards are divided by; `None` is [`ScaleRewards::Group`].
    pub scale_rewards: Option<ScaleRewards>,
    /// Built-in rewards.
    #[serde(rename = "reward")]
    pub rewards: Vec<String>,
    /// Addresses of programs that give rewards.
    #[serde(rename = "reward_url")]
    pub reward_urls: Vec<String>,
    /// Weights of the built-in rewards and then of the programs; empty is 1 for each.
    pub reward_weights: Vec<f64>,
    /// Seconds that such a program may take; `None` is 60.
    pub reward_timeout: Option<f64>,
}

/// What the rewards of a group are divided by after their mean was subtracted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ScaleRewards {
    /// Their standard deviation.
    #[default]
    Group,
    /// The standard deviation of all rewards of the step.
    Batch,
    /// Nothing.
    None,
}

/// Weights of rewards, at most: the squares of larger sums are no numbers.
const MAX_WEIGHT: f64 = 1e6;
/// Seconds that a program of rewards may take where nothing else is said.
const TIMEOUT: f64 = 60.0;

impl GrpoOptions {
    /// Answers to each prompt.
    pub fn num_generations(&self) -> usize {
        self.num_generations.unwrap_or(8)
    }

    /// Temperature that answers are drawn with.
    pub fn temperature(&self) -> f64 {
        self.temperature.unwrap_or(1.0)
    }

    /// The most tokens of an answer.
    pub fn max_completion_length(&self) -> usize {
        self.max_completion_length.unwrap_or(512)
    }

    /// Optimizer steps on the same answers.
    pub fn num_iterations(&self) -> usize {
        self.num_iterations.unwrap_or(1)
    }

    /// How far probabilities may change, down and up.
    pub fn epsilons(&self) -> (f64, f64) {
        let low = self.epsilon.unwrap_or(0.2);
        (low, self.epsilon_high.unwrap_or(low))
    }

    /// Whether a reward is about this field of a record. A program gets all of them.
    pub(super) fn is_about(&self, field: &str) -> bool {
        let is_field = |reward: &String| reward.strip_prefix("exact_match:") == Some(field);
        !self.reward_urls.is_empty() || self.rewards.iter().any(is_field)
    }

    /// Seconds that a program of rewards may take.
    pub fn reward_timeout(&self) -> f64 {
        self.reward_timeout.unwrap_or(TIMEOUT)
    }

    /// Flags that are given.
    fn given(&self) -> [(&'static str, bool); 11] {
        [
            ("num-generations", self.num_generations.is_some()),
            ("temperature", self.temperature.is_some()),
            (
                "max-completion-length",
                self.max_completion_length.is_some(),
            ),
            ("num-iterations", self.num_iterations.is_some()),
            ("epsilon", self.epsilon.is_some()),
            ("epsilon-high", self.epsilon_high.is_some()),
            ("scale-rewards", self.scale_rewards.is_some()),
            ("reward", !self.rewards.is_empty()),
            ("reward-url", !self.reward_urls.is_empty()),
            ("reward-weights", !self.reward_weights.is_empty()),
            ("reward-timeout", self.reward_timeout.is_some()),
        ]
    }
}

impl Config {
    /// Rows of the data in a micro-batch, and micro-batches of a step. A row of GRPO is a prompt, which has several answers.
    pub(crate) fn rows_per_step(&self) -> (usize, usize) {
        let (rows, steps) = (self.run.batch_size, self.run.gradient_accumulation);
        if self.method.method != Method::Grpo {
            return (rows, steps * self.num_devices());
        }
        ((rows * steps / self.grpo.num_generations()).max(1), 1)
    }

    /// Ranges of the settings of GRPO, and settings of a run that do not go with it.
    pub(super) fn check_grpo(&self) -> Result<(), ConfigError> {
        let grpo = &self.grpo;
        if self.method.method != Method::Grpo {
            return match grpo.given().into_iter().find(|(_, given)| *given) {
                Some((flag, _)) => conflict(format!(
                    "--{flag} would have no effect: it is a setting of --method grpo; add that, or leave it out"
                )),
                None => Ok(()),
            };
        }
        self.check_grpo_rewards()?;
        let (rows, steps) = (self.run.batch_size, self.run.gradient_accumulation);
        let answers = grpo.num_generations();
        if !(rows * steps).is_multiple_of(answers) {
            return conflict(format!(
                "--batch-size × --gradient-accumulation is the number of answers of a step: expected a multiple of \
                 --num-generations {answers}, found {rows} × {steps}"
            ));
        }
        if self.run.full && self.method.beta() > 0.0 {
            return conflict(
                "--beta compares with the model without its adapter, and --full trains the model itself: leave one of them out"
                    .into(),
            );
        }
        for (flag, is_given) in [
            ("epsilon", grpo.epsilon.is_some()),
            ("epsilon-high", grpo.epsilon_high.is_some()),
        ] {
            if is_given && grpo.num_iterations() == 1 {
                return conflict(format!(
                    "--{flag} would have no effect: with --num-iterations 1 each answer is learnt by the weights that drew it; \
                     leave it out"
                ));
            }
        }
        let evaluations = self.run.eval_steps.filter(|_| self.run.load_best);
        for (flag, steps, why) in [
            (
                "save-steps",
                self.run.save_steps,
                "a resumed run starts with new answers",
            ),
            (
                "eval-steps",
                evaluations,
                "the checkpoints of --load-best are ones to resume from",
            ),
        ] {
            let (steps, size) = (steps.unwrap_or(0), grpo.num_iterations());
            if !steps.is_multiple_of(size) {
                return conflict(format!(
                    "--{flag}: expected a multiple of --num-iterations {size}, so that {why}, found {steps}"
                ));
            }
        }
        self.check_unused()
    }

    pub(super) fn check_grpo_ranges(&self) -> Result<(), ConfigError> {
        let grpo = &self.grpo;
        for (flag, value, least, most) in [
            ("num-generations", grpo.num_generations(), 2, 1 << 16),
            (
                "max-completion-length",
                grpo.max_completion_length(),
                1,
                1 << 20,
            ),
            ("num-iterations", grpo.num_iterations(), 1, 1 << 16),
        ] {
            whole_in_range(flag, value, least, most)?;
        }
        let beta = self.method.beta();
        let (low, high) = grpo.epsilons();
        for (flag, value, is_right, expected) in [
            (
                "temperature",
                grpo.temperature(),
                grpo.temperature() >= 0.01 && grpo.temperature() <= 100.0,
                "a number from 0.01 to 100, so that the answers to a prompt differ",
            ),
            (
                "beta",
                beta,
                beta >= 0.0 && beta.is_finite(),
                "a number, 0 or more",
            ),
            (
                "epsilon",
                low,
                (0.0..1.0).contains(&low),
                "a number from 0 to below 1",
            ),
            (
                "epsilon-high",
                high,
                high >= 0.0 && high.is_finite(),
                "a number, 0 or more",
            ),
            (
                "reward-timeout",
                grpo.reward_timeout(),
                grpo.reward_timeout() > 0.0 && grpo.reward_timeout() <= 86400.0,
                "seconds above 0, up to 86400",
            ),
        ] {
            if !is_right {
                return wrong(flag, expected.into(), value.to_string());
            }
        }
        Ok(())
    }

    fn check_grpo_rewards(&self) -> Result<(), ConfigError> {
        let grpo = &self.grpo;
        let rewards = grpo.rewards.len() + grpo.reward_urls.len();
        if rewards == 0 {
            return conflict(
                "--method grpo learns from rewards: give --reward (exact_match, regex:PATTERN, json, json_schema:FILE, length:MIN-MAX) or --reward-url"
                    .into(),
            );
        }
        let weights = &grpo.reward_weights;
        for weight in weights {
            in_range("reward-weights", *weight, -MAX_WEIGHT, MAX_WEIGHT)?;
        }
        if !weights.is_empty() && weights.iter().all(|weight| *weight == 0.0) {
            return conflict(
                "--reward-weights are all 0, and nothing would be learnt: give one of them another value".into(),
            );
        }
        if !weights.is_empty() && weights.len() != rewards {
            return wrong(
                "reward-weights",
                format!("{rewards}, one for each --reward and then for each --reward-url"),
                weights.len().to_string(),
            );
        }
        if grpo.reward_timeout.is_some() && grpo.reward_urls.is_empty() {
            return conflict("--reward-timeout needs --reward-url".into());
        }
        Ok(())
    }

    /// Settings that are of examples with answers.
    fn check_unused(&self) -> Result<(), ConfigError> {
        let (data, run) = (&self.data, &self.run);
        let split = "--eval-data names the held-out prompts";
        let examples = "it is about examples, and --method grpo learns from its own answers";
        for (flag, is_given, why) in [
            ("eval-split", data.eval_split.is_some(), split),
            ("preview", run.preview.is_some(), examples),
            ("packing", data.packing, examples),
            ("streaming", data.streaming, examples),
            (
                "neftune-noise-alpha",
                self.optimizer.neftune_noise_alpha.is_some(),
                examples,
            ),
        ] {
            if is_given {
                return conflict(format!(
                    "--{flag} would have no effect with --method grpo: {why}; leave it out"
                ));
            }
        }
        Ok(())
    }
}

fn conflict(text: String) -> Result<(), ConfigError> {
    Err(ConfigError::Conflict(text))
}

fn wrong(flag: &'static str, expected: String, found: String) -> Result<(), ConfigError> {
    Err(ConfigError::Value {
        flag,
        expected,
        found,
    })
}
